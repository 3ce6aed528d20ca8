//! Processes on this computer that end with the test process, and waiting for conditions.

use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use nix::sys::prctl;
use nix::sys::signal::Signal;

/// Fails unless every command exists, and names the packages that contain the missing ones.
///
/// `commands` holds pairs of a command and its Debian package.
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

/// A command that runs `script` with bash in fresh namespaces. The caller adds the script's arguments.
///
/// When the thread that starts the script ends, the kernel kills the script with everything it started, and removes its
/// mounts.
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

/// The last 30 lines of a file, or the reason why it cannot be read.
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

/// Waits until `condition` returns a value. `what` describes the condition in the error.
///
/// This polls, so it is for conditions without an event. Units, processes and boots have events to wait for.
///
/// # Errors
/// Fails when the deadline has passed, or when the condition fails.
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
