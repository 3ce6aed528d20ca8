//! Durations as people write them: a whole number and one unit, such as `250ms`, `30s`, `5m` or `24h`.

use std::time::Duration;

use thiserror::Error;

/// Why a text is not a duration. The message continues a sentence that starts with the name of the setting.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Problem {
    #[error("must be a whole number and a unit, such as \"30s\", found \"{}\"", .0.escape_debug())]
    NoNumber(String),
    #[error("needs a unit: `ms`, `s`, `m` or `h`, such as \"{0}s\"")]
    NoUnit(String),
    #[error("has the unknown unit `{}`: use `ms`, `s`, `m` or `h`", .0.escape_debug())]
    UnknownUnit(String),
    #[error("is too long")]
    TooLong,
}

/// Parses a duration. White space may precede the unit.
///
/// # Errors
/// The text has no whole number or no known unit, or its milliseconds overflow `u64`.
pub fn parse(text: &str) -> Result<Duration, Problem> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    if number.is_empty() || unit.starts_with(['.', ',']) {
        return Err(Problem::NoNumber(text.to_owned()));
    }
    let milliseconds = match unit.trim_start() {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "" => return Err(Problem::NoUnit(number.to_owned())),
        other => return Err(Problem::UnknownUnit(other.to_owned())),
    };
    number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(milliseconds))
        .map(Duration::from_millis)
        .ok_or(Problem::TooLong)
}

/// Formats a duration with the largest unit that gives a whole number. Fractions of a millisecond are dropped.
pub fn show(duration: Duration) -> String {
    let milliseconds = duration.as_millis();
    if milliseconds == 0 {
        return "0s".to_owned();
    }
    [(3_600_000, "h"), (60_000, "m"), (1_000, "s")]
        .into_iter()
        .find(|(length, _)| milliseconds.is_multiple_of(*length))
        .map_or_else(
            || format!("{milliseconds}ms"),
            |(length, unit)| format!("{}{unit}", milliseconds / length),
        )
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    #[test]
    fn parse_and_show_are_inverse() {
        for (text, milliseconds) in [
            ("0s", 0),
            ("250ms", 250),
            ("1500ms", 1_500),
            ("30s", 30_000),
            ("5m", 300_000),
            ("24h", 86_400_000),
        ] {
            assert_eq!(parse(text).unwrap(), Duration::from_millis(milliseconds), "{text}");
            assert_eq!(show(Duration::from_millis(milliseconds)), text);
        }
        assert_eq!(parse("30 s").unwrap(), Duration::from_secs(30));
        assert_eq!(show(Duration::from_secs(90)), "90s");
    }

    #[test]
    fn invalid_durations_are_refused() {
        for (text, message) in [
            ("", "must be a whole number and a unit, such as \"30s\", found \"\""),
            (
                "soon",
                "must be a whole number and a unit, such as \"30s\", found \"soon\"",
            ),
            (
                "-1s",
                "must be a whole number and a unit, such as \"30s\", found \"-1s\"",
            ),
            (
                "1.5s",
                "must be a whole number and a unit, such as \"30s\", found \"1.5s\"",
            ),
            ("30", "needs a unit: `ms`, `s`, `m` or `h`, such as \"30s\""),
            ("30sec", "has the unknown unit `sec`: use `ms`, `s`, `m` or `h`"),
            ("1m30s", "has the unknown unit `m30s`: use `ms`, `s`, `m` or `h`"),
            ("99999999999999999999s", "is too long"),
            ("18446744073709551615h", "is too long"),
        ] {
            assert_eq!(parse(text).unwrap_err().to_string(), message, "{text}");
        }
    }
}
