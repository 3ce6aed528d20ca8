//! `linksctl up`, the last step of `make run`: the appliance in the foreground, used with the commands that it prints.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a panic is how a test fails"
)]

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::rc::Rc;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use links_tests::{Artifacts, eventually};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const DEADLINE: Duration = Duration::from_secs(60);

/// Serializes the tests, because `linksctl up` looks for free ports.
static SERIAL: Mutex<()> = Mutex::new(());

/// A running `linksctl up` with a directory of its own.
struct Up {
    directory: Rc<tempfile::TempDir>,
    child: Child,
    /// The lines that it prints.
    lines: Receiver<String>,
}

impl Up {
    /// Starts `linksctl up` from the tarball, in a new directory.
    fn start() -> Self {
        let directory = Rc::new(tempfile::tempdir().unwrap());
        let tarball = Artifacts::find().unwrap().tarball;
        let unpacked = Command::new("tar")
            .arg("-xzf")
            .arg(&tarball)
            .arg("-C")
            .arg(directory.path())
            .status()
            .unwrap();
        assert!(unpacked.success());
        Self::start_in(directory)
    }

    fn start_in(directory: Rc<tempfile::TempDir>) -> Self {
        let mut child = Command::new(linksctl(directory.path()))
            .arg("--root")
            .arg(directory.path().join("root"))
            .args(["up", "--bundle"])
            .arg(Artifacts::find().unwrap().tarball)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, lines) = channel();
        for stream in [
            Box::new(child.stdout.take().unwrap()) as Box<dyn std::io::Read + Send>,
            Box::new(child.stderr.take().unwrap()),
        ] {
            let sender = sender.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(stream).lines() {
                    if sender.send(line.unwrap()).is_err() {
                        return;
                    }
                }
            });
        }
        Self {
            directory,
            child,
            lines,
        }
    }

    fn root(&self) -> PathBuf {
        self.directory.path().join("root")
    }

    /// Waits for a line that starts with `start`, and returns it without leading and trailing white space.
    fn line(&self, start: &str) -> String {
        let mut seen = vec![];
        while let Ok(line) = self.lines.recv_timeout(DEADLINE) {
            if line.trim().starts_with(start) {
                return line.trim().to_owned();
            }
            seen.push(line);
        }
        panic!("no line starts with {start:?}:\n{}", seen.join("\n"));
    }

    /// The oldest of its processes with `part` on the command line.
    fn process(&self, part: &str) -> Pid {
        let processes = processes_of(&self.root());
        let found = processes.iter().find(|(_, line)| line.contains(part));
        found.unwrap_or_else(|| panic!("no {part:?} in {processes:?}")).0
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
    }

    /// Waits until it and all of its processes have ended.
    fn end(mut self) -> std::process::ExitStatus {
        let status = eventually("linksctl up ends", DEADLINE, || Ok(self.child.try_wait()?)).unwrap();
        eventually("its processes end", DEADLINE, || {
            Ok(processes_of(&self.root()).is_empty().then_some(()))
        })
        .unwrap();
        status
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        // The process has already ended if the test succeeded.
        let _ = kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM);
        let _ = self.child.wait();
    }
}

fn linksctl(directory: &Path) -> PathBuf {
    let mut tops = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let top = tops
        .find(|path| path.file_name().unwrap().to_string_lossy().starts_with("links-"))
        .unwrap();
    top.join("usr/bin/linksctl")
}

/// The processes with `directory` on the command line, oldest first, each with its command line.
fn processes_of(directory: &Path) -> Vec<(Pid, String)> {
    let name = directory.to_string_lossy().into_owned();
    let mut found: Vec<_> = fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| {
            let path = entry.unwrap().path();
            let id = path.file_name()?.to_str()?.parse().ok()?;
            let line = fs::read(path.join("cmdline")).ok()?;
            Some((Pid::from_raw(id), String::from_utf8_lossy(&line).replace('\0', " ")))
        })
        .filter(|(_, line)| line.contains(&name))
        .collect();
    found.sort();
    found
}

fn shell(line: &str) -> Output {
    Command::new("sh").args(["-c", line]).output().unwrap()
}

