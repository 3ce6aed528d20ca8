//! Control groups of machines. Each machine has one in the unified hierarchy, which its systemd sees as the root. A machine
//! with little memory has a second one, of the memory controller of cgroup v1.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::process::eventually;

/// A group below the root of the unified hierarchy. It is removed when dropped, which fails while processes are left in it.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// Creates the group.
    ///
    /// # Errors
    /// Fails if no cgroup2 is mounted, or if it is not writable, as in an unprivileged container.
    pub fn create(name: &str) -> Result<Self> {
        Self::at(hierarchy()?.join(name))
    }

    fn at(path: PathBuf) -> Result<Self> {
        fs::create_dir(&path).with_context(|| format!("Creating the control group {}", path.display()))?;
        Ok(Self { path })
    }

    /// Opens `cgroup.procs`. A process that writes `0` to this file moves itself into the group.
    ///
    /// # Errors
    /// Fails if the file cannot be opened.
    pub fn entrance(&self) -> Result<File> {
        let path = self.path.join("cgroup.procs");
        File::options()
            .write(true)
            .open(&path)
            .with_context(|| format!("Opening {}", path.display()))
    }

    /// Removes a group that a killed test process left behind.
    ///
    /// # Errors
    /// Fails if the group is in use.
    pub fn remove_abandoned(name: &str) -> Result<()> {
        remove_abandoned(&hierarchy()?.join(name))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.path) {
            eprintln!("lab: cannot remove the control group {}: {error}", self.path.display());
        }
    }
}

/// A limit on the memory of a machine, page cache included. Like a [`Cgroup`], it is removed when dropped.
///
/// The limit uses cgroup v1: in the unified hierarchy, the machine's group belongs to its systemd, and no process could
/// enter it beside that systemd.
#[derive(Debug)]
pub struct MemoryGroup {
    group: Cgroup,
}

impl MemoryGroup {
    /// Creates the group.
    ///
    /// # Errors
    /// Fails if this computer has no memory controller of cgroup v1.
    pub fn create(name: &str, bytes: u64) -> Result<Self> {
        let hierarchy = memory_hierarchy()?.context(
            "no memory controller of cgroup v1 is mounted; without one the lab cannot bound a machine's memory",
        )?;
        let group = Cgroup::at(hierarchy.join(name))?;
        let limit = group.path.join("memory.limit_in_bytes");
        fs::write(&limit, bytes.to_string()).with_context(|| format!("Writing {}", limit.display()))?;
        Ok(Self { group })
    }

    /// Opens `cgroup.procs`, as [`Cgroup::entrance`] does.
    ///
    /// # Errors
    /// Fails if the file cannot be opened.
    pub fn entrance(&self) -> Result<File> {
        self.group.entrance()
    }

    /// The limit, in bytes.
    ///
    /// # Errors
    /// Fails if the limit cannot be read.
    pub fn limit(&self) -> Result<u64> {
        Ok(self.read("memory.limit_in_bytes")?.trim().parse()?)
    }

    /// The highest memory usage so far in bytes, and the number of processes that the kernel has killed for lack of memory.
    ///
    /// # Errors
    /// Fails if the group's files cannot be read or parsed.
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

    /// Removes a group that a killed test process left behind.
    ///
    /// # Errors
    /// Fails if the group is in use.
    pub fn remove_abandoned(name: &str) -> Result<()> {
        match memory_hierarchy()? {
            Some(hierarchy) => remove_abandoned(&hierarchy.join(name)),
            None => Ok(()),
        }
    }
}

/// Where the memory controller of cgroup v1 is mounted, if it is.
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
        // The kernel may still be ending the group's processes.
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

/// Removes a group with the groups below it. The files in a cgroup directory cannot be deleted, and need not be.
fn remove(group: &Path) -> io::Result<()> {
    for entry in fs::read_dir(group)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove(&entry.path())?;
        }
    }
    fs::remove_dir(group)
}

/// `/sys/fs/cgroup`, or `/sys/fs/cgroup/unified` in a hybrid hierarchy.
fn hierarchy() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("Reading /proc/self/mounts")?;
    mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .find(|fields| fields.get(2) == Some(&"cgroup2"))
        .and_then(|fields| fields.get(1).map(PathBuf::from))
        .context("no cgroup2 file system is mounted; the lab's systemd needs one")
}
