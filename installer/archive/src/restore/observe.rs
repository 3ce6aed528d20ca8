//! Looks at the host on which a restore decides.

use std::fs;

use super::plan::{DatabaseState, ItemState, Observed, Present, is_in, items};
use crate::manifest::Manifest;
use links_base::layout::{self, Layout};
use links_config::check::Loaded;
use links_config::files::Places;
use links_rollout::Appliance;

/// Observes what the restore of a backup with this configuration is about.
///
/// # Errors
/// systemd does not answer.
pub fn observe(
    layout: &Layout,
    appliance: &Appliance,
    manifest: &Manifest,
    loaded: &Loaded,
) -> anyhow::Result<Observed> {
    let states = items(manifest).into_iter().map(|item| {
        let path = layout.root().join(&item.path);
        ItemState {
            is_here: fs::symlink_metadata(&path).is_ok(),
            is_in_backup: is_in(manifest, &item.path),
            path,
        }
    });
    let database = loaded.local_database(&Places::new(layout)).map(|path| DatabaseState {
        now: path.exists().then(|| match appliance.database_work.count_links(&path) {
            Ok(links) => Present::Links(links.unwrap_or(0)),
            Err(_) => Present::Damaged,
        }),
        path,
    });
    Ok(Observed {
        has_systemd: appliance.services.running(),
        is_active: appliance.services.is_active(layout::SERVICE)?,
        items: states.collect(),
        database,
        data: layout.data_dir(),
    })
}
