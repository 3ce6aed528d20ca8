//! Changes of a link.

use serde::{Deserialize, Deserializer};

use crate::error::Refused;
use crate::expiry::Expiry;
use crate::origin::Origin;
use crate::target::Target;

/// A merge patch (RFC 7396) as sent by a client, not yet checked. An absent field leaves the value as it is; null removes it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChangeRequest {
    #[serde(default, deserialize_with = "present")]
    pub url: Option<Option<String>>,
    #[serde(default, deserialize_with = "present")]
    pub expires_at: Option<Option<String>>,
}

/// Makes `Some(None)` of null, which serde would not tell from an absent field.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<String>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

/// A change that has passed the checks. The default changes nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Change {
    pub target: Option<Target>,
    /// `Some(None)` removes the expiry.
    pub expiry: Option<Option<Expiry>>,
}

impl Change {
    /// Checks a request. `base_url` is the appliance's own address, `now` is in Unix seconds.
    ///
    /// # Errors
    /// The URL or the expiry is refused, or the patch is empty.
    pub fn check(request: &ChangeRequest, base_url: &Origin, now: i64) -> Result<Change, Refused> {
        let target = match &request.url {
            Some(Some(url)) => Some(Target::parse(url, base_url)?),
            Some(None) => {
                return Err(Refused::new(
                    "The field url cannot be null. To remove the link, use DELETE.",
                ));
            }
            None => None,
        };
        let change = Change {
            target,
            expiry: removable(&request.expires_at, |text| Expiry::parse(text, now))?,
        };
        if change == Change::default() {
            return Err(Refused::new("The patch is empty. Send url, expires_at, or both."));
        }
        Ok(change)
    }
}

/// Checks the value of a field that null removes.
fn removable<T>(
    field: &Option<Option<String>>,
    check: impl FnOnce(&str) -> Result<T, Refused>,
) -> Result<Option<Option<T>>, Refused> {
    let value = field.as_ref().map(|value| value.as_deref().map(check).transpose());
    value.transpose()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    const NOW: i64 = 1_767_225_600;

    fn check(body: &str) -> Result<Change, Refused> {
        let base_url = Origin::parse("https://sho.rt").unwrap();
        Change::check(&serde_json::from_str(body).unwrap(), &base_url, NOW)
    }

    #[test]
    fn absent_fields_stay_as_they_are() {
        let change = check(r#"{"url":"https://example.com/a"}"#).unwrap();
        assert_eq!(change.target.unwrap().as_str(), "https://example.com/a");
        assert_eq!(change.expiry, None);
        let change = check(r#"{"expires_at":"2026-01-01T00:01:00Z"}"#).unwrap();
        assert_eq!((change.target, change.expiry), (None, Some(Some(Expiry(NOW + 60)))));
        assert_eq!(check(r#"{"expires_at":null}"#).unwrap().expiry, Some(None));
    }

    #[test]
    fn invalid_changes_are_refused() {
        for (body, hint) in [
            ("{}", "empty"),
            (r#"{"url":null}"#, "use DELETE"),
            (r#"{"url":"https://sho.rt/x"}"#, "loop"),
            (r#"{"expires_at":"2025-01-01T00:00:00Z"}"#, "future"),
        ] {
            let refused = check(body).unwrap_err();
            assert!(refused.reason().contains(hint), "{body}: {refused}");
        }
    }

    #[test]
    fn only_known_fields_of_the_right_type_are_read() {
        for body in [r#"{"slug":"other"}"#, r#"{"url":5}"#] {
            assert!(serde_json::from_str::<ChangeRequest>(body).is_err(), "{body}");
        }
    }
}
