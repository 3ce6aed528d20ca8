//! The settings of `[tls]`: HTTPS, with certificates from an authority that speaks ACME or from files.

use std::path::PathBuf;

use serde::Serialize;

use super::keys;
use crate::document::{Problem, Value};
use crate::section::Section;
use crate::value::{absolute, one_or_more, string, text, url};

/// The port of HTTPS.
pub const TLS_PORT: u16 = 443;

/// `[tls]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Tls {
    pub mode: TlsMode,
    /// The host names that have HTTPS, in lower case and without duplicates. At least one, unless the mode is
    /// [`TlsMode::Off`].
    pub names: Vec<String>,
    /// The contact of the account at the authority.
    pub email: Option<String>,
    /// The URL of the authority's directory (RFC 8555, section 7.1.1). `None` for Let's Encrypt.
    pub directory: Option<String>,
    /// The certificate profile to ask for.
    pub profile: Option<String>,
    /// The roots that are trusted for the connection to the authority, instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// The identifier of the external account (RFC 8555, section 7.3.4). It comes with [`Self::eab_key_file`].
    pub eab_kid: Option<String>,
    /// A file with the key of the external account.
    pub eab_key_file: Option<PathBuf>,
    /// The files with the certificates, each with its chain, for [`TlsMode::Files`].
    pub certificate: Vec<PathBuf>,
    /// The file with the key of each certificate, in the same order.
    pub key: Vec<PathBuf>,
    pub http: PlainHttp,
    /// Whether browsers are told to use nothing but HTTPS for a year (RFC 6797).
    pub hsts: bool,
}

/// Where the certificates come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum TlsMode {
    /// There is no HTTPS.
    #[default]
    Off,
    /// The administrator's files.
    Files,
    /// An authority that speaks ACME (RFC 8555).
    Acme,
}

/// The answer to requests without TLS for a name that has a certificate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PlainHttp {
    /// The same path with HTTPS.
    #[default]
    Redirect,
    /// The same as with TLS.
    Serve,
}

impl TlsMode {
    /// The word in links.toml.
    pub fn word(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Files => "files",
            Self::Acme => "acme",
        }
    }
}

impl PlainHttp {
    /// The word in links.toml.
    pub fn word(self) -> &'static str {
        match self {
            Self::Redirect => "redirect",
            Self::Serve => "serve",
        }
    }
}

impl Tls {
    pub fn is_on(&self) -> bool {
        self.mode != TlsMode::Off
    }

    /// The names that have HTTPS, or get it as soon as they have a certificate.
    pub fn served(&self) -> &[String] {
        match self.is_on() {
            true => &self.names,
            false => &[],
        }
    }
}

/// Reads `[tls]`.
pub(super) fn tls(section: &mut Section<'_, '_>) -> Tls {
    let mode = match section.word(&keys::TLS_MODE) {
        "files" => TlsMode::Files,
        "acme" => TlsMode::Acme,
        _ => TlsMode::Off,
    };
    let tls = Tls {
        mode,
        names: section.given(&keys::TLS_NAMES, names).unwrap_or_default(),
        http: match section.word(&keys::TLS_HTTP) {
            "serve" => PlainHttp::Serve,
            _ => PlainHttp::Redirect,
        },
        hsts: section.boolean(&keys::TLS_HSTS),
        email: section.given(&keys::TLS_EMAIL, email),
        directory: section.given(&keys::TLS_DIRECTORY, |value| Ok(url(&["https"])(value)?.into())),
        profile: section.given(&keys::TLS_PROFILE, profile),
        ca_file: section.given(&keys::TLS_CA_FILE, absolute),
        eab_kid: section.given(&keys::TLS_EAB_KID, text),
        eab_key_file: section.given(&keys::TLS_EAB_KEY_FILE, absolute),
        certificate: section.given(&keys::TLS_CERTIFICATE, paths).unwrap_or_default(),
        key: section.given(&keys::TLS_KEY, paths).unwrap_or_default(),
    };
    match mode {
        TlsMode::Off => {}
        TlsMode::Acme => {
            section.require("names");
            section.together(&["eab_kid", "eab_key_file"]);
        }
        TlsMode::Files => ["names", "certificate", "key"]
            .iter()
            .for_each(|key| section.require(key)),
    }
    let files = [tls.certificate.len(), tls.key.len()];
    if mode == TlsMode::Files && files[0] != files[1] {
        section.document().error(
            section.place_of(&["key"]),
            format!(
                "`tls.certificate` and `tls.key` have {} and {} files",
                files[0], files[1]
            ),
            Some("write the key of each certificate, in the same order".to_owned()),
        );
    }
    if tls.hsts && tls.is_on() {
        section.document().warning(
            section.place_of(&["hsts"]),
            "`tls.hsts` makes browsers refuse the names without HTTPS for a year, even after HTTPS is turned off here",
            Some("leave it out until HTTPS has worked for a while".to_owned()),
        );
    }
    tls
}

