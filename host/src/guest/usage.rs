//! The resource usage of an instance: its memory, which is limited, and its CPU time.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use wasmtime::{CallHook, ResourceLimiter, StoreLimits, StoreLimitsBuilder};

/// Limits memory, and counts it.
pub struct Limits {
    limits: StoreLimits,
    memory: u64,
}

impl Limits {
    /// `memory` is the maximum size of each linear memory, in bytes.
    pub fn new(memory: Option<usize>) -> Self {
        let mut limits = StoreLimitsBuilder::new();
        if let Some(bytes) = memory {
            limits = limits.memory_size(bytes);
        }
        Self {
            limits: limits.build(),
            memory: 0,
        }
    }

    /// The size of all memories and tables, in bytes. They never shrink. A table entry counts as a pointer, as in Spin.
    pub fn memory(&self) -> u64 {
        self.memory
    }

    fn count(&mut self, current: usize, desired: usize, size: usize) {
        let grown = desired.saturating_sub(current).saturating_mul(size);
        self.memory = self.memory.saturating_add(u64::try_from(grown).unwrap_or(u64::MAX));
    }
}

impl ResourceLimiter for Limits {
    fn memory_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        let may = self.limits.memory_growing(current, desired, maximum)?;
        if may {
            self.count(current, desired, 1);
        }
        Ok(may)
    }

    fn memory_grow_failed(&mut self, error: wasmtime::Error) -> wasmtime::Result<()> {
        self.limits.memory_grow_failed(error)
    }

    fn table_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        let may = self.limits.table_growing(current, desired, maximum)?;
        if may {
            self.count(current, desired, size_of::<usize>());
        }
        Ok(may)
    }

    fn table_grow_failed(&mut self, error: wasmtime::Error) -> wasmtime::Result<()> {
        self.limits.table_grow_failed(error)
    }

    fn instances(&self) -> usize {
        self.limits.instances()
    }

    fn tables(&self) -> usize {
        self.limits.tables()
    }

    fn memories(&self) -> usize {
        self.limits.memories()
    }
}

/// The time spent in a component's own code.
///
/// A request enters and leaves the component some thirty times, so the clock is one that is read quickly: it advances at each
/// [`tick`]. A shorter stretch counts as such a step or as nothing, in proportion to its length, so that the sum over many
/// stretches is right.
#[derive(Debug, Default)]
pub struct CpuTime {
    since: Option<Duration>,
    total: Duration,
}

impl CpuTime {
    /// Records a transition into or out of the component's code. Calls may interleave, so transitions need not pair up.
    pub fn at(&mut self, hook: CallHook) {
        let now = now();
        if let Some(since) = self.since.take() {
            self.total += now.saturating_sub(since);
        }
        if matches!(hook, CallHook::CallingWasm | CallHook::ReturningFromHost) {
            self.since = Some(now);
        }
    }

    pub fn total(&self) -> Duration {
        self.total
    }
}

/// The time of the last tick, in nanoseconds since the first.
static TICKED_AT: AtomicU64 = AtomicU64::new(0);

/// Advances the clock of [`CpuTime`].
pub fn tick() {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    let since_start = u64::try_from(START.elapsed().as_nanos());
    TICKED_AT.fetch_max(since_start.unwrap_or(u64::MAX), Relaxed);
}

fn now() -> Duration {
    Duration::from_nanos(TICKED_AT.load(Relaxed))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic fails the test")]
mod tests {
    use super::*;

    #[test]
    fn growth_is_counted_and_limited() {
        let mut limits = Limits::new(Some(100));
        assert!(limits.memory_growing(0, 60, None).unwrap());
        assert!(!limits.memory_growing(60, 101, None).unwrap());
        assert!(limits.memory_growing(60, 100, None).unwrap());
        assert!(limits.table_growing(0, 2, None).unwrap());
        assert_eq!(limits.memory(), 100 + 2 * size_of::<usize>() as u64);
    }

    #[test]
    fn only_the_components_own_time_counts() {
        const PAUSE: Duration = Duration::from_millis(10);
        let mut time = CpuTime::default();
        let pause = || {
            std::thread::sleep(PAUSE);
            tick();
        };
        tick();
        time.at(CallHook::CallingHost);
        pause();
        assert_eq!(time.total(), Duration::ZERO);
        time.at(CallHook::ReturningFromHost);
        pause();
        time.at(CallHook::CallingHost);
        let worked = time.total();
        assert!(worked >= PAUSE, "{worked:?}");
        pause();
        time.at(CallHook::ReturningFromHost);
        assert_eq!(time.total(), worked);
    }
}
