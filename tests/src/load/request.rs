//! A request, and the check of its answer.

use std::fmt;

use serde::Deserialize;

use super::mix::{Connections, Link};
use super::report::{Method, Outcome};
use crate::wire::Reply;

#[derive(Deserialize)]
struct Shortened {
    slug: String,
}

/// A request, with the values that the right answer must have.
pub(super) enum Request {
    Shorten { url: String },
    Follow { method: Method, slug: String, url: String },
    Unknown { method: Method, slug: String },
}

impl Request {
    pub fn method(&self) -> Method {
        match self {
            Self::Shorten { .. } => Method::Post,
            Self::Follow { method, .. } | Self::Unknown { method, .. } => *method,
        }
    }

    /// The bytes of the request. `common` holds the header fields that every request has.
    pub fn bytes(&self, common: &str, connections: Connections) -> Vec<u8> {
        let (path, body) = match self {
            Self::Shorten { url } => ("shorten", serde_json::json!({ "url": url }).to_string()),
            Self::Follow { slug, .. } | Self::Unknown { slug, .. } => (slug.as_str(), String::new()),
        };
        let close = match connections {
            Connections::Fresh => "connection: close\r\n",
            _ => "",
        };
        let body_fields = match self {
            Self::Shorten { .. } => format!("content-type: application/json\r\ncontent-length: {}\r\n", body.len()),
            _ => String::new(),
        };
        format!(
            "{} /{path} HTTP/1.1\r\n{common}{close}{body_fields}\r\n{body}",
            self.method()
        )
        .into_bytes()
    }

    /// Returns the link that a right answer acknowledges, if it acknowledges one. For a wrong answer, returns the outcome and
    /// a description of the whole answer.
    pub fn check(&self, reply: &Reply) -> Result<Option<Link>, (Outcome, String)> {
        let expected = match self {
            Self::Shorten { .. } => 200,
            Self::Follow { .. } => 302,
            Self::Unknown { .. } => 404,
        };
        let wrong = |outcome| {
            let body = String::from_utf8_lossy(&reply.body);
            // On one line: nginx's own error pages have seven.
            let body = body.split_whitespace().collect::<Vec<_>>().join(" ");
            Err((outcome, format!("{self}: {} {} {body}", reply.status, reply.location)))
        };
        match self {
            _ if reply.status != expected => wrong(Outcome::Status(reply.status)),
            Self::Shorten { url } => match serde_json::from_slice(&reply.body) {
                Ok(Shortened { slug }) => Ok(Some(Link { slug, url: url.clone() })),
                Err(_) => wrong(Outcome::Answer),
            },
            Self::Follow { url, .. } if reply.location != *url => wrong(Outcome::Answer),
            Self::Follow { .. } | Self::Unknown { .. } => Ok(None),
        }
    }
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shorten { url } => write!(f, "/shorten of {url}"),
            Self::Follow { slug, url, .. } => write!(f, "/{slug} for {url}"),
            Self::Unknown { slug, .. } => write!(f, "/{slug} for 404"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_must_match_in_full() {
        let reply = |status, location: &str, body: &str| Reply {
            status,
            location: location.to_owned(),
            body: body.as_bytes().to_vec(),
            keep_alive: true,
        };
        let url = || "https://a.example/1".to_owned();
        let shorten = Request::Shorten { url: url() };
        let link = shorten.check(&reply(200, "", r#"{"slug": "abc"}"#));
        assert_eq!(link.unwrap_or(None).map(|link| link.slug).as_deref(), Some("abc"));
        let outcome = |request: &Request, reply: Reply| {
            request
                .check(&reply)
                .map_or_else(|(outcome, _)| outcome, |_| Outcome::Right)
        };
        assert_eq!(outcome(&shorten, reply(200, "", "{}")), Outcome::Answer);
        assert_eq!(outcome(&shorten, reply(502, "", "")), Outcome::Status(502));

        let follow = Request::Follow {
            method: Method::Head,
            slug: "abc".to_owned(),
            url: url(),
        };
        assert_eq!(outcome(&follow, reply(302, "https://a.example/1", "")), Outcome::Right);
        assert_eq!(outcome(&follow, reply(302, "https://a.example/2", "")), Outcome::Answer);
        assert_eq!(outcome(&follow, reply(404, "", "")), Outcome::Status(404));
        let unknown = Request::Unknown {
            method: Method::Get,
            slug: "no".to_owned(),
        };
        assert_eq!(outcome(&unknown, reply(404, "", "")), Outcome::Right);
        assert_eq!(outcome(&unknown, reply(302, "x", "")), Outcome::Status(302));
    }
}
