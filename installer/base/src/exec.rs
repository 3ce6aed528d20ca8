//! Runs other programs to their end, and captures their output.

use std::ffi::OsStr;
use std::io::{self, Write};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// The outcome and the output of a finished program.
#[derive(Debug)]
pub struct Finished {
    pub success: bool,
    pub stdout: String,
    pub stderr: String,
}

/// Runs a program to its end without input, and returns its output whatever its exit status.
///
/// # Errors
/// The program cannot be started.
pub fn finish<I, S>(program: &str, arguments: I) -> anyhow::Result<Finished>
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    let output = command(program, arguments)
        .output()
        .with_context(|| format!("Starting {program}"))?;
    Ok(output.into())
}

fn command<I, S>(program: &str, arguments: I) -> Command
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    let mut command = Command::new(program);
    command
        .args(arguments)
        // In a process group of its own, so that Ctrl-C reaches only this process, which decides what to do with the child.
        .process_group(0)
        .stdin(Stdio::null())
        .env("LC_ALL", "C.UTF-8");
    command
}

impl From<Output> for Finished {
    fn from(output: Output) -> Self {
        Self {
            success: output.status.success(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// Like [`finish`], but kills a program that takes longer than `timeout` and then returns `None`.
///
/// # Errors
/// As [`finish`].
pub fn finish_within<I, S>(program: &str, arguments: I, timeout: Duration) -> anyhow::Result<Option<Finished>>
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    let child = command(program, arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("Starting {program}"))?;
    let group = Pid::from_raw(child.id().cast_signed());
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        // Fails after the timeout, when the receiver is gone.
        let _ = sender.send(child.wait_with_output());
    });
    match receiver.recv_timeout(timeout) {
        Ok(output) => Ok(Some(output.with_context(|| format!("Waiting for {program}"))?.into())),
        Err(_) => {
            // ESRCH: the program has just ended by itself.
            let _ = killpg(group, Signal::SIGKILL);
            Ok(None)
        }
    }
}

/// Kills a process group when its time is over. A process of another user can be suspended by that user, and must not suspend
/// the process that waits for it.
#[derive(Debug)]
pub struct Watchdog {
    has_fired: Arc<AtomicBool>,
    /// Dropped to call the watchdog off.
    _alive: Sender<()>,
}

impl Watchdog {
    /// Watches a child that leads a process group of its own, until the watchdog is dropped or `timeout` is over.
    pub fn start(child: &Child, timeout: Duration) -> Self {
        let group = Pid::from_raw(child.id().cast_signed());
        let (alive, ended) = mpsc::channel::<()>();
        let has_fired = Arc::new(AtomicBool::new(false));
        let fires = Arc::clone(&has_fired);
        std::thread::spawn(move || {
            if ended.recv_timeout(timeout) == Err(RecvTimeoutError::Timeout) {
                fires.store(true, Ordering::Relaxed);
                // ESRCH: the program has just ended by itself.
                let _ = killpg(group, Signal::SIGKILL);
            }
        });
        Self {
            has_fired,
            _alive: alive,
        }
    }

    pub fn has_fired(&self) -> bool {
        self.has_fired.load(Ordering::Relaxed)
    }
}

/// Like [`finish_within`], with what `feed` writes as the program's standard input. A program that ends before it has read
/// everything is judged by its exit status.
///
/// # Errors
/// The program cannot be started, or `feed` fails for another reason than the program's end.
pub fn feed_within<I, S>(
    program: &str,
    arguments: I,
    timeout: Duration,
    feed: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> anyhow::Result<Option<Finished>>
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    let mut child = command(program, arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("Starting {program}"))?;
    let watchdog = Watchdog::start(&child, timeout);
    let input = child.stdin.take();
    let output = std::thread::spawn(move || child.wait_with_output());
    let fed = input.map_or(Ok(()), |mut input| feed(&mut input));
    let output = output
        .join()
        .unwrap_or_else(|_| Err(io::Error::other("the thread that waits has panicked")))
        .with_context(|| format!("Waiting for {program}"))?;
    if watchdog.has_fired() {
        return Ok(None);
    }
    match fed {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(error).with_context(|| format!("Feeding {program}"))
        }
        _ => Ok(Some(output.into())),
    }
}

/// Runs a program that must succeed, and returns its standard output.
///
/// # Errors
/// The program cannot be started, or it fails. The error then holds the command and the last lines of its standard error.
pub fn run<I, S>(program: &str, arguments: I) -> anyhow::Result<String>
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    let arguments: Vec<_> = arguments
        .into_iter()
        .map(|argument| argument.as_ref().to_owned())
        .collect();
    let finished = finish(program, &arguments)?;
    let line = || {
        arguments.iter().fold(program.to_owned(), |line, argument| {
            format!("{line} {}", argument.to_string_lossy())
        })
    };
    anyhow::ensure!(finished.success, "`{}` failed: {}", line(), tail(&finished.stderr, 12));
    Ok(finished.stdout)
}

/// The last `lines` lines of a text, not counting empty ones at its end.
pub fn tail(text: &str, lines: usize) -> String {
    let all: Vec<_> = text.trim_end().lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// The path of a program that is on PATH or in one of the system's sbin directories, which an ordinary user's PATH lacks.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(program))
        .find(|candidate| candidate.is_file())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use super::*;

    #[test]
    fn the_error_of_a_failed_program_has_its_command_and_its_stderr() {
        let error = run("sh", ["-c", "echo first >&2; echo last >&2; exit 3"]).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("sh -c") && text.ends_with("first\nlast"), "{text}");
    }

    #[test]
    fn a_program_that_takes_too_long_is_killed() {
        let run = |script: &str, timeout| finish_within("sh", ["-c", script], timeout).unwrap();
        assert_eq!(run("echo done", Duration::from_secs(60)).unwrap().stdout, "done\n");
        assert!(run("kill -STOP $$", Duration::from_millis(100)).is_none());
    }

    #[test]
    fn a_program_is_fed_through_its_standard_input() {
        let feed = |script: &str, timeout, bytes: &[u8]| {
            feed_within("sh", ["-c", script], timeout, |input| input.write_all(bytes)).unwrap()
        };
        let minute = Duration::from_secs(60);
        assert_eq!(feed("cat", minute, b"abc").unwrap().stdout, "abc");
        // More than fits into a pipe.
        let much = vec![b'x'; 1 << 20];
        assert!(feed("exit 0", minute, &much).unwrap().success);
        assert!(!feed("exit 3", minute, &much).unwrap().success);
        assert!(feed("kill -STOP $$", Duration::from_millis(100), &much).is_none());
    }

    #[test]
    fn tail_keeps_the_last_lines() {
        assert_eq!(tail("a\nb\nc\n\n", 2), "b\nc");
        assert_eq!(tail("", 2), "");
    }
}
