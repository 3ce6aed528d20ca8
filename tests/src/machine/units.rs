//! Units inside a machine.

use anyhow::{Context as _, Result};

use super::Machine;

impl Machine {
    /// The messages of a unit in the journal, over all boots, without timestamps.
    ///
    /// # Errors
    /// Fails as [`Self::ok`] does.
    pub fn journal(&self, unit: &str) -> Result<String> {
        self.ok(["journalctl", "--sync"])?;
        Ok(self
            .ok(["journalctl", "--quiet", "--output=cat", "--unit", unit])?
            .stdout)
    }

    /// The messages of a unit in the journal that have this priority or a higher one, such as `err` (journalctl(1)).
    ///
    /// # Errors
    /// Fails as [`Self::ok`] does.
    pub fn journal_at(&self, priority: &str, unit: &str) -> Result<String> {
        self.ok(["journalctl", "--sync"])?;
        let journalctl = [
            "journalctl",
            "--quiet",
            "--output=cat",
            "--priority",
            priority,
            "--unit",
            unit,
        ];
        Ok(self.ok(journalctl)?.stdout)
    }

    /// The PID of a unit's main process inside the machine, or 0 if there is none.
    ///
    /// # Errors
    /// Fails if systemctl fails.
    pub fn main_pid(&self, unit: &str) -> Result<u32> {
        let shown = self.ok(["systemctl", "show", "--property=MainPID", "--value", unit])?;
        Ok(shown.stdout.trim().parse()?)
    }

    /// The "overall exposure level" of a unit by `systemd-analyze security`, from 0 (none) to 10.
    ///
    /// # Errors
    /// Fails if the output contains no level.
    pub fn exposure(&self, unit: &str) -> Result<f64> {
        let report = self.ok(["systemd-analyze", "security", "--no-pager", unit])?.stdout;
        let level = report
            .split("exposure level for ")
            .nth(1)
            .and_then(|rest| rest.split_whitespace().nth(1));
        let level = level.with_context(|| format!("no exposure level in:\n{report}"))?;
        println!("{unit}: exposure {level}");
        Ok(level.parse()?)
    }
}
