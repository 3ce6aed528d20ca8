//! The right to change what runs, for commands that a package manager may run.

use std::time::Duration;

use links_rollout::{Appliance, LockWait, Session, Style};

/// How long a package manager waits for a rollout that is running: longer than a rollout takes in the worst case.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10 * 60);

/// Takes the right to remove links, also after a restore that was interrupted.
///
/// # Errors
/// The rollout does not end in time, or what was left cannot be undone.
pub fn begin_removal(appliance: &Appliance) -> anyhow::Result<Session<'_>> {
    Session::begin_in_restore(appliance, LockWait::Until(LOCK_TIMEOUT), Style::Text)
}

/// Takes the right. This waits for a rollout that is under way, and undoes what an interrupted one has left.
///
/// # Errors
/// The rollout does not end in time, or what was left cannot be undone.
pub fn begin(appliance: &Appliance) -> anyhow::Result<Session<'_>> {
    Session::begin(appliance, LockWait::Until(LOCK_TIMEOUT), Style::Text)
}
