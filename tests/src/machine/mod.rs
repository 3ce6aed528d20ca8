//! A booted Debian, which knows nothing of links.

mod boot;
pub(crate) mod commands;
mod directory;
mod files;
mod network;
mod slot;
mod units;

use anyhow::{Context as _, Result, bail};

use crate::cgroup::MemoryGroup;
use crate::process;
use crate::tree::Tree;
use boot::Running;
pub use boot::Syncs;
use directory::Directory;
use slot::Slot;

/// Debian, booted from a [`Tree`]. Its writes go to a directory of its own, which is removed when this is dropped.
///
/// A test process runs two machines at a time. Booting a third waits until one of them is dropped.
#[derive(Debug)]
pub struct Machine {
    tree: Tree,
    syncs: Syncs,
    running: Option<Running>,
    /// Declared after `running`: the group can be removed only when all processes are gone.
    memory: Option<MemoryGroup>,
    directory: Directory,
    _slot: Slot,
}

impl Machine {
    /// Boots a machine and waits until systemd has started everything. `memory` limits what runs inside, page cache included,
    /// in bytes.
    ///
    /// # Errors
    /// Fails if the caller is not root, if a command is missing, if this computer cannot limit the memory, if systemd does not
    /// come up in two minutes, or if a unit of the pristine system fails.
    pub fn boot(tree: &Tree, memory: Option<u64>, syncs: Syncs) -> Result<Self> {
        process::require(&[("nsenter", "util-linux"), ("unshare", "util-linux"), ("ip", "iproute2")])?;
        let slot = Slot::take();
        let directory = Directory::create()?;
        let memory = memory.map(|bytes| MemoryGroup::create(&directory.cgroup_name(), bytes));
        let mut machine = Self {
            tree: tree.clone(),
            syncs,
            running: None,
            memory: memory.transpose()?,
            directory,
            _slot: slot,
        };
        machine.start()?;
        let state = machine.run(["systemctl", "is-system-running"])?;
        if state.stdout.trim() != "running" {
            let failed = machine.ok(["systemctl", "--failed", "--no-pager"])?;
            bail!(
                "the machine booted into the state {}:\n{}",
                state.stdout.trim(),
                failed.stdout
            );
        }
        Ok(machine)
    }

    /// The highest memory usage so far in bytes, and the number of processes that the kernel has killed for lack of memory.
    ///
    /// # Errors
    /// Fails if the machine was booted without a memory limit.
    pub fn memory_usage(&self) -> Result<(u64, u64)> {
        self.memory
            .as_ref()
            .context("the machine's memory is not bounded")?
            .usage()
    }

    /// Shuts the machine down in an orderly way, and boots it again.
    ///
    /// # Errors
    /// Fails if shutting down or booting takes more than two minutes. A unit that fails to start is no error.
    pub fn reboot(&mut self) -> Result<()> {
        self.shutdown()?;
        self.start()
    }

    /// Kills every process of the machine at once, and boots it again.
    ///
    /// Unlike after a power cut, everything that was written is still there, synced or not: this computer keeps its page cache.
    ///
    /// # Errors
    /// Fails as [`Self::reboot`] does.
    pub fn crash(&mut self) -> Result<()> {
        self.running.take().context("the machine is shut down")?.kill()?;
        self.start()
    }

    /// Stops every unit in order, and then systemd.
    ///
    /// # Errors
    /// Fails if this takes more than two minutes. The machine is then killed.
    pub fn shutdown(&mut self) -> Result<()> {
        // systemd may end before it has answered systemctl; only the end counts.
        self.run(["systemctl", "poweroff"])?;
        self.running
            .take()
            .context("the machine is shut down")?
            .wait(boot::DEADLINE)
    }

    fn running(&self) -> Result<&Running> {
        self.running.as_ref().context("the machine is shut down")
    }

    fn start(&mut self) -> Result<()> {
        let memory = self.memory.as_ref();
        self.running = Some(Running::start(&self.directory, &self.tree, self.syncs, memory)?);
        if let Some(memory) = &self.memory {
            // A tenth of the memory, as Debian would choose on real hardware. By default the size follows the memory of
            // this computer.
            let size = memory.limit()? / 10;
            self.ok(["mount", "-o", &format!("remount,size={size}"), "/run"])?;
        }
        Ok(())
    }
}
