//! The flag file that puts an instance in rotation.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use anyhow::Context as _;

use links_base::layout::Layout;
use links_base::{files, log};

/// The flag file that puts the instance in rotation.
pub struct Flag {
    path: PathBuf,
}

impl Flag {
    /// Removes a stale flag. The instance starts out of rotation.
    ///
    /// # Errors
    /// Fails if the flag cannot be removed.
    pub fn new(layout: &Layout, instance: u16) -> anyhow::Result<Self> {
        let directory = layout.ready_dir();
        fs::create_dir_all(&directory).with_context(|| format!("Making {}", directory.display()))?;
        let flag = Self {
            path: layout.ready_flag(instance),
        };
        flag.clear()?;
        Ok(flag)
    }

    /// Puts the instance in rotation.
    ///
    /// # Errors
    /// Fails if the flag cannot be made.
    pub fn set(&self) -> anyhow::Result<()> {
        match symlink(".", &self.path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                Err(error).with_context(|| format!("Making {}", self.path.display()))
            }
            _ => Ok(()),
        }
    }

    /// Takes the instance out of rotation.
    ///
    /// # Errors
    /// Fails if the flag cannot be removed.
    pub fn clear(&self) -> anyhow::Result<()> {
        files::remove_if_present(&self.path).with_context(|| format!("Removing {}", self.path.display()))
    }
}

/// Leaves the rotation on every exit, including errors.
impl Drop for Flag {
    fn drop(&mut self) {
        if let Err(error) = self.clear() {
            log::error!("{error:#}");
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic fails the test")]
mod tests {
    use super::*;

    #[test]
    fn the_flag_is_cleared_at_startup_and_at_exit() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::new(root.path());
        fs::create_dir_all(layout.ready_dir()).unwrap();
        fs::write(layout.ready_flag(1), b"").unwrap();
        let flag = Flag::new(&layout, 1).unwrap();
        assert!(!layout.ready_flag(1).exists());
        flag.set().unwrap();
        flag.set().unwrap();
        // nginx checks several flags at once with one path that leads through all of them.
        assert!(layout.ready_flag(1).join("1/../ready").exists());
        drop(flag);
        assert!(!layout.ready_flag(1).exists());
    }

    #[test]
    fn the_unit_removes_the_flag_of_a_killed_supervisor() {
        let unit = include_str!("../../../systemd/links@.service");
        let ready = Layout::new("/").ready_dir();
        let line = format!("ExecStopPost=/usr/bin/rm -f {}/%i", ready.display());
        assert!(unit.lines().any(|found| found == line), "{line}");
    }
}
