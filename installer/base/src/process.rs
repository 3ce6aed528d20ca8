//! Child processes: each is started in a process group of its own, watched, and terminated or killed.

use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Command, ExitStatus};

use anyhow::{Context as _, ensure};
use nix::errno::Errno;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, getppid};
use procfs::process::all_processes;
use signal_hook::iterator::Signals;

/// The process that started this one.
#[derive(Clone, Copy, Debug)]
pub struct Parent(Pid);

impl Parent {
    /// Call this first, because the parent may end at any time.
    pub fn of_this_process() -> Self {
        Self(getppid())
    }

    /// From now on, this process is killed when its parent ends. A later change of user resets that (PR_SET_PDEATHSIG,
    /// prctl(2)).
    ///
    /// # Errors
    /// The parent has ended.
    pub fn end_with(self) -> anyhow::Result<()> {
        set_pdeathsig(Signal::SIGKILL).context("Asking for a signal when the parent ends")?;
        ensure!(getppid() == self.0, "the process that started this one has ended");
        Ok(())
    }
}

/// A running program with all processes that it starts: Spin serves from a child process, nginx from workers.
#[derive(Debug)]
pub struct Process {
    group: Pid,
}

impl Process {
    /// Starts `command`, and calls `ended` once, from another thread, when its process has ended.
    ///
    /// The kernel sends the signal `on_our_death` to the process when the calling thread ends, so call this from the main
    /// thread (PR_SET_PDEATHSIG, prctl(2)).
    ///
    /// # Errors
    /// The command cannot be started.
    pub fn start(
        command: &mut Command,
        on_our_death: Signal,
        ended: impl FnOnce(std::io::Result<ExitStatus>) + Send + 'static,
    ) -> std::io::Result<Self> {
        command.process_group(0);
        // SAFETY: prctl is async-signal-safe, and nothing else happens between fork and exec.
        unsafe {
            command.pre_exec(move || set_pdeathsig(on_our_death).map_err(Into::into));
        }
        let mut child = command.spawn()?;
        let group = Pid::from_raw(child.id().cast_signed());
        std::thread::spawn(move || ended(child.wait()));
        Ok(Self { group })
    }

    pub fn group(&self) -> Group {
        Group(self.group)
    }

    /// Sends SIGTERM to the whole group.
    pub fn terminate(&self) {
        self.signal(Signal::SIGTERM);
    }

    /// Sends SIGKILL to the whole group, which may have outlived its leader.
    pub fn kill(&self) {
        self.signal(Signal::SIGKILL);
    }

    /// Sends a signal to the whole group.
    pub fn signal(&self, signal: Signal) {
        match killpg(self.group, signal) {
            // ESRCH: every process of the group has ended already.
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => crate::log::error!("sending {signal} to process group {}: {error}", self.group),
        }
    }
}

/// Calls `handle` for each of the signals, from a thread of its own, until `handle` returns false.
///
/// # Errors
/// The signals cannot be caught.
pub fn on_signals<const N: usize>(
    signals: [i32; N],
    mut handle: impl FnMut() -> bool + Send + 'static,
) -> anyhow::Result<()> {
    let mut signals = Signals::new(signals).context("Catching signals")?;
    std::thread::spawn(move || {
        for _ in signals.forever() {
            if !handle() {
                return;
            }
        }
    });
    Ok(())
}

/// A process group whose memory can be measured.
#[derive(Clone, Copy, Debug)]
pub struct Group(Pid);

impl Group {
    /// The resident memory of all processes in the group, in bytes. Shared memory counts once per process. `None` if no
    /// process of the group can be found.
    pub fn resident_bytes(self) -> Option<u64> {
        let processes = all_processes().ok()?;
        processes
            // A process may end while it is read.
            .flatten()
            .filter(|process| process.stat().is_ok_and(|stat| stat.pgrp == self.0.as_raw()))
            // The stat has the memory too, but less exactly (proc_pid_stat(5)). A zombie has none.
            .filter_map(|process| process.status().ok()?.vmrss)
            .map(|kibibytes| kibibytes * 1024)
            .reduce(|sum, bytes| sum + bytes)
    }
}

/// Makes this process the parent of all orphans of its children from now on. A supervisor that is killed cannot end the
/// children of its runtime. systemd ends them by their control group; without systemd, this process must.
///
/// # Errors
/// prctl(2) fails.
pub fn adopt_orphans() -> anyhow::Result<()> {
    nix::sys::prctl::set_child_subreaper(true).context("Becoming the reaper of orphans")
}

/// Kills every child of this process, and the orphans that become its children in turn. Call this when only orphans are left.
///
/// # Errors
/// Waiting for the children fails.
pub fn end_orphans() -> anyhow::Result<()> {
    loop {
        for child in children()? {
            // The child may have ended since it was listed.
            let _ = kill(child, Signal::SIGKILL);
        }
        match waitpid(None, None) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(Errno::ECHILD) => return Ok(()),
            Err(error) => return Err(error).context("Waiting for orphans"),
        }
    }
}

/// The children of this process, found in /proc.
fn children() -> anyhow::Result<Vec<Pid>> {
    let own = Pid::this().as_raw();
    let processes = all_processes().context("Listing processes")?;
    // A process may have ended since it was listed.
    let stats = processes.flatten().filter_map(|process| process.stat().ok());
    let children = stats.filter(|stat| stat.ppid == own);
    Ok(children.map(|stat| Pid::from_raw(stat.pid)).collect())
}

/// Describes how a process ended: `exited with status 3`, `was killed by SIGKILL`.
pub fn describe(status: std::io::Result<ExitStatus>) -> String {
    match status.map(|status| (status.code(), status.signal())) {
        Ok((Some(code), _)) => format!("exited with status {code}"),
        Ok((_, Some(signal))) => match Signal::try_from(signal) {
            Ok(signal) => format!("was killed by {signal}"),
            Err(_) => format!("was killed by signal {signal}"),
        },
        Ok((None, None)) => "ended".to_owned(),
        Err(error) => format!("could not be waited for: {error}"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    fn end_of(script: &str, act: impl FnOnce(&Process)) -> String {
        let (sender, receiver) = mpsc::channel();
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        let process = Process::start(&mut command, Signal::SIGKILL, move |status| {
            sender.send(describe(status)).unwrap();
        })
        .unwrap();
        act(&process);
        receiver.recv_timeout(Duration::from_secs(10)).unwrap()
    }

    #[test]
    fn the_memory_of_a_group_is_that_of_all_its_processes() {
        end_of("sleep 60 & sleep 60", |process| {
            let bytes = process.group().resident_bytes().unwrap();
            assert!((10_000..100_000_000).contains(&bytes), "{bytes}");
            process.kill();
        });
    }

    #[test]
    fn the_end_of_a_process_is_described() {
        assert_eq!(end_of("exit 3", |_| {}), "exited with status 3");
        assert_eq!(end_of("sleep 60", Process::terminate), "was killed by SIGTERM");
        assert_eq!(
            end_of("trap '' TERM; while :; do :; done", Process::kill),
            "was killed by SIGKILL"
        );
    }
}
