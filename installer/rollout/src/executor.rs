//! Executes the steps of a rollout on this host, with systemd, nginx, and the symbolic links below /var/lib/links.

use std::path::Path;

use super::apply;
use crate::appliance::Appliance;
use crate::endpoints::Stage;
use crate::health;
use crate::interruption::Interruption;
use crate::observe;
use links_base::files::make_directory;
use links_base::layout;
use links_config::links::Config;
use links_config::network::Network;
use links_edge::{Mode, Notices};
use links_release::{Journal, Version};

pub struct Executor<'a> {
    pub appliance: &'a Appliance,
    /// The wanted configuration.
    pub config: &'a Config,
    /// The path of the local database, if there is one.
    pub database: Option<&'a Path>,
    pub journal: Journal,
    pub interruption: &'a Interruption,
    /// Whether to replace a site that somebody else has edited.
    pub force_site: bool,
    /// Whether the journal is on the disk.
    pub begun: bool,
    /// Messages for the administrator at the end.
    pub notices: Vec<String>,
}

/// Installs the site of this stage, with the endpoints that the instances have now.
///
/// # Errors
/// The same as for [`links_edge::Edge::install`].
pub fn install_site(appliance: &Appliance, config: &Config, stage: Stage, mode: Mode) -> anyhow::Result<Notices> {
    let peers = observe::peers(appliance, config, stage);
    appliance.edge.install(config, &peers, mode)
}

impl Executor<'_> {
    fn write_site(&mut self, stage: Stage) -> anyhow::Result<()> {
        let mode = Mode {
            force: self.force_site,
            in_rollout: self.begun,
        };
        let notices = install_site(self.appliance, self.config, stage, mode)?;
        // The second site of a rollout repeats the notices of the first.
        let new = notices.into_iter().filter(|notice| !self.notices.contains(notice));
        let new: Vec<_> = new.collect();
        self.notices.extend(new);
        Ok(())
    }
}

impl apply::Host for Executor<'_> {
    fn begin(&mut self) -> anyhow::Result<()> {
        self.journal.write(&self.appliance.journal)?;
        self.begun = true;
        Ok(())
    }

    fn finish(&mut self) -> anyhow::Result<()> {
        Journal::remove(&self.appliance.journal)?;
        self.begun = false;
        self.appliance.edge.end_rollout()
    }

    fn back_up(&mut self, from: u32) -> anyhow::Result<()> {
        let Some(database) = self.database else { return Ok(()) };
        let state = &self.appliance.state;
        let target = state.backup(from, &self.journal.wanted.release);
        make_directory(target.parent().unwrap_or(Path::new("/")), 0o700)?;
        self.appliance.database_work.back_up(database, &target)?;
        self.notices
            .push(format!("the database was copied to {}", target.display()));
        state.prune_backups()
    }

    fn network(&mut self, network: Network) -> anyhow::Result<()> {
        self.appliance.drop_ins.set(network, self.appliance.services)
    }

    fn enable(&mut self, instance: u16) -> anyhow::Result<()> {
        self.appliance.services.enable(&[layout::instance_unit(instance)])
    }

    fn point(&mut self, instance: u16, version: &Version) -> anyhow::Result<()> {
        self.appliance.state.point(instance, version)
    }

    fn restart(&mut self, instance: u16) -> anyhow::Result<()> {
        self.appliance
            .services
            .carry_out("restart", &layout::instance_unit(instance))
            .map_err(|error| health::explain(self.appliance, instance, error))
    }

    fn soak(&mut self, instance: u16) -> anyhow::Result<()> {
        health::watch(self.appliance, self.config, instance)
            .map_err(|error| health::explain(self.appliance, instance, error))
    }

    fn transition(&mut self) -> anyhow::Result<()> {
        self.write_site(Stage::Transition)
    }

    fn site(&mut self) -> anyhow::Result<()> {
        self.write_site(Stage::Final)
    }

    fn take_site_back(&mut self) -> anyhow::Result<()> {
        let notices = self.appliance.edge.undo_rollout(self.config)?;
        self.notices.extend(notices);
        Ok(())
    }

    fn set_current(&mut self, release: &str) -> anyhow::Result<()> {
        self.appliance.state.set_current(release)
    }

    fn restore_current(&mut self) -> anyhow::Result<()> {
        let Journal { current, previous, .. } = &self.journal;
        let state = &self.appliance.state;
        state.restore_current(current.as_deref(), previous.as_deref())
    }

    fn remove(&mut self, instance: u16) -> anyhow::Result<()> {
        let services = self.appliance.services;
        let unit = layout::instance_unit(instance);
        if services.running() {
            services.carry_out("stop", &unit)?;
        }
        services.disable(&[unit])?;
        self.appliance.state.forget(instance)
    }

    fn is_live(&mut self) -> bool {
        // Observed again before anything is started in an undo, because somebody may have stopped the service meanwhile. If
        // systemd does not answer, nothing is started.
        observe::is_live(self.appliance).unwrap_or(false)
    }

    fn is_interrupted(&mut self) -> bool {
        self.interruption.came()
    }
}
