//! Asks a program what it is: which runtime, in which version, with which abilities.

use std::fs::File;
use std::io::{self, Read as _, Seek as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::signal::Signal;

use super::bundle::Program;
use super::interface::Interface;
use links_base::emulator::Emulator;
use links_base::exec;
use links_base::process::{Process, describe};
use links_release::manifest::RuntimeKind;

/// How long a runtime may take to print its version or help.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
/// The name of this project's own runtime.
pub const LINKS_HOST: &str = "links-host";

/// Runs the program to learn what it is. `origin` is how it was found, in words.
///
/// # Errors
/// Fails if the program is missing, is not executable, does not answer, or is neither a supported Spin nor a links-host.
pub fn identify(path: &Path, origin: &str, emulator: &Emulator) -> anyhow::Result<Program> {
    check_executable(path)?;
    let answer =
        output(path, &["--version"], emulator).with_context(|| format!("Running {} --version", path.display()))?;
    let identified = parse_version(&answer).and_then(|(kind, version)| {
        let interface = Interface::of(kind, &version)?;
        Ok((kind, version, interface))
    });
    let (kind, version, interface) = identified.with_context(|| format!("Cannot pack {}", path.display()))?;
    let listens_on_sockets = kind == RuntimeKind::LinksHost
        && output(path, &["up", "--help"], emulator)
            .with_context(|| format!("Running {} up --help", path.display()))?
            .contains("unix:/");
    Ok(Program {
        kind,
        version,
        origin: origin.to_owned(),
        interface,
        listens_on_sockets,
    })
}

/// Checks that this is a program.
///
/// # Errors
/// Fails with the reason if it is none.
pub fn check_executable(path: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let metadata = std::fs::metadata(path).with_context(|| format!("Checking {}", path.display()))?;
    anyhow::ensure!(metadata.is_file(), "{} is not a file", path.display());
    anyhow::ensure!(
        metadata.permissions().mode() & 0o111 != 0,
        "{} is not executable; run chmod +x on it if it is the runtime",
        path.display()
    );
    Ok(())
}

/// The standard output of a program.
///
/// # Errors
/// Fails if the program does not end in time, or ends with an error.
fn output(path: &Path, arguments: &[&str], emulator: &Emulator) -> anyhow::Result<String> {
    let (mut stdout, mut stderr) = (tempfile::tempfile()?, tempfile::tempfile()?);
    // The path is absolute, because a name without a slash would be looked up on PATH.
    let mut command = Command::new(std::path::absolute(path)?);
    command.args(arguments).stdin(Stdio::null());
    let mut command = emulator.wrap(command);
    command.stdout(stdout.try_clone()?).stderr(stderr.try_clone()?);
    let (sender, receiver) = mpsc::channel();
    let process = Process::start(&mut command, Signal::SIGKILL, move |status| {
        // Sending fails after the timeout, when the receiver is gone.
        let _ = sender.send(status);
    })?;
    let timeout = emulator.timeout(ANSWER_TIMEOUT);
    let Ok(status) = receiver.recv_timeout(timeout) else {
        process.kill();
        anyhow::bail!("no answer after {timeout:?}");
    };
    let status = status?;
    anyhow::ensure!(
        status.success(),
        "the program {}: {}",
        describe(Ok(status)),
        exec::tail(&written(&mut stderr)?, 12)
    );
    Ok(written(&mut stdout)?)
}

fn written(file: &mut File) -> io::Result<String> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.take(1 << 16).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Reads `spin 4.0.2 (abc 2026-01-01)` or `links-host 0.1.0`.
///
/// # Errors
/// Fails for the output of another program.
fn parse_version(answer: &str) -> anyhow::Result<(RuntimeKind, String)> {
    let mut words = answer.split_whitespace();
    let (kind, version) = match (words.next(), words.next()) {
        (Some("spin"), Some(version)) => (RuntimeKind::Spin, version),
        (Some(LINKS_HOST), Some(version)) => (RuntimeKind::LinksHost, version),
        _ => anyhow::bail!(
            "it is neither Spin nor links-host: `--version` prints {:?}",
            answer.lines().next().unwrap_or_default()
        ),
    };
    anyhow::ensure!(
        version.starts_with(|c: char| c.is_ascii_digit()),
        "`--version` prints no version: {:?}",
        answer.lines().next().unwrap_or_default()
    );
    Ok((kind, version.to_owned()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
pub mod tests {
    use std::path::PathBuf;

    use super::super::interface::SUPPORTED_SPIN;
    use super::*;

    #[test]
    fn versions_are_read_and_other_programs_refused() {
        let read = |answer| parse_version(answer).map_err(|error| error.to_string());
        assert_eq!(
            read("spin 4.0.2 (98a2dba 2026-05-01)\n"),
            Ok((RuntimeKind::Spin, "4.0.2".to_owned()))
        );
        assert_eq!(
            read("links-host 0.1.0\n"),
            Ok((RuntimeKind::LinksHost, "0.1.0".to_owned()))
        );
        for (answer, part) in [
            ("spin", "neither"),
            ("SPIN Version 6.5.2 -- model checker", "neither"),
            ("spin frobnicates", "no version"),
            ("", "neither"),
        ] {
            let error = read(answer).unwrap_err();
            assert!(error.contains(part), "{answer}: {error}");
        }
    }

    /// Writes a script to `dir`. A separate process does the writing: a program started by another test could inherit a
    /// descriptor of this process, and running the script would then fail with ETXTBSY.
    pub fn script(dir: &Path, name: &str, text: &str, mode: u32) -> PathBuf {
        let path = dir.join(name);
        let status = Command::new("sh")
            .args(["-c", r#"printf '#!/bin/sh\n%s\n' "$2" >"$1" && chmod "$3" "$1""#, "sh"])
            .arg(&path)
            .args([text, &format!("{mode:o}")])
            .status()
            .unwrap();
        assert!(status.success());
        path
    }

    #[test]
    fn a_program_is_identified_and_a_bad_one_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let good = script(dir.path(), "good", "echo links-host 0.1.0", 0o755);
        let program = identify(&good, "a test", &Emulator::None).unwrap();
        assert_eq!((program.version.as_str(), program.listens_on_sockets), ("0.1.0", false));
        let plain = script(dir.path(), "plain", "echo links-host 0.1.0", 0o644);
        let failing = script(dir.path(), "failing", "echo broken >&2; exit 3", 0o755);
        let old = script(dir.path(), "old", "echo spin 3.6.3", 0o755);
        for (path, part) in [
            (old, SUPPORTED_SPIN),
            (plain, "not executable"),
            (failing, "broken"),
            (dir.path().join("missing"), "No such file"),
            (dir.path().to_owned(), "not a file"),
        ] {
            let error = format!("{:#}", identify(&path, "a test", &Emulator::None).unwrap_err());
            assert!(
                error.contains(part) && error.contains(path.to_str().unwrap()),
                "{error}"
            );
        }
    }
}
