//! The directory of a machine outside: what the machine has written, its console, and the lock that shows that it is in use.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result};

use crate::cache;
use crate::cgroup::{Cgroup, MemoryGroup};

/// The directory of a machine. It is removed when dropped.
#[derive(Debug)]
pub struct Directory {
    machines: PathBuf,
    pub path: PathBuf,
    /// Held as long as the machine may run. An abandoned directory is one whose lock is free.
    _lock: cache::Lock,
}

impl Directory {
    pub fn create() -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(1);
        let machines = cache::directory()?.join("machines");
        fs::create_dir_all(&machines).with_context(|| format!("Creating {}", machines.display()))?;
        let _changing = cache::lock(&machines.join("lock"))?;
        remove_abandoned(&machines)?;

        let name = format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = machines.join(name);
        for part in ["upper", "work", "root"] {
            let part = path.join(part);
            fs::create_dir_all(&part).with_context(|| format!("Creating {}", part.display()))?;
        }
        let lock = cache::lock(&path.join("lock"))?;
        Ok(Self {
            machines,
            path,
            _lock: lock,
        })
    }

    fn remove(&self) -> Result<()> {
        // While the directory is being removed, no other process may treat it as abandoned.
        let _changing = cache::lock(&self.machines.join("lock"))?;
        fs::remove_dir_all(&self.path).with_context(|| format!("Removing {}", self.path.display()))
    }

    pub fn cgroup_name(&self) -> String {
        cgroup_name(&self.path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            eprintln!("lab: {error:#}");
        }
    }
}

/// Removes the directories and control groups of machines whose test process was killed. Their processes and mounts have
/// ended with that process.
fn remove_abandoned(machines: &Path) -> Result<()> {
    let entries = fs::read_dir(machines).with_context(|| format!("Reading {}", machines.display()))?;
    for entry in entries {
        let directory = entry?.path();
        if !directory.is_dir() {
            continue;
        }
        if let Some(_lock) = cache::try_lock(&directory.join("lock"))? {
            Cgroup::remove_abandoned(&cgroup_name(&directory))?;
            MemoryGroup::remove_abandoned(&cgroup_name(&directory))?;
            fs::remove_dir_all(&directory).with_context(|| format!("Removing {}", directory.display()))?;
        }
    }
    Ok(())
}

fn cgroup_name(directory: &Path) -> String {
    let name = directory.file_name().unwrap_or_default().to_string_lossy();
    format!("links-lab-{name}")
}