/// Warns about short URLs that lead to a name without TLS although it has HTTPS.
pub(super) fn plain_public_url(top: &Section<'_, '_>, public_url: Option<&str>, tls: &Tls) {
    let Some(host) = public_url.and_then(|url| url.strip_prefix("http://")) else {
        return;
    };
    if tls.served().iter().any(|name| name == host) {
        top.document().warning(
            top.place_of(&["public_url"]),
            "`public_url` begins with http://, although the name has HTTPS",
            Some(format!("write \"https://{host}\", or remove the line")),
        );
    }
}

fn paths(value: &Value<'_>) -> Result<Vec<PathBuf>, Problem> {
    one_or_more(absolute)(value)
}

fn names(value: &Value<'_>) -> Result<Vec<String>, Problem> {
    let mut names: Vec<String> = vec![];
    for name in one_or_more(name)(value)? {
        if names.contains(&name) {
            return Err(Problem::new(format!("names \"{name}\" twice")));
        }
        names.push(name);
    }
    Ok(names)
}

fn name(value: &Value<'_>) -> Result<String, Problem> {
    let text = string(value)?;
    host_name(text).ok_or_else(|| {
        Problem::new(format!("must be a host name, found \"{}\"", text.escape_debug()))
            .help("write it without https://, an international name in its xn-- form, and each subdomain by itself")
    })
}

/// The host name in lower case and without a dot at the end. `None` if it is none (RFC 1123, section 2.1), such as an IP
/// address or a wildcard.
pub fn host_name(text: &str) -> Option<String> {
    let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    // A name whose last label is a number is an IPv4 address, or looks like one (URL Standard, "ends in a number checker").
    let is_number = |label: &str| label.bytes().all(|byte| byte.is_ascii_digit());
    let is_name = name.len() <= 253 && name.split('.').all(is_label) && !name.rsplit('.').next().is_some_and(is_number);
    is_name.then_some(name)
}

fn email(value: &Value<'_>) -> Result<String, Problem> {
    let text = string(value)?;
    let is_address = is_email(text);
    is_address
        .then(|| text.to_owned())
        .ok_or_else(|| Problem::new("must be an email address").help("write \"you@example.org\""))
}

/// Whether the text has the form of one email address. The authority decides on the rest.
pub fn is_email(text: &str) -> bool {
    let no_special = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b',' | b'?' | b'<' | b'>' | b'"');
    text.split_once('@')
        .is_some_and(|(local, domain)| !local.is_empty() && host_name(domain).is_some())
        && text.bytes().all(no_special)
}

fn profile(value: &Value<'_>) -> Result<String, Problem> {
    let text = string(value)?;
    is_profile(text)
        .then(|| text.to_owned())
        .ok_or_else(|| Problem::new("must be the name of a profile, such as \"shortlived\""))
}

