//! A link: before it exists, and as it is stored.

use crate::expiry::Expiry;
use crate::origin::Origin;
use crate::problem::Problem;
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
}

impl NewLink {
    /// `own` is where the appliance is reached, `now` in Unix seconds.
    ///
    /// # Errors
    /// 422 for a URL, a slug or an expiry that is refused.
    pub fn check(wish: &Shorten, own: &Origin, now: i64) -> Result<NewLink, Problem> {
        Ok(NewLink {
            target: Target::parse(&wish.url, own)?,
            slug: wish.slug.as_deref().map(Slug::custom).transpose()?,
            expiry: wish
                .expires_at
                .as_deref()
                .map(|text| Expiry::parse(text, now))
                .transpose()?,
        })
    }

    /// The link as it is once it is stored.
    pub fn as_stored(&self) -> Stored {
        Stored {
            url: self.target.as_str().to_owned(),
            expiry: self.expiry,
        }
    }

    /// Whether the link that has the wanted slug is as good as this one.
    ///
    /// # Errors
    /// 409 if it leads elsewhere, or ends at another time: a client that got 200 would rely on what it asked for. An
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
        Ok(())
    }

    /// Whether the link stored under this slug is this one: what was asked for before was the same.
    pub fn is_stored_as(&self, slug: &Slug, stored: &Stored) -> bool {
        self.slug.as_ref().is_none_or(|wanted| wanted == slug) && self.as_stored() == *stored
    }
}

/// A link in the database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    pub url: String,
    pub expiry: Option<Expiry>,
}

/// Answers `GET /:slug`; `now` in Unix seconds.
///
/// # Errors
/// 404 for an unknown link, 410 for one that has expired.
pub fn follow(stored: Option<Stored>, now: i64) -> Result<Reply, Problem> {
    let Stored { url, expiry } = stored.ok_or_else(route::not_found)?;
    match expiry {
        Some(expiry) if expiry.is_over(now) => {
            Err(Problem::new(410, format!("This link expired at {}.", expiry.to_text())))
        }
        _ => Ok(Reply::redirect(url)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    const NOW: i64 = 1_767_225_600;

    fn wish(url: &str, slug: Option<&str>, expires_at: Option<&str>) -> Result<NewLink, Problem> {
        let wish = Shorten {
            url: url.into(),
            slug: slug.map(Into::into),
            expires_at: expires_at.map(Into::into),
        };
        NewLink::check(&wish, &Origin::parse("https://sho.rt").unwrap(), NOW)
    }

    fn stored(url: &str, expiry: Option<i64>) -> Stored {
        Stored {
            url: url.into(),
            expiry: expiry.map(Expiry),
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
