//! Which instances are in rotation, and waiting for changes.

use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use crate::files;

/// The instances whose ready flag exists in the directory, in ascending order. A missing directory holds no flags.
///
/// # Errors
/// The directory of the flags cannot be read.
pub fn ready_instances(flags: &Path) -> io::Result<Vec<u16>> {
    let names = files::list(flags)?;
    let mut ready: Vec<u16> = names.iter().filter_map(|name| name.parse().ok()).collect();
    ready.sort_unstable();
    Ok(ready)
}

/// Removes all flags. Call this while no instance runs: the flags are leftovers of a crash or of removed instances.
///
/// # Errors
/// The directory of the flags cannot be read, or a flag cannot be removed.
pub fn clear(flags: &Path) -> anyhow::Result<()> {
    let stale = ready_instances(flags).with_context(|| format!("Reading {}", flags.display()))?;
    for instance in stale {
        let flag = flags.join(instance.to_string());
        files::remove_if_present(&flag).with_context(|| format!("Removing {}", flag.display()))?;
    }
    Ok(())
}

/// Waits for flags to be set or removed.
#[derive(Debug)]
pub struct Watch {
    flags: PathBuf,
    inotify: Inotify,
}

impl Watch {
    /// Starts to watch the flags in the directory.
    ///
    /// # Errors
    /// The directory of the flags is missing, or the kernel's limit of watches is reached.
    pub fn new(flags: &Path) -> anyhow::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).context("Starting inotify")?;
        inotify
            .add_watch(
                flags,
                AddWatchFlags::IN_CREATE | AddWatchFlags::IN_DELETE | AddWatchFlags::IN_MOVE,
            )
            .with_context(|| format!("Watching {}", flags.display()))?;
        Ok(Self {
            flags: flags.to_owned(),
            inotify,
        })
    }

    /// Returns after a change, a signal, or `timeout`, whichever comes first.
    ///
    /// # Errors
    /// A system call fails.
    pub fn wait(&self, timeout: Duration) -> anyhow::Result<()> {
        let mut ready = [PollFd::new(self.inotify.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
        match poll(&mut ready, timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error).context("Waiting for a change of the ready flags"),
        }
        // The events only have to be consumed: the caller reads the flags from the directory.
        match self.inotify.read_events() {
            Ok(_) | Err(nix::errno::Errno::EAGAIN) => Ok(()),
            Err(error) => Err(error).context("Reading changes of the ready flags"),
        }
    }

    /// Waits until `enough` returns true for the instances in rotation. Returns false if `deadline` passes before that.
    ///
    /// # Errors
    /// The flags cannot be read, or `enough` fails.
    pub fn until(
        &self,
        deadline: Instant,
        mut enough: impl FnMut(&[u16]) -> anyhow::Result<bool>,
    ) -> anyhow::Result<bool> {
        loop {
            if enough(&ready_instances(&self.flags)?)? {
                return Ok(true);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            // `enough` may check more than flags, such as the end of a process, so it is also called without a change.
            self.wait(left.min(Duration::from_millis(100)))?;
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn ready_instances_are_sorted() {
        let root = tempfile::tempdir().unwrap();
        let flags = root.path().join("ready");
        assert_eq!(ready_instances(&flags).unwrap(), Vec::<u16>::new());
        fs::create_dir_all(&flags).unwrap();
        for name in ["10", "2", "not-a-number"] {
            fs::write(flags.join(name), b"").unwrap();
        }
        assert_eq!(ready_instances(&flags).unwrap(), [2, 10]);
        clear(&flags).unwrap();
        assert_eq!(ready_instances(&flags).unwrap(), Vec::<u16>::new());
    }

    #[test]
    fn a_new_flag_ends_the_wait() {
        let root = tempfile::tempdir().unwrap();
        let flags = root.path().join("ready");
        fs::create_dir_all(&flags).unwrap();
        let watch = Watch::new(&flags).unwrap();
        let flag = flags.join("1");
        let setter = std::thread::spawn(move || fs::write(flag, b"").unwrap());
        let deadline = Instant::now() + Duration::from_secs(10);
        assert!(watch.until(deadline, |ready| Ok(ready == [1])).unwrap());
        setter.join().unwrap();
        assert!(!watch.until(Instant::now(), |ready| Ok(ready.is_empty())).unwrap());
    }
}
