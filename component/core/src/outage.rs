//! Something that others depend on does not answer: how long it is left alone, and how often the operator is told.

use std::time::Duration;

/// Begins the text form.
const FORM: &str = "outage1";

/// A failure after this long without an attempt is news again: nobody looked in between.
const MEMORY: i64 = 60_000;

/// Times in Unix milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outage {
    /// The first failure.
    pub since: i64,
    /// The latest attempt.
    pub tried: i64,
}

impl Outage {
    pub fn begin(now: i64) -> Outage {
        Outage { since: now, tried: now }
    }

    pub fn tried_again(self, now: i64) -> Outage {
        Outage { tried: now, ..self }
    }

    /// Whether it is too early for another attempt.
    pub fn rests(self, now: i64, pause: Duration) -> bool {
        let pause = pause.as_millis().try_into().unwrap_or(i64::MAX);
        (0..pause).contains(&now.saturating_sub(self.tried))
    }

    /// Whether a failure now belongs to it. A time ahead of `now` was written before the clock was set back.
    pub fn goes_on(self, now: i64) -> bool {
        (0..MEMORY).contains(&now.saturating_sub(self.tried))
    }

    /// Whole seconds from the first failure to `now`.
    pub fn seconds(self, now: i64) -> i64 {
        now.saturating_sub(self.since).max(0) / 1000
    }

    pub fn encode(self) -> String {
        format!("{FORM} {} {}", self.since, self.tried)
    }

    pub fn decode(bytes: &[u8]) -> Option<Outage> {
        let text = std::str::from_utf8(bytes).ok()?;
        let (since, tried) = text.strip_prefix(FORM)?.strip_prefix(' ')?.split_once(' ')?;
        Some(Outage {
            since: since.parse().ok()?,
            tried: tried.parse().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_767_225_600_000;
    const PAUSE: Duration = Duration::from_secs(3);

    #[test]
    fn rests_for_the_pause_after_each_attempt() {
        let outage = Outage::begin(NOW);
        assert!(outage.rests(NOW, PAUSE) && outage.rests(NOW + 2999, PAUSE));
        assert!(!outage.rests(NOW + 3000, PAUSE));
        let outage = outage.tried_again(NOW + 3000);
        assert!(outage.rests(NOW + 5999, PAUSE) && !outage.rests(NOW + 6000, PAUSE));
        assert_eq!(outage.seconds(NOW + 6999), 6);
    }

    #[test]
    fn a_clock_that_was_set_back_does_not_stretch_it() {
        let outage = Outage::begin(NOW);
        assert!(!outage.rests(NOW - 1, PAUSE) && !outage.goes_on(NOW - 1));
        assert_eq!(outage.seconds(NOW - 5000), 0);
    }

    #[test]
    fn a_failure_long_after_the_last_one_is_another_outage() {
        let outage = Outage::begin(NOW).tried_again(NOW + 50_000);
        assert!(outage.goes_on(NOW + 50_000 + MEMORY - 1));
        assert!(!outage.goes_on(NOW + 50_000 + MEMORY));
    }

    #[test]
    fn comes_back_as_it_was() {
        let outage = Outage::begin(NOW).tried_again(NOW + 1);
        assert_eq!(Outage::decode(outage.encode().as_bytes()), Some(outage));
        for text in [
            "",
            "outage1",
            "outage1 1",
            "outage1 1 x",
            "outage2 1 2",
            "1 2",
            "outage1 1 2 3",
        ] {
            assert_eq!(Outage::decode(text.as_bytes()), None, "{text:?}");
        }
        assert_eq!(Outage::decode(b"\xff"), None);
    }
}
