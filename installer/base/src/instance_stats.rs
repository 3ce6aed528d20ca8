//! Measurements of an instance by its supervisor, for the agent's metrics. They are kept in a directory that outlives the
//! instance's own, until the next boot.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::{clock, files, log};

/// The measurements of one instance since boot.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct InstanceStats {
    /// How often the runtime was started.
    pub starts: u64,
    /// The time of the last start, in seconds since 1970.
    pub started: f64,
    /// The duration of the last drain, from the stop to the end of the last request.
    pub drain_seconds: Option<f64>,
    /// The resident memory of the runtime's processes, measured every few seconds.
    pub resident_bytes: Option<u64>,
}

impl InstanceStats {
    /// Reads the file of one instance (`Layout::instance_metrics`). `None` if the instance has not started since boot, or the
    /// file is invalid.
    pub fn read(path: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(path).ok()?).ok()
    }
}

/// Records the measurements of one instance. Every change is written to the instance's file.
#[derive(Debug)]
pub struct Recorder {
    path: PathBuf,
    stats: InstanceStats,
}

impl Recorder {
    /// Records a start of the runtime in the instance's file.
    pub fn started(path: PathBuf) -> Self {
        let before = InstanceStats::read(&path).unwrap_or_default();
        let recorder = Self {
            path,
            stats: InstanceStats {
                starts: before.starts + 1,
                started: clock::unix_seconds(SystemTime::now()),
                resident_bytes: None,
                ..before
            },
        };
        recorder.write();
        recorder
    }

    pub fn drained(&mut self, time: Duration) {
        self.stats.drain_seconds = Some(time.as_secs_f64());
        self.write();
    }

    pub fn memory(&mut self, bytes: Option<u64>) {
        if bytes != self.stats.resident_bytes {
            self.stats.resident_bytes = bytes;
            self.write();
        }
    }

    /// Logs a failure instead of returning it, because an instance serves even if its file cannot be written.
    fn write(&self) {
        let replace = || {
            fs::create_dir_all(self.path.parent().unwrap_or(Path::new("/")))?;
            files::replace(&self.path, &serde_json::to_vec(&self.stats)?, 0o600)
        };
        if let Err(error) = replace() {
            log::error!("{error:#}");
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use super::*;
    use crate::layout::temporary;

    #[test]
    fn starts_are_counted_and_the_last_drain_is_kept() {
        let (_root, layout) = temporary(&[]);
        assert_eq!(InstanceStats::read(&layout.instance_metrics(1)), None);
        let mut recorder = Recorder::started(layout.instance_metrics(1));
        recorder.memory(Some(4096));
        recorder.drained(Duration::from_millis(1500));
        let first = InstanceStats::read(&layout.instance_metrics(1)).unwrap();
        assert_eq!(
            (first.starts, first.resident_bytes, first.drain_seconds),
            (1, Some(4096), Some(1.5))
        );
        assert!(first.started > 1e9, "{first:?}");

        Recorder::started(layout.instance_metrics(1));
        let second = InstanceStats::read(&layout.instance_metrics(1)).unwrap();
        assert_eq!(
            (second.starts, second.resident_bytes, second.drain_seconds),
            (2, None, Some(1.5))
        );
        assert_eq!(InstanceStats::read(&layout.instance_metrics(2)), None);
    }
}
