//! How many machines may run at a time.

use std::sync::{Condvar, Mutex, PoisonError};

/// The right to run a machine. Only two run at a time, because more would slow each other down past their deadlines.
#[derive(Debug)]
pub struct Slot;

static RUNNING: Mutex<usize> = Mutex::new(0);
static FREED: Condvar = Condvar::new();

impl Slot {
    const COUNT: usize = 2;

    /// Waits until fewer than two machines run.
    pub fn take() -> Self {
        let running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        let mut running = FREED
            .wait_while(running, |running| *running >= Self::COUNT)
            .unwrap_or_else(PoisonError::into_inner);
        *running += 1;
        Self
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        *RUNNING.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        FREED.notify_one();
    }
}
