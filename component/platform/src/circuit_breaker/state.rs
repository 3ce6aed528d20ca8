//! The state of a circuit breaker: what an instance knows, and what instances share.

use std::time::Duration;

use crate::time::milliseconds;

/// The prefix of the text form, with its version. Other releases read the form.
const FORM: &str = "outage1";

/// How long an outage lasts after the latest attempt, in milliseconds. A later failure is a new outage.
const MEMORY: i64 = 60_000;

/// An outage of a service. Times are in Unix milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outage {
    /// The time of the first failure.
    pub since: i64,
    /// The time of the latest attempt.
    pub tried: i64,
}

impl Outage {
    pub fn begin(now: i64) -> Outage {
        Outage { since: now, tried: now }
    }

    pub fn record_attempt(self, now: i64) -> Outage {
        Outage { tried: now, ..self }
    }

    /// Whether it is too early for another attempt.
    pub fn is_open(self, now: i64, pause: Duration) -> bool {
        (0..milliseconds(pause)).contains(&now.saturating_sub(self.tried))
    }

    /// Whether a failure now belongs to this outage. If the latest attempt is ahead of `now`, the clock was set back since, and
    /// the failure does not.
    pub fn lasts(self, now: i64) -> bool {
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

/// What the instances of a machine share under two keys: the latest outage, and the end of an outage. Instances write
/// concurrently. With a single key, an instance that is still trying would overwrite the end that another one has found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SharedState {
    Open(Outage),
    /// When the latest outage was found to be over, in Unix milliseconds.
    Closed(i64),
}

impl SharedState {
    /// Combines the values of the two keys. An end ahead of `now` was written before the clock was set back, and is ignored.
    pub fn new(outage: Outage, ended: Option<i64>, now: i64) -> SharedState {
        match ended {
            Some(at) if (outage.since..=now).contains(&at) => SharedState::Closed(at),
            _ => SharedState::Open(outage),
        }
    }

    /// The outage that an attempt or a failure now belongs to; `None` if there is none yet. `known` is the outage that the
    /// instance itself knows of. Another instance may have found the end of that one, and the next one after it.
    pub fn outage(self, known: Option<Outage>, now: i64) -> Option<Outage> {
        match self {
            SharedState::Open(outage) if outage.lasts(now) => Some(outage),
            SharedState::Open(_) => known,
            SharedState::Closed(at) => known.filter(|known| known.since > at),
        }
    }

    /// Whether a request sent at `asked` may have failed because of an outage that is over.
    pub fn explains(self, asked: i64) -> bool {
        matches!(self, SharedState::Closed(at) if asked <= at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_767_225_600_000;
    const PAUSE: Duration = Duration::from_secs(3);

    #[test]
    fn is_open_for_the_pause_after_each_attempt() {
        let outage = Outage::begin(NOW);
        assert!(outage.is_open(NOW, PAUSE) && outage.is_open(NOW + 2999, PAUSE));
        assert!(!outage.is_open(NOW + 3000, PAUSE));
        let outage = outage.record_attempt(NOW + 3000);
        assert!(outage.is_open(NOW + 5999, PAUSE) && !outage.is_open(NOW + 6000, PAUSE));
        assert_eq!(outage.seconds(NOW + 6999), 6);
    }

    #[test]
    fn a_clock_that_was_set_back_does_not_prolong_an_outage() {
        let outage = Outage::begin(NOW);
        assert!(!outage.is_open(NOW - 1, PAUSE) && !outage.lasts(NOW - 1));
        assert_eq!(outage.seconds(NOW - 5000), 0);
    }

    #[test]
    fn a_failure_long_after_the_last_one_is_a_new_outage() {
        let outage = Outage::begin(NOW).record_attempt(NOW + 50_000);
        assert!(outage.lasts(NOW + 50_000 + MEMORY - 1));
        assert!(!outage.lasts(NOW + 50_000 + MEMORY));
    }

    #[test]
    fn a_request_sent_before_the_end_is_not_a_new_outage() {
        let ended = SharedState::Closed(NOW);
        assert!(ended.explains(NOW) && !ended.explains(NOW + 1));
        assert!(!SharedState::Open(Outage::begin(NOW)).explains(NOW));
    }

    #[test]
    fn a_failure_belongs_to_the_outage_that_lasts() {
        let (first, second) = (Outage::begin(NOW), Outage::begin(NOW + 10));
        let now = NOW + 20;
        assert_eq!(SharedState::Open(first).outage(None, now), Some(first));
        assert_eq!(SharedState::Open(first).outage(Some(second), now), Some(first));
        // The latest attempt was too long ago.
        assert_eq!(
            SharedState::Open(first).outage(Some(second), now + MEMORY),
            Some(second)
        );
        // An outage that began after the end is a new one.
        assert_eq!(SharedState::Closed(NOW + 5).outage(Some(first), now), None);
        assert_eq!(SharedState::Closed(NOW + 5).outage(Some(second), now), Some(second));
        assert_eq!(SharedState::Closed(NOW + 5).outage(None, now), None);
    }

    #[test]
    fn an_instance_that_knows_only_the_outage_before_does_not_bring_it_back() {
        let (before, next) = (Outage::begin(NOW), Outage::begin(NOW + 20));
        let ended = Some(NOW + 10);
        let now = NOW + 30;
        let attempt = SharedState::new(next, ended, now).outage(Some(before), now);
        assert_eq!(attempt, Some(next));
        let shared = SharedState::new(next.record_attempt(now), ended, now);
        assert_eq!(shared.outage(None, now), Some(next.record_attempt(now)));
    }

    #[test]
    fn an_end_closes_earlier_outages_whoever_writes_last() {
        let outage = Outage::begin(NOW);
        let ended = Some(NOW + 10);
        assert_eq!(SharedState::new(outage, None, NOW), SharedState::Open(outage));
        assert_eq!(SharedState::new(outage, ended, NOW + 10), SharedState::Closed(NOW + 10));
        // An instance that did not know of the end tried once more.
        let tried = outage.record_attempt(NOW + 20);
        assert_eq!(SharedState::new(tried, ended, NOW + 20), SharedState::Closed(NOW + 10));
        let next = Outage::begin(NOW + 11);
        assert_eq!(SharedState::new(next, ended, NOW + 20), SharedState::Open(next));
        // The clock was set back in between.
        assert_eq!(SharedState::new(outage, ended, NOW + 9), SharedState::Open(outage));
    }

    #[test]
    fn survives_a_round_trip() {
        let outage = Outage::begin(NOW).record_attempt(NOW + 1);
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
