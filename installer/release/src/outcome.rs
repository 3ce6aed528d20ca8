//! The outcome of the last rollout, for the agent's metrics.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use links_base::{clock, files, log};

/// The outcome of the last rollout that changed something. It survives a reboot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    pub result: Verdict,
    /// The release that was rolled out.
    pub release: String,
    /// When the rollout ended, in seconds since 1970.
    pub ended: f64,
    /// How long the rollout took. `None` if it was cut off at an unknown time.
    pub seconds: Option<f64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Succeeded,
    /// Everything was rolled back, or will be.
    Failed,
    /// Interrupted by a person, a power failure or the like.
    Interrupted,
}

impl Verdict {
    /// The value of the metric's label.
    pub fn name(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Interrupted => "interrupted",
        }
    }
}

impl Outcome {
    pub fn now(result: Verdict, release: &str, took: Option<Duration>) -> Self {
        Self {
            result,
            release: release.to_owned(),
            ended: clock::unix_seconds(SystemTime::now()),
            seconds: took.map(|time| time.as_secs_f64()),
        }
    }

    /// Writes the outcome (`Layout::last_rollout`). An error is only logged, because the rollout itself is over.
    pub fn keep(&self, path: &Path) {
        let write = || files::replace(path, &serde_json::to_vec(self)?, 0o644);
        if let Err(error) = write() {
            log::error!("{error:#}");
        }
    }

    /// The last outcome. `None` if there is none yet, or if it cannot be parsed.
    pub fn read(path: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(path).ok()?).ok()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic fails the test")]
mod tests {
    use super::*;
    use links_base::layout::{Layout, temporary};

    #[test]
    fn an_outcome_is_written_and_read_back() {
        let (_root, layout) = temporary(&[Layout::state_dir]);
        assert_eq!(Outcome::read(&layout.last_rollout()), None);
        let outcome = Outcome::now(Verdict::Interrupted, "1.2.3-abc", Some(Duration::from_millis(2500)));
        outcome.keep(&layout.last_rollout());
        assert_eq!(Outcome::read(&layout.last_rollout()), Some(outcome.clone()));
        assert_eq!((outcome.result.name(), outcome.seconds), ("interrupted", Some(2.5)));
        assert!(outcome.ended > 1e9);
    }
}
