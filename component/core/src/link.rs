//! A link: before it exists, and as it is stored.

use serde::Serialize;

use crate::expiry::Expiry;
use crate::origin::Origin;
use crate::problem::Problem;
use crate::purpose::Purpose;
use crate::reply::Reply;
use crate::request::Shorten;
use crate::route;
use crate::slug::Slug;
use crate::target::Target;

/// A link that may be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewLink {
    /// `None`: a generated one.
    pub slug: Option<Slug>,
    pub target: Target,
    pub expiry: Option<Expiry>,
    /// How often it leads on; `None`: without end.
    pub max_clicks: Option<MaxClicks>,
}

/// From 1 to [`MaxClicks::MOST`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MaxClicks(i64);

impl MaxClicks {
    pub const MOST: i64 = 1_000_000_000;

    /// # Errors
    /// 422 out of bounds.
    pub fn parse(number: i64) -> Result<MaxClicks, Problem> {
        if (1..=Self::MOST).contains(&number) {
            return Ok(MaxClicks(number));
        }
        Err(Problem::new(
            422,
            format!("The field max_clicks must be from 1 to {}.", Self::MOST),
        ))
    }

    pub fn get(self) -> i64 {
        self.0
    }
}

impl NewLink {
    /// `own` is where the appliance is reached, `now` in Unix seconds.
    ///
    /// # Errors
    /// 422 for a URL, a slug, an expiry or a limit that is refused.
    pub fn check(wish: &Shorten, own: &Origin, now: i64) -> Result<NewLink, Problem> {
        Ok(NewLink {
            target: Target::parse(&wish.url, own)?,
            slug: wish.slug.as_deref().map(Slug::custom).transpose()?,
            expiry: wish
                .expires_at
                .as_deref()
                .map(|text| Expiry::parse(text, now))
                .transpose()?,
            max_clicks: wish.max_clicks.map(MaxClicks::parse).transpose()?,
        })
    }

    /// The link as it is once it is stored.
    pub fn as_stored(&self) -> Stored {
        Stored {
            url: self.target.as_str().to_owned(),
            expiry: self.expiry,
            limit: self.max_clicks.map(|MaxClicks(most)| Limit { most, left: most }),
        }
    }

    /// Whether the link that has the wanted slug is as good as this one.
    ///
    /// # Errors
    /// 409 if it leads elsewhere, or ends at another time or after other clicks: a client that got 200 would rely on what it asked for. An
    /// expired link keeps its slug: whoever has the old address must not be led to a stranger's page.
    pub fn agree_with(&self, stored: &Stored) -> Result<(), Problem> {
        if stored.url != self.target.as_str() {
            return Err(Problem::new(
                409,
                "The slug is taken by a link to another URL. Choose another slug.",
            ));
        }
        if stored.expiry != self.expiry {
            let end = stored.expiry.map_or_else(
                || "no expires_at".to_owned(),
                |expiry| format!("expires_at {}", expiry.to_text()),
            );
            return Err(Problem::new(
                409,
                format!(
                    "The slug is taken by a link to the same URL, with {end}. Send the same, or choose another slug."
                ),
            ));
        }
        if stored.most() != self.as_stored().most() {
            let limit = stored
                .most()
                .map_or_else(|| "no max_clicks".to_owned(), |most| format!("max_clicks {most}"));
            return Err(Problem::new(
                409,
                format!(
                    "The slug is taken by a link to the same URL, with {limit}. Send the same, or choose another slug."
                ),
            ));
        }
        Ok(())
    }

    /// Whether the link stored under this slug is this one: what was asked for before was the same.
    pub fn is_stored_as(&self, slug: &Slug, stored: &Stored) -> bool {
        self.slug.as_ref().is_none_or(|wanted| wanted == slug) && self.agree_with(stored).is_ok()
    }
}

/// A link in the database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    pub url: String,
    pub expiry: Option<Expiry>,
    /// `None`: it leads on without end.
    pub limit: Option<Limit>,
}

/// A link as whoever has the token sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Details {
    pub stored: Stored,
    /// In Unix seconds.
    pub created_at: i64,
}

impl Details {
    /// 200; `own` is where the appliance is reached.
    pub fn reply(&self, slug: &Slug, own: &Origin) -> Reply {
        #[derive(Serialize)]
        struct Body<'a> {
            slug: &'a str,
            short_url: String,
            url: &'a str,
            created_at: String,
            expires_at: Option<String>,
            max_clicks: Option<i64>,
            clicks_left: Option<i64>,
        }
        let Stored { url, expiry, limit } = &self.stored;
        let body = Body {
            slug: slug.as_str(),
            short_url: own.short_url(slug),
            url,
            created_at: Expiry(self.created_at).to_text(),
            expires_at: expiry.map(Expiry::to_text),
            max_clicks: limit.map(|limit| limit.most),
            clicks_left: limit.map(|limit| limit.left),
        };
        // Texts and numbers always have a JSON form.
        Reply::new(200, "application/json", serde_json::to_vec(&body).unwrap_or_default())
    }
}

/// How often a link leads on, and how often from now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    pub most: i64,
    pub left: i64,
}

