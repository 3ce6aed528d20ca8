//! The URL under which the repository will be served.

use anyhow::Context as _;
use ureq::http::Uri;

/// An HTTP URL without a trailing slash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseUrl(String);

impl BaseUrl {
    /// From the value of `--url`.
    ///
    /// # Errors
    /// Fails if there is none, or if it is not the URL of a directory on an HTTP server.
    pub fn new(text: Option<&str>) -> anyhow::Result<Self> {
        let text = text.filter(|text| !text.is_empty()).context(
            "the URL of the repository is missing: set REPO_URL (--url) to where hosts will find it, such as \
             https://apt.example.org",
        )?;
        let is_base = |uri: &Uri| {
            let is_http = matches!(uri.scheme_str(), Some("http" | "https"));
            is_http && uri.host().is_some_and(|host| !host.is_empty()) && uri.query().is_none() && !text.contains('#')
        };
        let uri = text.parse::<Uri>().ok().filter(is_base);
        anyhow::ensure!(
            uri.is_some(),
            "{text:?} (REPO_URL or --url) is not the URL of a directory, such as https://apt.example.org or \
             https://example.org/apt"
        );
        Ok(Self(text.trim_end_matches('/').to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The URL of a file in the repository.
    pub fn join(&self, path: &str) -> String {
        format!("{}/{path}", self.0)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use super::*;

    #[test]
    fn a_base_url_has_a_host_and_no_trailing_slash() {
        for (text, base) in [
            ("https://apt.example.org", "https://apt.example.org"),
            ("https://apt.example.org/", "https://apt.example.org"),
            ("http://127.0.0.1:8085/links/", "http://127.0.0.1:8085/links"),
        ] {
            assert_eq!(BaseUrl::new(Some(text)).unwrap().as_str(), base);
        }
        assert_eq!(
            BaseUrl::new(Some("http://x/")).unwrap().join("links.sources"),
            "http://x/links.sources"
        );
    }

    /// The URL becomes a line of a file that apt reads.
    #[test]
    fn anything_else_is_refused() {
        for text in [
            None,
            Some(""),
            Some("apt.example.org"),
            Some("ftp://apt.example.org"),
            Some("https://"),
            Some("https://x/?y"),
            Some("https://x/#y"),
            Some("https://x /"),
            Some("https://x/\nTrusted: yes"),
        ] {
            assert!(BaseUrl::new(text).is_err(), "{text:?}");
        }
    }
}
