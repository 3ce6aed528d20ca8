//! The lock that lets only one rollout run at a time.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::bail;
use nix::fcntl::Flock;
use procfs::{FromRead as _, LockType, Locks};
use rustix::fs::{major, minor};

use links_base::{files, log};

/// The lock, which is held until it is dropped or the process ends for whatever reason.
#[derive(Debug)]
pub struct Lock {
    _file: Flock<File>,
}

/// What to do if another process holds the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockWait {
    /// Fail at once.
    None,
    /// Fail after waiting this long.
    Until(Duration),
}

impl Lock {
    /// Takes the lock, a file (`Layout::rollout_lock`).
    ///
    /// # Errors
    /// Another process holds the lock, which the error names, or the file cannot be created.
    pub fn take(path: &Path, wait: LockWait) -> anyhow::Result<Self> {
        if let Some(lock) = Self::try_take(path)? {
            return Ok(lock);
        }
        let LockWait::Until(time) = wait else {
            bail!("a rollout is under way already, by process {}", holder(path));
        };
        log::notice!("waiting for the rollout that is under way, by process {}", holder(path));
        if let Some(lock) = Self::take_within(path, time)? {
            return Ok(lock);
        }
        bail!(
            "a rollout is still under way after {} s, by process {}",
            time.as_secs(),
            holder(path)
        )
    }

    /// Takes the lock. `None` if another process holds it.
    ///
    /// # Errors
    /// The file cannot be created.
    pub fn try_take(path: &Path) -> anyhow::Result<Option<Self>> {
        Self::take_within(path, Duration::ZERO)
    }

    fn take_within(path: &Path, timeout: Duration) -> anyhow::Result<Option<Self>> {
        let command: Vec<_> = std::env::args().collect();
        let holder = format!("{} (`{}`)", std::process::id(), command.join(" "));
        let file = files::lock_within(path, 0o644, &holder, timeout)?;
        Ok(file.map(|file| Self { _file: file }))
    }
}

/// A description of the process that holds the lock, which that process writes into the file.
fn holder(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// A description of the process that holds the lock, if any. This needs no privileges and does not touch the lock, because the
/// kernel lists all locks by inode (proc_locks(5)).
pub fn held_by(path: &Path) -> Option<String> {
    let file = fs::metadata(path).ok()?;
    let locks = fs::read_to_string("/proc/locks").ok()?;
    let inode = (major(file.dev()), minor(file.dev()), file.ino());
    locks.lines().any(|line| is_locked(line, inode)).then(|| holder(path))
}

/// Whether a line of /proc/locks is a flock(2) of this file. A line that cannot be parsed is about something else: a broken lease
/// has no file.
fn is_locked(line: &str, inode: (u32, u32, u64)) -> bool {
    let locks = Locks::from_read(line.as_bytes()).map_or_else(|_| vec![], |locks| locks.0);
    locks
        .iter()
        .any(|lock| lock.lock_type == LockType::FLock && (lock.devmaj, lock.devmin, lock.inode) == inode)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use links_base::layout::{Layout, temporary};

    fn lock() -> (tempfile::TempDir, PathBuf) {
        let (root, layout) = temporary(&[Layout::run_dir]);
        (root, layout.rollout_lock())
    }

    #[test]
    fn only_a_lock_of_the_file_counts() {
        let inode = (0xfe, 1, 99);
        assert!(is_locked("1: FLOCK  ADVISORY  WRITE 123 fe:01:99 0 EOF", inode));
        for other in [
            "1: FLOCK  ADVISORY  WRITE 123 fe:01:98 0 EOF",
            "1: POSIX  ADVISORY  WRITE 123 fe:01:99 0 EOF",
            "2: -> LEASE  BREAKER   READ 123 <none>:0 0 EOF",
            "",
        ] {
            assert!(!is_locked(other, inode), "{other}");
        }
    }

    #[test]
    fn a_second_rollout_learns_who_holds_the_lock() {
        let (_root, path) = lock();
        assert_eq!(held_by(&path), None);
        let first = Lock::take(&path, LockWait::None).unwrap();
        let error = Lock::take(&path, LockWait::None).unwrap_err().to_string();
        assert!(error.contains(&format!("by process {}", std::process::id())), "{error}");
        let error = Lock::take(&path, LockWait::Until(Duration::ZERO)).unwrap_err();
        assert!(error.to_string().contains("still under way"), "{error}");
        drop(first);
        assert!(Lock::try_take(&path).unwrap().is_some());
    }

    #[test]
    fn anybody_can_see_whether_it_is_held() {
        let (_root, path) = lock();
        let lock = Lock::take(&path, LockWait::None).unwrap();
        let holder = held_by(&path).unwrap();
        assert!(holder.starts_with(&std::process::id().to_string()), "{holder}");
        drop(lock);
        assert_eq!(held_by(&path), None);
    }

    #[test]
    fn a_waiting_rollout_gets_the_lock_once_it_is_released() {
        let (_root, path) = lock();
        let lock = Lock::take(&path, LockWait::None).unwrap();
        let releaser = std::thread::spawn(move || drop(lock));
        assert!(Lock::take(&path, LockWait::Until(Duration::from_secs(10))).is_ok());
        releaser.join().unwrap();
    }
}
