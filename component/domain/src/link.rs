//! Links as they are requested, stored and followed.

use serde::ser::SerializeStruct as _;
use serde::{Deserialize, Serialize, Serializer};

use crate::error::Refused;
use crate::expiry::Expiry;
use crate::limit::{Limit, MaxClicks};
use crate::origin::Origin;
use crate::purpose::Purpose;
use crate::slug::Slug;
use crate::target::Target;
use crate::timestamp;

/// A link as requested by a client, not yet checked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinkRequest {
    pub url: String,
    pub slug: Option<String>,
    pub expires_at: Option<String>,
    pub max_clicks: Option<i64>,
}

/// A link that has passed the checks and may be created.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewLink {
    /// The requested slug; `None` if one is to be generated.
    pub slug: Option<Slug>,
    pub target: Target,
    pub expiry: Option<Expiry>,
    /// The limit; `None` for a link without one.
    pub max_clicks: Option<MaxClicks>,
}

impl NewLink {
    /// Checks a request. `base_url` is the appliance's own address, `now` is in Unix seconds.
    ///
    /// # Errors
    /// The URL, the slug, the expiry or the limit is refused.
    pub fn check(request: &LinkRequest, base_url: &Origin, now: i64) -> Result<NewLink, Refused> {
        Ok(NewLink {
            target: Target::parse(&request.url, base_url)?,
            slug: request.slug.as_deref().map(Slug::custom).transpose()?,
            expiry: request
                .expires_at
                .as_deref()
                .map(|text| Expiry::parse(text, now))
                .transpose()?,
            max_clicks: request.max_clicks.map(MaxClicks::parse).transpose()?,
        })
    }

    /// The link as it will be stored.
    pub fn as_stored(&self) -> Stored {
        Stored {
            url: self.target.as_str().to_owned(),
            expiry: self.expiry,
            limit: self.max_clicks.map(|max_clicks| Limit {
                most: max_clicks.get(),
                left: max_clicks.get(),
            }),
        }
    }

    /// Checks that the link that already has the requested slug is the same, so that the client has what it asked for.
    ///
    /// # Errors
    /// The existing link has another URL, expiry or limit. An expired link keeps its slug, because whoever has the old address
    /// must not be led to a stranger's page.
    pub fn agree_with(&self, existing: &Details) -> Result<(), Refused> {
        // All fields are named, so that none is left out of the comparison.
        let NewLink {
            slug: _,
            target,
            expiry,
            max_clicks,
        } = self;
        let stored = &existing.stored;
        if stored.url != target.as_str() {
            return Err(Refused::new(
                "The slug is taken by a link to another URL. Choose another slug.",
            ));
        }
        let differs = |its: String| {
            Err(Refused::new(format!(
                "The slug is taken by a link to the same URL, with {its}. Send the same, or choose another slug."
            )))
        };
        if stored.expiry != *expiry {
            return differs(stored.expiry.map_or_else(
                || "no expires_at".to_owned(),
                |expiry| format!("expires_at {}", expiry.to_text()),
            ));
        }
        if stored.most() != max_clicks.map(MaxClicks::get) {
            return differs(
                stored
                    .most()
                    .map_or_else(|| "no max_clicks".to_owned(), |most| format!("max_clicks {most}")),
            );
        }
        Ok(())
    }

    /// Whether the link that is stored under this slug is the requested one, as after an earlier attempt at the same request.
    pub fn is_stored_as(&self, slug: &Slug, existing: &Details) -> bool {
        self.slug.as_ref().is_none_or(|wanted| wanted == slug) && self.agree_with(existing).is_ok()
    }
}

/// A link in the database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    pub url: String,
    pub expiry: Option<Expiry>,
    /// The limit; `None` for a link without one.
    pub limit: Option<Limit>,
}

/// A stored link with details that only its owner sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Details {
    pub stored: Stored,
    /// The time of creation, in Unix seconds.
    pub created_at: i64,
}

/// The fields that the owner gets.
impl Serialize for Details {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Details { stored, created_at } = self;
        let Stored { url, expiry, limit } = stored;
        let mut fields = serializer.serialize_struct("Details", 5)?;
        fields.serialize_field("url", url)?;
        fields.serialize_field("created_at", &timestamp::display(*created_at))?;
        fields.serialize_field("expires_at", &expiry.map(Expiry::to_text))?;
        fields.serialize_field("max_clicks", &limit.map(|limit| limit.most))?;
        fields.serialize_field("clicks_left", &limit.map(|limit| limit.left))?;
        fields.end()
    }
}

