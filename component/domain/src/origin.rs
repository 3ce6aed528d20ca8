//! The appliance's own address: a scheme, a host and a port. Short URLs begin with it, and no link may lead back to it.

use std::fmt;

use url::Url;

use crate::slug::Slug;

/// An origin in its normal form: the host is in lower case, with international names in Punycode, and the scheme's default port
/// is left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    scheme: &'static str,
    host: String,
    port: Option<u16>,
}

impl Origin {
    /// Parses `https://sho.rt` or `http://host:8080/`. Returns `None` for anything else, such as a URL with a path, a query or
    /// a user name.
    pub fn parse(text: &str) -> Option<Origin> {
        let scheme = http_scheme(text)?;
        let url = Url::parse(text).ok()?;
        let bare = url.path() == "/"
            && url.query().is_none()
            && url.fragment().is_none()
            && url.username().is_empty()
            && url.password().is_none();
        let host = url
            .host_str()
            .filter(|host| bare && !without_root_dot(host).is_empty())?;
        Some(Origin {
            scheme,
            host: host.to_owned(),
            port: url.port(),
        })
    }

    pub fn short_url(&self, slug: &Slug) -> String {
        format!("{self}/{slug}")
    }

    /// Whether a URL leads to this host and port. http and https on their default ports count as the same, because one
    /// redirects to the other. `host.` is the same as `host`.
    pub fn is_origin_of(&self, url: &Url) -> bool {
        url.host_str()
            .is_some_and(|host| without_root_dot(host) == without_root_dot(&self.host))
            && public_port(url.port()) == public_port(self.port)
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme, self.host)?;
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

/// The scheme of a text that begins with `http://` or `https://`. The URL parser is more lenient: like browsers, it accepts
/// `https:example.com`, `https:/example.com` and `https:\\example.com`.
pub(crate) fn http_scheme(text: &str) -> Option<&'static str> {
    ["http", "https"].into_iter().find(|scheme| {
        text.get(..scheme.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(scheme))
            && text
                .get(scheme.len()..)
                .and_then(|rest| rest.strip_prefix("://"))
                .is_some_and(|rest| {
                    // The parser also accepts `https:///example.com`.
                    !rest.starts_with(['/', '\\'])
                })
    })
}

pub(crate) fn without_root_dot(host: &str) -> &str {
    host.strip_suffix('.').unwrap_or(host)
}

fn public_port(port: Option<u16>) -> Option<u16> {
    port.filter(|port| *port != 80 && *port != 443)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    fn parsed(text: &str) -> Option<String> {
        Origin::parse(text).map(|origin| origin.to_string())
    }

    #[test]
    fn has_one_normal_form() {
        for (text, normal) in [
            ("https://sho.rt", "https://sho.rt"),
            ("https://sho.rt/", "https://sho.rt"),
            ("HTTPS://SHO.rt:443", "https://sho.rt"),
            ("http://sho.rt:80/", "http://sho.rt"),
            ("http://sho.rt:443", "http://sho.rt:443"),
            ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
            ("http://[::1]:8080", "http://[::1]:8080"),
            ("https://bücher.example", "https://xn--bcher-kva.example"),
        ] {
            assert_eq!(parsed(text).as_deref(), Some(normal), "{text:?}");
        }
    }

    #[test]
    fn accepts_only_scheme_host_and_port() {
        for text in [
            "",
            "sho.rt",
            "ftp://sho.rt",
            "https:sho.rt",
            "https:/sho.rt",
            "https:///sho.rt",
            "https://",
            "https://.",
            "https://sho.rt/path",
            "https://sho.rt?q",
            "https://sho.rt#f",
            "https://user@sho.rt",
            "https://user:pw@sho.rt",
            "https://a b",
            "https://sho.rt:99999",
        ] {
            assert_eq!(parsed(text), None, "{text:?}");
        }
    }

    #[test]
    fn recognises_links_to_itself() {
        let https = Origin::parse("https://sho.rt").unwrap();
        let other_port = Origin::parse("http://sho.rt:8080").unwrap();
        for (url, to_https, to_other_port) in [
            ("https://sho.rt/abc", true, false),
            ("https://SHO.RT./abc", true, false),
            ("http://sho.rt/", true, false),
            ("https://sho.rt:443/", true, false),
            ("http://sho.rt:443/", true, false),
            ("http://sho.rt:8080/", false, true),
            ("https://www.sho.rt/", false, false),
            ("https://sho.rt.example/", false, false),
            ("https://example.com/?u=https://sho.rt/", false, false),
        ] {
            let url = Url::parse(url).unwrap();
            assert_eq!(https.is_origin_of(&url), to_https, "{url}");
            assert_eq!(other_port.is_origin_of(&url), to_other_port, "{url}");
        }
    }

    #[test]
    fn short_urls_begin_with_it() {
        let slug = Slug::in_path("aBc").unwrap();
        assert_eq!(
            Origin::parse("http://h:8080/").unwrap().short_url(&slug),
            "http://h:8080/aBc"
        );
    }
}
