//! The body of `PATCH /api/v1/links/:slug`: what is to be another than it is (RFC 7396).

use serde::{Deserialize, Deserializer};

use crate::expiry::Expiry;
use crate::origin::Origin;
use crate::problem::Problem;
use crate::request;
use crate::target::Target;

/// What a client asks for, not yet judged. Absent: it stays; null: there is to be none.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wish {
    #[serde(default, deserialize_with = "there")]
    url: Option<Option<String>>,
    #[serde(default, deserialize_with = "there")]
    expires_at: Option<Option<String>>,
}

fn there<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<String>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

/// A change that may be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub target: Option<Target>,
    /// `Some(None)`: it does not expire any more.
    pub expiry: Option<Option<Expiry>>,
}

impl Change {
    /// `own` is where the appliance is reached, `now` in Unix seconds.
    ///
    /// # Errors
    /// 400 for what is no such body; 422 for a URL or an expiry that is refused, and where nothing is to change.
    pub fn parse(body: &[u8], own: &Origin, now: i64) -> Result<Change, Problem> {
        let wish: Wish = request::json(body, r#"{"url": "https://example.com/", "expires_at": null}"#)?;
        let target = match &wish.url {
            Some(Some(url)) => Some(Target::parse(url, own)?),
            Some(None) => {
                return Err(Problem::new(
                    422,
                    "A link cannot be without a url. To remove it, use DELETE.",
                ));
            }
            None => None,
        };
        let expiry = match &wish.expires_at {
            Some(Some(text)) => Some(Some(Expiry::parse(text, now)?)),
            Some(None) => Some(None),
            None => None,
        };
        if target.is_none() && expiry.is_none() {
            return Err(Problem::new(
                422,
                "Nothing is to change. Send url, expires_at, or both.",
            ));
        }
        Ok(Change { target, expiry })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    const NOW: i64 = 1_767_225_600;

    fn parsed(body: &str) -> Result<Change, Problem> {
        let own = Origin::parse("https://sho.rt").unwrap();
        Change::parse(body.as_bytes(), &own, NOW)
    }

    #[test]
    fn what_is_not_named_stays() {
        let change = parsed(r#"{"url":"https://example.com/a"}"#).unwrap();
        assert_eq!(change.target.unwrap().as_str(), "https://example.com/a");
        assert_eq!(change.expiry, None);
        let change = parsed(r#"{"expires_at":"2026-01-01T00:01:00Z"}"#).unwrap();
        assert_eq!((change.target, change.expiry), (None, Some(Some(Expiry(NOW + 60)))));
        assert_eq!(parsed(r#"{"expires_at":null}"#).unwrap().expiry, Some(None));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for (body, status, cause) in [
            ("{}", 422, "Nothing is to change"),
            (r#"{"url":null}"#, 422, "use DELETE"),
            (r#"{"url":"https://sho.rt/x"}"#, 422, ""),
            (r#"{"expires_at":"2025-01-01T00:00:00Z"}"#, 422, "future"),
            (r#"{"slug":"other"}"#, 400, "unknown field"),
            (r#"{"url":5}"#, 400, "url"),
            ("[]", 400, "expires_at"),
        ] {
            let problem = parsed(body).unwrap_err();
            assert_eq!(problem.status, status, "{body}: {}", problem.detail);
            assert!(problem.detail.contains(cause), "{body}: {}", problem.detail);
        }
    }
}
