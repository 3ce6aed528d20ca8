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
        let numbers = std::str::from_utf8(bytes).ok()?.strip_prefix(FORM)?.strip_prefix(' ')?;
        let (since, tried) = numbers.split_once(' ')?;
        let (since, tried) = (since.parse().ok()?, tried.parse().ok()?);
        Some(Outage { since, tried })
    }
}

/// The text form of the time when an outage ended.
pub fn encode_end(at: i64) -> String {
    at.to_string()
}

pub fn decode_end(bytes: &[u8]) -> Option<i64> {
    std::str::from_utf8(bytes).ok()?.parse().ok()
}

/// What instances tell each other. They leave it in two places: the outage of which an attempt told last, and the end of
/// one. Two instances write at the same time, and with one place, who still tries would undo what the other has found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Note {
    Lasts(Outage),
    /// When the latest outage was found to be over, in Unix milliseconds.
    Ended(i64),
}

impl Note {
    /// Of what is in the two places. An end ahead of `now` was written before the clock was set back.
    pub fn new(outage: Outage, ended: Option<i64>, now: i64) -> Note {
        match ended {
            Some(at) if (outage.since..=now).contains(&at) => Note::Ended(at),
            _ => Note::Lasts(outage),
        }
    }

    /// The outage that a failure now belongs to; none: it begins another one. `known` is what the instance knew of one by
    /// itself.
    pub fn lasting(self, known: Option<Outage>, now: i64) -> Option<Outage> {
        match self {
            Note::Lasts(outage) if outage.goes_on(now) => Some(outage),
            Note::Lasts(_) => known,
            Note::Ended(at) => known.filter(|known| known.since > at),
        }
    }

    /// Whether what was asked at `asked` may still have been held up by an outage that is over.
    pub fn explains(self, asked: i64) -> bool {
        matches!(self, Note::Ended(at) if asked <= at)
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
    fn what_was_asked_before_the_end_is_no_new_outage() {
        let ended = Note::Ended(NOW);
        assert!(ended.explains(NOW) && !ended.explains(NOW + 1));
        assert!(!Note::Lasts(Outage::begin(NOW)).explains(NOW));
    }

    #[test]
    fn a_failure_belongs_to_what_lasts() {
        let (first, second) = (Outage::begin(NOW), Outage::begin(NOW + 10));
        let now = NOW + 20;
        assert_eq!(Note::Lasts(first).lasting(None, now), Some(first));
        assert_eq!(Note::Lasts(first).lasting(Some(second), now), Some(first));
        // Nobody has tried for long.
        assert_eq!(Note::Lasts(first).lasting(Some(second), now + MEMORY), Some(second));
        // What began after the end is another one.
        assert_eq!(Note::Ended(NOW + 5).lasting(Some(first), now), None);
        assert_eq!(Note::Ended(NOW + 5).lasting(Some(second), now), Some(second));
        assert_eq!(Note::Ended(NOW + 5).lasting(None, now), None);
    }

    #[test]
    fn an_end_ends_what_began_before_it_whoever_writes_last() {
        let outage = Outage::begin(NOW);
        let ended = Some(NOW + 10);
        assert_eq!(Note::new(outage, None, NOW), Note::Lasts(outage));
        assert_eq!(Note::new(outage, ended, NOW + 10), Note::Ended(NOW + 10));
        // An instance that did not know of the end has tried once more.
        let tried = outage.tried_again(NOW + 20);
        assert_eq!(Note::new(tried, ended, NOW + 20), Note::Ended(NOW + 10));
        let next = Outage::begin(NOW + 11);
        assert_eq!(Note::new(next, ended, NOW + 20), Note::Lasts(next));
        // The clock was set back in between.
        assert_eq!(Note::new(outage, ended, NOW + 9), Note::Lasts(outage));
    }

    #[test]
    fn comes_back_as_it_was() {
        let outage = Outage::begin(NOW).tried_again(NOW + 1);
        assert_eq!(Outage::decode(outage.encode().as_bytes()), Some(outage));
        assert_eq!(decode_end(encode_end(NOW).as_bytes()), Some(NOW));
        for text in [
            "",
            "outage1",
            "outage1 1",
            "outage1 1 x",
            "outage2 1 2",
            "outage11 2",
            "1 2",
            "outage1 1 2 3",
        ] {
            assert_eq!(Outage::decode(text.as_bytes()), None, "{text:?}");
        }
        assert_eq!(Outage::decode(b"\xff"), None);
        assert_eq!(decode_end(b"1 2"), None);
    }
}
