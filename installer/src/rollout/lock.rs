//! One rollout at a time.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::time::{Duration, Instant};

use anyhow::bail;
use nix::fcntl::Flock;

use crate::layout::Layout;
use crate::{files, log};

/// Between two looks at a lock that somebody else holds; the kernel has no flock() with a deadline.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Held until it is dropped, or until the process ends, whatever its end is.
#[derive(Debug)]
pub struct Lock {
    _file: Flock<File>,
}

/// What to do where somebody else holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    None,
    Until(Duration),
}

impl Lock {
    /// # Errors
    /// Somebody else holds it: who, is said.
    pub fn take(layout: &Layout, patience: Patience) -> anyhow::Result<Self> {
        if let Some(lock) = Self::try_take(layout)? {
            return Ok(lock);
        }
        let Patience::Until(time) = patience else {
            bail!("a rollout is under way already, by process {}", holder(layout));
        };
        log::notice!(
            "waiting for the rollout that is under way, by process {}",
            holder(layout)
        );
        let deadline = Instant::now() + time;
        while Instant::now() < deadline {
            std::thread::sleep(LOOK_AGAIN);
            if let Some(lock) = Self::try_take(layout)? {
                return Ok(lock);
            }
        }
        bail!(
            "a rollout is still under way after {} s, by process {}",
            time.as_secs(),
            holder(layout)
        )
    }

    /// None where somebody else holds it.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn try_take(layout: &Layout) -> anyhow::Result<Option<Self>> {
        let command: Vec<_> = std::env::args().collect();
        let holder = format!("{} (`{}`)", std::process::id(), command.join(" "));
        let file = files::lock(&layout.rollout_lock(), 0o644, &holder)?;
        Ok(file.map(|file| Self { _file: file }))
    }
}

/// In words; whoever holds the lock has just written them.
fn holder(layout: &Layout) -> String {
    fs::read_to_string(layout.rollout_lock()).unwrap_or_default()
}

/// Who holds the lock, asked without touching it, by anybody: the kernel lists all locks by inode (proc(5)).
pub fn held_by(layout: &Layout) -> Option<String> {
    let file = fs::metadata(layout.rollout_lock()).ok()?;
    let locks = fs::read_to_string("/proc/locks").ok()?;
    let device = (nix::sys::stat::major(file.dev()), nix::sys::stat::minor(file.dev()));
    let place = format!("{:02x}:{:02x}:{}", device.0, device.1, file.ino());
    locks
        .lines()
        .any(|line| line.contains(" FLOCK ") && line.split_whitespace().any(|word| word == place))
        .then(|| holder(layout))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use super::*;
    use crate::layout::temporary;

    fn layout() -> (tempfile::TempDir, Layout) {
        temporary(&[Layout::run_dir])
    }

    #[test]
    fn a_second_one_hears_who_holds_it() {
        let (_root, layout) = layout();
        assert_eq!(held_by(&layout), None);
        let first = Lock::take(&layout, Patience::None).unwrap();
        let error = Lock::take(&layout, Patience::None).unwrap_err().to_string();
        assert!(error.contains(&format!("by process {}", std::process::id())), "{error}");
        let error = Lock::take(&layout, Patience::Until(Duration::ZERO)).unwrap_err();
        assert!(error.to_string().contains("still under way"), "{error}");
        drop(first);
        assert!(Lock::try_take(&layout).unwrap().is_some());
    }

    #[test]
    fn anybody_can_see_whether_it_is_held() {
        let (_root, layout) = layout();
        let lock = Lock::take(&layout, Patience::None).unwrap();
        let holder = held_by(&layout).unwrap();
        assert!(holder.starts_with(&std::process::id().to_string()), "{holder}");
        drop(lock);
        assert_eq!(held_by(&layout), None);
    }

    #[test]
    fn patience_is_rewarded() {
        let (_root, layout) = layout();
        let lock = Lock::take(&layout, Patience::None).unwrap();
        let releaser = std::thread::spawn(move || drop(lock));
        assert!(Lock::take(&layout, Patience::Until(Duration::from_secs(10))).is_ok());
        releaser.join().unwrap();
    }
}
