//! Runs other programs to their end, and captures their output.

use std::ffi::OsStr;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
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
    fn tail_keeps_the_last_lines() {
        assert_eq!(tail("a\nb\nc\n\n", 2), "b\nc");
        assert_eq!(tail("", 2), "");
    }
}
