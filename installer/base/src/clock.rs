//! Times as numbers. A clock before 1970 was never set, and counts as 1970.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The current time in whole seconds since 1970.
pub fn now() -> u64 {
    since_epoch(SystemTime::now()).as_secs()
}

/// A time in seconds since 1970, as Prometheus represents times.
pub fn unix_seconds(time: SystemTime) -> f64 {
    since_epoch(time).as_secs_f64()
}

fn since_epoch(time: SystemTime) -> Duration {
    time.duration_since(UNIX_EPOCH).unwrap_or_default()
}
