//! One control group per machine: systemd in it sees the group as the root of its own hierarchy. A second one, of the memory
//! controller, where the machine is to have little memory.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::eventually;

/// A group below the root of the unified hierarchy; removed when dropped, which takes that no process is left in it.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// # Errors
    /// No cgroup2 mounted, or not writable (in an unprivileged container).
    pub fn create(name: &str) -> Result<Self> {
        Self::at(hierarchy()?.join(name))
    }

    fn at(path: PathBuf) -> Result<Self> {
        fs::create_dir(&path).with_context(|| format!("Creating the control group {}", path.display()))?;
        Ok(Self { path })
    }

    /// A process that writes `0` to this file moves itself into the group.
    ///
    /// # Errors
    /// Opening it failed.
    pub fn entrance(&self) -> Result<File> {
        let path = self.path.join("cgroup.procs");
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
        remove_abandoned(&hierarchy()?.join(name))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.path) {
            eprintln!("lab: the control group {} stays: {error}", self.path.display());
        }
    }
}

/// A bound on the memory of a machine, page cache included; as [`Cgroup`], it is removed when dropped.
///
/// Of cgroup v1: in the unified hierarchy nothing could enter the group beside the machine's systemd, which is its root.
#[derive(Debug)]
pub struct MemoryGroup {
    group: Cgroup,
}

impl MemoryGroup {
    /// # Errors
    /// The host has no memory controller of cgroup v1.
    pub fn create(name: &str, bytes: u64) -> Result<Self> {
        let hierarchy = memory_hierarchy()?.context(
            "no memory controller of cgroup v1 is mounted; without one the lab cannot bound a machine's memory",
        )?;
        let group = Cgroup::at(hierarchy.join(name))?;
        let limit = group.path.join("memory.limit_in_bytes");
        fs::write(&limit, bytes.to_string()).with_context(|| format!("Writing {}", limit.display()))?;
        Ok(Self { group })
    }

    /// # Errors
    /// As [`Cgroup::entrance`].
    pub fn entrance(&self) -> Result<File> {
        self.group.entrance()
    }

    /// # Errors
    /// The file cannot be read.
    pub fn limit(&self) -> Result<u64> {
        Ok(self.read("memory.limit_in_bytes")?.trim().parse()?)
    }

    /// What was used at most, in bytes; and how many processes the kernel has ended for want of memory.
    ///
    /// # Errors
    /// The files cannot be read, or hold something else.
    pub fn usage(&self) -> Result<(u64, u64)> {
        let most = self.read("memory.max_usage_in_bytes")?.trim().parse()?;
        let control = self.read("memory.oom_control")?;
        let killed = control.lines().find_map(|line| line.strip_prefix("oom_kill "));
        Ok((
            most,
            killed.context("memory.oom_control has no oom_kill")?.trim().parse()?,
        ))
    }

    fn read(&self, name: &str) -> Result<String> {
        let path = self.group.path.join(name);
        fs::read_to_string(&path).with_context(|| format!("Reading {}", path.display()))
    }

    /// As [`Cgroup::remove_abandoned`].
    ///
    /// # Errors
    /// It is there and in use.
    pub fn remove_abandoned(name: &str) -> Result<()> {
        match memory_hierarchy()? {
            Some(hierarchy) => remove_abandoned(&hierarchy.join(name)),
            None => Ok(()),
        }
    }
}

/// Where the memory controller of cgroup v1 is mounted.
fn memory_hierarchy() -> Result<Option<PathBuf>> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("Reading /proc/self/mounts")?;
    let of_memory = |line: &str| {
        let fields: Vec<_> = line.split(' ').collect();
        match fields[..] {
            [_, path, "cgroup", options, ..] if options.split(',').any(|option| option == "memory") => {
                Some(PathBuf::from(path))
            }
            _ => None,
        }
    };
    Ok(mounts.lines().find_map(of_memory))
}

fn remove_abandoned(path: &Path) -> Result<()> {
    if path.exists() {
        // The kernel may not be done with ending its processes.
        eventually(
            &format!("{} is empty", path.display()),
            Duration::from_secs(10),
            || match remove(path) {
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => Ok(None),
                removed => Ok(Some(removed.with_context(|| format!("Removing {}", path.display()))?)),
            },
        )?;
    }
    Ok(())
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
