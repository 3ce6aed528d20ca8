//! `linksctl up`: links in the foreground, without systemd and nginx.

use std::fs;
use std::io::{self, BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::process::eventually;

/// How long it may take to print a line or to end.
const DEADLINE: Duration = Duration::from_secs(60);

/// A running `linksctl up`. Its processes end when it is dropped.
#[derive(Debug)]
pub struct Up {
    linksctl: PathBuf,
    root: PathBuf,
    child: Child,
    /// What it prints, and what its supervisors print.
    lines: Receiver<io::Result<String>>,
}

impl Up {
    /// Starts this `linksctl up` with a bundle. Everything that it writes is below `root`.
    ///
    /// # Errors
    /// Fails if the program cannot be started.
    pub fn start(linksctl: &Path, root: &Path, bundle: &Path) -> Result<Self> {
        // One pipe keeps the output of `up` and that of the supervisors in order.
        let (output, writer) = io::pipe()?;
        let child = Command::new(linksctl)
            .arg("--root")
            .arg(root)
            .args(["up", "--bundle"])
            .arg(bundle)
            .stdin(Stdio::null())
            .stdout(writer.try_clone()?)
            .stderr(writer)
            .spawn()
            .with_context(|| format!("Starting {}", linksctl.display()))?;
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            // This ends with the process, or when nobody wants to read any more.
            for line in BufReader::new(output).lines() {
                // After a line that is not UTF-8 come others, but not after another error.
                let is_last = line
                    .as_ref()
                    .is_err_and(|error| error.kind() != io::ErrorKind::InvalidData);
                if sender.send(line).is_err() || is_last {
                    return;
                }
            }
        });
        Ok(Self {
            linksctl: linksctl.to_owned(),
            root: root.to_owned(),
            child,
            lines,
        })
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Waits for a line that starts with `start`. Returns the lines up to it, without leading and trailing white space.
    ///
    /// # Errors
    /// Fails if there is no such line within a minute, or if a line is not UTF-8. The error holds what was printed.
    pub fn lines_to(&self, start: &str) -> Result<Vec<String>> {
        let mut seen = vec![];
        while let Ok(line) = self.lines.recv_timeout(DEADLINE) {
            let line = line.with_context(|| format!("Reading the line after:\n{}", seen.join("\n")))?;
            seen.push(line.trim().to_owned());
            if line.trim().starts_with(start) {
                return Ok(seen);
            }
        }
        bail!("no line starts with {start:?}:\n{}", seen.join("\n"))
    }

    /// Waits for a line that starts with `start`, and returns it without leading and trailing white space.
    ///
    /// # Errors
    /// Fails as [`Self::lines_to`] does.
    pub fn line(&self, start: &str) -> Result<String> {
        self.lines_to(start)?.pop().context("no line")
    }

    /// Closes the pipe to which it prints, at its next line.
    pub fn stop_reading(&mut self) {
        self.lines = channel().1;
    }

    /// Discards what it prints from now on. Otherwise the lines are kept until they are asked for.
    pub fn discard_output(&mut self) {
        let lines = std::mem::replace(&mut self.lines, channel().1);
        std::thread::spawn(move || lines.iter().for_each(drop));
    }

    /// What `linksctl status --json` prints about it.
    ///
    /// # Errors
    /// Fails if it prints no JSON.
    pub fn status(&self) -> Result<Value> {
        let mut status = Command::new(&self.linksctl);
        let status = status
            .arg("--root")
            .arg(&self.root)
            .args(["status", "--json"])
            .output()?;
        serde_json::from_slice(&status.stdout).with_context(|| format!("{status:?}"))
    }

    /// Its processes that have a path below its root on their command lines, oldest first, each with its command line.
    ///
    /// # Errors
    /// Fails if /proc cannot be read.
    pub fn processes(&self) -> Result<Vec<(Pid, String)>> {
        let name = self.root.to_string_lossy().into_owned();
        let mut found = vec![];
        for entry in fs::read_dir("/proc")? {
            let path = entry?.path();
            let Some(pid) = path.file_name().and_then(|name| name.to_str()?.parse().ok()) else {
                continue;
            };
            // The process may have ended since.
            let line = fs::read(path.join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            if line.contains(&name) {
                found.push((Pid::from_raw(pid), line));
            }
        }
        found.sort();
        Ok(found)
    }

    /// The oldest of its processes with `part` on the command line.
    ///
    /// # Errors
    /// Fails if there is none.
    pub fn process(&self, part: &str) -> Result<Pid> {
        let processes = self.processes()?;
        let found = processes.iter().find(|(_, line)| line.contains(part));
        Ok(found.with_context(|| format!("no {part:?} in {processes:?}"))?.0)
    }

    /// Sends a signal to linksctl itself.
    ///
    /// # Errors
    /// Fails if it has been waited for.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(self.pid(), signal).context("Sending a signal")
    }

    /// Whether linksctl itself still runs.
    ///
    /// # Errors
    /// Fails if the system call does.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Waits until it and all of its processes have ended.
    ///
    /// # Errors
    /// Fails if they do not within a minute.
    pub fn end(mut self) -> Result<ExitStatus> {
        let status = eventually("linksctl up ends", DEADLINE, || Ok(self.child.try_wait()?))?;
        eventually("its processes end", DEADLINE, || {
            Ok(self.processes()?.is_empty().then_some(()))
        })?;
        Ok(status)
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        if let Ok(true) = self.is_running() {
            // Its processes end with it.
            let _ = kill(self.pid(), Signal::SIGTERM);
            let _ = self.child.wait();
        }
    }
}
