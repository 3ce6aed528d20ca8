//! The timer that makes backups: enabled exactly while links.toml says how often.

use std::path::{Path, PathBuf};

use links_base::layout::{BACKUP_TIMER, Layout};
use links_base::services::Services;
use links_config::links::Config;

/// The timer of this host.
#[derive(Clone, Debug)]
pub struct BackupTimer {
    /// Exists while the timer is enabled.
    enabled: PathBuf,
}

/// What has to be done about a timer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Nothing,
    TurnOn,
    TurnOff,
}

fn change(is_wanted: bool, is_enabled: bool) -> Change {
    match (is_wanted, is_enabled) {
        (true, false) => Change::TurnOn,
        (false, true) => Change::TurnOff,
        _ => Change::Nothing,
    }
}

impl BackupTimer {
    pub fn new(layout: &Layout) -> Self {
        Self {
            enabled: layout.backup_timer_enabled(),
        }
    }

    fn is_enabled(&self) -> bool {
        // The link dangles if the unit is gone.
        Path::is_symlink(&self.enabled)
    }

    /// Turns the timer on or off, as links.toml asks.
    ///
    /// # Errors
    /// The unit is missing, or systemd refuses.
    pub fn follow(&self, config: &Config, services: Services) -> anyhow::Result<()> {
        let units = [BACKUP_TIMER.to_owned()];
        match change(config.backup.every.is_some(), self.is_enabled()) {
            Change::Nothing => {}
            Change::TurnOn => {
                services.enable(&units)?;
                services.reload_units()?;
                services.act("start", BACKUP_TIMER)?;
            }
            Change::TurnOff => self.turn_off(services)?,
        }
        Ok(())
    }

    /// Turns the timer off, if it is on.
    ///
    /// # Errors
    /// systemd refuses.
    pub fn turn_off(&self, services: Services) -> anyhow::Result<()> {
        if !self.is_enabled() {
            return Ok(());
        }
        services.act("stop", BACKUP_TIMER)?;
        services.disable(&[BACKUP_TIMER.to_owned()])?;
        services.reload_units()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use super::*;
    use links_base::layout::temporary;

    #[test]
    fn only_a_difference_is_acted_on() {
        assert_eq!(change(true, true), Change::Nothing);
        assert_eq!(change(false, false), Change::Nothing);
        assert_eq!(change(true, false), Change::TurnOn);
        assert_eq!(change(false, true), Change::TurnOff);
    }

    #[test]
    fn a_host_without_the_timer_needs_no_systemd_to_keep_it_off() {
        let (_root, layout) = temporary(&[]);
        let timer = BackupTimer::new(&layout);
        timer.follow(&Config::default(), Services::nowhere()).unwrap();
        timer.turn_off(Services::nowhere()).unwrap();
    }
}
