//! When a link stops working.

use crate::error::Refused;
use crate::timestamp;

/// Seconds since 1970-01-01T00:00:00Z. A link with this expiry works before that second and not from it on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Expiry(pub i64);

impl Expiry {
    /// Parses a date and time of RFC 3339; a fraction of a second is cut off. `now` is in Unix seconds.
    ///
    /// # Errors
    /// It is none, or not in the future.
    pub fn parse(text: &str, now: i64) -> Result<Expiry, Refused> {
        let expiry = timestamp::parse(text).map(Expiry).ok_or_else(|| {
            Refused::new("The field expires_at must be a date and time of RFC 3339, like 2030-01-31T18:00:00Z.")
        })?;
        if expiry.is_over(now) {
            let now = Expiry(now).to_text();
            return Err(Refused::new(format!(
                "The field expires_at must be in the future; here it is {now}."
            )));
        }
        Ok(expiry)
    }

    pub fn is_over(self, now: i64) -> bool {
        self.0 <= now
    }

    /// RFC 3339 in UTC.
    pub fn to_text(self) -> String {
        timestamp::display(self.0)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    /// 2026-01-01T00:00:00Z
    const NOW: i64 = 1_767_225_600;

    #[test]
    fn reads_rfc_3339_in_any_offset() {
        for text in [
            "2026-01-01T00:01:00Z",
            "2026-01-01t00:01:00z",
            "2026-01-01T00:01:00.999Z",
            "2026-01-01T02:01:00+02:00",
            "2025-12-31T14:01:00-10:00",
        ] {
            assert_eq!(Expiry::parse(text, NOW), Ok(Expiry(NOW + 60)), "{text}");
        }
    }

    #[test]
    fn refuses_other_forms_with_an_example() {
        for text in [
            "",
            "tomorrow",
            "2027-01-01",
            "2027-01-01T00:00:00",
            "2027-13-01T00:00:00Z",
            "1798761600",
            "2027-02-30T00:00:00Z",
            "2030-01-31Q18:00:00Z",
            // After the year 9999 in UTC: it could not be shown, nor sent back.
            "9999-12-31T23:59:59-23:59",
        ] {
            let refused = Expiry::parse(text, NOW).unwrap_err();
            assert!(refused.reason().contains("2030-01-31T18:00:00Z"), "{text:?}");
        }
    }

    #[test]
    fn must_be_in_the_future() {
        for text in [
            "2020-01-01T00:00:00Z",
            "2026-01-01T00:00:00Z",
            "2026-01-01T00:00:00.9Z",
            "0000-01-01T00:00:00Z",
        ] {
            let refused = Expiry::parse(text, NOW).unwrap_err();
            assert!(
                refused.reason().contains("here it is 2026-01-01T00:00:00Z"),
                "{text}: {}",
                refused
            );
        }
        assert_eq!(
            Expiry::parse("9999-12-31T23:59:59Z", NOW).unwrap().to_text(),
            "9999-12-31T23:59:59Z"
        );
    }

    #[test]
    fn is_over_from_its_second_on() {
        assert!(!Expiry(NOW).is_over(NOW - 1));
        assert!(Expiry(NOW).is_over(NOW));
    }
}
