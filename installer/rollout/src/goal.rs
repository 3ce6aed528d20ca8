//! What a rollout has to bring about: a release with the configuration that the administrator edits. Nothing here depends on
//! what runs.

use std::path::PathBuf;

use crate::appliance::Appliance;
use crate::endpoints;
use crate::plan::Wanted;
use links_config::links::{Config, Input};
use links_release::snapshot::Applied;
use links_release::{Release, Version};

/// What a rollout has to bring about, and with which settings.
pub struct Goal {
    pub wanted: Wanted,
    pub(crate) config: Config,
    /// The files with the settings of `config`.
    pub(crate) inputs: Vec<Input>,
    /// The path of the local database, if there is one.
    pub(crate) database: Option<PathBuf>,
    /// Whether to replace a site that somebody else has edited.
    pub(crate) force_site: bool,
}

/// What to do although it seems unnecessary, or although it overrides somebody else's change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Force {
    /// Whether to restart instances that already run the wanted version, too.
    pub restart: bool,
    /// Whether to replace a site that somebody else has edited.
    pub site: bool,
}

impl Goal {
    /// The goal to run this release with the current configuration, of which a snapshot is taken.
    ///
    /// # Errors
    /// The configuration is invalid.
    pub(crate) fn take(appliance: &Appliance, release: &Release, force: Force) -> anyhow::Result<Self> {
        let taken = appliance.snapshots.take()?;
        taken.loaded.log_warnings();
        Self::new(appliance, release, taken, force)
    }

    /// The same goal as [`Self::take`], for a dry run: no snapshot is taken.
    ///
    /// # Errors
    /// The configuration is invalid.
    pub(crate) fn preview(appliance: &Appliance, release: &Release, force: Force) -> anyhow::Result<Self> {
        Self::new(appliance, release, appliance.snapshots.preview()?, force)
    }

    /// The goal to run `release` with this configuration.
    ///
    /// # Errors
    /// A credential is missing.
    fn new(appliance: &Appliance, release: &Release, applied: Applied, force: Force) -> anyhow::Result<Self> {
        let Applied { digest, loaded } = applied;
        let config = &loaded.config;
        let endpoint = |instance| (instance, endpoints::of(release, config, &appliance.sockets, instance));
        Ok(Self {
            wanted: Wanted {
                version: Version {
                    release: release.id.clone(),
                    config: digest,
                },
                schema: release.manifest.schema,
                instances: config.instances,
                force: force.restart,
                site: true,
                manages_site: config.nginx.manage,
                endpoints: (1..=config.instances).map(endpoint).collect(),
                base_port: config.base_port,
                network: loaded.network()?,
            },
            database: loaded.local_database(appliance.snapshots.edited().places()),
            config: loaded.config,
            inputs: loaded.inputs,
            force_site: force.site,
        })
    }
}
