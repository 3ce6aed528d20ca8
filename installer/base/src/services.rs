//! systemd, and the administrator's policy on what may be started.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;

use crate::layout;
use crate::{exec, files, programs};

/// Debian's way for an administrator to forbid starts from maintainer scripts (invoke-rc.d's specification,
/// /usr/share/doc/init-system-helpers/README.policy-rc.d.gz).
const POLICY: &str = "/usr/sbin/policy-rc.d";
/// The exit status of [`POLICY`] that forbids an action.
const FORBIDDEN: i32 = 101;

/// How long to wait for the reason of an instance's end to reach the journal.
const JOURNAL_TIMEOUT: Duration = Duration::from_secs(2);
/// The time between two reads while polling the journal for new lines.
const JOURNAL_INTERVAL: Duration = Duration::from_millis(50);

/// Who asked for an action. This decides whether policy-rc.d is consulted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnBehalfOf {
    /// A package manager, whose actions policy-rc.d may forbid.
    Package,
    /// A person, whose commands are always carried out.
    Person,
}

impl OnBehalfOf {
    /// `Package` in a maintainer script: dpkg sets this environment variable for it (dpkg(1)).
    pub fn caller() -> Self {
        match std::env::var_os("DPKG_MAINTSCRIPT_NAME") {
            Some(_) => Self::Package,
            None => Self::Person,
        }
    }
}

/// The services of this host.
#[derive(Clone, Copy, Debug)]
pub struct Services {
    on_behalf_of: OnBehalfOf,
    /// Whether systemd runs. In a chroot or a container it may not: files can be installed, but nothing can be started.
    running: bool,
}

impl Services {
    pub fn of_host(on_behalf_of: OnBehalfOf) -> Self {
        // sd_booted(3)
        Self {
            on_behalf_of,
            running: Path::new("/run/systemd/system").is_dir(),
        }
    }

    pub fn on_behalf_of(self) -> OnBehalfOf {
        self.on_behalf_of
    }

    pub fn running(self) -> bool {
        self.running
    }

    /// The services of a host without systemd, as in a chroot.
    #[cfg(any(test, feature = "testing"))]
    pub fn nowhere() -> Self {
        Self {
            on_behalf_of: OnBehalfOf::Person,
            running: false,
        }
    }

    /// Makes systemd read the unit files again.
    ///
    /// # Errors
    /// systemctl fails.
    pub fn reload_units(self) -> anyhow::Result<()> {
        if self.running {
            exec::run("systemctl", ["daemon-reload"])?;
        }
        Ok(())
    }

    /// Enables units, and makes systemd read the unit files again.
    ///
    /// # Errors
    /// A unit does not exist.
    pub fn enable(self, units: &[String]) -> anyhow::Result<()> {
        self.change_links("enable", units)
    }

    /// Disables units, and makes systemd read the unit files again. Units that are not enabled are ignored.
    ///
    /// # Errors
    /// systemctl fails.
    pub fn disable(self, units: &[String]) -> anyhow::Result<()> {
        self.change_links("disable", units)
    }

    /// Runs `systemctl enable` or `disable`. Without systemd, systemctl changes the files itself.
    ///
    /// Not with `--no-reload`: after that, systemd 257 reports of every unit that its files changed on disk, until somebody
    /// makes it reload them.
    fn change_links(self, verb: &str, units: &[String]) -> anyhow::Result<()> {
        if units.is_empty() {
            return Ok(());
        }
        let arguments = [verb, "--quiet"].into_iter().chain(units.iter().map(String::as_str));
        exec::run("systemctl", arguments)?;
        Ok(())
    }

    /// Whether a unit runs or is starting.
    ///
    /// # Errors
    /// systemctl is missing.
    pub fn is_active(self, unit: &str) -> anyhow::Result<bool> {
        if !self.running {
            return Ok(false);
        }
        let state = exec::finish("systemctl", ["is-active", unit])?.stdout;
        Ok(matches!(state.trim(), "active" | "activating" | "reloading"))
    }

    /// A property of a unit. `None` if systemd does not run or does not answer.
    pub fn property(self, unit: &str, name: &str) -> Option<String> {
        if !self.running {
            return None;
        }
        let shown = exec::finish("systemctl", ["show", "--value", "--property", name, unit]).ok()?;
        shown.success.then(|| shown.stdout.trim().to_owned())
    }

