//! One boot of a machine: systemd in namespaces of its own, until it ends or is killed.

use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::directory::Directory;
use crate::cgroup::{Cgroup, MemoryGroup};
use crate::namespace::NetNamespace;
use crate::process;
use crate::tree::Tree;

const BOOT: &str = include_str!("../../lab/boot.sh");
/// How long systemd may take to boot, and to end after `poweroff`.
pub const DEADLINE: Duration = Duration::from_secs(120);

/// What a sync of a file inside does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Syncs {
    /// Nothing. A machine that is killed loses nothing even so, because this computer keeps its page cache.
    Ignored,
    /// It writes to the disk of this computer, and takes as long.
    Real,
}

/// One boot of a machine. It is killed when dropped.
#[derive(Debug)]
pub struct Running {
    /// The PID of systemd outside.
    pub init: Pid,
    pub network: NetNamespace,
    /// Whether systemd may still run. Once it has ended, another process may have its PID.
    alive: bool,
    /// Receives a message when systemd has ended. The mutex is for tests that share a machine between threads.
    ended: Mutex<mpsc::Receiver<()>>,
    console: PathBuf,
    /// Declared last: the group can be removed only when all processes are gone.
    _cgroup: Cgroup,
}

impl Running {
    /// Starts systemd and waits until it has started everything.
    pub fn start(directory: &Directory, tree: &Tree, syncs: Syncs, memory: Option<&MemoryGroup>) -> Result<Self> {
        let console = directory.path.join("console.log");
        let notify = directory.path.join("notify");
        if notify.exists() {
            fs::remove_file(&notify).with_context(|| format!("Removing {}", notify.display()))?;
        }
        let messages = UnixDatagram::bind(&notify).with_context(|| format!("Binding {}", notify.display()))?;
        let cgroup = Cgroup::create(&directory.cgroup_name())?;
        let mut entrance = cgroup.entrance()?;

        let mut command = process::isolated(&["--pid", "--mount", "--uts", "--ipc", "--net", "--cgroup"], BOOT);
        command
            .arg(&directory.path)
            .arg(tree.overlay_lower())
            .arg(match syncs {
                Syncs::Ignored => "volatile",
                Syncs::Real => "durable",
            })
            .stdout(Stdio::piped())
            .stderr(File::create(&console).with_context(|| format!("Creating {}", console.display()))?);
        // SAFETY: The closure only writes to an open file. It runs before unshare, so the group becomes the namespace's root.
        unsafe { command.pre_exec(move || entrance.write_all(b"0")) };
        enter_on_start(&mut command, memory)?;

        // The machine dies with the thread that starts it. So that is a thread of its own, not one of a test.
        let (started, starting) = mpsc::channel();
        let (ending, ended) = mpsc::channel();
        thread::spawn(move || {
            let mut child = match command.spawn().context("Starting unshare") {
                Ok(child) => child,
                Err(error) => return drop(started.send(Err(error))),
            };
            let mut first_line = String::new();
            let pid = child
                .stdout
                .take()
                .map_or(Ok(0), |stdout| BufReader::new(stdout).read_line(&mut first_line))
                .map_err(anyhow::Error::from)
                .and_then(|_| {
                    first_line
                        .trim()
                        .parse()
                        .with_context(|| format!("Parsing the PID {first_line:?}"))
                });
            // Nobody receives these once the machine has been dropped.
            let _ = started.send(pid);
            let _ = child.wait();
            // This also ends the wait for the boot, if it is still going on.
            drop(UnixDatagram::unbound().and_then(|socket| socket.send_to(b"EXITED=1", &notify)));
            let _ = ending.send(());
        });
        let init = Pid::from_raw(starting.recv().map_err(|_| anyhow!("the machine's thread ended"))??);
        let running = Self {
            init,
            network: NetNamespace::of_process(init).context("Opening the machine's network")?,
            alive: true,
            ended: Mutex::new(ended),
            console,
            _cgroup: cgroup,
        };
        running.wait_until_booted(&messages).with_context(|| {
            format!(
                "the machine did not boot; the end of its console:\n{}",
                process::tail(&running.console)
            )
        })?;
        Ok(running)
    }

    /// Waits for systemd's `READY=1`, sent when every unit has started or failed (systemd.io/CONTAINER_INTERFACE).
    fn wait_until_booted(&self, messages: &UnixDatagram) -> Result<()> {
        let deadline = Instant::now() + DEADLINE;
        let mut buffer = [0; 4096];
        loop {
            let left = deadline
                .saturating_duration_since(Instant::now())
                .max(Duration::from_millis(1));
            messages.set_read_timeout(Some(left))?;
            let length = match messages.recv(&mut buffer) {
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    bail!("systemd is not ready after {DEADLINE:?}")
                }
                Err(error) => return Err(error.into()),
            };
            let message = String::from_utf8_lossy(&buffer[..length]);
            if message.lines().any(|line| line == "READY=1") {
                return Ok(());
            }
            ensure!(message != "EXITED=1", "systemd has ended");
        }
    }

    fn ended(&mut self) -> &mut mpsc::Receiver<()> {
        self.ended.get_mut().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until systemd has ended.
    pub fn wait(&mut self, deadline: Duration) -> Result<()> {
        self.ended()
            .recv_timeout(deadline)
            .with_context(|| format!("systemd did not end within {deadline:?}"))?;
        self.alive = false;
        Ok(())
    }

    /// Kills systemd. The kernel then kills every process in its PID namespace before systemd itself is gone.
    pub fn kill(&mut self) -> Result<()> {
        if self.ended().try_recv().is_ok() {
            self.alive = false;
            return Ok(());
        }
        kill(self.init, Signal::SIGKILL).context("Killing systemd")?;
        self.wait(Duration::from_secs(20))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.alive
            && let Err(error) = self.kill()
        {
            eprintln!("lab: {error:#}");
        }
    }
}

/// Makes the command start in the memory group, with everything that it starts itself.
pub fn enter_on_start(command: &mut Command, memory: Option<&MemoryGroup>) -> Result<()> {
    if let Some(memory) = memory {
        let mut entrance = memory.entrance()?;
        // SAFETY: The closure only writes to an open file.
        unsafe { command.pre_exec(move || entrance.write_all(b"0")) };
    }
    Ok(())
}
