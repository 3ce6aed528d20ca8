//! Times as RFC 3339 texts, and as seconds since 1970-01-01T00:00:00Z. All of them lie in the years 0000 to 9999 in UTC, so
//! each has a text that a client can send back.

use std::ops::RangeInclusive;

use time::{Date, Month, OffsetDateTime, Time};

/// From 0000-01-01T00:00:00Z to 9999-12-31T23:59:59Z.
const ALL: RangeInclusive<i64> = -62_167_219_200..=253_402_300_799;

/// Parses a date and time like `2030-01-31T18:00:00+01:00`; a fraction of a second is cut off.
///
/// The parser of the crate time accepts any byte between date and time. That of jiff accepts forms that only ISO 8601 allows,
/// rejects the last day and a half of 9999, and adds 290 KB to the component.
pub fn parse(text: &str) -> Option<i64> {
    let (date, rest) = text.as_bytes().split_at_checked(10)?;
    let (time, rest) = rest.split_at_checked(9)?;
    let [b'T' | b't', h1, h2, b':', m1, m2, b':', s1, s2] = time else {
        return None;
    };
    let time = Time::from_hms(
        two_digits(*h1, *h2)?,
        two_digits(*m1, *m2)?,
        // A leap second counts as the second before it.
        two_digits(*s1, *s2).map(|second| if second == 60 { 59 } else { second })?,
    );
    let seconds = day_of(date)?.with_time(time.ok()?).assume_utc().unix_timestamp();
    let offset = match without_fraction(rest)? {
        [b'Z' | b'z'] => 0,
        [sign @ (b'+' | b'-'), h1, h2, b':', m1, m2] => {
            let (hours, minutes) = (two_digits(*h1, *h2)?, two_digits(*m1, *m2)?);
            let offset = i64::from(hours) * 3600 + i64::from(minutes) * 60;
            let is_valid = hours < 24 && minutes < 60;
            is_valid.then_some(if *sign == b'-' { -offset } else { offset })?
        }
        _ => return None,
    };
    Some(seconds - offset).filter(|seconds| ALL.contains(seconds))
}

/// Parses a day like `2030-01-31` and returns its first second in UTC.
pub fn parse_day(text: &str) -> Option<i64> {
    Some(day_of(text.as_bytes())?.midnight().assume_utc().unix_timestamp())
}

/// The text in UTC; `None` outside the years 0000 to 9999.
pub fn to_text(seconds: i64) -> Option<String> {
    let moment = OffsetDateTime::from_unix_timestamp(seconds).ok();
    let moment = moment.filter(|_| ALL.contains(&seconds))?;
    let (year, month, day) = moment.to_calendar_date();
    let (hour, minute, second) = moment.to_hms();
    let month = u8::from(month);
    Some(format!(
        "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z"
    ))
}

/// The text in UTC, or the number itself outside the years 0000 to 9999. Such a number was written into the database by hand,
/// or by a release before 0.2.0.
pub fn display(seconds: i64) -> String {
    to_text(seconds).unwrap_or_else(|| format!("Unix time {seconds}"))
}

fn day_of(text: &[u8]) -> Option<Date> {
    let [y1, y2, y3, y4, b'-', m1, m2, b'-', d1, d2] = text else {
        return None;
    };
    let year = i32::from(two_digits(*y1, *y2)?) * 100 + i32::from(two_digits(*y3, *y4)?);
    let month = Month::try_from(two_digits(*m1, *m2)?).ok()?;
    Date::from_calendar_date(year, month, two_digits(*d1, *d2)?).ok()
}

fn without_fraction(text: &[u8]) -> Option<&[u8]> {
    match text.strip_prefix(b".") {
        Some(rest) => {
            let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
            rest.get(digits..).filter(|_| digits > 0)
        }
        None => Some(text),
    }
}

fn two_digits(tens: u8, ones: u8) -> Option<u8> {
    let digit = |byte: u8| byte.is_ascii_digit().then(|| byte - b'0');
    Some(digit(tens)? * 10 + digit(ones)?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    /// 2026-01-01T00:00:00Z
    const NEW_YEAR: i64 = 1_767_225_600;

    #[test]
    fn reads_the_forms_of_rfc_3339() {
        for text in [
            "2026-01-01T00:00:00Z",
            "2026-01-01t00:00:00z",
            "2026-01-01T00:00:00.999999999999Z",
            "2026-01-01T02:00:00+02:00",
            "2025-12-31T14:00:00-10:00",
            "2026-01-01T00:00:00-00:00",
            "2026-01-01T23:59:00+23:59",
        ] {
            assert_eq!(parse(text), Some(NEW_YEAR), "{text}");
        }
        assert_eq!(parse("2016-12-31T23:59:60Z"), parse("2016-12-31T23:59:59Z"));
        assert_eq!(parse("2024-02-29T00:00:00Z"), Some(1_709_164_800));
        assert_eq!(parse_day("2026-01-01"), Some(NEW_YEAR));
    }

    #[test]
    fn reads_nothing_else() {
        for text in [
            "",
            "2026-01-01",
            "2026-01-01T00:00:00",
            "2026-01-01 00:00:00Z",
            "2026-01-01Q00:00:00Z",
            "2026-01-01T00:00Z",
            "2026-01-01T00:00:00.Z",
            "2026-01-01T00:00:00,5Z",
            "2026-01-01T00:00:00ZZ",
            "2026-01-01T00:00:00+0200",
            "2026-01-01T00:00:00+02",
            "2026-01-01T00:00:00+24:00",
            "2026-01-01T00:00:00+02:60",
            "2026-01-01T24:00:00Z",
            "2026-01-01T00:00:61Z",
            "2026-02-30T00:00:00Z",
            "2025-02-29T00:00:00Z",
            "2026-13-01T00:00:00Z",
            "2026-00-01T00:00:00Z",
            "2026-01-01T00:00:00Z[UTC]",
            "20260101T000000Z",
            "+002026-01-01T00:00:00Z",
            "-2026-01-01T00:00:00Z",
            "2026-01-01T00:00:00Ü",
            " 2026-01-01T00:00:00Z",
            "2026-01-01T0é:00:00Z",
        ] {
            assert_eq!(parse(text), None, "{text:?}");
        }
        for text in [
            "",
            "2026-1-1",
            "2026-02-30",
            "2026-01-01T00:00:00Z",
            "20260101",
            "-999-01-01",
        ] {
            assert_eq!(parse_day(text), None, "{text:?}");
        }
    }

    #[test]
    fn every_parsed_time_can_be_sent_back() {
        for (text, utc) in [
            ("9999-12-31T23:59:59Z", Some("9999-12-31T23:59:59Z")),
            ("0000-01-01T00:00:00Z", Some("0000-01-01T00:00:00Z")),
            ("9999-12-31T23:59:59+23:59", Some("9999-12-31T00:00:59Z")),
            ("9999-12-31T23:59:59-00:01", None),
            ("9999-12-31T23:59:59-23:59", None),
            ("0000-01-01T00:00:00+00:01", None),
        ] {
            let seconds = parse(text);
            assert_eq!(seconds.and_then(to_text).as_deref(), utc, "{text}");
            assert_eq!(utc.and_then(parse), seconds, "{text}");
        }
        assert_eq!(to_text(ALL.start() - 1), None);
        assert_eq!(to_text(ALL.end() + 1), None);
        assert_eq!((to_text(i64::MAX), to_text(i64::MIN)), (None, None));
        assert_eq!(display(i64::MAX), "Unix time 9223372036854775807");
    }
}
