//! The main loop of the agent, which links.service runs. It watches the instances, keeps systemd's `STATUS=` up to date,
//! serves metrics, counts clicks, and limits clients.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use sd_notify::NotifyState;
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::checkpoint::Checkpoints;
use crate::clicks::Clicks;
use crate::limits::Limits;
use crate::server::{Addresses, Server};
use links_base::layout::Layout;
use links_base::log;
use links_base::notify::notify;
use links_base::rotation::{self, Watch};
use links_config::files::ConfigFiles;
use links_config::links::Config;
use links_config::load::load_links;
use links_release::{Snapshots, State, Store};

/// How often the status is checked even if no ready flag changes: a release may have changed, or a file may have been edited.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);

/// Runs the agent until SIGTERM or SIGINT.
///
/// # Errors
/// Fails if the configuration is invalid and no instance exists, if the ready flags cannot be watched, or if a worker thread
/// ends.
pub fn run(layout: &Layout) -> anyhow::Result<()> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGINT] {
        // The signal interrupts poll(), so the loop sees the flag at once.
        signal_hook::flag::register(signal, Arc::clone(&stop)).context("Catching signals")?;
    }
    // An invalid links.toml, perhaps one that is being edited, does not stop the agent: it counts the existing instances
    // instead.
    let state = State::new(layout);
    let config = ConfigFiles::new(layout);
    let applied = || state.instances().map(|instances| instances.len());
    let (mut wanted, mut edited) = match load_links(&config) {
        Ok(config) => (config.instances, Some(config)),
        Err(error) => match applied()? {
            0 => return Err(error.into()),
            count => (u16::try_from(count)?, None),
        },
    };
    let watch = Watch::new(&layout.ready_dir())?;
    // Started first, so that the agent opens the database before any instance if possible.
    let checkpoints = Checkpoints::start(layout.clone())?;
    let progress = Arc::default();
    let limits = edited.as_ref().map_or(Config::default().limits, |config| config.limits);
    let limits = Arc::new(Mutex::new(Limits::new(layout, limits)));
    let clicks = Clicks::start(layout.clone(), Arc::clone(&progress), Arc::clone(&limits))?;
    let server = Server::start(layout.clone(), progress)?;
    let mut last_status = String::new();
    notify(&[NotifyState::Ready]);
    while !stop.load(Ordering::Relaxed) {
        let status = status_line(layout, wanted);
        if status != last_status {
            notify(&[NotifyState::Status(&status)]);
            log::notice!("{status}");
            last_status = status;
        }
        locked(&limits).refresh(edited.as_ref().map(|config| config.limits));
        server.serve_on(addresses(layout, wanted, edited.take()));
        ensure!(!server.is_gone(), "the metrics server has ended");
        ensure!(!clicks.is_gone(), "the thread that counts clicks has ended");
        ensure!(!checkpoints.is_gone(), "the checkpoint thread has ended");
        notify(&[NotifyState::Watchdog]);
        watch.wait(CHECK_INTERVAL)?;
        // links.toml may be invalid while it is being edited. `linksctl check` reports that; the agent ignores it.
        edited = load_links(&config).ok();
        wanted = edited.as_ref().map_or(wanted, |config| config.instances);
    }
    notify(&[NotifyState::Stopping]);
    clicks.stop();
    locked(&limits).stop();
    server.stop();
    checkpoints.stop();
    Ok(())
}

/// Locks a mutex and ignores poisoning: no panic leaves the limits half updated.
fn locked(limits: &Mutex<Limits>) -> MutexGuard<'_, Limits> {
    limits.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The addresses to serve on. The address for scrapes follows the current links.toml; the addresses for exports follow the
/// configuration that each instance runs with. An invalid links.toml changes nothing.
fn addresses(layout: &Layout, wanted: u16, edited: Option<Config>) -> Addresses {
    let snapshots = Snapshots::new(layout);
    let mut configurations: Vec<_> = (1..=wanted).map(|instance| snapshots.of_instance(instance).0).collect();
    configurations.dedup();
    let applied = configurations.iter().filter_map(|applied| load_links(applied).ok());
    let applied: Vec<_> = applied.map(|config| config.metrics).collect();
    let current = edited.map(|config| config.metrics).or_else(|| applied.first().cloned());
    Addresses {
        metrics: current.and_then(|metrics| metrics.listen).into_iter().collect(),
        otlp: applied
            .iter()
            .filter(|metrics| metrics.listen.is_some())
            .map(|metrics| metrics.otlp_listen)
            .collect(),
    }
}

/// The status line, such as `2/2 instances ready, release 0.1.0, runtime spin 4.0.2`. If instances differ, it lists all their
/// versions and runtimes.
fn status_line(layout: &Layout, wanted: u16) -> String {
    let ready = match rotation::ready_instances(&layout.ready_dir()) {
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
    let mut runtimes: Vec<_> = releases.iter().map(links_release::Release::runtime_name).collect();
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
    use links_release::testing::bundle;

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
