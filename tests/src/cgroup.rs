//! One control group per machine: systemd in it sees the group as the root of its own hierarchy.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::eventually;

/// A group below the root of the unified hierarchy; removed when dropped, which takes that no process is left in it.
#[derive(Debug)]
pub struct Cgroup(PathBuf);

impl Cgroup {
    /// # Errors
    /// No cgroup2 mounted, or not writable (in an unprivileged container).
    pub fn create(name: &str) -> Result<Self> {
        let path = hierarchy()?.join(name);
        fs::create_dir(&path).with_context(|| format!("Creating the control group {}", path.display()))?;
        Ok(Self(path))
    }

    /// A process that writes `0` to this file moves itself into the group.
    ///
    /// # Errors
    /// Opening it failed.
    pub fn entrance(&self) -> Result<File> {
        let path = self.0.join("cgroup.procs");
        File::options()
            .write(true)
            .open(&path)
            .with_context(|| format!("Opening {}", path.display()))
    }

    /// Removes what a killed test process left.
    ///
    /// # Errors
    /// It is there and in use.
    pub fn remove_abandoned(name: &str) -> Result<()> {
        let path = hierarchy()?.join(name);
        if path.exists() {
            // The kernel may not be done with ending its processes.
            eventually(
                &format!("{} is empty", path.display()),
                Duration::from_secs(10),
                || match remove(&path) {
                    Err(error) if error.kind() == io::ErrorKind::ResourceBusy => Ok(None),
                    removed => Ok(Some(removed.with_context(|| format!("Removing {}", path.display()))?)),
                },
            )?;
        }
        Ok(())
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.0) {
            eprintln!("lab: the control group {} stays: {error}", self.0.display());
        }
    }
}

/// A cgroup directory cannot be emptied, only removed from its leaves upwards.
fn remove(group: &Path) -> io::Result<()> {
    for entry in fs::read_dir(group)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove(&entry.path())?;
        }
    }
    fs::remove_dir(group)
}

/// `/sys/fs/cgroup`, or `/sys/fs/cgroup/unified` on a hybrid host.
fn hierarchy() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("Reading /proc/self/mounts")?;
    mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .find(|fields| fields.get(2) == Some(&"cgroup2"))
        .and_then(|fields| fields.get(1).map(PathBuf::from))
        .context("no cgroup2 file system is mounted; the lab's systemd needs one")
}
