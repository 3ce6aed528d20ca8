//! Runs links-backup, which works as user links.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{self, ChildStdin, ChildStdout, Command, Stdio};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context as _;

use links_base::exec::{self, Watchdog};
use links_base::programs;
use links_config::backup::Problem;

/// How long a run may take. User links can suspend the process, which must not hold up a restore without end.
const TIMEOUT: Duration = Duration::from_secs(6 * 3600);
/// How much of the standard error is kept, in bytes.
const KEPT: usize = 16 * 1024;

/// A running links-backup. It is killed when dropped. Start it from the main thread only: it dies with the thread that started
/// it (PR_SET_PDEATHSIG, prctl(2)).
#[derive(Debug)]
pub struct Child {
    child: process::Child,
    stderr: Option<JoinHandle<String>>,
    watchdog: Watchdog,
}

impl Child {
    /// Starts links-backup with these arguments.
    ///
    /// # Errors
    /// The program is missing.
    pub fn start(
        root: &Path,
        arguments: impl IntoIterator<Item = OsString>,
        stdin: Stdio,
        stdout: Stdio,
    ) -> anyhow::Result<Self> {
        let program = programs::path(programs::BACKUP)?;
        let mut child = Command::new(&program)
            .arg("--root")
            .arg(root)
            .args(arguments)
            // In a process group of its own, so that Ctrl-C reaches only this process.
            .process_group(0)
            .stdin(stdin)
            .stdout(stdout)
            .stderr(Stdio::piped())
            .env("LC_ALL", "C.UTF-8")
            .spawn()
            .with_context(|| format!("Starting {}", program.display()))?;
        let stderr = child.stderr.take();
        Ok(Self {
            watchdog: Watchdog::start(&child, TIMEOUT),
            child,
            stderr: stderr.map(|stderr| std::thread::spawn(move || end_of(stderr))),
        })
    }

    /// The end of the pipe to its standard input, once.
    ///
    /// # Errors
    /// There is none.
    pub fn input(&mut self) -> anyhow::Result<ChildStdin> {
        self.child.stdin.take().context("the program has no standard input")
    }

    /// The end of the pipe from its standard output, once.
    ///
    /// # Errors
    /// There is none.
    pub fn output(&mut self) -> anyhow::Result<ChildStdout> {
        self.child.stdout.take().context("the program has no standard output")
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// It fails. The error has its [`Problem`].
    pub fn finish(mut self) -> anyhow::Result<()> {
        let status = self.child.wait().context("Waiting for links-backup")?;
        let stderr = self
            .stderr
            .take()
            .and_then(|reader| reader.join().ok())
            .unwrap_or_default();
        if self.watchdog.has_fired() {
            let hours = TIMEOUT.as_secs() / 3600;
            return Err(
                Problem::Unreachable.error(format!("links-backup did not finish within {hours} h and was killed"))
            );
        }
        if status.success() {
            return Ok(());
        }
        let reason = exec::tail(&stderr, 12);
        let reason = match reason.trim_start_matches("linksctl: ") {
            "" => format!("links-backup {}", links_base::process::describe(Ok(status))),
            reason => reason.to_owned(),
        };
        Err(Problem::of_exit_code(status.code().unwrap_or(1)).error(reason))
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // Both fail after `finish`, when the process is gone.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads everything, and returns the end of it as text.
fn end_of(mut reader: impl Read) -> String {
    let mut kept = Vec::new();
    let mut buffer = [0; 4096];
    // An error means that the process has ended.
    while let Ok(read @ 1..) = reader.read(&mut buffer) {
        kept.extend_from_slice(&buffer[..read]);
        let surplus = kept.len().saturating_sub(KEPT);
        kept.drain(..surplus);
    }
    String::from_utf8_lossy(&kept).into_owned()
}

/// Runs links-backup to its end without input, and returns its standard output.
///
/// # Errors
/// As for [`Child::finish`].
pub fn run(root: &Path, arguments: impl IntoIterator<Item = OsString>) -> anyhow::Result<String> {
    let mut child = Child::start(root, arguments, Stdio::null(), Stdio::piped())?;
    let mut output = String::new();
    child.output()?.read_to_string(&mut output)?;
    child.finish()?;
    Ok(output)
}

/// Copies everything. `io::copy` would lose an error of writing among those of reading.
///
/// # Errors
/// Reading or writing fails; `into` says what was written.
pub fn pump(mut from: impl Read, into: &mut impl Write, what: &str) -> anyhow::Result<u64> {
    let mut buffer = vec![0; 128 * 1024];
    let mut bytes = 0;
    loop {
        let read = match from.read(&mut buffer) {
            Ok(0) => return Ok(bytes),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error).context("Reading from links-backup"),
        };
        into.write_all(&buffer[..read])
            .with_context(|| format!("Writing {what}"))?;
        bytes += read as u64;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use super::*;

    #[test]
    fn only_the_end_of_a_long_standard_error_is_kept() {
        let long = format!("{}last", "x".repeat(3 * KEPT));
        let kept = end_of(long.as_bytes());
        assert!(kept.len() == KEPT && kept.ends_with("last"));
    }

    #[test]
    fn an_error_of_writing_is_distinguished_from_one_of_reading() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::StorageFull.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let error = pump(&b"abc"[..], &mut Full, "the backup").unwrap_err();
        assert_eq!(Problem::of(&error), Problem::Full);
        let mut all = vec![];
        assert_eq!(pump(&b"abc"[..], &mut all, "the backup").unwrap(), 3);
    }
}
