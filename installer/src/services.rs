//! systemd and the administrator's wish about starting things.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;

use crate::layout::{self, Layout};
use crate::{exec, files};

/// Debian's way for an administrator to forbid starts from maintainer scripts (invoke-rc.d's specification,
/// /usr/share/doc/init-system-helpers/README.policy-rc.d.gz).
const POLICY: &str = "/usr/sbin/policy-rc.d";
/// What it exits with then.
const FORBIDDEN: i32 = 101;

/// For the reason of an instance's end to reach the journal.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// The journal's arrivals are no event to wait for.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Whose word counts before something is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnBehalfOf {
    /// A package manager: policy-rc.d decides.
    Package,
    /// A person, who asked for it.
    Person,
}

impl OnBehalfOf {
    /// dpkg names the script that it runs in the environment (dpkg(1)).
    pub fn caller() -> Self {
        match std::env::var_os("DPKG_MAINTSCRIPT_NAME") {
            Some(_) => Self::Package,
            None => Self::Person,
        }
    }
}

/// The host's services.
#[derive(Clone, Copy, Debug)]
pub struct Services {
    on_behalf_of: OnBehalfOf,
    /// False in a chroot or a container: files can be laid, nothing can be started.
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

    pub fn running(self) -> bool {
        self.running
    }

    /// As in a chroot.
    #[cfg(test)]
    pub fn nowhere() -> Self {
        Self {
            on_behalf_of: OnBehalfOf::Person,
            running: false,
        }
    }

    /// Makes systemd read the unit files again.
    ///
    /// # Errors
    /// systemd refuses.
    pub fn reload_units(self) -> anyhow::Result<()> {
        if self.running {
            exec::run("systemctl", ["daemon-reload"])?;
        }
        Ok(())
    }

    /// # Errors
    /// A unit is missing.
    pub fn enable(self, units: &[String]) -> anyhow::Result<()> {
        self.change_links("enable", units)
    }

    /// # Errors
    /// systemd refuses; a unit that is not enabled is as good.
    pub fn disable(self, units: &[String]) -> anyhow::Result<()> {
        self.change_links("disable", units)
    }

    /// Works on files alone where systemd does not run.
    fn change_links(self, verb: &str, units: &[String]) -> anyhow::Result<()> {
        if units.is_empty() {
            return Ok(());
        }
        let arguments = [verb, "--quiet", "--no-reload"]
            .into_iter()
            .chain(units.iter().map(String::as_str));
        exec::run("systemctl", arguments)?;
        Ok(())
    }

    /// True for a unit that runs, or is about to.
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

    /// As systemd knows it; `None` where it does not run, or does not say.
    pub fn property(self, unit: &str, name: &str) -> Option<String> {
        if !self.running {
            return None;
        }
        let said = exec::finish("systemctl", ["show", "--value", "--property", name, unit]).ok()?;
        said.success.then(|| said.stdout.trim().to_owned())
    }

