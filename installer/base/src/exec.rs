//! Runs other programs to their end, and captures their output.

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
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

/// Like [`finish_within`], with `input` as the program's standard input.
///
/// # Errors
/// As [`finish`], or the program does not read its input.
pub fn finish_with_input<I, S>(
    program: &str,
    arguments: I,
    input: &[u8],
    timeout: Duration,
) -> anyhow::Result<Option<Finished>>
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    let mut child = start(program, command(program, arguments).stdin(Stdio::piped()))?;
    if let Some(mut stdin) = child.stdin.take() {
        let input = input.to_vec();
        // In a thread, because a program may write output before it has read all of its input. One that ends without reading
        // it reports the reason itself.
        std::thread::spawn(move || stdin.write_all(&input));
    }
    wait_within(program, child, timeout)
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
    fn a_program_gets_its_input() {
        let run = |script: &str, input: &[u8]| finish_with_input("sh", ["-c", script], input, Duration::from_secs(60));
        assert_eq!(run("cat", b"text").unwrap().unwrap().stdout, "text");
        let long = vec![b'x'; 1 << 20];
        assert_eq!(run("cat", &long).unwrap().unwrap().stdout.len(), long.len());
        assert_eq!(run("exit 3", &long).unwrap().unwrap().code, Some(3));
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
