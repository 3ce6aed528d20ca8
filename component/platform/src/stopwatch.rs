//! The times of a request, from one reading of each clock at its start.

use std::time::Duration;

use crate::time::{Instant, milliseconds, since_1970};

/// Measures the time since its start, and tells the time of day. Reading a clock is a call of the runtime, so a request reads
/// the time of day once.
#[derive(Clone, Copy, Debug)]
pub struct Stopwatch {
    /// The time of day at the start, in Unix milliseconds; 0 on a clock set before 1970.
    started_at: i64,
    since: Instant,
}

impl Stopwatch {
    pub fn start() -> Stopwatch {
        Stopwatch {
            started_at: milliseconds(since_1970()),
            since: Instant::now(),
        }
    }

    /// The start, for other measurements.
    pub fn since(&self) -> Instant {
        self.since
    }

    pub fn elapsed(&self) -> Duration {
        self.since.elapsed()
    }

    /// The time of day at the start, in Unix seconds.
    pub fn started_at(&self) -> i64 {
        self.started_at / 1000
    }

    /// The time of day `elapsed` after the start, in Unix seconds.
    pub fn at(&self, elapsed: Duration) -> i64 {
        self.started_at.saturating_add(milliseconds(elapsed)) / 1000
    }

    /// The time of day, in Unix seconds.
    pub fn now(&self) -> i64 {
        self.at(self.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_day_follows_from_the_start() {
        let stopwatch = Stopwatch {
            started_at: 1_767_225_600_900,
            since: Instant::now(),
        };
        assert_eq!(stopwatch.started_at(), 1_767_225_600);
        assert_eq!(stopwatch.at(Duration::from_millis(99)), 1_767_225_600);
        assert_eq!(stopwatch.at(Duration::from_millis(100)), 1_767_225_601);
        assert_eq!(stopwatch.at(Duration::MAX), i64::MAX / 1000);
    }
}
