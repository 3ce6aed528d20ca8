//! Interrupts statements: quick reads at their deadline, and others when nobody waits for them any longer.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

/// Why the statement that a connection runs may have to end early.
#[derive(Debug, Default)]
pub struct Interrupt {
    /// The deadline of the running quick read, in microseconds as returned by `now`, or 0 for none.
    deadline: AtomicU64,
    /// The number of the current or last statement on the blocking pool.
    running: AtomicU64,
    /// The number of the last abandoned statement on the blocking pool.
    abandoned: AtomicU64,
}

/// The time since the first call in microseconds, never 0.
fn now() -> u64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    micros(START.elapsed()) + 1
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

impl Interrupt {
    /// Begins a quick read, which may take this long.
    pub fn begin_quick_read(&self, limit: Duration) {
        self.running.store(0, Relaxed);
        self.deadline.store(now() + micros(limit), Relaxed);
    }

    pub fn end_quick_read(&self) {
        self.deadline.store(0, Relaxed);
    }

    /// Whether a quick read is running. It runs on an executor thread, which must not block.
    pub fn is_quick_read(&self) -> bool {
        self.deadline.load(Relaxed) != 0
    }

    /// Returns a guard that interrupts the next statement on the blocking pool when dropped.
    pub fn abandonable(self: &Arc<Self>) -> Abandon {
        static NUMBERS: AtomicU64 = AtomicU64::new(1);
        let number = NUMBERS.fetch_add(1, Relaxed);
        self.running.store(number, Relaxed);
        Abandon {
            interrupt: self.clone(),
            number,
        }
    }

    /// Ends a statement on the blocking pool, which can no longer be abandoned.
    pub fn end(&self) {
        self.running.store(0, Relaxed);
    }

    /// Whether the running statement has to end now.
    pub fn is_due(&self) -> bool {
        let deadline = self.deadline.load(Relaxed);
        let running = self.running.load(Relaxed);
        (deadline != 0 && now() > deadline) || (running != 0 && self.abandoned.load(Relaxed) == running)
    }
}

/// Interrupts its statement when dropped, unless that has ended.
#[derive(Debug)]
pub struct Abandon {
    interrupt: Arc<Interrupt>,
    number: u64,
}

impl Drop for Abandon {
    fn drop(&mut self) {
        self.interrupt.abandoned.store(self.number, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quick_read_is_due_at_its_deadline() {
        let interrupt = Interrupt::default();
        interrupt.begin_quick_read(Duration::from_secs(3600));
        assert!(interrupt.is_quick_read() && !interrupt.is_due());
        interrupt.begin_quick_read(Duration::ZERO);
        std::thread::sleep(Duration::from_millis(1));
        assert!(interrupt.is_due());
        interrupt.end_quick_read();
        assert!(!interrupt.is_quick_read() && !interrupt.is_due());
    }

    #[test]
    fn only_the_abandoned_statement_is_due() {
        let interrupt = Arc::new(Interrupt::default());
        let first = interrupt.abandonable();
        interrupt.end();
        drop(first);
        assert!(!interrupt.is_due());
        let second = interrupt.abandonable();
        assert!(!interrupt.is_due());
        drop(second);
        assert!(interrupt.is_due());
    }
}
