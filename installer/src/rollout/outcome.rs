//! How the last rollout ended, for the agent's metrics.

use std::fs;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::apply::Failure;
use crate::layout::Layout;
use crate::supervise::told::since_1970;
use crate::{files, log};

/// Of the last rollout that had something to change; it stays over a boot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    pub result: Verdict,
    /// The release that was to run.
    pub release: String,
    /// In seconds since 1970.
    pub ended: f64,
    /// None where a rollout was cut off: nobody knows when.
    pub seconds: Option<f64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Succeeded,
    /// Everything was taken back, or is to be.
    Failed,
    /// By a person, a power failure or the like.
    Interrupted,
}

impl Verdict {
    /// What `applied` means. A failure after the commit took nothing back, and is one all the same.
    pub fn of(applied: &Result<(), Failure>) -> Self {
        match applied {
            Ok(()) => Self::Succeeded,
            Err(Failure::Interrupted(_)) => Self::Interrupted,
            Err(Failure::Step { .. } | Failure::Afterwards { .. }) => Self::Failed,
        }
    }

    /// As a label has it.
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
            ended: since_1970(SystemTime::now()),
            seconds: took.map(|time| time.as_secs_f64()),
        }
    }

    /// What was done is done, whether or not somebody can be told of it.
    pub fn keep(&self, layout: &Layout) {
        let write = || files::replace(&layout.last_rollout(), &serde_json::to_vec(self)?, 0o644);
        if let Err(error) = write() {
            log::error!("{error:#}");
        }
    }

    /// None: there was none yet, or what was written cannot be understood.
    pub fn read(layout: &Layout) -> Option<Self> {
        serde_json::from_slice(&fs::read(layout.last_rollout()).ok()?).ok()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use super::super::apply::Undone;
    use super::*;
    use crate::layout::temporary;

    #[test]
    fn an_outcome_is_kept_and_read_again() {
        let (_root, layout) = temporary(&[Layout::state_dir]);
        assert_eq!(Outcome::read(&layout), None);
        let interrupted = Err(Failure::Interrupted(Undone::default()));
        let outcome = Outcome::now(
            Verdict::of(&interrupted),
            "1.2.3-abc",
            Some(Duration::from_millis(2500)),
        );
        outcome.keep(&layout);
        assert_eq!(Outcome::read(&layout), Some(outcome.clone()));
        assert_eq!((outcome.result.name(), outcome.seconds), ("interrupted", Some(2.5)));
        assert!(outcome.ended > 1e9);
    }
}
