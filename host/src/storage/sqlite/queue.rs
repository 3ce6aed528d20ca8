//! The FIFO queue of changes for group commit.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The changes that wait for a leader to run them.
#[derive(Debug)]
pub struct Queue<C>(Mutex<State<C>>);

#[derive(Debug)]
struct State<C> {
    changes: VecDeque<(u64, C)>,
    /// Whether a leader is running. It empties the queue before it steps down.
    has_leader: bool,
}

impl<C> Default for Queue<C> {
    fn default() -> Self {
        Self(Mutex::new(State {
            changes: VecDeque::new(),
            has_leader: false,
        }))
    }
}

impl<C> Queue<C> {
    fn state(&self) -> MutexGuard<'_, State<C>> {
        // Nothing that can panic happens under this lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends a change. Returns true if there was no leader, so that the caller must start one.
    pub fn push(&self, number: u64, change: C) -> bool {
        let mut state = self.state();
        state.changes.push_back((number, change));
        !std::mem::replace(&mut state.has_leader, true)
    }

    /// Takes the first change. If there is none, the leader has stepped down.
    pub fn pop_or_step_down(&self) -> Option<C> {
        let mut state = self.state();
        let change = state.changes.pop_front();
        state.has_leader = change.is_some();
        change.map(|(_, change)| change)
    }

    /// Takes the first change, if there is one.
    pub fn pop(&self) -> Option<C> {
        self.state().changes.pop_front().map(|(_, change)| change)
    }

    pub fn remove(&self, number: u64) -> Option<C> {
        let mut state = self.state();
        let index = state.changes.iter().position(|(other, _)| *other == number)?;
        state.changes.remove(index).map(|(_, change)| change)
    }

    pub fn is_empty(&self) -> bool {
        self.state().changes.is_empty()
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.state().changes.len()
    }
}
