//! What a rollout has to bring about: a release with the configuration that the administrator edits. Nothing here depends on
//! what runs.

use std::path::{Path, PathBuf};

use crate::appliance::Appliance;
use crate::endpoints;
use crate::plan::Wanted;
use links_config::check::Loaded;
use links_config::files::Places;
use links_config::links::Config;
use links_config::load::load_as_kept;
use links_release::{Release, Version};

/// What a rollout has to bring about, and with which settings.
pub struct Goal {
    pub wanted: Wanted,
    pub(crate) config: Config,
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
        let edited = appliance.snapshots.edited();
        let loaded = load_as_kept(edited)?;
        loaded.log_warnings();
        let digest = appliance.snapshots.take()?;
        Self::new(release, digest, loaded, force, edited.places(), &appliance.sockets)
    }

    /// The same goal as [`Self::take`], for a dry run: no snapshot is taken.
    ///
    /// # Errors
    /// The configuration is invalid.
    pub(crate) fn preview(appliance: &Appliance, release: &Release, force: Force) -> anyhow::Result<Self> {
        let edited = appliance.snapshots.edited();
        let loaded = load_as_kept(edited)?;
        let digest = appliance.snapshots.digest()?;
        Self::new(release, digest, loaded, force, edited.places(), &appliance.sockets)
    }

    /// The goal to run `release` with the configuration `loaded`, whose snapshot is `digest`.
    ///
    /// # Errors
    /// A credential is missing.
    fn new(
        release: &Release,
        digest: String,
        loaded: Loaded,
        force: Force,
        places: &Places,
        sockets: &Path,
    ) -> anyhow::Result<Self> {
        let config = &loaded.config;
        let endpoint = |instance| (instance, endpoints::of(release, config, sockets, instance));
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
            database: loaded.local_database(places),
            config: loaded.config,
            force_site: force.site,
        })
    }
}
