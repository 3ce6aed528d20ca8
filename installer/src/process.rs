//! Programs that run beside us: started in a process group of their own, watched, ended.

use std::fs;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Command, ExitStatus};

use anyhow::Context as _;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use signal_hook::iterator::Signals;

/// A program that was started, and what it starts: Spin serves from a child process, nginx from workers.
#[derive(Debug)]
pub struct Process {
    group: Pid,
}

impl Process {
    /// Starts `command`; `ended` is called once, from another thread, when its process has ended.
    ///
    /// The kernel sends it `on_our_death` when the calling thread ends, so that is to be the main one.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(
        command: &mut Command,
        on_our_death: Signal,
        ended: impl FnOnce(std::io::Result<ExitStatus>) + Send + 'static,
    ) -> std::io::Result<Self> {
        command.process_group(0);
        // SAFETY: prctl is async-signal-safe, and nothing else happens between fork and exec.
        unsafe {
            command.pre_exec(move || nix::sys::prctl::set_pdeathsig(on_our_death).map_err(Into::into));
        }
        let mut child = command.spawn()?;
        let group = Pid::from_raw(child.id().cast_signed());
        std::thread::spawn(move || ended(child.wait()));
        Ok(Self { group })
    }

    pub fn group(&self) -> Group {
        Group(self.group)
    }

    /// Asks the whole group to end.
    pub fn terminate(&self) {
        self.signal(Signal::SIGTERM);
    }

    /// Ends the whole group, and whatever of it outlived its leader.
    pub fn kill(&self) {
        self.signal(Signal::SIGKILL);
    }

    /// A signal to the whole group.
    pub fn signal(&self, signal: Signal) {
        match killpg(self.group, signal) {
            // ESRCH: all of it has ended already, which is what was wanted.
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => crate::log::error!("sending {signal} to process group {}: {error}", self.group),
        }
    }
}

/// Calls `tell` at each of the signals, from a thread of its own, for as long as it says that somebody listens.
///
/// # Errors
/// They cannot be caught.
pub fn on_signals<const N: usize>(
    signals: [i32; N],
    mut tell: impl FnMut() -> bool + Send + 'static,
) -> anyhow::Result<()> {
    let mut signals = Signals::new(signals).context("Catching signals")?;
    std::thread::spawn(move || {
        for _ in signals.forever() {
            if !tell() {
                return;
            }
        }
    });
    Ok(())
}

/// The processes of a group, to look at.
#[derive(Clone, Copy, Debug)]
pub struct Group(Pid);

impl Group {
    /// Bytes of memory that its processes have together; what they share counts once for each. None where none of them can
    /// be seen.
    pub fn resident_bytes(self) -> Option<u64> {
        let entries = fs::read_dir("/proc").ok()?;
        entries
            // A process may end while it is looked at.
            .filter_map(|entry| fs::read_to_string(entry.ok()?.path().join("status")).ok())
            .filter_map(|status| resident(&status, self.0))
            .reduce(|sum, bytes| sum + bytes)
    }
}

/// Of a process of that group, by /proc/PID/status (proc(5)).
fn resident(status: &str, group: Pid) -> Option<u64> {
    let field = |name: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(name)?.split_whitespace().next())
    };
    // The first is as this process counts; others follow inside of PID namespaces.
    let own: i32 = field("NSpgid:")?.parse().ok()?;
    let kilobytes: u64 = field("VmRSS:")?.parse().ok()?;
    (own == group.as_raw()).then_some(kilobytes * 1024)
}

/// From here on, what a child of this process leaves behind becomes a child of this process. A supervisor that is killed
/// cannot end its runtime's own children; systemd does so by the control group, and where there is none, we do.
///
/// # Errors
/// The kernel refuses.
pub fn adopt_orphans() -> anyhow::Result<()> {
    nix::sys::prctl::set_child_subreaper(true).context("Becoming the reaper of orphans")
}

/// Ends every child that is left, and the children that come to us by that; to be called when all of them are orphans.
///
/// # Errors
/// They cannot be waited for.
pub fn end_orphans() -> anyhow::Result<()> {
    loop {
        for child in children()? {
            // It may have ended since it was listed.
            let _ = kill(child, Signal::SIGKILL);
        }
        match waitpid(None, None) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(Errno::ECHILD) => return Ok(()),
            Err(error) => return Err(error).context("Waiting for orphans"),
        }
    }
}

/// Whose parent this process is, by the kernel's list of processes.
fn children() -> anyhow::Result<Vec<Pid>> {
    let parent = format!("PPid:\t{}", std::process::id());
    let mut found = vec![];
    for entry in fs::read_dir("/proc").context("Listing processes")? {
        let path = entry.context("Listing processes")?.path();
        let id = path.file_name().and_then(|name| name.to_str()?.parse().ok());
        // Other entries are no processes, and a process may have ended since it was listed.
        if let (Some(id), Ok(status)) = (id, fs::read_to_string(path.join("status")))
            && status.lines().any(|line| line == parent)
        {
            found.push(Pid::from_raw(id));
        }
    }
    Ok(found)
}

/// `exited with status 3`, `was killed by SIGKILL`.
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
        let (tell, told) = mpsc::channel();
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        let process = Process::start(&mut command, Signal::SIGKILL, move |status| {
            tell.send(describe(status)).unwrap();
        })
        .unwrap();
        act(&process);
        told.recv_timeout(Duration::from_secs(10)).unwrap()
    }

    #[test]
    fn the_memory_of_a_group_is_that_of_all_its_processes() {
        let status = |group: i32| format!("Name:\tx\nNSpgid:\t{group}\t1\nVmRSS:\t    8 kB\nThreads:\t1\n");
        assert_eq!(resident(&status(7), Pid::from_raw(7)), Some(8192));
        assert_eq!(resident(&status(8), Pid::from_raw(7)), None);
        assert_eq!(resident("Name:\tkthreadd\nNSpgid:\t7\n", Pid::from_raw(7)), None);

        end_of("sleep 60 & sleep 60", |process| {
            let seen = process.group().resident_bytes().unwrap();
            assert!((10_000..100_000_000).contains(&seen), "{seen}");
            process.kill();
        });
    }

    #[test]
    fn the_end_is_told_in_words() {
        assert_eq!(end_of("exit 3", |_| {}), "exited with status 3");
        assert_eq!(end_of("sleep 60", Process::terminate), "was killed by SIGTERM");
        assert_eq!(
            end_of("trap '' TERM; while :; do :; done", Process::kill),
            "was killed by SIGKILL"
        );
    }
}