impl Stored {
    fn most(&self) -> Option<i64> {
        self.limit.map(|limit| limit.most)
    }
}

/// The outcome of following a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The link leads to this URL, which is in its normal form and therefore ASCII.
    Redirect(String),
    /// There is no such link.
    NotFound,
    /// The link expired at this time.
    Expired(Expiry),
    /// The link has reached its limit of `max_clicks`.
    UsedUp { max_clicks: i64 },
    /// A link with a limit was requested by a program that shows a preview. The request takes no click and does not learn the
    /// target. Otherwise `HEAD` or a forged `user-agent` would get around the limit.
    Preview,
    /// A link with a limit was requested by a browser in advance. Browsers do not keep a refused prefetch, so the link is
    /// requested again when the person follows it.
    PrefetchRefused,
}

/// Follows a link that has no limit, or of which the caller has taken a click. `now` is in Unix seconds.
pub fn follow(stored: Option<Stored>, now: i64) -> Outcome {
    let Some(Stored { url, expiry, limit }) = stored else {
        return Outcome::NotFound;
    };
    match (expiry, limit) {
        (Some(expiry), _) if expiry.is_over(now) => Outcome::Expired(expiry),
        (_, Some(Limit { most, left: ..=0 })) => Outcome::UsedUp { max_clicks: most },
        _ => Outcome::Redirect(url),
    }
}