    /// Starts, restarts or reloads a unit, as `verb` says, and waits until that is done. Returns false if nothing was done
    /// because systemd does not run or the policy forbids it.
    ///
    /// # Errors
    /// The action failed. The error ends with the unit's last lines in the journal.
    pub fn act(self, verb: &str, unit: &str) -> anyhow::Result<bool> {
        if !self.running || !self.allowed(unit, verb)? {
            return Ok(false);
        }
        reset_failed(unit)?;
        let finished = exec::finish("systemctl", [verb, unit])?;
        if finished.success {
            return Ok(true);
        }
        let mut error = format!("`systemctl {verb} {unit}` failed: {}", exec::tail(&finished.stderr, 4));
        if !self.is_active(unit)? {
            error.push_str(&format!("\nThe last log lines of {unit}:\n{}", last_lines(unit)?));
        }
        anyhow::bail!(error)
    }

    /// The state of each unit in systemd's words, such as `active` or `failed`.
    ///
    /// # Errors
    /// systemctl is missing.
    pub fn states(self, units: &[String]) -> anyhow::Result<Vec<String>> {
        if !self.running || units.is_empty() {
            return Ok(vec!["inactive".to_owned(); units.len()]);
        }
        let arguments = ["is-active"].into_iter().chain(units.iter().map(String::as_str));
        let output = exec::finish("systemctl", arguments)?.stdout;
        Ok(output.lines().map(str::to_owned).collect())
    }

    /// Waits for the enabled instances ([`enabled_instances`]), which start with links.service, and starts those that do not run. An instance that
    /// fails to start is not an error here: it logs the reason itself.
    ///
    /// # Errors
    /// systemctl is missing.
    pub fn await_start(self, wants: &Path) -> anyhow::Result<()> {
        let units: Vec<_> = enabled_instances(wants)?
            .into_iter()
            .map(layout::instance_unit)
            .collect();
        if self.running && !units.is_empty() {
            exec::finish(
                "systemctl",
                ["start"].into_iter().chain(units.iter().map(String::as_str)),
            )?;
        }
        Ok(())
    }

    /// Restarts or stops a unit, as `verb` says, and waits until that is done, even if a person interrupts linksctl. Does not
    /// consult the policy.
    ///
    /// # Errors
    /// The action failed. The error ends with the lines that the unit has logged since.
    pub fn carry_out(self, verb: &str, unit: &str) -> anyhow::Result<()> {
        reset_failed(unit)?;
        let start = JournalPosition::at_end_of(unit)?;
        let finished = exec::finish("systemctl", [verb, unit])?;
        if finished.success {
            return Ok(());
        }
        anyhow::bail!(
            "`systemctl {verb} {unit}` failed. The unit logged:\n{}",
            start.lines_after()?
        )
    }

    /// Whether the policy allows `verb` for a unit.
    ///
    /// # Errors
    /// policy-rc.d cannot be run.
    pub fn allowed(self, unit: &str, verb: &str) -> anyhow::Result<bool> {
        if self.on_behalf_of == OnBehalfOf::Person || !Path::new(POLICY).exists() {
            return Ok(true);
        }
        let name = unit.strip_suffix(".service").unwrap_or(unit);
        let status = Command::new(POLICY)
            .args([name, verb])
            .stdin(Stdio::null())
            .status()
            .with_context(|| format!("Asking {POLICY}"))?;
        Ok(status.code() != Some(FORBIDDEN))
    }
}

/// Clears a start limit that the unit reached before its problem was fixed.
fn reset_failed(unit: &str) -> anyhow::Result<()> {
    // The exit status does not matter: the command fails for a unit that is not loaded, which has nothing to reset.
    exec::finish("systemctl", ["reset-failed", unit])?;
    Ok(())
}

/// Stops the instances if links.service is being stopped, and waits until they are gone. If links.service restarts or
/// crashes, they keep running.
///
/// # Errors
/// systemctl fails.
pub fn stop_instances() -> anyhow::Result<()> {
    let jobs = exec::run("systemctl", ["list-jobs", "--no-legend", "--no-pager", "--full"])?;
    if is_being_stopped(&jobs) {
        // If they are being stopped already, as at shutdown, this waits for the same jobs.
        exec::run("systemctl", ["stop", layout::INSTANCES])?;
    }
    Ok(())
}