#[test]
fn the_printed_commands_work_and_ctrl_c_ends_every_process() {
    let _serial = SERIAL.lock().unwrap_or_else(PoisonError::into_inner);
    let up = Up::start();
    let curl = up.line("curl ");
    let url = up.line("http://");

    let answer = shell(&format!("{curl} --silent --show-error --fail"));
    let text = String::from_utf8_lossy(&answer.stdout);
    assert!(
        answer.status.success() && text.contains(&format!("\"short_url\":\"{url}\"")),
        "{answer:?}"
    );

    let followed = shell(&format!("curl --silent --include {url}"));
    let text = String::from_utf8_lossy(&followed.stdout).to_lowercase();
    assert!(
        text.starts_with("http/1.1 302") && text.contains("\nlocation: https://example.com/\r"),
        "{text}"
    );

    let status = Command::new(linksctl(up.directory.path()))
        .arg("--root")
        .arg(up.root())
        .args(["status", "--json"])
        .output()
        .unwrap();
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!(
        (&status["ok"], status["instances"].as_array().unwrap().len()),
        (&true.into(), 2),
        "{status}"
    );

    assert!(
        processes_of(&up.root()).len() >= 5,
        "up, two supervisors and two runtimes should run: {:?}",
        processes_of(&up.root())
    );
    up.signal(Signal::SIGINT);
    assert!(up.end().success());
}

#[test]
fn links_survive_a_restart_of_up() {
    let _serial = SERIAL.lock().unwrap_or_else(PoisonError::into_inner);
    let up = Up::start();
    let curl = up.line("curl ");
    let url = up.line("http://");
    assert!(shell(&format!("{curl} --silent --fail")).status.success());
    let directory = Rc::clone(&up.directory);
    up.signal(Signal::SIGTERM);
    assert!(up.end().success());

    let again = Up::start_in(directory);
    assert_eq!(again.line("http://"), url);
    let followed = shell(&format!("curl --silent --include {url}"));
    assert!(followed.stdout.starts_with(b"HTTP/1.1 302"), "{followed:?}");
    again.signal(Signal::SIGTERM);
    assert!(again.end().success());
}

#[test]
fn up_ends_with_a_reason_when_an_instance_ends() {
    let _serial = SERIAL.lock().unwrap_or_else(PoisonError::into_inner);
    let up = Up::start();
    up.line("Ctrl-C");
    let runtime = up.process(" up --from ");
    kill(runtime, Signal::SIGKILL).unwrap();
    up.line("linksctl: instance");
    assert!(!up.end().success());
}

/// Spin serves from a child in a process group of its own, which outlives a killed supervisor unless `up` ends it.
#[test]
fn killing_a_supervisor_leaves_no_process_behind() {
    let _serial = SERIAL.lock().unwrap_or_else(PoisonError::into_inner);
    let up = Up::start();
    up.line("Ctrl-C");
    kill(up.process("/root 1 "), Signal::SIGKILL).unwrap();
    up.line("linksctl: instance 1 was killed by SIGKILL");
    assert!(!up.end().success());
}

#[test]
fn killing_up_leaves_no_process_behind() {
    let _serial = SERIAL.lock().unwrap_or_else(PoisonError::into_inner);
    let mut up = Up::start();
    up.line("Ctrl-C");
    // The reader of its output goes away too.
    up.lines = channel().1;
    up.signal(Signal::SIGKILL);
    assert!(!up.end().success());
}

#[test]
fn up_keeps_serving_when_nobody_reads_its_output() {
    let _serial = SERIAL.lock().unwrap_or_else(PoisonError::into_inner);
    let mut up = Up::start();
    up.line("Ctrl-C");
    // The reading threads end at the next line, which closes their ends of the pipes.
    up.lines = channel().1;
    let flag = up.root().join("run/links/ready/1");
    let runtimes = processes_of(&up.root().join("run/links/1/runtime.toml"));
    // The supervisor prints that its instance is not ready, and later that it is ready again.
    for (signal, ready) in [(Signal::SIGSTOP, false), (Signal::SIGCONT, true)] {
        for (runtime, _) in &runtimes {
            kill(*runtime, signal).unwrap();
        }
        eventually("the flag follows the state of the runtime", DEADLINE, || {
            Ok((flag.exists() == ready).then_some(()))
        })
        .unwrap();
    }
    assert!(up.child.try_wait().unwrap().is_none(), "up should still run");
    up.signal(Signal::SIGTERM);
    assert!(up.end().success());
}