/// Whether the text can be the name of a profile.
pub fn is_profile(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use super::super::Config;
    use super::*;

    fn parsed(text: &str) -> Config {
        Config::parse(text, "links.toml").unwrap()
    }

    /// The findings in a `links.toml` with this text, one per line.
    fn found(text: &str) -> String {
        let (_, findings) = super::super::read(text, "links.toml");
        findings.iter().map(|finding| format!("{finding}\n")).collect()
    }

    #[test]
    fn every_key_is_read() {
        let config = parsed(
            "[tls]\nmode = \"acme\"\nnames = [\"S.Example.org.\", \"xn--bcher-kva.example\"]\nemail = \"me@example.org\"\n\
             directory = \"https://ca.example/dir\"\nprofile = \"shortlived\"\nca_file = \"/ca.pem\"\neab_kid = \"kid-1\"\n\
             eab_key_file = \"/eab\"\nhttp = \"serve\"\ncertificate = \"/c\"\nkey = [\"/k\"]\n",
        );
        let expected = Tls {
            mode: TlsMode::Acme,
            names: vec!["s.example.org".into(), "xn--bcher-kva.example".into()],
            email: Some("me@example.org".into()),
            directory: Some("https://ca.example/dir".into()),
            profile: Some("shortlived".into()),
            ca_file: Some("/ca.pem".into()),
            eab_kid: Some("kid-1".into()),
            eab_key_file: Some("/eab".into()),
            certificate: vec!["/c".into()],
            key: vec!["/k".into()],
            http: PlainHttp::Serve,
            hsts: false,
        };
        assert_eq!(config.tls, expected);
    }

    #[test]
    fn each_mode_asks_for_its_keys() {
        assert_eq!(found("[tls]\nmode = \"off\"\n"), "");
        assert!(found("[tls]\nmode = \"acme\"\n").contains("`names` is missing in [tls]"));
        let files = "[tls]\nmode = \"files\"\nnames = \"a.example\"\n";
        let missing = found(files);
        assert!(
            missing.contains("`certificate` is missing") && missing.contains("`key` is missing"),
            "{missing}"
        );
        let unequal = found(&format!("{files}certificate = [\"/a\", \"/b\"]\nkey = \"/k\"\n"));
        assert!(unequal.contains("have 2 and 1 files"), "{unequal}");
        assert_eq!(found(&format!("{files}certificate = \"/a\"\nkey = \"/k\"\n")), "");
        let acme = "[tls]\nmode = \"acme\"\nnames = \"a.example\"\neab_kid = \"k\"\n";
        assert!(found(acme).contains("needs all of"), "{}", found(acme));
    }

    #[test]
    fn only_host_names_have_https() {
        for name in ["a.example", "localhost", "a-b.example", "1.example", "xn--p1ai"] {
            assert_eq!(host_name(name).as_deref(), Some(name));
        }
        let long = format!("{}.example", "a".repeat(64));
        for name in [
            "",
            ".",
            "*.example.org",
            "https://a.example",
            "a.example:443",
            "192.0.2.1",
            "[::1]",
            "a_b.example",
            "-a.example",
            "a..example",
            &long,
            "a.example;",
        ] {
            assert_eq!(host_name(name), None, "{name}");
        }
        assert!(found("tls.names = [\"a.example\", \"A.example\"]").contains("twice"));
        assert!(found("tls.names = \"*.example\"").contains("must be a host name"));
    }

    #[test]
    fn an_email_address_has_a_name_and_a_host() {
        for text in ["me@example.org", "me+links@example.org"] {
            assert!(is_email(text), "{text}");
        }
        for text in [
            "",
            "me",
            "@example.org",
            "me@",
            "a@b@example.org",
            "me@example.org,you@example.org",
            "a b@c.d",
        ] {
            assert!(!is_email(text), "{text}");
        }
    }

    #[test]
    fn the_port_of_https_is_not_for_requests_without_it() {
        let on = "[tls]\nmode = \"acme\"\nnames = \"a.example\"\n[nginx]\nlisten = [80, 443]\n";
        assert!(found(on).contains("HTTPS has port 443"), "{}", found(on));
        assert_eq!(found("nginx.listen = [80, 443]"), "");
    }

    #[test]
    fn hsts_comes_with_a_warning_where_it_has_an_effect() {
        let on = "[tls]\nmode = \"acme\"\nnames = \"a.example\"\nhsts = true\n";
        assert!(found(on).contains("refuse the names without HTTPS"), "{}", found(on));
        assert!(parsed(on).tls.hsts);
        assert_eq!(found("tls.hsts = true"), "");
    }

    #[test]
    fn the_first_name_begins_short_urls_unless_public_url_does() {
        let text = "[tls]\nmode = \"acme\"\nnames = [\"a.example\", \"b.example\"]\n";
        assert_eq!(parsed(text).base_url().as_deref(), Some("https://a.example"));
        let named = format!("public_url = \"https://c.example\"\n{text}");
        assert_eq!(parsed(&named).base_url().as_deref(), Some("https://c.example"));
        assert_eq!(parsed("tls.names = \"a.example\"").base_url(), None);
        let behind = format!("nginx.trusted_proxies = \"10.0.0.0/8\"\n{text}");
        assert!(found(&behind).contains("again and again"), "{}", found(&behind));
        assert_eq!(found(&format!("{behind}http = \"serve\"\n")), "");
        let plain = format!("public_url = \"http://b.example\"\n{text}");
        assert!(found(&plain).contains("https://b.example"), "{}", found(&plain));
    }
}
