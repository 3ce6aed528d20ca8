//! What systemd is told of a service.

use sd_notify::NotifyState;

use crate::log;

/// Tells systemd, where it listens.
pub fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        log::error!("telling systemd {states:?}: {error}");
    }
}