/// Follows a link with a limit according to the purpose of the request. The caller has taken a click for [`Purpose::Follow`];
/// the other purposes take none. `now` is in Unix seconds.
pub fn follow_limited(stored: Stored, purpose: Purpose, now: i64) -> Outcome {
    match (follow(Some(stored), now), purpose) {
        (Outcome::Redirect(_), Purpose::Preview) => Outcome::Preview,
        (Outcome::Redirect(_), Purpose::Prefetch) => Outcome::PrefetchRefused,
        (outcome, _) => outcome,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    const NOW: i64 = 1_767_225_600;

    fn request(url: &str, slug: Option<&str>, expires_at: Option<&str>) -> Result<NewLink, Refused> {
        let request = LinkRequest {
            url: url.into(),
            slug: slug.map(Into::into),
            expires_at: expires_at.map(Into::into),
            ..LinkRequest::default()
        };
        NewLink::check(&request, &Origin::parse("https://sho.rt").unwrap(), NOW)
    }

    fn stored(url: &str, expiry: Option<i64>) -> Stored {
        Stored {
            url: url.into(),
            expiry: expiry.map(Expiry),
            limit: None,
        }
    }

    fn limited(max_clicks: i64) -> Result<NewLink, Refused> {
        let request = LinkRequest {
            url: "https://example.com".into(),
            slug: Some("x".into()),
            max_clicks: Some(max_clicks),
            ..LinkRequest::default()
        };
        NewLink::check(&request, &Origin::parse("https://sho.rt").unwrap(), NOW)
    }

    fn stored_limited(most: i64, left: i64) -> Stored {
        Stored {
            limit: Some(Limit { most, left }),
            ..stored("https://example.com/", None)
        }
    }

    fn existing(stored: Stored) -> Details {
        Details {
            stored,
            created_at: NOW,
        }
    }

    #[test]
    fn is_made_of_checked_parts() {
        let link = request("HTTPS://example.com", Some("x"), Some("2026-01-01T00:00:10Z")).unwrap();
        assert_eq!(link.target.as_str(), "https://example.com/");
        assert_eq!(link.slug.unwrap().as_str(), "x");
        assert_eq!(link.expiry, Some(Expiry(NOW + 10)));
        for bad in [
            request("https://sho.rt/x", None, None),
            request("https://example.com", Some("a b"), None),
            request("https://example.com", Some(""), None),
            request("https://example.com", None, Some("2025-01-01T00:00:00Z")),
        ] {
            assert!(bad.is_err(), "{bad:?}");
        }
    }

    #[test]
    fn agrees_with_the_same_link() {
        let link = request("https://Example.com", Some("x"), None).unwrap();
        assert_eq!(link.agree_with(&existing(stored("https://example.com/", None))), Ok(()));
    }

    #[test]
    fn a_conflict_says_what_differs() {
        let link = request("https://example.com", Some("x"), Some("2026-01-01T00:00:10Z")).unwrap();
        for (other, hint) in [
            (stored("https://example.com/other", Some(NOW + 10)), "another URL"),
            (stored("https://example.com/other", Some(NOW - 10)), "another URL"),
            (stored("https://example.com/", None), "no expires_at"),
            (
                stored("https://example.com/", Some(NOW + 20)),
                "expires_at 2026-01-01T00:00:20Z",
            ),
        ] {
            let refused = link.agree_with(&existing(other)).unwrap_err();
            assert!(refused.reason().contains(hint), "{refused}");
        }
    }

    #[test]
    fn a_repeated_request_recognises_its_link() {
        let [x, y] = ["x", "y"].map(|text| Slug::custom(text).unwrap());
        let same = existing(stored("https://example.com/", Some(NOW + 10)));
        let expires_at = Some("2026-01-01T00:00:10Z");
        let generated = request("https://example.com", None, expires_at).unwrap();
        assert!(generated.is_stored_as(&x, &same) && generated.is_stored_as(&y, &same));
        let custom = request("https://example.com", Some("x"), expires_at).unwrap();
        assert!(custom.is_stored_as(&x, &same) && !custom.is_stored_as(&y, &same));
        for other in [
            stored("https://example.com/other", Some(NOW + 10)),
            stored("https://example.com/", Some(NOW + 11)),
            stored("https://example.com/", None),
        ] {
            let other = existing(other);
            assert!(!custom.is_stored_as(&x, &other) && !generated.is_stored_as(&x, &other));
        }
    }

    #[test]
    fn a_limit_has_bounds() {
        for good in [1, 5, MaxClicks::MOST] {
            assert_eq!(limited(good).unwrap().as_stored(), stored_limited(good, good));
        }
        for bad in [0, -1, MaxClicks::MOST + 1, i64::MIN] {
            let refused = limited(bad).unwrap_err();
            assert!(refused.reason().contains("max_clicks"), "{refused}");
        }
    }

    #[test]
    fn a_used_link_is_the_same_and_one_with_another_limit_is_not() {
        let link = limited(5).unwrap();
        let slug = Slug::custom("x").unwrap();
        for left in [5, 3, 0] {
            let used = existing(stored_limited(5, left));
            assert_eq!(link.agree_with(&used), Ok(()));
            assert!(link.is_stored_as(&slug, &used));
        }
        for (other, hint) in [
            (stored_limited(6, 5), "max_clicks 6"),
            (stored("https://example.com/", None), "no max_clicks"),
        ] {
            let other = existing(other);
            let refused = link.agree_with(&other).unwrap_err();
            assert!(refused.reason().contains(hint), "{refused}");
            assert!(!link.is_stored_as(&slug, &other));
        }
        let endless = request("https://example.com", Some("x"), None).unwrap();
        assert!(endless.agree_with(&existing(stored_limited(5, 5))).is_err());
    }

    #[test]
    fn follows_while_clicks_are_left() {
        let redirect = Outcome::Redirect("https://example.com/".into());
        assert_eq!(follow(Some(stored_limited(5, 1)), NOW), redirect);
        let used_up = Outcome::UsedUp { max_clicks: 5 };
        assert_eq!(follow(Some(stored_limited(5, 0)), NOW), used_up);
        let expired = Stored {
            expiry: Some(Expiry(NOW)),
            ..stored_limited(5, 0)
        };
        assert_eq!(follow(Some(expired), NOW), Outcome::Expired(Expiry(NOW)));
    }

    #[test]
    fn only_a_click_reveals_the_target_of_a_limited_link() {
        for (purpose, outcome) in [
            (Purpose::Follow, Outcome::Redirect("https://example.com/".into())),
            (Purpose::Preview, Outcome::Preview),
            (Purpose::Prefetch, Outcome::PrefetchRefused),
        ] {
            let after = |left| follow_limited(stored_limited(5, left), purpose, NOW);
            assert_eq!(after(1), outcome);
            assert_eq!(after(0), Outcome::UsedUp { max_clicks: 5 }, "{purpose:?}");
        }
    }

    #[test]
    fn follows_until_the_expiry() {
        let outcome = |expiry| follow(Some(stored("https://example.com/", expiry)), NOW);
        let redirect = Outcome::Redirect("https://example.com/".into());
        assert_eq!(outcome(None), redirect);
        assert_eq!(outcome(Some(NOW + 1)), redirect);
        assert_eq!(outcome(Some(NOW)), Outcome::Expired(Expiry(NOW)));
        assert_eq!(follow(None, NOW), Outcome::NotFound);
    }
}
