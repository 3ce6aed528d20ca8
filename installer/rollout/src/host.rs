//! The host that a rollout changes: systemd, nginx, and the symbolic links below /var/lib/links.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::apply;
use super::plan::{Instance, Observed};
use crate::database_work;
use crate::network::DropIns;
use links_base::endpoint::Endpoint;
use links_base::files::make_directory;
use links_base::health::Probe;
use links_base::layout::{self, Layout};
use links_base::rotation::{self, Watch};
use links_base::services::{Services, enabled_instances, last_lines};
use links_config::links::Config;
use links_config::load::load_links;
use links_config::network::Network;
use links_edge as edge;
use links_edge::peers::Stage;
use links_release::{Journal, Snapshots, State, Version};

/// The time between two checks of an instance that has to stay healthy.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// How long a dying instance may take to end and to log the reason.
const EXIT_TIMEOUT: Duration = Duration::from_secs(1);
/// The number of failed checks in a row that make an instance unhealthy. A single failure may come from a full queue.
const MAX_FAILURES: u32 = 3;

/// Observes what is installed and what runs.
///
/// # Errors
/// systemd does not answer, or a file cannot be read.
pub fn observe(layout: &Layout, services: Services, database: Option<&Path>) -> anyhow::Result<Observed> {
    let state = State::new(layout);
    let enabled = enabled_instances(&layout.service_wants_dir())?;
    let mut numbers = state.instances()?;
    numbers.extend(&enabled);
    numbers.sort_unstable();
    numbers.dedup();
    let units: Vec<_> = numbers.iter().map(|number| layout::instance_unit(*number)).collect();
    let states = services.states(&units)?;
    let ready = rotation::ready_instances(&layout.ready_dir()).context("Reading the ready flags")?;
    let instances = numbers
        .into_iter()
        .zip(states)
        .map(|(number, unit)| {
            let is_up = unit == "active";
            let instance = Instance {
                enabled: enabled.contains(&number),
                points: state.points(number),
                runs: state.runs(number).filter(|_| is_up),
                in_rotation: is_up && ready.contains(&number),
            };
            (number, instance)
        })
        .collect();
    Ok(Observed {
        instances,
        live: services.is_active(layout::SERVICE)?,
        current: state.current(),
        schema: database
            .map(|database| database_work::schema_version(layout, database))
            .transpose()?
            .flatten(),
        network: DropIns::new(layout).network(),
    })
}

/// A flag that the signals which end a rollout early set.
#[derive(Clone, Debug)]
pub struct Interruption(Arc<AtomicBool>);

impl Interruption {
    /// Catches these signals, which no longer end the process from now on.
    ///
    /// # Errors
    /// The handlers cannot be installed.
    pub fn watch() -> anyhow::Result<Self> {
        let flag = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            signal_hook::flag::register(signal, Arc::clone(&flag)).context("Catching signals")?;
        }
        Ok(Self(flag))
    }

    pub fn came(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

pub struct Host<'a> {
    pub layout: &'a Layout,
    pub services: Services,
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

impl Host<'_> {
    fn state(&self) -> State {
        State::new(self.layout)
    }

    fn write_site(&mut self, stage: Stage) -> anyhow::Result<()> {
        let mode = edge::Mode {
            force: self.force_site,
            in_rollout: self.begun,
            stage,
        };
        let notices = edge::install(self.layout, self.config, self.services, mode)?;
        // The second site of a rollout repeats the notices of the first.
        let new = notices.into_iter().filter(|notice| !self.notices.contains(notice));
        let new: Vec<_> = new.collect();
        self.notices.extend(new);
        Ok(())
    }
}

/// Starts every instance that does not run yet, and watches each until it has been healthy for rollout.min_healthy.
///
/// # Errors
/// An instance does not serve. The error says which and why.
pub fn soak_all(layout: &Layout, services: Services, config: &Config) -> anyhow::Result<()> {
    for instance in 1..=config.instances {
        services
            .carry_out("start", &layout::instance_unit(instance))
            .and_then(|()| watch_health(layout, services, config, instance))
            .map_err(|error| explain(layout, instance, error))?;
    }
    Ok(())
}

fn explain(layout: &Layout, instance: u16, error: anyhow::Error) -> anyhow::Error {
    let what = State::new(layout).points(instance).map(|version| version.to_string());
    error.context(format!(
        "instance {instance} does not serve with {}",
        what.unwrap_or_else(|| "nothing to run".to_owned())
    ))
}

