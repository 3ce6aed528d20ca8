//! The lock of the only writer in this process.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::sync::{Mutex, OwnedMutexGuard};

use super::error::locked;
use crate::bindings::sqlite::Error;

/// How long a writer waits while the lock does not change hands.
pub const WRITER_TIMEOUT: Duration = Duration::from_secs(5);

/// A lock that is granted in the order of arrival.
#[derive(Debug, Default)]
pub struct WriteLock {
    lock: Arc<Mutex<()>>,
    /// How often the lock was granted. It distinguishes a slow queue from a stuck one.
    grants: AtomicU64,
    /// The number of callers of `acquire` that wait.
    waiters: AtomicU64,
}

/// Held by the writer.
pub type WriteGuard = OwnedMutexGuard<()>;

impl WriteLock {
    /// Waits for the lock.
    ///
    /// # Errors
    /// The lock has not changed hands for a while, because a component keeps a transaction open.
    pub async fn acquire(&self) -> Result<WriteGuard, Error> {
        loop {
            let grants = self.grants();
            let counted = WaiterCount::new(&self.waiters);
            if let Ok(lock) = tokio::time::timeout(WRITER_TIMEOUT, self.wait()).await {
                drop(counted);
                self.count_grant();
                return Ok(lock);
            }
            if self.grants() == grants {
                return Err(locked());
            }
        }
    }

    /// Waits for the lock however long it takes. Neither the caller nor the grant is counted.
    pub async fn wait(&self) -> WriteGuard {
        self.lock.clone().lock_owned().await
    }

    pub fn grants(&self) -> u64 {
        self.grants.load(Relaxed)
    }

    /// Counts a grant, or as much work as one: it shows others that the queue moves on.
    pub fn count_grant(&self) {
        self.grants.fetch_add(1, Relaxed);
    }

    /// The number of callers of [`Self::acquire`] that wait.
    pub fn waiters(&self) -> u64 {
        self.waiters.load(Relaxed)
    }
}

/// Counts one waiter until dropped.
struct WaiterCount<'a>(&'a AtomicU64);

impl<'a> WaiterCount<'a> {
    fn new(waiters: &'a AtomicU64) -> Self {
        waiters.fetch_add(1, Relaxed);
        Self(waiters)
    }
}

impl Drop for WaiterCount<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic fails the test")]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_lock_that_does_not_change_hands_is_an_error() {
        let lock = WriteLock::default();
        let held = lock.acquire().await.unwrap();
        assert_eq!(lock.acquire().await.unwrap_err(), locked());
        assert_eq!(lock.waiters(), 0);
        drop(held);
        assert!(lock.acquire().await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_queue_that_moves_on_is_waited_for() {
        let lock = WriteLock::default();
        let held = lock.wait().await;
        let (acquired, ()) = tokio::join!(lock.acquire(), async {
            for _ in 0..10 {
                tokio::time::sleep(WRITER_TIMEOUT / 2).await;
                lock.count_grant();
            }
            assert_eq!(lock.waiters(), 1);
            drop(held);
        });
        assert!(acquired.is_ok());
    }
}
