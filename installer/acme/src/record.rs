//! What is remembered about a name between two runs.

use serde::{Deserialize, Serialize};

use crate::ca::protocol::Window;
use crate::schedule::{self, Failures};
use links_config::acme::{Ari, Failure};

/// The file of a name. It contains no secret.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Record {
    /// The certificate that was in place when this was written. What is said about attempts and windows is over once another
    /// one is in place: a run that put it there was killed before it could write the record.
    certificate: Option<String>,
    /// The certificate that nginx has loaded.
    pub loaded: Option<String>,
    /// The number of failed attempts since the last success.
    pub attempts: u32,
    pub last_attempt: Option<u64>,
    /// How many seconds after the last attempt none is made.
    pause: u64,
    pub error: Option<Failure>,
    window: Option<ChosenWindow>,
    ari_asked: Option<Asked>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct ChosenWindow {
    start: u64,
    end: u64,
    explanation: Option<String>,
    /// The time in the window that this machine has chosen.
    chosen: u64,
    checked: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Asked {
    at: u64,
    wait: u64,
}

impl Record {
    /// The record as it counts while the certificate `id` is in place.
    #[must_use]
    pub fn with(self, id: Option<&str>) -> Self {
        match self.certificate.as_deref() == id {
            true => self,
            false => Self {
                certificate: id.map(str::to_owned),
                loaded: self.loaded,
                ..Self::default()
            },
        }
    }

    pub fn failures(&self) -> Option<Failures> {
        let last = self.last_attempt.filter(|_| self.attempts > 0)?;
        Some(Failures {
            last,
            pause: self.pause,
        })
    }

    /// Counts a failed attempt.
    #[must_use]
    pub fn failed(self, failure: Failure, now: u64, certificate: Option<schedule::Validity>) -> Self {
        let attempts = self.attempts.saturating_add(1);
        Self {
            attempts,
            last_attempt: Some(now),
            pause: schedule::pause(failure.kind, attempts, now, failure.retry_after, certificate),
            error: Some(failure),
            ..self
        }
    }

    pub fn asks_ari(&self, now: u64) -> bool {
        schedule::asks_ari(now, self.ari_asked.map(|asked| (asked.at, asked.wait)))
    }

    /// The time that was chosen from the authority's window.
    pub fn suggested(&self) -> Option<u64> {
        self.window.as_ref().map(|window| window.chosen)
    }

    pub fn ari(&self) -> Option<Ari> {
        self.window.as_ref().map(|window| Ari {
            start: window.start,
            end: window.end,
            checked: window.checked,
            explanation: window.explanation.clone(),
        })
    }

    /// Remembers the authority's window. The chosen time stays while the window does, or it would never come.
    #[must_use]
    pub fn with_window(self, window: Option<Window>, wait: u64, now: u64, random: u64) -> Self {
        let before = self.window.as_ref();
        let window = window.map(|window| {
            let same = before.filter(|before| (before.start, before.end) == (window.start, window.end));
            ChosenWindow {
                chosen: same.map_or_else(
                    || schedule::choose(window.start, window.end, random),
                    |before| before.chosen,
                ),
                start: window.start,
                end: window.end,
                explanation: window.explanation,
                checked: now,
            }
        });
        Self {
            window,
            ari_asked: Some(Asked { at: now, wait }),
            ..self
        }
    }

    /// Remembers that the authority did not answer. An earlier window still counts.
    #[must_use]
    pub fn without_answer(self, now: u64) -> Self {
        Self {
            ari_asked: Some(Asked {
                at: now,
                wait: schedule::ARI_FAILED_WAIT,
            }),
            ..self
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::words::failure;
    use links_config::acme::FailureKind;

    const NOW: u64 = 1_800_000_000;

    fn dns() -> Failure {
        *failure(FailureKind::Dns, "a", "b")
    }

    #[test]
    fn failures_are_counted_and_the_pauses_grow() {
        let once = Record::default().with(Some("a")).failed(dns(), NOW, None);
        assert_eq!((once.attempts, once.last_attempt), (1, Some(NOW)));
        let twice = once.clone().failed(dns(), NOW + 10, None);
        assert_eq!(twice.attempts, 2);
        assert_eq!(twice.pause, 2 * once.pause);
        assert_eq!(Record::default().failures(), None);
    }

    #[test]
    fn a_new_certificate_ends_what_was_said_about_the_old_one() {
        let window = Window {
            start: NOW,
            end: NOW + 10,
            explanation: None,
        };
        let mut old = Record::default()
            .with(Some("a"))
            .failed(dns(), NOW, None)
            .with_window(Some(window), 60, NOW, 0);
        old.loaded = Some("a".to_owned());
        assert_eq!(old.clone().with(Some("a")), old);
        let new = old.with(Some("b"));
        assert_eq!((new.attempts, new.failures(), new.ari()), (0, None, None));
        assert!(new.asks_ari(NOW));
        assert_eq!(new.loaded.as_deref(), Some("a"), "nginx still has the old one");
    }

    #[test]
    fn the_chosen_time_stays_until_the_window_changes() {
        let window = |start| Window {
            start,
            end: start + 1000,
            explanation: None,
        };
        let record = Record::default().with_window(Some(window(NOW)), 60, NOW, 7);
        assert_eq!(record.suggested(), Some(NOW + 7));
        assert!(!record.asks_ari(NOW + 59) && record.asks_ari(NOW + 60));
        let again = record.with_window(Some(window(NOW)), 60, NOW + 60, 500);
        assert_eq!(again.suggested(), Some(NOW + 7));
        let unanswered = again.without_answer(NOW + 120);
        assert_eq!(unanswered.suggested(), Some(NOW + 7));
        assert!(!unanswered.asks_ari(NOW + 121));
        // After a revocation.
        let moved = unanswered.with_window(Some(window(NOW - 5000)), 60, NOW, 500);
        assert_eq!(moved.suggested(), Some(NOW - 4500));
        assert_eq!(moved.with_window(None, 60, NOW, 0).suggested(), None);
    }

    #[test]
    fn a_record_of_another_version_is_read_as_far_as_possible() {
        let record: Record = serde_json::from_str(r#"{"attempts":2,"unknown":1}"#).unwrap_or_default();
        assert_eq!(record.attempts, 2);
    }
}
