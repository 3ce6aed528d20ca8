//! Replies about links.

use links_domain::link::{Details, Outcome};
use links_domain::origin::Origin;
use links_domain::slug::Slug;
use serde::Serialize;

use crate::problem::Problem;
use crate::reply::Reply;

/// The answer to a request for a link: 302, or 200 with an explanation for a preview.
///
/// # Errors
/// 404 for an unknown link, 410 for one that has expired or is used up, 403 for a prefetch of a link with a limit.
pub fn followed(outcome: Outcome) -> Result<Reply, Problem> {
    match outcome {
        Outcome::Redirect(url) => Ok(Reply::redirect(url)),
        Outcome::Preview => {
            let text = "This link can be followed a limited number of times. Open it in a browser to follow it.\n";
            Ok(Reply::new(200, "text/plain", text.as_bytes().to_vec()))
        }
        Outcome::NotFound => Err(not_found()),
        Outcome::Expired(expiry) => Err(Problem::new(410, format!("This link expired at {}.", expiry.to_text()))),
        Outcome::UsedUp { max_clicks: 1 } => Err(Problem::new(410, "This link has reached its limit of 1 click.")),
        Outcome::UsedUp { max_clicks } => Err(Problem::new(
            410,
            format!("This link has reached its limit of {max_clicks} clicks."),
        )),
        Outcome::PrefetchRefused => Err(Problem::new(
            403,
            "This link can be followed a limited number of times, so it cannot be fetched in advance.",
        )),
    }
}

pub fn not_found() -> Problem {
    Problem::new(404, "There is no such link. Check the address: it is case-sensitive.")
}

/// 200 for a link that exists now, whether this request or an earlier one created it.
pub fn created(slug: &Slug, base_url: &Origin) -> Reply {
    #[derive(Serialize)]
    struct Body<'a> {
        slug: &'a str,
        short_url: &'a str,
    }
    Reply::json(&Body {
        slug: slug.as_str(),
        short_url: &base_url.short_url(slug),
    })
}

/// 200 with everything that the owner of a link may see.
pub fn details(slug: &Slug, details: &Details, base_url: &Origin) -> Reply {
    #[derive(Serialize)]
    struct Body<'a> {
        slug: &'a str,
        short_url: String,
        #[serde(flatten)]
        details: &'a Details,
    }
    Reply::json(&Body {
        slug: slug.as_str(),
        short_url: base_url.short_url(slug),
        details,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use links_domain::expiry::Expiry;
    use links_domain::limit::Limit;
    use links_domain::link::Stored;

    use super::*;

    const NOW: i64 = 1_767_225_600;

    #[test]
    fn the_owner_sees_every_detail() {
        let mut link = Details {
            stored: Stored {
                url: "https://example.com/".into(),
                expiry: None,
                limit: None,
            },
            created_at: NOW,
        };
        let base_url = Origin::parse("https://sho.rt").unwrap();
        let slug = Slug::in_path("x").unwrap();
        let text = |link: &Details| String::from_utf8(details(&slug, link, &base_url).body).unwrap();
        let begin = r#"{"slug":"x","short_url":"https://sho.rt/x","url":"https://example.com/","#;
        assert_eq!(
            text(&link),
            format!(
                r#"{begin}"created_at":"2026-01-01T00:00:00Z","expires_at":null,"max_clicks":null,"clicks_left":null}}"#
            )
        );
        link.stored.expiry = Some(Expiry(NOW + 60));
        link.stored.limit = Some(Limit { most: 5, left: 2 });
        let end = r#""expires_at":"2026-01-01T00:01:00Z","max_clicks":5,"clicks_left":2}"#;
        assert!(text(&link).ends_with(end), "{}", text(&link));
    }

    #[test]
    fn a_created_link_has_its_slug_and_its_short_url() {
        let base_url = Origin::parse("https://sho.rt").unwrap();
        let reply = created(&Slug::in_path("abc").unwrap(), &base_url);
        assert_eq!(reply.status, 200);
        assert_eq!(reply.header("content-type"), Some("application/json"));
        assert_eq!(reply.body, br#"{"slug":"abc","short_url":"https://sho.rt/abc"}"#);
    }

    #[test]
    fn every_outcome_has_its_status() {
        let url = || "https://example.com/".to_owned();
        for (outcome, status, text) in [
            (Outcome::Redirect(url()), 302, ""),
            (Outcome::NotFound, 404, "no such link"),
            (Outcome::Expired(Expiry(NOW)), 410, "expired at 2026-01-01T00:00:00Z."),
            (Outcome::UsedUp { max_clicks: 5 }, 410, "limit of 5 clicks."),
            (Outcome::UsedUp { max_clicks: 1 }, 410, "limit of 1 click."),
            (Outcome::Preview, 200, "Open it in a browser"),
            (Outcome::PrefetchRefused, 403, "in advance"),
        ] {
            let location = matches!(outcome, Outcome::Redirect(_)).then_some("https://example.com/");
            let reply = followed(outcome).unwrap_or_else(Reply::from);
            let body = String::from_utf8(reply.body.clone()).unwrap();
            assert!(reply.status == status && body.contains(text), "{reply:?}");
            assert_eq!(reply.header("location"), location);
            assert_eq!(reply.header("cache-control"), Some("no-store"));
        }
    }
}
