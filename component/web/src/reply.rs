//! A whole response as a value.

use std::borrow::Cow;

use links_domain::slug::Slug;
use serde::Serialize;

/// Header names in lower case, and their values.
pub type Headers = Vec<(&'static str, Cow<'static, str>)>;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    pub status: u16,
    pub headers: Headers,
    pub body: Vec<u8>,
}

impl Reply {
    /// A response with a body. It must not be cached, because links change and errors are temporary.
    pub fn new(status: u16, content_type: &'static str, body: Vec<u8>) -> Self {
        let headers = vec![
            ("content-type", content_type.into()),
            ("cache-control", "no-store".into()),
            // Keeps browsers from guessing another type (Fetch standard).
            ("x-content-type-options", "nosniff".into()),
        ];
        Reply { status, headers, body }
    }

    /// 302 to `url`, which is in its normal form and therefore ASCII. The redirect has `no-store`, because a browser that kept
    /// it would still go to the old target after the link had changed, expired or been deleted.
    pub fn redirect(url: String) -> Self {
        let headers = vec![("location", url.into()), ("cache-control", "no-store".into())];
        Reply {
            status: 302,
            headers,
            body: Vec::new(),
        }
    }

    /// 200 with a value as JSON.
    pub fn json(value: &impl Serialize) -> Self {
        // Serialization only fails for maps with keys that are not strings, and for types whose own implementation fails;
        // the values here are structs of strings, numbers and lists.
        Reply::new(200, "application/json", serde_json::to_vec(value).unwrap_or_default())
    }

    /// Makes nginx answer as for this link (`X-Accel-Redirect`), from its cache or by asking an instance. There is no other
    /// header, because nginx would add it to that answer.
    pub fn internal_redirect(slug: &Slug) -> Self {
        Reply {
            status: 200,
            headers: vec![("x-accel-redirect", format!("/{slug}").into())],
            body: Vec::new(),
        }
    }

    pub fn healthy() -> Self {
        Reply::new(200, "text/plain", b"ok".to_vec())
    }

    pub fn no_content(headers: Headers) -> Self {
        Reply {
            status: 204,
            headers,
            body: Vec::new(),
        }
    }

    pub fn with_headers(mut self, headers: Headers) -> Self {
        self.headers.extend(headers);
        self
    }

    /// The first value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(n, _)| *n == name)
            .map(|(_, value)| value.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redirect_is_not_cached() {
        let reply = Reply::redirect("https://example.com/".into());
        assert_eq!(reply.status, 302);
        assert_eq!(reply.header("location"), Some("https://example.com/"));
        assert_eq!(reply.header("cache-control"), Some("no-store"));
        assert!(reply.body.is_empty());
    }

    #[test]
    fn no_browser_guesses_the_type_of_a_body() {
        for reply in [Reply::healthy(), Reply::json(&["abc"])] {
            assert_eq!(reply.header("x-content-type-options"), Some("nosniff"));
        }
    }

    #[test]
    fn a_value_is_sent_as_json() {
        let reply = Reply::json(&["abc"]);
        assert_eq!(reply.status, 200);
        assert_eq!(reply.header("content-type"), Some("application/json"));
        assert_eq!(reply.body, br#"["abc"]"#);
    }

    #[test]
    fn healthy_is_the_text_that_probes_look_for() {
        assert_eq!((Reply::healthy().status, Reply::healthy().body), (200, b"ok".to_vec()));
    }
}
