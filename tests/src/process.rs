//! Processes on the host that end with the test process, and waiting.

use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::prctl;
use nix::sys::signal::Signal;

/// Fails unless every command is there, naming the packages that hold the missing ones.
///
/// `commands`: pairs of a command and its Debian package.
pub fn require(commands: &[(&str, &str)]) -> Result<()> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let missing: Vec<_> = commands
        .iter()
        .filter(|(command, _)| !std::env::split_paths(&path).any(|directory| directory.join(command).exists()))
        .map(|(_, package)| *package)
        .collect();
    ensure!(
        missing.is_empty(),
        "missing commands: apt-get install {}",
        missing.join(" ")
    );
    Ok(())
}

/// `script` run by bash in fresh namespaces; its arguments are still to be added.
///
/// When the thread that starts it ends, it is killed with all that it started, and the kernel takes its mounts away.
pub fn isolated(namespaces: &[&str], script: &str) -> Command {
    let mut command = Command::new("unshare");
    command
        .args(namespaces)
        .args(["--fork", "--kill-child", "--", "bash", "-c", script, "lab"]);
    command.stdin(Stdio::null());
    // SAFETY: prctl(2) is async-signal-safe and allocates nothing.
    unsafe { command.pre_exec(|| prctl::set_pdeathsig(Signal::SIGKILL).map_err(io::Error::from)) };
    command
}

/// Runs it to its end, with both outputs in the file `log`.
pub fn run_logged(command: &mut Command, log: &Path) -> Result<ExitStatus> {
    let out = File::create(log).with_context(|| format!("Creating {}", log.display()))?;
    let err = out.try_clone()?;
    command.stdout(out).stderr(err).status().context("Starting unshare")
}

/// The last 30 lines of a file, or why they cannot be had.
pub fn tail(path: &Path) -> String {
    match std::fs::read(path) {
        Ok(bytes) => {
            let text = String::from_utf8_lossy(&bytes);
            let lines: Vec<_> = text.lines().collect();
            lines[lines.len().saturating_sub(30)..].join("\n")
        }
        Err(error) => format!("({}: {error})", path.display()),
    }
}

/// Waits until `condition` gives a value, and fails after `deadline` with what it was waiting for.
///
/// For conditions that nothing announces; whatever has an event (a unit, a process, a boot) is waited for by that event.
///
/// # Errors
/// The deadline passed, or the condition itself failed.
pub fn eventually<T>(what: &str, deadline: Duration, mut condition: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let begin = Instant::now();
    loop {
        if let Some(value) = condition()? {
            return Ok(value);
        }
        if begin.elapsed() >= deadline {
            bail!("not within {deadline:?}: {what}");
        }
        thread::sleep(Duration::from_millis(20));
    }
}
