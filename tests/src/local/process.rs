//! A process that ends when it is dropped.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::process::{eventually, tail};

/// How long a process may take to end.
const DEADLINE: Duration = Duration::from_secs(30);

/// A child process whose standard error goes to a file.
#[derive(Debug)]
pub struct Process {
    child: Child,
    errors: PathBuf,
}

impl Process {
    pub(super) fn spawn(command: &mut Command, errors: &Path) -> Result<Self> {
        let program = command.get_program().to_owned();
        let file = File::options().create(true).append(true).open(errors)?;
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(file).spawn();
        Ok(Self {
            child: child.with_context(|| format!("Starting {}", Path::new(&program).display()))?,
            errors: errors.to_owned(),
        })
    }

    /// Waits for the first line of standard output that starts with `prefix`, and returns the rest of that line.
    pub(super) fn line_after(&mut self, prefix: &str) -> Result<String> {
        let stdout = self.child.stdout.take().context("the output has been read already")?;
        let mut lines = BufReader::new(stdout);
        loop {
            let mut line = String::new();
            if lines.read_line(&mut line)? == 0 {
                bail!("the process ended: {}", self.errors());
            }
            if let Some(rest) = line.trim_end().strip_prefix(prefix) {
                let rest = rest.to_owned();
                drain(lines);
                return Ok(rest);
            }
        }
    }

    /// Reads and discards all that the process prints.
    pub(super) fn discard_output(&mut self) {
        if let Some(stdout) = self.child.stdout.take() {
            drain(BufReader::new(stdout));
        }
    }

    /// The last lines that the process has written to standard error.
    pub fn errors(&self) -> String {
        tail(&self.errors)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id())?;
        kill(Pid::from_raw(pid), signal).context("Sending a signal")
    }

    /// Suspends the process, so that it behaves like a machine that no longer answers.
    ///
    /// # Errors
    /// Fails if the process has ended.
    pub fn pause(&self) -> Result<()> {
        self.signal(Signal::SIGSTOP)
    }

    /// Resumes a suspended process.
    ///
    /// # Errors
    /// Fails if the process has ended.
    pub fn resume(&self) -> Result<()> {
        self.signal(Signal::SIGCONT)
    }

    /// Sends SIGTERM and waits until the process has ended.
    ///
    /// # Errors
    /// Fails if the process does not end within 30 s.
    pub fn terminate(mut self) -> Result<()> {
        self.signal(Signal::SIGTERM)?;
        eventually("the process ends", DEADLINE, || Ok(self.child.try_wait()?.map(drop)))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The process may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Discards the rest of the output, so that the process never blocks on a full pipe.
fn drain(mut output: BufReader<ChildStdout>) {
    std::thread::spawn(move || {
        // The copy ends with the process.
        let _ = io::copy(&mut output, &mut io::sink());
    });
}
