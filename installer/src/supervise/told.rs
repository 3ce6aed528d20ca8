//! What a supervisor leaves for the agent's metrics: in a directory that outlives the instance's own, gone after a boot.

use std::fs;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::layout::Layout;
use crate::{files, log};

/// Of one instance, since the boot.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Told {
    /// Starts of its runtime.
    pub starts: u64,
    /// The last of them, in seconds since 1970.
    pub started: f64,
    /// How long the last drain took, from the stop to the end of the last request.
    pub drain_seconds: Option<f64>,
    /// Of the runtime's processes, a few seconds ago.
    pub resident_bytes: Option<u64>,
}

impl Told {
    /// None: it has never started, or what it told cannot be understood.
    pub fn read(layout: &Layout, instance: u16) -> Option<Self> {
        serde_json::from_slice(&fs::read(layout.instance_metrics(instance)).ok()?).ok()
    }
}

/// Keeps it true.
#[derive(Debug)]
pub struct Teller<'a> {
    layout: &'a Layout,
    instance: u16,
    told: Told,
}

impl<'a> Teller<'a> {
    /// The runtime was just started.
    pub fn started(layout: &'a Layout, instance: u16) -> Self {
        let before = Told::read(layout, instance).unwrap_or_default();
        let teller = Self {
            layout,
            instance,
            told: Told {
                starts: before.starts + 1,
                started: since_1970(SystemTime::now()),
                resident_bytes: None,
                ..before
            },
        };
        teller.tell();
        teller
    }

    pub fn drained(&mut self, time: Duration) {
        self.told.drain_seconds = Some(time.as_secs_f64());
        self.tell();
    }

    pub fn memory(&mut self, bytes: Option<u64>) {
        if bytes != self.told.resident_bytes {
            self.told.resident_bytes = bytes;
            self.tell();
        }
    }

    /// An instance serves whether or not somebody can be told of it.
    fn tell(&self) {
        let path = self.layout.instance_metrics(self.instance);
        let write = || {
            fs::create_dir_all(self.layout.metrics_dir())?;
            files::replace(&path, &serde_json::to_vec(&self.told)?, 0o600)
        };
        if let Err(error) = write() {
            log::error!("{error:#}");
        }
    }
}

/// As Prometheus has times.
pub fn since_1970(time: SystemTime) -> f64 {
    // A clock before 1970 is not set at all.
    time.duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0.0, |time| time.as_secs_f64())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use super::*;
    use crate::layout::temporary;

    #[test]
    fn starts_are_counted_and_the_last_drain_outlives_them() {
        let (_root, layout) = temporary(&[]);
        assert_eq!(Told::read(&layout, 1), None);
        let mut teller = Teller::started(&layout, 1);
        teller.memory(Some(4096));
        teller.drained(Duration::from_millis(1500));
        let first = Told::read(&layout, 1).unwrap();
        assert_eq!(
            (first.starts, first.resident_bytes, first.drain_seconds),
            (1, Some(4096), Some(1.5))
        );
        assert!(first.started > 1e9, "{first:?}");

        Teller::started(&layout, 1);
        let second = Told::read(&layout, 1).unwrap();
        assert_eq!(
            (second.starts, second.resident_bytes, second.drain_seconds),
            (2, None, Some(1.5))
        );
        assert_eq!(Told::read(&layout, 2), None);
    }
}
