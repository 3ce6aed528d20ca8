//! `linksctl up`, the last step of `make run`: the appliance in the foreground, used with the commands that it prints.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use links_tests::local::Up;
use links_tests::{Artifacts, eventually};
use nix::sys::signal::{Signal, kill};

const DEADLINE: Duration = Duration::from_secs(60);

/// Serializes the tests, because `linksctl up` looks for free ports.
static SERIAL: Mutex<()> = Mutex::new(());

/// The tarball, unpacked in a directory of its own.
struct Tarball {
    directory: tempfile::TempDir,
    tarball: PathBuf,
}

impl Tarball {
    fn unpack() -> Result<Self> {
        let (directory, tarball) = (tempfile::tempdir()?, Artifacts::find()?.tarball);
        let mut tar = Command::new("tar");
        let tar = tar.arg("-xzf").arg(&tarball).arg("-C").arg(directory.path());
        ensure!(tar.status()?.success(), "tar cannot unpack {}", tarball.display());
        Ok(Self { directory, tarball })
    }

    fn up(&self) -> Result<Up> {
        let root = self.directory.path().join("root");
        Up::start(&linksctl(self.directory.path())?, &root, &self.tarball)
    }
}

fn linksctl(directory: &Path) -> Result<PathBuf> {
    for entry in directory.read_dir()? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with("links-") {
            return Ok(entry.path().join("usr/bin/linksctl"));
        }
    }
    anyhow::bail!("the tarball has no directory links-*")
}

fn shell(line: &str) -> Result<Output> {
    Ok(Command::new("sh").args(["-c", line]).output()?)
}

#[test]
fn the_printed_commands_work_and_ctrl_c_ends_every_process() -> Result<()> {
    let _serial = SERIAL.lock().unwrap_or_else(PoisonError::into_inner);
    let tarball = Tarball::unpack()?;
    let up = tarball.up()?;
    let curl = up.line("curl ")?;
    let url = up.line("http://")?;

    let answer = shell(&format!("{curl} --silent --show-error --fail"))?;
    let text = String::from_utf8_lossy(&answer.stdout);
    assert!(
        answer.status.success() && text.contains(&format!("\"short_url\":\"{url}\"")),
        "{answer:?}"
    );

    let followed = shell(&format!("curl --silent --include {url}"))?;
    let text = String::from_utf8_lossy(&followed.stdout).to_lowercase();
    assert!(
        text.starts_with("http/1.1 302") && text.contains("\nlocation: https://example.com/\r"),
        "{text}"
    );

    let status = up.status()?;
    let instances = status["instances"].as_array().context("instances")?;
    ensure!(status["ok"] == true && instances.len() == 2, "{status}");

    let processes = up.processes()?;
    ensure!(
        processes.len() >= 5,
        "up, two supervisors and two runtimes should run: {processes:?}"
    );
    up.signal(Signal::SIGINT)?;
    ensure!(up.end()?.success(), "`up` should have ended without an error");
    Ok(())
}

#[test]
fn links_survive_a_restart_of_up() -> Result<()> {
    let _serial = SERIAL.lock().unwrap_or_else(PoisonError::into_inner);
    let tarball = Tarball::unpack()?;
    let up = tarball.up()?;
    let curl = up.line("curl ")?;
    let url = up.line("http://")?;
    let answer = shell(&format!("{curl} --silent --fail"))?;
    ensure!(answer.status.success(), "{answer:?}");
    up.signal(Signal::SIGTERM)?;
    ensure!(up.end()?.success(), "`up` should have ended without an error");

    let again = tarball.up()?;
    assert_eq!(again.line("http://")?, url);
    let followed = shell(&format!("curl --silent --include {url}"))?;
    ensure!(followed.stdout.starts_with(b"HTTP/1.1 302"), "{followed:?}");
    again.signal(Signal::SIGTERM)?;
    ensure!(again.end()?.success(), "`up` should have ended without an error");
    Ok(())
}

#[test]
fn up_ends_with_a_reason_when_an_instance_ends() -> Result<()> {
    let _serial = SERIAL.lock().unwrap_or_else(PoisonError::into_inner);
    let tarball = Tarball::unpack()?;
    let up = tarball.up()?;
    up.line("Ctrl-C")?;
    kill(up.process(" up --from ")?, Signal::SIGKILL)?;
    up.line("linksctl: instance")?;
    ensure!(!up.end()?.success(), "`up` should have ended with an error");
    Ok(())
}

/// Spin serves from a child in a process group of its own, which outlives a killed supervisor unless `up` ends it.
#[test]
fn killing_a_supervisor_leaves_no_process_behind() -> Result<()> {
    let _serial = SERIAL.lock().unwrap_or_else(PoisonError::into_inner);
    let tarball = Tarball::unpack()?;
    let up = tarball.up()?;
    up.line("Ctrl-C")?;
    kill(up.process("/root 1 ")?, Signal::SIGKILL)?;
    let reason = up.line("linksctl: instance 1 ")?;
    ensure!(reason.contains("SIGKILL"), "{reason}");
    ensure!(!up.end()?.success(), "`up` should have ended with an error");
    Ok(())
}

#[test]
fn killing_up_leaves_no_process_behind() -> Result<()> {
    let _serial = SERIAL.lock().unwrap_or_else(PoisonError::into_inner);
    let tarball = Tarball::unpack()?;
    let mut up = tarball.up()?;
    up.line("Ctrl-C")?;
    // The reader of its output goes away too.
    up.stop_reading();
    up.signal(Signal::SIGKILL)?;
    ensure!(!up.end()?.success(), "`up` should have ended with an error");
    Ok(())
}

#[test]
fn up_keeps_serving_when_nobody_reads_its_output() -> Result<()> {
    let _serial = SERIAL.lock().unwrap_or_else(PoisonError::into_inner);
    let tarball = Tarball::unpack()?;
    let mut up = tarball.up()?;
    up.line("Ctrl-C")?;
    // The reading thread ends at the next line, which closes its end of the pipe.
    up.stop_reading();
    let flag = up.root().join("run/links/ready/1");
    let configuration = up.root().join("run/links/1/runtime.toml");
    let mut runtimes = up.processes()?;
    runtimes.retain(|(_, line)| line.contains(&*configuration.to_string_lossy()));
    // The supervisor prints that its instance is not ready, and later that it is ready again.
    for (signal, ready) in [(Signal::SIGSTOP, false), (Signal::SIGCONT, true)] {
        for (runtime, _) in &runtimes {
            kill(*runtime, signal)?;
        }
        eventually("the flag follows the state of the runtime", DEADLINE, || {
            Ok((flag.exists() == ready).then_some(()))
        })?;
    }
    ensure!(up.is_running()?, "up should still run");
    up.signal(Signal::SIGTERM)?;
    ensure!(up.end()?.success(), "`up` should have ended without an error");
    Ok(())
}
