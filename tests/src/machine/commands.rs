//! Commands inside a machine.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sched::{CloneFlags, setns, unshare};
use serde::de::DeserializeOwned;

use super::Machine;
use super::boot::enter_on_start;

/// How long a command may take, unless [`Machine::run_within`] sets another limit.
const COMMAND_DEADLINE: Duration = Duration::from_secs(120);

/// The result of a command inside.
#[derive(Clone, Debug)]
pub struct Output {
    /// The exit status, or 128 + N if signal N ended the command.
    pub status: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Machine {
    /// Runs a command with an empty standard input, and waits for its end, two minutes at most.
    ///
    /// # Errors
    /// Fails if the machine is not running or the command takes too long. A failing command is no error: see [`Self::ok`].
    pub fn run(&self, command: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Result<Output> {
        self.run_within(COMMAND_DEADLINE, command)
    }

    /// Like [`Self::run`] with another deadline, in whole seconds.
    pub fn run_within(
        &self,
        deadline: Duration,
        command: impl IntoIterator<Item = impl AsRef<OsStr>>,
    ) -> Result<Output> {
        let command: Vec<OsString> = command.into_iter().map(|word| word.as_ref().to_owned()).collect();
        let shown = command.join(" ".as_ref()).to_string_lossy().into_owned();
        let begin = Instant::now();
        // `timeout` inside ends the command with everything it started. From out here only nsenter could be ended.
        let mut nsenter = Command::new("nsenter");
        enter_on_start(&mut nsenter, self.memory.as_ref())?;
        let output = nsenter
            .args([
                "--all",
                "--target",
                &self.running()?.init.to_string(),
                "--",
                "env",
                "-i",
            ])
            .args([
                "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                "HOME=/root",
                "LANG=C.UTF-8",
            ])
            .args(["DEBIAN_FRONTEND=noninteractive", "SYSTEMD_PAGER=", "SYSTEMD_COLORS=0"])
            .args(["timeout", "--kill-after=5", &deadline.as_secs().to_string()])
            .args(&command)
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("Running {shown} inside"))?;
        let output = Output {
            status: exit_status(output.status),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        };
        ensure!(
            begin.elapsed() < deadline,
            "`{shown}` did not end within {deadline:?}\n{}",
            output.streams()
        );
        Ok(output)
    }

    /// Runs a command that must succeed.
    ///
    /// # Errors
    /// Fails as [`Self::run`] does, or if the command fails. The error then holds its exit status and both of its outputs.
    pub fn ok<W: AsRef<OsStr>>(&self, command: impl IntoIterator<Item = W>) -> Result<Output> {
        let command: Vec<W> = command.into_iter().collect();
        let output = self.run(&command)?;
        if output.status != 0 {
            let words: Vec<_> = command.iter().map(AsRef::as_ref).collect();
            let shown = words.join(" ".as_ref());
            bail!("`{}` failed: {output}", shown.to_string_lossy());
        }
        Ok(output)
    }

    /// Runs a shell script that must succeed. A pipeline fails if any of its commands fails.
    ///
    /// # Errors
    /// Fails as [`Self::ok`] does.
    pub fn shell(&self, script: &str) -> Result<Output> {
        self.ok(["bash", "-euo", "pipefail", "-c", script])
    }

    /// Runs a function in a thread that sees the files and the network of the machine instead of this computer's.
    ///
    /// # Errors
    /// Fails if the machine is not running, if the thread cannot enter it, or if the function fails.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let running = self.running()?;
        let mounts = format!("/proc/{}/ns/mnt", running.init);
        let mounts = File::open(&mounts).with_context(|| format!("Opening {mounts}"))?;
        let enter = || {
            // setns(2) refuses a thread that shares its root and current directory with others, as threads do.
            unshare(CloneFlags::CLONE_FS)?;
            setns(&mounts, CloneFlags::CLONE_NEWNS)?;
            running.network.enter()?;
            anyhow::Ok(())
        };
        let work = || {
            enter().context("Entering the machine")?;
            work()
        };
        thread::scope(|scope| scope.spawn(work).join()).unwrap_or_else(|_| bail!("the thread inside panicked"))
    }
}

impl Output {
    /// Both outputs, the errors last.
    pub fn printed(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }

    /// Parses the standard output as JSON.
    ///
    /// # Errors
    /// Fails if it is not the JSON of a `T`. The error holds the whole output.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_str(&self.stdout).with_context(|| format!("the output is not JSON: {self}"))
    }

    fn streams(&self) -> String {
        format!(
            "stdout:\n{}\nstderr:\n{}",
            self.stdout.trim_end(),
            self.stderr.trim_end()
        )
    }
}

impl std::fmt::Display for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "exit status {}\n{}", self.status, self.streams())
    }
}

fn exit_status(status: std::process::ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt as _;
    status
        .code()
        .or(status.signal().map(|signal| 128 + signal))
        .unwrap_or(-1)
}
