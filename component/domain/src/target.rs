//! Target URLs: where a link leads.

use std::fmt;

use url::{ParseError, Url};

use crate::error::Refused;
use crate::origin::{Origin, http_scheme, without_root_dot};

/// The maximum length of a URL in bytes, both as given and in its normal form.
pub const MAX_BYTES: usize = 8192;

/// An absolute http or https URL in the normal form of the WHATWG URL standard: ASCII, no default port, host in lower
/// case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target(Url);

impl Target {
    /// Parses and checks a URL. `base_url` is the appliance's own address: a link to it would be a redirect loop, or a chain of
    /// redirects.
    ///
    /// # Errors
    /// The URL is empty, too long, malformed, neither http nor https, or leads to `base_url`; or it contains white space,
    /// control characters, a user name or a password.
    pub fn parse(text: &str, base_url: &Origin) -> Result<Target, Refused> {
        if text.is_empty() {
            return refuse("The url is empty.");
        }
        if text.len() > MAX_BYTES {
            return refuse(format!(
                "The url has {} bytes; at most {MAX_BYTES} are allowed.",
                text.len()
            ));
        }
        // The parser drops tabs and line ends anywhere, and control characters at both ends. The stored URL would then differ
        // from the one that somebody may have checked before.
        if let Some(c) = text.chars().find(|c| c.is_whitespace() || c.is_control()) {
            let c = c.escape_default();
            return refuse(format!(
                "The url contains white space or a control character ('{c}'): percent-encode or remove it."
            ));
        }
        if http_scheme(text).is_none() {
            return refuse("The url must begin with http:// or https:// and a host.");
        }
        let url = Url::parse(text).map_err(unparsable)?;
        if !url.username().is_empty() || url.password().is_some() {
            return refuse("The url contains a user name or password: remove the part before the @.");
        }
        if url.host_str().is_none_or(|host| without_root_dot(host).is_empty()) {
            return refuse("The url has no host.");
        }
        if url.as_str().len() > MAX_BYTES {
            let length = url.as_str().len();
            return refuse(format!(
                "The url has {length} bytes when percent-encoded; at most {MAX_BYTES} are allowed."
            ));
        }
        if base_url.is_origin_of(&url) {
            return refuse(format!(
                "The url leads back to {base_url}, which would be a redirect loop. Use the final URL instead."
            ));
        }
        Ok(Target(url))
    }

    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

fn refuse<T>(detail: impl Into<String>) -> Result<T, Refused> {
    Err(Refused::new(detail.into()))
}

fn unparsable(error: ParseError) -> Refused {
    Refused::new(format!("The url is not valid: {error}."))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    fn parse(text: &str) -> Result<String, Refused> {
        Target::parse(text, &Origin::parse("https://sho.rt").unwrap()).map(|target| target.to_string())
    }

    #[test]
    fn has_one_normal_form() {
        for (text, normal) in [
            ("https://example.com", "https://example.com/"),
            ("HTTP://Example.COM:80/A?b=C#d", "http://example.com/A?b=C#d"),
            ("https://example.com:443/", "https://example.com/"),
            ("https://example.com:8443/", "https://example.com:8443/"),
            ("https://example.com/a/../b/./c", "https://example.com/b/c"),
            (
                "https://bücher.example/straße?q=ü#ä",
                "https://xn--bcher-kva.example/stra%C3%9Fe?q=%C3%BC#%C3%A4",
            ),
            ("https://例え.jp/", "https://xn--r8jz45g.jp/"),
            ("https://xn--bcher-kva.example/", "https://xn--bcher-kva.example/"),
            ("http://0x7f.1/", "http://127.0.0.1/"),
            ("http://[2001:DB8::1]:8080/x", "http://[2001:db8::1]:8080/x"),
            ("http://localhost/", "http://localhost/"),
            ("https://@example.com/", "https://example.com/"),
            ("https://example.com/a%20b?c=%2F", "https://example.com/a%20b?c=%2F"),
            ("https://example.com/\"<>", "https://example.com/%22%3C%3E"),
        ] {
            assert_eq!(parse(text).as_deref(), Ok(normal), "{text:?}");
        }
    }

    #[test]
    fn a_normal_form_is_ascii_and_its_own_normal_form() {
        for text in [
            "https://例え.jp/ü?ü#ü",
            "https://example.com/\u{202e}x",
            "https://example.com/{}|^`'",
        ] {
            let normal = parse(text).unwrap();
            assert!(normal.bytes().all(|b| b.is_ascii_graphic()), "{normal:?}");
            assert_eq!(parse(&normal).as_ref(), Ok(&normal));
        }
    }

    #[test]
    fn a_refusal_says_what_to_change() {
        for (text, hint) in [
            ("", "empty"),
            ("example.com", "begin with http"),
            ("//example.com", "begin with http"),
            ("/path", "begin with http"),
            ("ftp://example.com/", "begin with http"),
            ("javascript:alert(1)", "begin with http"),
            ("data:text/html,x", "begin with http"),
            ("file:///etc/passwd", "begin with http"),
            ("https:example.com", "begin with http"),
            ("https:/example.com", "begin with http"),
            ("https:///example.com", "begin with http"),
            ("https:\\\\example.com", "begin with http"),
            ("https://\\example.com", "begin with http"),
            ("httpsü://example.com", "begin with http"),
            ("https://", "not valid"),
            ("https://?q", "not valid"),
            ("https://.", "no host"),
            ("https://exa mple.com", "white space"),
            (" https://example.com", "white space"),
            ("https://example.com ", "white space"),
            ("https://example.com/\u{a0}x", "white space"),
            ("https://example.com/\u{2028}x", "white space"),
            ("java\tscript:alert(1)", "white space"),
            ("https://example.com/\r\nset-cookie: a=b", "control character"),
            ("https://example.com/\0", "control character"),
            ("https://example.com/\u{7f}", "control character"),
            ("https://example.com/\u{85}", "control character"),
            ("https://user@example.com/", "user name"),
            ("https://user:pw@example.com/", "user name"),
            ("https://:pw@example.com/", "user name"),
            ("https://example.com:99999/", "port"),
            ("https://exam%00ple.com/", "not valid"),
            ("https://[::1/", "not valid"),
            ("https://sho.rt/abc", "loop"),
            ("http://SHO.RT.:80/abc", "loop"),
            ("https://ｓｈｏ.ｒｔ/abc", "loop"),
            ("https://sho%2Ert/abc", "loop"),
        ] {
            let refused = parse(text).unwrap_err();
            assert!(refused.reason().contains(hint), "{text:?}: {}", refused);
        }
    }

    #[test]
    fn a_user_name_cannot_hide_a_link_to_the_own_host() {
        assert!(parse("https://sho.rt@example.com/").is_err());
        assert!(
            parse("https://example.com\\@sho.rt/").is_ok(),
            "a path of example.com, as browsers read it"
        );
    }

    #[test]
    fn limits_the_length_of_the_input_and_of_the_normal_form() {
        let fitting = format!("https://example.com/{}", "a".repeat(MAX_BYTES - 20));
        assert_eq!(fitting.len(), MAX_BYTES);
        assert_eq!(parse(&fitting).as_ref(), Ok(&fitting));
        assert!(
            parse(&format!("{fitting}a"))
                .unwrap_err()
                .reason()
                .contains("8193 bytes;")
        );

        let grows = format!("https://example.com/{}", "ü".repeat(2000));
        assert!(grows.len() < MAX_BYTES);
        assert!(
            parse(&grows)
                .unwrap_err()
                .reason()
                .contains("12020 bytes when percent-encoded")
        );
    }
}
