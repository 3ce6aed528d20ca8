//! Durations in messages: a whole number and one unit, such as `250ms`, `30s`, `5m` or `24h`.

use std::time::Duration;

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
mod tests {
    use super::*;

    #[test]
    fn a_duration_has_the_largest_unit_that_fits() {
        for (milliseconds, text) in [
            (0, "0s"),
            (250, "250ms"),
            (1_500, "1500ms"),
            (30_000, "30s"),
            (90_000, "90s"),
            (300_000, "5m"),
            (86_400_000, "24h"),
        ] {
            assert_eq!(show(Duration::from_millis(milliseconds)), text);
        }
    }
}
