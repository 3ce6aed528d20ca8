//! The parts of the appliance on this host, each with the paths that it owns.

use std::path::PathBuf;

use crate::database_work::DatabaseWork;
use crate::lock::held_by;
use crate::network::DropIns;
use crate::timer::BackupTimer;
use links_base::layout::Layout;
use links_base::secrets;
use links_base::services::Services;
use links_edge::{ClickJournal, Edge};
use links_release::{Snapshots, State, Store};

/// What a rollout observes and changes.
#[derive(Clone, Debug)]
pub struct Appliance {
    pub services: Services,
    pub store: Store,
    pub state: State,
    pub snapshots: Snapshots,
    pub edge: Edge,
    pub click_journal: ClickJournal,
    pub drop_ins: DropIns,
    pub(crate) secrets: secrets::Files,
    pub database_work: DatabaseWork,
    pub backup_timer: BackupTimer,
    /// The release in the installed package.
    pub bundle: PathBuf,
    /// The lock that a running rollout holds.
    pub(crate) lock: PathBuf,
    /// The file of the [`links_release::Journal`].
    pub(crate) journal: PathBuf,
    /// The file of the [`links_release::Outcome`].
    pub(crate) outcome: PathBuf,
    /// The directory of the ready flags.
    pub(crate) ready: PathBuf,
    /// The directory of the instances' sockets.
    pub(crate) sockets: PathBuf,
    /// The directory of the links that enable the instances.
    pub wants: PathBuf,
    /// Every place where nginx may read the site.
    pub(crate) site_places: [PathBuf; 2],
    /// Exists while a restore is under way, or was interrupted.
    pub(crate) restore_journal: PathBuf,
    /// Exists while an older version is being installed.
    pub downgrade_marker: PathBuf,
    /// Exists once an installation has succeeded.
    pub configured_marker: PathBuf,
}

impl Appliance {
    /// A description of the process that has the right to change what runs, if any.
    pub fn rollout_holder(&self) -> Option<String> {
        held_by(&self.lock)
    }

    pub fn new(layout: &Layout, services: Services) -> Self {
        Self {
            services,
            store: Store::new(layout),
            state: State::new(layout),
            snapshots: Snapshots::new(layout),
            edge: Edge::new(layout, services),
            click_journal: ClickJournal::new(layout, services),
            drop_ins: DropIns::new(layout),
            secrets: secrets::Files::new(layout),
            database_work: DatabaseWork::new(layout),
            backup_timer: BackupTimer::new(layout),
            bundle: layout.bundle(),
            lock: layout.rollout_lock(),
            journal: layout.rollout_journal(),
            outcome: layout.last_rollout(),
            ready: layout.ready_dir(),
            sockets: layout.sockets_dir(),
            wants: layout.service_wants_dir(),
            site_places: layout.nginx_site_places(),
            restore_journal: layout.restore_journal(),
            downgrade_marker: layout.downgrade_marker(),
            configured_marker: layout.configured_marker(),
        }
    }
}