/// Each line is `JOB UNIT TYPE STATE` (systemctl(1), list-jobs).
fn is_being_stopped(jobs: &str) -> bool {
    jobs.lines().any(|line| {
        let words: Vec<_> = line.split_whitespace().skip(1).take(2).collect();
        words == [layout::SERVICE, "stop"]
    })
}

/// A position in a unit's journal. It is a cursor and not a time, because the clock may be set in between.
#[derive(Debug)]
struct JournalPosition<'a> {
    unit: &'a str,
    /// The cursor of the last line before the position. `None` if there is no such line.
    cursor: Option<String>,
}

impl<'a> JournalPosition<'a> {
    fn at_end_of(unit: &'a str) -> anyhow::Result<Self> {
        let output = exec::finish("journalctl", ["--quiet", "--lines=1", "--show-cursor", "--unit", unit])?.stdout;
        Ok(Self {
            unit,
            cursor: cursor(&output).map(str::to_owned),
        })
    }

    /// The last lines that the unit has logged since this position. Waits a moment for the line that reports why the unit ended,
    /// because a process's last lines may reach the journal after its end does.
    fn lines_after(&self) -> anyhow::Result<String> {
        let deadline = Instant::now() + JOURNAL_TIMEOUT;
        // The start can also fail before links-run, in linksctl.
        let reasons = [programs::RUN, "linksctl"].map(|program| format!("{program}: "));
        loop {
            await_journal()?;
            let after = self.cursor.as_ref().map(|cursor| format!("--after-cursor={cursor}"));
            let arguments = ["--no-pager", "--quiet", "--output=cat", "--unit", self.unit]
                .into_iter()
                .chain(after.as_deref());
            let output = exec::finish("journalctl", arguments)?.stdout;
            if output
                .lines()
                .any(|line| reasons.iter().any(|reason| line.starts_with(reason)))
                || Instant::now() >= deadline
            {
                return Ok(exec::tail(&output, 12));
            }
            std::thread::sleep(JOURNAL_INTERVAL);
        }
    }
}

/// Waits until the journal has written what it has received so far (journalctl(1), `--sync`).
fn await_journal() -> anyhow::Result<()> {
    exec::finish("journalctl", ["--sync"])?;
    Ok(())
}

/// The cursor, which `--show-cursor` prints after the lines (journalctl(1)).
fn cursor(output: &str) -> Option<&str> {
    output.lines().last()?.strip_prefix("-- cursor: ")
}

/// The last ten lines of a unit's journal.
///
/// # Errors
/// journalctl is missing.
pub fn last_lines(unit: &str) -> anyhow::Result<String> {
    await_journal()?;
    let arguments = ["--no-pager", "--quiet", "--output=cat", "--lines=10", "--unit", unit];
    Ok(exec::finish("journalctl", arguments)?.stdout.trim_end().to_owned())
}

/// The enabled instances in ascending order, found by the symbolic links that `systemctl enable links@N` makes in this
/// directory.
///
/// # Errors
/// The directory of these links cannot be read.
pub fn enabled_instances(wants: &Path) -> anyhow::Result<Vec<u16>> {
    let names = files::list(wants).with_context(|| format!("Reading {}", wants.display()))?;
    let mut numbers: Vec<_> = names.iter().filter_map(|name| layout::instance_of_unit(name)).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cursor_comes_after_the_lines() {
        assert_eq!(cursor("line\n-- cursor: s=0;i=1\n"), Some("s=0;i=1"));
        assert_eq!(cursor("-- cursor: in a line\nlast\n"), None);
        assert_eq!(cursor(""), None);
    }

    #[test]
    fn only_a_stop_of_the_service_stops_the_instances() {
        let others = "13 links@1.service stop waiting\n15 nginx.service stop waiting\n";
        assert!(is_being_stopped(&format!("{others}12 links.service stop running\n")));
        for job in [
            "",
            "12 links.service restart running\n",
            "12 links.service start waiting\n",
        ] {
            assert!(!is_being_stopped(&format!("{others}{job}")), "{job}");
        }
    }
}