    /// `start`, `restart` or `reload` of a unit, waited for. Returns false where it was not done: systemd does not run, or
    /// the policy forbids it.
    ///
    /// # Errors
    /// It was tried and failed; the error ends with the unit's last lines in the journal.
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
            error.push_str(&format!("\n{unit} said last:\n{}", last_lines(unit)?));
        }
        anyhow::bail!(error)
    }

    /// The state of each unit, in systemd's word.
    ///
    /// # Errors
    /// systemctl is missing.
    pub fn states(self, units: &[String]) -> anyhow::Result<Vec<String>> {
        if !self.running || units.is_empty() {
            return Ok(vec!["inactive".to_owned(); units.len()]);
        }
        let arguments = ["is-active"].into_iter().chain(units.iter().map(String::as_str));
        let said = exec::finish("systemctl", arguments)?.stdout;
        Ok(said.lines().map(str::to_owned).collect())
    }

    /// Waits for the enabled instances, which start with links.service; those that do not run are started.
    ///
    /// # Errors
    /// systemctl is missing. An instance that fails says so itself.
    pub fn await_start(self, layout: &Layout) -> anyhow::Result<()> {
        let units: Vec<_> = enabled_instances(layout)?
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

    /// `restart` or `stop` of one unit, waited for, also when a person interrupts meanwhile. Asks no policy.
    ///
    /// # Errors
    /// It failed; the error ends with what the unit said since.
    pub fn carry_out(self, verb: &str, unit: &str) -> anyhow::Result<()> {
        reset_failed(unit)?;
        let since = Mark::at_end_of(unit)?;
        let finished = exec::finish("systemctl", [verb, unit])?;
        if finished.success {
            return Ok(());
        }
        anyhow::bail!("`systemctl {verb} {unit}` failed. It said:\n{}", since.lines_after()?)
    }

    /// # Errors
    /// The policy cannot be asked.
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

/// A start limit that was reached before the cause was mended must not count now.
fn reset_failed(unit: &str) -> anyhow::Result<()> {
    // Fails for a unit that is not loaded yet, which then has nothing to reset.
    exec::finish("systemctl", ["reset-failed", unit])?;
    Ok(())
}

/// Stops the instances where somebody stops links.service, and returns when they are gone. A restart of it, or its death,
/// leaves them alone.
///
/// # Errors
/// systemctl refuses.
pub fn stop_instances() -> anyhow::Result<()> {
    let jobs = exec::run("systemctl", ["list-jobs", "--no-legend", "--no-pager", "--full"])?;
    if is_being_stopped(&jobs) {
        // Where they are being stopped already, as when the host goes down, this joins in.
        exec::run("systemctl", ["stop", layout::INSTANCES])?;
    }
    Ok(())
}

/// `JOB UNIT TYPE STATE` (systemctl(1), list-jobs).
fn is_being_stopped(jobs: &str) -> bool {
    jobs.lines().any(|line| {
        let words: Vec<_> = line.split_whitespace().skip(1).take(2).collect();
        words == [layout::SERVICE, "stop"]
    })
}

/// A place in a unit's journal. Found again by the order of the lines: their times follow a clock that anybody may set.
#[derive(Debug)]
struct Mark<'a> {
    unit: &'a str,
    /// Of the last line before it, where there is one.
    cursor: Option<String>,
}

impl<'a> Mark<'a> {
    fn at_end_of(unit: &'a str) -> anyhow::Result<Self> {
        let said = exec::finish("journalctl", ["--quiet", "--lines=1", "--show-cursor", "--unit", unit])?.stdout;
        Ok(Self {
            unit,
            cursor: cursor(&said).map(str::to_owned),
        })
    }

    /// The end of what the unit has said since; with the reason that it gave for its end, if it comes within a moment: what
    /// a process wrote last may reach the journal after its end does.
    fn lines_after(&self) -> anyhow::Result<String> {
        let deadline = Instant::now() + LAST_WORDS;
        loop {
            await_journal()?;
            let after = self.cursor.as_ref().map(|cursor| format!("--after-cursor={cursor}"));
            let arguments = ["--no-pager", "--quiet", "--output=cat", "--unit", self.unit]
                .into_iter()
                .chain(after.as_deref());
            let said = exec::finish("journalctl", arguments)?.stdout;
            if said.lines().any(|line| line.starts_with("linksctl: ")) || Instant::now() >= deadline {
                return Ok(exec::tail(&said, 12));
            }
            std::thread::sleep(LOOK_AGAIN);
        }
    }
}

/// What was said is written a moment later.
fn await_journal() -> anyhow::Result<()> {
    exec::finish("journalctl", ["--sync"])?;
    Ok(())
}

/// What `--show-cursor` adds to the lines (journalctl(1)).
fn cursor(said: &str) -> Option<&str> {
    said.lines().last()?.strip_prefix("-- cursor: ")
}

/// The end of a unit's journal.
///
/// # Errors
/// journalctl is missing.
pub fn last_lines(unit: &str) -> anyhow::Result<String> {
    await_journal()?;
    let arguments = ["--no-pager", "--quiet", "--output=cat", "--lines=10", "--unit", unit];
    Ok(exec::finish("journalctl", arguments)?.stdout.trim_end().to_owned())
}

/// By the links that `systemctl enable links@N` makes.
///
/// # Errors
/// They cannot be listed.
pub fn enabled_instances(layout: &Layout) -> anyhow::Result<Vec<u16>> {
    let directory = layout.service_wants_dir();
    let names = files::list(&directory).with_context(|| format!("Reading {}", directory.display()))?;
    let mut numbers: Vec<_> = names.iter().filter_map(|name| layout::instance_of_unit(name)).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cursor_comes_after_the_lines() {
        assert_eq!(cursor("said\n-- cursor: s=0;i=1\n"), Some("s=0;i=1"));
        assert_eq!(cursor("-- cursor: is said\nlast\n"), None);
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
