//! The clocks. In a component the standard library would read them through wasi-libc, which brings 6 KB of error messages along.

use std::time::Duration;

#[cfg(not(target_family = "wasm"))]
pub use std::time::Instant;

#[cfg(target_family = "wasm")]
use crate::sdk::wasip3::clocks::{monotonic_clock, system_clock};

/// A reading of the runtime's monotonic clock, like `std::time::Instant`.
#[cfg(target_family = "wasm")]
#[derive(Clone, Copy, Debug)]
pub struct Instant {
    nanoseconds: u64,
}

#[cfg(target_family = "wasm")]
impl Instant {
    pub fn now() -> Instant {
        Instant {
            nanoseconds: monotonic_clock::now(),
        }
    }

    pub fn elapsed(&self) -> Duration {
        Duration::from_nanos(monotonic_clock::now().saturating_sub(self.nanoseconds))
    }
}

/// The time since 1970; zero on a clock set before that.
#[cfg(target_family = "wasm")]
pub fn since_1970() -> Duration {
    let system_clock::Instant { seconds, nanoseconds } = system_clock::now();
    let seconds = seconds.try_into();
    seconds.map_or(Duration::ZERO, |seconds| Duration::new(seconds, nanoseconds))
}

/// The time since 1970; zero on a clock set before that.
#[cfg(not(target_family = "wasm"))]
pub fn since_1970() -> Duration {
    std::time::UNIX_EPOCH.elapsed().unwrap_or_default()
}

/// Whole milliseconds; the largest number if there are more. This is never inlined, because the 128-bit arithmetic is long.
#[inline(never)]
pub fn milliseconds(duration: Duration) -> i64 {
    duration.as_millis().try_into().unwrap_or(i64::MAX)
}
