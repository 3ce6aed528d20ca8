//! A whole response as a value.

use std::borrow::Cow;

use serde::Serialize;

use crate::slug::Slug;

/// Header names in lower case, and their values.
pub type Headers = Vec<(&'static str, Cow<'static, str>)>;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    pub status: u16,
    pub headers: Headers,
    pub body: Vec<u8>,
}

impl Reply {
    /// A response with a body. Nobody may keep it: links change, and errors pass.
    pub fn new(status: u16, content_type: &'static str, body: Vec<u8>) -> Self {
        let headers = vec![
            ("content-type", content_type.into()),
            ("cache-control", "no-store".into()),
            // A browser takes it for what it says it is (Fetch standard).
            ("x-content-type-options", "nosniff".into()),
        ];
        Reply { status, headers, body }
    }

    /// 302 to `url`, which is in its normal form and therefore ASCII. `no-store`: a browser that kept the redirect
    /// would go on to the old place after the link was changed, had expired or was deleted.
    pub fn redirect(url: String) -> Self {
        let headers = vec![("location", url.into()), ("cache-control", "no-store".into())];
        Reply {
            status: 302,
            headers,
            body: Vec::new(),
        }
    }

    /// 200 for a link that exists now, made by this request or there before with the same content.
    pub fn shortened(slug: &str, short_url: &str) -> Self {
        #[derive(Serialize)]
        struct Body<'a> {
            slug: &'a str,
            short_url: &'a str,
        }
        // Two strings always have a JSON form.
        let body = serde_json::to_vec(&Body { slug, short_url }).unwrap_or_default();
        Reply::new(200, "application/json", body)
    }

    /// 200 for whoever looks at a link with a limited number of clicks and takes none of them. It does not say where the link
    /// leads: else anybody who claims to be a bot could go there without end.
    pub fn look() -> Self {
        let text = "This link can be followed a limited number of times. Open it in a browser to follow it.\n";
        Reply::new(200, "text/plain", text.as_bytes().to_vec())
    }

    /// Has nginx answer with what it has, or gets, for this link (`X-Accel-Redirect`). No other header: nginx would add them
    /// to that answer.
    pub fn as_for(slug: &Slug) -> Self {
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
    fn a_redirect_is_kept_by_nobody() {
        let reply = Reply::redirect("https://example.com/".into());
        assert_eq!(reply.status, 302);
        assert_eq!(reply.header("location"), Some("https://example.com/"));
        assert_eq!(reply.header("cache-control"), Some("no-store"));
        assert!(reply.body.is_empty());
    }

    #[test]
    fn no_browser_guesses_what_a_body_is() {
        for reply in [
            Reply::healthy(),
            Reply::look(),
            Reply::shortened("abc", "https://sho.rt/abc"),
        ] {
            assert_eq!(reply.header("x-content-type-options"), Some("nosniff"));
        }
    }

    #[test]
    fn a_look_leads_nowhere() {
        let reply = Reply::look();
        assert_eq!((reply.status, reply.header("location")), (200, None));
        assert_eq!(reply.header("cache-control"), Some("no-store"));
    }

    #[test]
    fn shortened_names_slug_and_short_url_in_json() {
        let reply = Reply::shortened("abc", "https://sho.rt/abc");
        assert_eq!(reply.status, 200);
        assert_eq!(reply.header("content-type"), Some("application/json"));
        assert_eq!(reply.body, br#"{"slug":"abc","short_url":"https://sho.rt/abc"}"#);
    }

    #[test]
    fn healthy_is_the_two_letters_that_probes_look_for() {
        assert_eq!((Reply::healthy().status, Reply::healthy().body), (200, b"ok".to_vec()));
    }
}