impl Stored {
    fn most(&self) -> Option<i64> {
        self.limit.map(|limit| limit.most)
    }
}

/// Answers a request for a link with a limit by what it is for; the click of one that follows it is the caller's to take first.
/// Any other request takes none, and is not told where the link leads: else a forged `user-agent`, or `HEAD`, would lead
/// there without end. `now` in Unix seconds.
///
/// # Errors
/// As [`follow`]; 403 for a prefetch, whose answer a browser would show to the person who goes there: what is refused is not
/// kept for that, and is asked for again.
pub fn follow_limited(stored: Stored, purpose: Purpose, now: i64) -> Result<Reply, Problem> {
    let reply = follow(Some(stored), now)?;
    match purpose {
        Purpose::Follow => Ok(reply),
        Purpose::Look => Ok(Reply::look()),
        Purpose::Prefetch => Err(Problem::new(
            403,
            "This link can be followed a limited number of times, so it cannot be fetched in advance.",
        )),
    }
}

/// Answers `GET /:slug`, or `HEAD`; `now` in Unix seconds. The click that a link with a limit leads on for is the caller's
/// to take first.
///
/// # Errors
/// 404 for an unknown link, 410 for one that has expired or is used up.
pub fn follow(stored: Option<Stored>, now: i64) -> Result<Reply, Problem> {
    let Stored { url, expiry, limit } = stored.ok_or_else(route::not_found)?;
    match (expiry, limit) {
        (Some(expiry), _) if expiry.is_over(now) => {
            Err(Problem::new(410, format!("This link expired at {}.", expiry.to_text())))
        }
        (_, Some(Limit { most, left: ..=0 })) => Err(Problem::new(
            410,
            format!("This link has led on as often as it may: max_clicks is {most}."),
        )),
        _ => Ok(Reply::redirect(url)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    const NOW: i64 = 1_767_225_600;

    #[test]
    fn its_owner_sees_all_of_it() {
        let mut details = Details {
            stored: Stored {
                url: "https://example.com/".into(),
                expiry: None,
                limit: None,
            },
            created_at: NOW,
        };
        let own = Origin::parse("https://sho.rt").unwrap();
        let slug = Slug::in_path("x").unwrap();
        let text = |details: &Details| String::from_utf8(details.reply(&slug, &own).body).unwrap();
        let begin = r#"{"slug":"x","short_url":"https://sho.rt/x","url":"https://example.com/","#;
        assert_eq!(
            text(&details),
            format!(
                r#"{begin}"created_at":"2026-01-01T00:00:00Z","expires_at":null,"max_clicks":null,"clicks_left":null}}"#
            )
        );
        details.stored.expiry = Some(Expiry(NOW + 60));
        details.stored.limit = Some(Limit { most: 5, left: 2 });
        let end = r#""expires_at":"2026-01-01T00:01:00Z","max_clicks":5,"clicks_left":2}"#;
        assert!(text(&details).ends_with(end), "{}", text(&details));
    }

    fn wish(url: &str, slug: Option<&str>, expires_at: Option<&str>) -> Result<NewLink, Problem> {
        let wish = Shorten {
            url: url.into(),
            slug: slug.map(Into::into),
            expires_at: expires_at.map(Into::into),
            max_clicks: None,
        };
        NewLink::check(&wish, &Origin::parse("https://sho.rt").unwrap(), NOW)
    }

    fn stored(url: &str, expiry: Option<i64>) -> Stored {
        Stored {
            url: url.into(),
            expiry: expiry.map(Expiry),
            limit: None,
        }
    }

    fn limited(max_clicks: i64) -> Result<NewLink, Problem> {
        let wish = Shorten {
            url: "https://example.com".into(),
            slug: Some("x".into()),
            expires_at: None,
            max_clicks: Some(max_clicks),
        };
        NewLink::check(&wish, &Origin::parse("https://sho.rt").unwrap(), NOW)
    }

    fn stored_limited(most: i64, left: i64) -> Stored {
        Stored {
            limit: Some(Limit { most, left }),
            ..stored("https://example.com/", None)
        }
    }

    #[test]
    fn is_made_of_checked_parts() {
        let link = wish("HTTPS://example.com", Some("x"), Some("2026-01-01T00:00:10Z")).unwrap();
        assert_eq!(link.target.as_str(), "https://example.com/");
        assert_eq!(link.slug.unwrap().as_str(), "x");
        assert_eq!(link.expiry, Some(Expiry(NOW + 10)));
        for bad in [
            wish("https://sho.rt/x", None, None),
            wish("https://example.com", Some("a b"), None),
            wish("https://example.com", Some(""), None),
            wish("https://example.com", None, Some("2025-01-01T00:00:00Z")),
        ] {
            assert_eq!(bad.unwrap_err().status, 422);
        }
    }

    #[test]
    fn the_same_link_again_is_agreed_with() {
        let link = wish("https://Example.com", Some("x"), None).unwrap();
        assert_eq!(link.agree_with(&stored("https://example.com/", None)), Ok(()));
    }

    #[test]
    fn another_link_is_a_conflict_that_says_what_differs() {
        let link = wish("https://example.com", Some("x"), Some("2026-01-01T00:00:10Z")).unwrap();
        for (other, hint) in [
            (stored("https://example.com/other", Some(NOW + 10)), "another URL"),
            (stored("https://example.com/other", Some(NOW - 10)), "another URL"),
            (stored("https://example.com/", None), "no expires_at"),
            (
                stored("https://example.com/", Some(NOW + 20)),
                "expires_at 2026-01-01T00:00:20Z",
            ),
        ] {
            let problem = link.agree_with(&other).unwrap_err();
            assert_eq!(problem.status, 409);
            assert!(problem.detail.contains(hint), "{}", problem.detail);
        }
    }

    #[test]
    fn a_stored_link_is_the_same_in_all_that_was_asked_for() {
        let [x, y] = ["x", "y"].map(|text| Slug::custom(text).unwrap());
        let same = stored("https://example.com/", Some(NOW + 10));
        let expires_at = Some("2026-01-01T00:00:10Z");
        let generated = wish("https://example.com", None, expires_at).unwrap();
        assert!(generated.is_stored_as(&x, &same) && generated.is_stored_as(&y, &same));
        let custom = wish("https://example.com", Some("x"), expires_at).unwrap();
        assert!(custom.is_stored_as(&x, &same) && !custom.is_stored_as(&y, &same));
        for other in [
            stored("https://example.com/other", Some(NOW + 10)),
            stored("https://example.com/", Some(NOW + 11)),
            stored("https://example.com/", None),
        ] {
            assert!(!custom.is_stored_as(&x, &other) && !generated.is_stored_as(&x, &other));
        }
    }

    #[test]
    fn a_limit_has_bounds() {
        for good in [1, 5, MaxClicks::MOST] {
            assert_eq!(limited(good).unwrap().as_stored(), stored_limited(good, good));
        }
        for bad in [0, -1, MaxClicks::MOST + 1, i64::MIN] {
            let problem = limited(bad).unwrap_err();
            assert!(
                problem.status == 422 && problem.detail.contains("max_clicks"),
                "{problem:?}"
            );
        }
    }

    #[test]
    fn a_link_that_was_used_is_still_the_same_and_one_with_another_limit_is_not() {
        let link = limited(5).unwrap();
        let slug = Slug::custom("x").unwrap();
        for left in [5, 3, 0] {
            assert_eq!(link.agree_with(&stored_limited(5, left)), Ok(()));
            assert!(link.is_stored_as(&slug, &stored_limited(5, left)));
        }
        for (other, hint) in [
            (stored_limited(6, 5), "max_clicks 6"),
            (stored("https://example.com/", None), "no max_clicks"),
        ] {
            let problem = link.agree_with(&other).unwrap_err();
            assert!(problem.status == 409 && problem.detail.contains(hint), "{problem:?}");
            assert!(!link.is_stored_as(&slug, &other));
        }
        let endless = wish("https://example.com", Some("x"), None).unwrap();
        assert_eq!(endless.agree_with(&stored_limited(5, 5)).unwrap_err().status, 409);
    }

    #[test]
    fn follows_while_clicks_are_left() {
        assert_eq!(follow(Some(stored_limited(5, 1)), NOW).unwrap().status, 302);
        let gone = follow(Some(stored_limited(5, 0)), NOW).unwrap_err();
        assert!(
            gone.status == 410 && gone.detail.contains("max_clicks is 5"),
            "{gone:?}"
        );
        let expired = Stored {
            expiry: Some(Expiry(NOW)),
            ..stored_limited(5, 0)
        };
        assert!(follow(Some(expired), NOW).unwrap_err().detail.contains("expired"));
    }

    #[test]
    fn who_takes_no_click_is_not_told_where_a_limited_link_leads() {
        for (purpose, status) in [(Purpose::Follow, 302), (Purpose::Look, 200), (Purpose::Prefetch, 403)] {
            let answer = |left| {
                let reply = follow_limited(stored_limited(5, left), purpose, NOW);
                reply.unwrap_or_else(Reply::from)
            };
            let reply = answer(1);
            assert_eq!(reply.status, status, "{purpose:?}");
            let text = format!("{:?} {}", reply.headers, String::from_utf8_lossy(&reply.body));
            assert_eq!(text.contains("example.com"), purpose == Purpose::Follow, "{text}");
            assert_eq!(reply.header("cache-control"), Some("no-store"));
            assert_eq!(answer(0).status, 410, "{purpose:?}");
        }
    }

    #[test]
    fn follows_until_the_expiry() {
        let location = |expiry, now| follow(Some(stored("https://example.com/", expiry)), now);
        assert_eq!(
            location(None, NOW).unwrap().header("location"),
            Some("https://example.com/")
        );
        assert_eq!(location(Some(NOW + 1), NOW).unwrap().status, 302);
        let gone = location(Some(NOW), NOW).unwrap_err();
        assert_eq!(
            (gone.status, gone.detail.as_ref()),
            (410, "This link expired at 2026-01-01T00:00:00Z.")
        );
        assert_eq!(follow(None, NOW).unwrap_err().status, 404);
    }
}
