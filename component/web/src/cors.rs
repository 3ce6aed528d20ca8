//! Which web pages may call `POST /shorten` from a browser (the Fetch standard's CORS protocol).

use links_domain::origin::Origin;

use crate::reply::{Headers, Reply};

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cors {
    /// No page.
    Nobody,
    /// Any page. If a token is required, it is the protection.
    Anybody,
    Only(Origin),
}

impl Cors {
    /// The headers for every response to `/shorten`. Without them a page could not read what is wrong, so errors have them,
    /// too.
    pub fn headers(&self, origin: Option<&str>) -> Headers {
        match self {
            Cors::Nobody => Vec::new(),
            Cors::Anybody => vec![("access-control-allow-origin", "*".into())],
            Cors::Only(allowed) => {
                let mut headers: Headers = vec![("vary", "origin".into())];
                if self.allows(origin) {
                    headers.push(("access-control-allow-origin", allowed.to_string().into()));
                }
                headers
            }
        }
    }

    /// The answer to `OPTIONS /shorten`. A page that is not allowed gets one without the headers that grant access.
    pub fn preflight(&self, origin: Option<&str>) -> Reply {
        let mut headers: Headers = vec![("allow", "POST, OPTIONS".into())];
        headers.extend(self.headers(origin));
        if self.allows(origin) {
            headers.push(("access-control-allow-methods", "POST".into()));
            headers.push(("access-control-allow-headers", "authorization, content-type".into()));
            headers.push(("access-control-max-age", "600".into()));
        }
        Reply::no_content(headers)
    }

    fn allows(&self, origin: Option<&str>) -> bool {
        match self {
            Cors::Nobody => false,
            Cors::Anybody => true,
            // A browser sends the normal form (RFC 6454), so the texts can be compared.
            Cors::Only(allowed) => origin.is_some_and(|origin| origin == allowed.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    const ALLOW: &str = "access-control-allow-origin";

    fn only() -> Cors {
        Cors::Only(Origin::parse("https://app.example").unwrap())
    }

    #[test]
    fn allows_exactly_the_configured_origin() {
        assert_eq!(
            only().preflight(Some("https://app.example")).header(ALLOW),
            Some("https://app.example")
        );
        for origin in [
            None,
            Some("null"),
            Some("http://app.example"),
            Some("https://app.example:444"),
            Some("https://app.example.evil.example"),
            Some("https://evil.example"),
            Some("*"),
        ] {
            let reply = only().preflight(origin);
            assert_eq!(reply.status, 204);
            assert!(
                reply
                    .headers
                    .iter()
                    .all(|(name, _)| !name.starts_with("access-control")),
                "{origin:?}"
            );
            assert_eq!(reply.header("allow"), Some("POST, OPTIONS"));
        }
    }

    #[test]
    fn a_preflight_allows_what_shortening_needs() {
        let reply = only().preflight(Some("https://app.example"));
        assert_eq!(reply.header("access-control-allow-methods"), Some("POST"));
        assert_eq!(
            reply.header("access-control-allow-headers"),
            Some("authorization, content-type")
        );
    }

    #[test]
    fn caches_must_keep_origins_apart() {
        for origin in [None, Some("https://app.example"), Some("https://evil.example")] {
            assert!(only().headers(origin).contains(&("vary", "origin".into())));
        }
    }

    #[test]
    fn a_star_allows_every_page_and_no_value_allows_none() {
        assert_eq!(
            Cors::Anybody.headers(Some("https://x.example")),
            vec![(ALLOW, "*".into())]
        );
        assert_eq!(Cors::Nobody.headers(Some("https://x.example")), vec![]);
        assert_eq!(Cors::Nobody.preflight(Some("https://x.example")).header(ALLOW), None);
    }
}
