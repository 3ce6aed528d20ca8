//! Something that others depend on does not answer: how long it is left alone, and how often the operator is told.

use std::time::Duration;

/// Begin the text forms.
const LASTS: &str = "outage1";
const ENDED: &str = "ended1";

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
}

/// What instances tell each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Note {
    Lasts(Outage),
    /// When the latest outage was found to be over, in Unix milliseconds.
    Ended(i64),
}

impl Note {
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

    pub fn encode(self) -> String {
        match self {
            Note::Lasts(Outage { since, tried }) => format!("{LASTS} {since} {tried}"),
            Note::Ended(at) => format!("{ENDED} {at}"),
        }
    }

    pub fn decode(bytes: &[u8]) -> Option<Note> {
        let text = std::str::from_utf8(bytes).ok()?;
        let (form, numbers) = text.split_once(' ')?;
        match form {
            LASTS => {
                let (since, tried) = numbers.split_once(' ')?;
                let (since, tried) = (since.parse().ok()?, tried.parse().ok()?);
                Some(Note::Lasts(Outage { since, tried }))
            }
            ENDED => numbers.parse().ok().map(Note::Ended),
            _ => None,
        }
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
    fn comes_back_as_it_was() {
        for note in [Note::Lasts(Outage::begin(NOW).tried_again(NOW + 1)), Note::Ended(NOW)] {
            assert_eq!(Note::decode(note.encode().as_bytes()), Some(note));
        }
        for text in [
            "",
            "outage1",
            "outage1 1",
            "outage1 1 x",
            "outage2 1 2",
            "1 2",
            "outage1 1 2 3",
            "ended1",
            "ended1 x",
        ] {
            assert_eq!(Note::decode(text.as_bytes()), None, "{text:?}");
        }
        assert_eq!(Note::decode(b"\xff"), None);
    }
}
