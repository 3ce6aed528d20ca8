//! `linksctl agent`: what links.service runs. It watches the instances, keeps STATUS= true, serves metrics,
//! and counts clicks.

mod checkpoint;
mod clicks;
mod counters;
mod database;
mod exposition;
mod families;
mod forward;
mod instances;
#[cfg(test)]
mod observability;
mod otlp;
mod scrape;
mod server;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use sd_notify::NotifyState;
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::config::links::Config;
use crate::config::load::load_links;
use crate::layout::Layout;
use crate::log;
use crate::notify::notify;
use crate::release::Store;
use crate::rollout::{State, snapshot};
use crate::rotation::{self, Watch};
use checkpoint::Checkpoints;
use clicks::Clicks;
use server::{Addresses, Server};

/// The status is looked at this often even if no flag changes: a release may have been changed, a file edited.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// Watches until SIGTERM.
///
/// # Errors
/// The configuration is wrong, or the flags cannot be watched.
pub fn run(layout: &Layout) -> anyhow::Result<()> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGINT] {
        // The handler interrupts poll(), which returns then.
        signal_hook::flag::register(signal, Arc::clone(&stop)).context("Catching signals")?;
    }
    // A file that somebody is editing, or has got wrong, is no reason to leave: then as many as there are.
    let applied = || State::new(layout).instances().map(|instances| instances.len());
    let (mut wanted, mut edited) = match load_links(layout) {
        Ok(config) => (config.instances, Some(config)),
        Err(error) => match applied()? {
            0 => return Err(error.into()),
            count => (u16::try_from(count)?, None),
        },
    };
    let watch = Watch::new(layout)?;
    // First: before an instance opens the database, if it can be.
    let checkpoints = Checkpoints::start(layout.clone())?;
    let progress = Arc::default();
    let clicks = Clicks::start(layout.clone(), Arc::clone(&progress))?;
    let server = Server::start(layout.clone(), progress)?;
    let mut told = String::new();
    notify(&[NotifyState::Ready]);
    while !stop.load(Ordering::Relaxed) {
        let status = status_line(layout, wanted);
        if status != told {
            notify(&[NotifyState::Status(&status)]);
            log::notice!("{status}");
            told = status;
        }
        server.serve_on(addresses(layout, wanted, edited.take()));
        ensure!(!server.is_gone(), "the server of metrics has ended");
        ensure!(!clicks.is_gone(), "the counting of clicks has ended");
        ensure!(!checkpoints.is_gone(), "the thread that checkpoints has ended");
        notify(&[NotifyState::Watchdog]);
        watch.wait(LOOK_AGAIN)?;
        // While a person edits the file, it may be wrong for a while; `linksctl check` is there to say so.
        edited = load_links(layout).ok();
        wanted = edited.as_ref().map_or(wanted, |config| config.instances);
    }
    notify(&[NotifyState::Stopping]);
    clicks.stop();
    server.stop();
    checkpoints.stop();
    Ok(())
}

/// Where metrics are asked for, by what a person has written last; where instances send theirs, by what each was configured
/// with. A file that is wrong for now changes nothing.
fn addresses(layout: &Layout, wanted: u16, edited: Option<Config>) -> Addresses {
    let mut configurations: Vec<_> = (1..=wanted)
        .map(|instance| snapshot::of_instance(layout, instance).0)
        .collect();
    configurations.dedup();
    let applied = configurations.iter().filter_map(|applied| load_links(applied).ok());
    let applied: Vec<_> = applied.map(|config| config.metrics).collect();
    let asked = edited.map(|config| config.metrics).or_else(|| applied.first().cloned());
    Addresses {
        metrics: asked.and_then(|metrics| metrics.listen).into_iter().collect(),
        otlp: applied
            .iter()
            .filter(|metrics| metrics.listen.is_some())
            .map(|metrics| metrics.otlp_listen)
            .collect(),
    }
}

/// `2/2 instances ready, release 0.1.0, runtime spin 4.0.2`; where instances differ, each that is seen is named once.
fn status_line(layout: &Layout, wanted: u16) -> String {
    let ready = match rotation::ready_instances(layout) {
        Ok(ready) => ready.iter().filter(|&&instance| instance <= wanted).count(),
        Err(error) => return format!("the ready flags cannot be read: {error}"),
    };
    let store = Store::new(layout);
    let releases: Vec<_> = (1..=wanted)
        .filter_map(|instance| store.of_instance(instance).ok())
        .collect();
    let mut versions: Vec<_> = releases
        .iter()
        .map(|release| release.manifest.version.clone())
        .collect();
    let mut runtimes: Vec<_> = releases.iter().map(crate::release::Release::runtime_name).collect();
    versions.dedup();
    runtimes.dedup();
    if versions.is_empty() {
        return format!("{ready}/{wanted} instances ready, no release");
    }
    format!(
        "{ready}/{wanted} instances ready, release {}, runtime {}",
        versions.join(" and "),
        runtimes.join(" and ")
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use super::*;
    use crate::release::tests::bundle;

    #[test]
    fn the_status_line_counts_flags_and_names_releases() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::new(root.path().join("root"));
        assert_eq!(status_line(&layout, 2), "0/2 instances ready, no release");

        let source = root.path().join("bundle");
        std::fs::create_dir(&source).unwrap();
        let release = Store::new(&layout).import(&bundle(&source, b"").directory).unwrap();
        Store::new(&layout).point(1, &release.id).unwrap();
        Store::new(&layout).point(2, &release.id).unwrap();
        std::fs::create_dir_all(layout.ready_dir()).unwrap();
        for instance in [2, 3] {
            std::fs::write(layout.ready_flag(instance), b"").unwrap();
        }
        assert_eq!(
            status_line(&layout, 2),
            "1/2 instances ready, release 1.2.3, runtime links-host 1.2.3"
        );
    }
}
