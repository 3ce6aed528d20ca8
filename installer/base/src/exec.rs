//! Runs other programs to their end, and captures their output.

use std::ffi::OsStr;
use std::io::{self, BufRead as _, BufReader, Read as _, Write};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// The outcome and the output of a finished program.
#[derive(Debug)]
pub struct Finished {
    pub success: bool,
    /// `None` if a signal ended it.
    pub code: Option<i32>,
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
    isolate(command.args(arguments));
    command
}

fn isolate(command: &mut Command) -> &mut Command {
    command
        // In a process group of its own, so that Ctrl-C reaches only this process, which decides what to do with the child.
        .process_group(0)
        .stdin(Stdio::null())
        .env("LC_ALL", "C.UTF-8")
}

impl From<Output> for Finished {
    fn from(output: Output) -> Self {
        Self {
            success: output.status.success(),
            code: output.status.code(),
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
    wait_within(program, start(program, &mut command(program, arguments))?, timeout)
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
    let mut child = start(program, command(program, arguments).stdin(Stdio::piped()))?;
    let deadline = Instant::now() + timeout;
    let watchdog = Watchdog::start(&child, timeout);
    let (group, input) = (group_of(&child), child.stdin.take());
    // Read from now on, because a program may write output before it has read all of its input.
    let output = collect(child);
    let fed = input.map_or(Ok(()), |mut input| feed(&mut input));
    let left = deadline.saturating_duration_since(Instant::now());
    let finished = outcome(program, group, &output, left)?;
    match fed {
        _ if watchdog.has_fired() => Ok(None),
        Err(error) if finished.is_some() && error.kind() != io::ErrorKind::BrokenPipe => {
            Err(error).with_context(|| format!("Feeding {program}"))
        }
        _ => Ok(finished),
    }
}

/// Runs a program, and passes each line of its standard output to `on_line` as soon as it is there. A program that takes
/// longer than `timeout` is killed, which returns `None`. The result's `stdout` is empty.
///
/// # Errors
/// As [`finish`].
pub fn stream_within<I, S>(
    program: &str,
    arguments: I,
    timeout: Duration,
    mut on_line: impl FnMut(&str),
) -> anyhow::Result<Option<Finished>>
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    let mut child = start(program, &mut command(program, arguments))?;
    let deadline = Instant::now() + timeout;
    let left = || deadline.saturating_duration_since(Instant::now());
    let (sender, lines) = mpsc::channel();
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    // Both threads end with the program's output.
    std::thread::spawn(move || {
        let lines = stdout.into_iter().flat_map(|stdout| BufReader::new(stdout).lines());
        lines.map_while(Result::ok).try_for_each(|line| sender.send(line))
    });
    let errors = std::thread::spawn(move || {
        let mut errors = vec![];
        // What was read before an error is still of use.
        let _ = stderr.map(|mut stderr| stderr.read_to_end(&mut errors));
        String::from_utf8_lossy(&errors).into_owned()
    });
    while let Ok(line) = lines.recv_timeout(left()) {
        on_line(&line);
    }
    let finished = wait_within(program, child, left())?;
    Ok(finished.map(|finished| Finished {
        stderr: errors.join().unwrap_or_default(),
        ..finished
    }))
}

fn start(program: &str, command: &mut Command) -> anyhow::Result<Child> {
    command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("Starting {program}"))
}

fn wait_within(program: &str, child: Child, timeout: Duration) -> anyhow::Result<Option<Finished>> {
    let group = group_of(&child);
    outcome(program, group, &collect(child), timeout)
}

/// The process group that a child of [`command`] leads.
fn group_of(child: &Child) -> Pid {
    Pid::from_raw(child.id().cast_signed())
}

/// Reads the output of a child, and waits for its end.
fn collect(child: Child) -> Receiver<io::Result<Output>> {
    let (sender, output) = mpsc::channel();
    std::thread::spawn(move || {
        // Fails after the timeout, when the receiver is gone.
        let _ = sender.send(child.wait_with_output());
    });
    output
}

/// What a child has returned. Kills its group, and returns `None`, if it does not end within `timeout`.
fn outcome(
    program: &str,
    group: Pid,
    output: &Receiver<io::Result<Output>>,
    timeout: Duration,
) -> anyhow::Result<Option<Finished>> {
    match output.recv_timeout(timeout) {
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
        let group = group_of(child);
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

/// Runs a program that must succeed, and returns its standard output.
///
/// # Errors
/// The program cannot be started, or it fails. The error then holds the command and the last lines of its standard error.
pub fn run<I, S>(program: &str, arguments: I) -> anyhow::Result<String>
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    let mut command = Command::new(program);
    command.args(arguments);
    run_command(command)
}

/// Like [`run`], for a command that may have an environment of its own.
///
/// # Errors
/// As [`run`].
pub fn run_command(mut command: Command) -> anyhow::Result<String> {
    let line = [command.get_program()]
        .into_iter()
        .chain(command.get_args())
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ");
    let output = isolate(&mut command)
        .output()
        .with_context(|| format!("Starting {}", command.get_program().to_string_lossy()))?;
    let finished = Finished::from(output);
    anyhow::ensure!(finished.success, "`{line}` failed: {}", tail(&finished.stderr, 12));
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
        assert_eq!(feed("cat", minute, &much).unwrap().stdout.len(), much.len());
        assert!(feed("exit 0", minute, &much).unwrap().success);
        assert_eq!(feed("exit 3", minute, &much).unwrap().code, Some(3));
        assert!(feed("kill -STOP $$", Duration::from_millis(100), &much).is_none());
    }

    #[test]
    fn lines_arrive_while_the_program_runs() {
        let directory = tempfile::tempdir().unwrap();
        let fifo = directory.path().join("fifo");
        let script = format!(
            "mkfifo {0}; echo first; read line <{0}; echo $line; echo why >&2; exit 3",
            fifo.display()
        );
        let mut seen = vec![];
        let finished = stream_within("sh", ["-c", &script], Duration::from_secs(60), |line| {
            // The program waits for this, so the first line must have arrived before its end.
            if line == "first" {
                std::fs::write(&fifo, "second\n").unwrap();
            }
            seen.push(line.to_owned());
        });
        let finished = finished.unwrap().unwrap();
        assert_eq!(seen, ["first", "second"]);
        assert_eq!((finished.code, finished.stderr.as_str()), (Some(3), "why\n"));
        let late = stream_within("sh", ["-c", "kill -STOP $$"], Duration::from_millis(100), |_| {});
        assert!(late.unwrap().is_none());
    }

    #[test]
    fn tail_keeps_the_last_lines() {
        assert_eq!(tail("a\nb\nc\n\n", 2), "b\nc");
        assert_eq!(tail("", 2), "");
    }
}