fn watch_health(layout: &Layout, services: Services, config: &Config, instance: u16) -> anyhow::Result<()> {
    let (own, _) = Snapshots::new(layout).of_instance(instance);
    let own = load_links(&own)?;
    let probe = Probe::new(
        Endpoint::of_running(&layout.sockets_dir(), own.base_port, instance),
        own.health.timeout,
    );
    let watch = Watch::new(&layout.ready_dir())?;
    let end = Instant::now() + config.rollout.min_healthy;
    let mut failures = 0;
    loop {
        let in_rotation = rotation::ready_instances(&layout.ready_dir())?.contains(&instance);
        let outcome = probe.ready();
        failures = if outcome.is_ok() { 0 } else { failures + 1 };
        if !in_rotation || failures >= MAX_FAILURES {
            let why = outcome.err().unwrap_or_else(|| "it left the rotation".to_owned());
            let unit = layout::instance_unit(instance);
            await_end(services, &unit)?;
            bail!(
                "it became ready but did not stay healthy: {why}. Its last log lines:\n{}",
                last_lines(&unit)?
            );
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() && failures == 0 {
            return Ok(());
        }
        watch.wait(left.clamp(Duration::from_millis(1), POLL_INTERVAL))?;
    }
}

/// Waits a moment for an instance to end. An instance whose runtime has died leaves the rotation first and logs the reason a
/// moment later. One that is merely unhealthy may go on.
fn await_end(services: Services, unit: &str) -> anyhow::Result<()> {
    let deadline = Instant::now() + EXIT_TIMEOUT;
    while Instant::now() < deadline && services.states(&[unit.to_owned()])? == ["active"] {
        std::thread::sleep(POLL_INTERVAL);
    }
    Ok(())
}

impl apply::Host for Host<'_> {
    fn begin(&mut self) -> anyhow::Result<()> {
        self.journal.write(&self.layout.rollout_journal())?;
        self.begun = true;
        Ok(())
    }

    fn finish(&mut self) -> anyhow::Result<()> {
        Journal::remove(&self.layout.rollout_journal())?;
        self.begun = false;
        edge::end_rollout(self.layout)
    }

    fn back_up(&mut self, from: u32) -> anyhow::Result<()> {
        let Some(database) = self.database else { return Ok(()) };
        let directory = self.layout.backups_dir();
        make_directory(&directory, 0o700)?;
        let target = self.state().backup(from, &self.journal.wanted.release);
        database_work::back_up(self.layout, database, &target)?;
        self.notices
            .push(format!("the database was copied to {}", target.display()));
        self.state().prune_backups()
    }

    fn network(&mut self, network: Network) -> anyhow::Result<()> {
        DropIns::new(self.layout).set(network, self.services)
    }

    fn enable(&mut self, instance: u16) -> anyhow::Result<()> {
        self.services.enable(&[layout::instance_unit(instance)])?;
        self.services.reload_units()
    }

    fn point(&mut self, instance: u16, version: &Version) -> anyhow::Result<()> {
        self.state().point(instance, version)
    }

    fn restart(&mut self, instance: u16) -> anyhow::Result<()> {
        self.services
            .carry_out("restart", &layout::instance_unit(instance))
            .map_err(|error| explain(self.layout, instance, error))
    }

    fn soak(&mut self, instance: u16) -> anyhow::Result<()> {
        watch_health(self.layout, self.services, self.config, instance)
            .map_err(|error| explain(self.layout, instance, error))
    }

    fn transition(&mut self) -> anyhow::Result<()> {
        self.write_site(Stage::Transition)
    }

    fn site(&mut self) -> anyhow::Result<()> {
        self.write_site(Stage::Final)
    }

    fn take_site_back(&mut self) -> anyhow::Result<()> {
        let notices = edge::undo_rollout(self.layout, self.config, self.services)?;
        self.notices.extend(notices);
        Ok(())
    }

    fn set_current(&mut self, release: &str) -> anyhow::Result<()> {
        self.state().set_current(release)
    }

    fn restore_current(&mut self) -> anyhow::Result<()> {
        let Journal { current, previous, .. } = &self.journal;
        self.state().restore_current(current.as_deref(), previous.as_deref())
    }

    fn remove(&mut self, instance: u16) -> anyhow::Result<()> {
        let unit = layout::instance_unit(instance);
        if self.services.running() {
            self.services.carry_out("stop", &unit)?;
        }
        self.services.disable(&[unit])?;
        self.state().forget(instance)?;
        self.services.reload_units()
    }

    fn is_live(&mut self) -> bool {
        // If systemd does not answer, nothing is started.
        self.services.is_active(layout::SERVICE).unwrap_or(false)
    }

    fn is_interrupted(&mut self) -> bool {
        self.interruption.came()
    }
}
