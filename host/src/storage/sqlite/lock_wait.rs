//! How long a statement waits for another process's lock.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use super::interrupt::Interrupt;

/// The timeout, unless `PRAGMA busy_timeout` changes it. Same as in Spin.
pub const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a waiting statement retries the lock. SQLite's own handler backs off to 100 ms, which lets a process that writes
/// without a pause starve another one.
const BUSY_POLL: Duration = Duration::from_millis(1);

/// The state of a connection's busy handler.
#[derive(Debug)]
pub struct LockWait {
    /// In milliseconds.
    timeout: AtomicU64,
    /// Whether `PRAGMA busy_timeout` was compiled, so that SQLite replaces our busy handler with its own.
    replaced: AtomicBool,
}

impl Default for LockWait {
    fn default() -> Self {
        Self {
            timeout: AtomicU64::new(u64::try_from(BUSY_TIMEOUT.as_millis()).unwrap_or(u64::MAX)),
            replaced: AtomicBool::new(false),
        }
    }
}

impl LockWait {
    /// Takes the timeout of a `PRAGMA busy_timeout` that was compiled.
    pub fn replace(&self, milliseconds: u64) {
        self.timeout.store(milliseconds, Relaxed);
        self.replaced.store(true, Relaxed);
    }

    /// Whether SQLite may have replaced our busy handler since the last call.
    pub fn was_replaced(&self) -> bool {
        self.replaced.swap(false, Relaxed)
    }

    /// Decides whether a statement that has waited since `since` retries the lock. Sleeps before the retry.
    pub fn retries(&self, since: Instant, interrupt: &Interrupt) -> bool {
        let timeout = Duration::from_millis(self.timeout.load(Relaxed));
        if interrupt.is_quick_read() || interrupt.is_due() || since.elapsed() >= timeout {
            return false;
        }
        std::thread::sleep(BUSY_POLL);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quick_read_never_waits() {
        let (wait, interrupt) = (LockWait::default(), Interrupt::default());
        assert!(wait.retries(Instant::now(), &interrupt));
        interrupt.begin_quick_read(Duration::from_secs(3600));
        assert!(!wait.retries(Instant::now(), &interrupt));
    }

    #[test]
    fn a_components_timeout_replaces_the_default() {
        let (wait, interrupt) = (LockWait::default(), Interrupt::default());
        assert!(!wait.was_replaced());
        wait.replace(0);
        assert!(wait.was_replaced() && !wait.was_replaced());
        assert!(!wait.retries(Instant::now(), &interrupt));
    }
}
