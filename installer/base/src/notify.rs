//! Notifications to systemd about the state of a service (sd_notify(3)).

use sd_notify::NotifyState;

use crate::log;

/// Notifies systemd, if it started this process. A failure is only logged.
pub fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        log::error!("notifying systemd of {states:?}: {error}");
    }
}
