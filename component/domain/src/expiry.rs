//! When a link stops working.

use crate::error::Refused;
use crate::timestamp;

/// The second from which a link no longer works, in Unix seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Expiry(pub i64);

impl Expiry {
    /// Parses an RFC 3339 date and time; a fraction of a second is cut off. `now` is in Unix seconds.
    ///
    /// # Errors
    /// The text is not a date and time, or is not in the future.
    pub fn parse(text: &str, now: i64) -> Result<Expiry, Refused> {
        let expiry = timestamp::parse(text).map(Expiry).ok_or_else(|| {
            Refused::new("The field expires_at must be an RFC 3339 date and time like 2030-01-31T18:00:00Z.")
        })?;
        if expiry.is_over(now) {
            let now = Expiry(now).to_text();
            return Err(Refused::new(format!(
                "The field expires_at must be in the future; the server's time is {now}."
            )));
        }
        Ok(expiry)
    }

    pub fn is_over(self, now: i64) -> bool {
        self.0 <= now
    }

    /// The time in RFC 3339, in UTC.
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
    fn a_refusal_of_another_form_has_an_example() {
        for text in [
            "",
            "tomorrow",
            "2027-01-01",
            "2027-01-01T00:00:00",
            "2027-13-01T00:00:00Z",
            "1798761600",
            "2027-02-30T00:00:00Z",
            "2030-01-31Q18:00:00Z",
            // After the year 9999 in UTC, so it could not be shown or sent back.
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
                refused.reason().contains("time is 2026-01-01T00:00:00Z"),
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
