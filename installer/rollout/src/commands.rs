//! The commands of `linksctl` that change what runs: `rollout`, `rollback`, `restart`, `scale`, and those that the package and
//! systemd run.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, ensure};

use crate::apply::Failure;
use crate::host::observe;
use crate::lock::{Lock, LockWait, held_by};
use crate::plan;
use crate::report::{Event, Reporter, Style};
use crate::scale::with_instances;
use crate::session::{Force, Goal, Session, planned, take_back};
use links_base::layout::{self, Layout};
use links_base::privileges::require_root;
use links_base::services::{OnBehalfOf, Services};
use links_base::{files, log, secrets};
use links_config::files::ConfigFiles;
use links_config::load::{load_as_kept, load_links};
use links_edge as edge;
use links_edge::peers::{self, Stage};
use links_release::{Journal, Release, Snapshots, State, Store};

/// How long a command of the package waits for a rollout that is under way.
const DPKG_TIMEOUT: Duration = Duration::from_secs(10 * 60);

/// The options of `linksctl rollout`.
#[derive(Clone, Debug)]
pub struct Request {
    /// The release to run, by its name in the store or by a path. The current release by default.
    pub release: Option<String>,
    pub force: Force,
    pub style: Style,
    pub mode: Mode,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Apply,
    /// Only show the steps.
    DryRun,
    /// Finish a start of links.service.
    AtStart,
}

/// Runs `linksctl rollout`.
///
/// # Errors
/// The release does not exist. For others see [`Session::bring_about`].
pub fn rollout(layout: &Layout, request: &Request) -> anyhow::Result<()> {
    require_root()?;
    let services = Services::of_host(OnBehalfOf::Person);
    match request.mode {
        Mode::DryRun => return show(layout, services, request),
        Mode::AtStart => return from_systemd(layout, services),
        Mode::Apply => {}
    }
    let mut session = Session::begin(layout, services, LockWait::None, request.style)?;
    let release = choose(layout, request.release.as_deref())?;
    session.roll(&release, request.force)
}

/// Finishes a start of links.service by applying what was edited since the last rollout. If that fails, the former version goes
/// on, and the start still succeeds as long as links answers through nginx.
fn from_systemd(layout: &Layout, services: Services) -> anyhow::Result<()> {
    services.await_start(&layout.service_wants_dir())?;
    // The rollout that holds the lock may have caused this start. It does the work and reports whether links serves.
    let Some(lock) = Lock::try_take(layout)? else {
        log::notice!("a rollout is under way already");
        return Ok(());
    };
    let rolled = Session::with(layout, services, lock, Style::Text)
        .and_then(|mut session| session.roll(&release_in_force(layout)?, Force::default()));
    let Err(error) = rolled else {
        return Ok(());
    };
    log::error!("linksctl: {error:#}");
    // links.toml may be the cause, so use the configuration that was applied last.
    let (applied, _) = Snapshots::new(layout).of_instance(1);
    edge::require_serving(layout, &load_links(&applied)?)
}

/// Shows the plan without changing anything.
fn show(layout: &Layout, services: Services, request: &Request) -> anyhow::Result<()> {
    if Journal::read(&layout.rollout_journal())?.is_some() {
        println!("take back what an interrupted rollout has changed");
    }
    let release = match request.release.as_deref() {
        None => release_in_force(layout)?,
        // A dry run does not import the release.
        Some(name) => match in_store(layout, name) {
            Some(release) => release,
            None => Release::open(Path::new(name))?,
        },
    };
    let loaded = load_as_kept(&ConfigFiles::new(layout))?;
    let Goal { wanted, database, .. } = Goal::new(
        layout,
        &release,
        Snapshots::new(layout).digest()?,
        loaded,
        request.force,
    )?;
    let observed = observe(layout, services, database.as_deref())?;
    let plan = plan::plan(&observed, &wanted);
    let mut reporter = Reporter::new(request.style);
    reporter.report(&planned(&observed, &wanted, &plan));
    for step in &plan.steps {
        reporter.report(&Event::step(step));
    }
    Ok(())
}

/// The release with that name or at that path. Without a name, the current release.
fn choose(layout: &Layout, name: Option<&str>) -> anyhow::Result<Release> {
    let Some(name) = name else {
        return release_in_force(layout);
    };
    if let Some(release) = in_store(layout, name) {
        release.verify()?;
        return Ok(release);
    }
    let path = Path::new(name);
    ensure!(
        path.exists(),
        "{name} is neither a release in the store (`linksctl releases` lists them) nor a bundle, an unpacked tarball, \
         or a tarball"
    );
    let store = Store::new(layout);
    store.remove_leftovers()?;
    store.import_from(path)
}

/// The release of the last successful rollout. Before the first rollout, the installed one.
fn release_in_force(layout: &Layout) -> anyhow::Result<Release> {
    match State::new(layout).current() {
        Some(current) => {
            let release = Release::open(&layout.releases_dir().join(current))?;
            Store::new(layout).compile(&release);
            Ok(release)
        }
        None => Store::new(layout).import(&layout.bundle()),
    }
}

fn in_store(layout: &Layout, name: &str) -> Option<Release> {
    let is_name = !name.is_empty() && !name.starts_with('.') && !name.contains('/');
    is_name
        .then(|| Release::open(&layout.releases_dir().join(name)).ok())
        .flatten()
}

/// Runs `linksctl rollback`.
///
/// # Errors
/// There is no release to go back to. For others see [`Session::bring_about`].
pub fn rollback(layout: &Layout, style: Style) -> anyhow::Result<()> {
    require_root()?;
    let mut session = Session::begin(layout, Services::of_host(OnBehalfOf::Person), LockWait::None, style)?;
    let previous = State::new(layout).previous();
    let previous = previous.context("there is no release to go back to: no other release has run here")?;
    let release = choose(layout, Some(&previous))?;
    session.roll(&release, Force::default())
}

/// Runs `linksctl restart`.
///
/// # Errors
/// links is not running. For others see [`Session::bring_about`].
pub fn restart(layout: &Layout, style: Style) -> anyhow::Result<()> {
    require_root()?;
    let services = Services::of_host(OnBehalfOf::Person);
    let mut session = Session::begin(layout, services, LockWait::None, style)?;
    ensure!(
        services.is_active(layout::SERVICE)?,
        "links is not running: `systemctl start {}`",
        layout::SERVICE
    );
    let release = release_in_force(layout)?;
    let force = Force {
        restart: true,
        site: false,
    };
    session.roll(&release, force)
}

/// Runs `linksctl scale INSTANCES`.
///
/// # Errors
/// links.toml cannot be edited. For others see [`Session::bring_about`]; links.toml is restored after those.
pub fn scale(layout: &Layout, instances: u16, style: Style) -> anyhow::Result<()> {
    require_root()?;
    let mut session = Session::begin(layout, Services::of_host(OnBehalfOf::Person), LockWait::None, style)?;
    let path = layout.links_toml();
    let before = fs::read_to_string(&path).with_context(|| format!("Reading {}", path.display()))?;
    // Report mistakes that are already in the configuration before editing it.
    load_as_kept(&ConfigFiles::new(layout))?;
    let release = release_in_force(layout)?;
    let after = with_instances(&before, instances)?;
    if after != before {
        files::edit(&path, before.as_bytes(), after.as_bytes())?;
    }
    let scaled = session.roll(&release, Force::default());
    let remove_failed = matches!(
        scaled.as_ref().map_err(|error| error.downcast_ref::<Failure>()),
        Err(Some(Failure::Afterwards { .. }))
    );
    if scaled.is_err()
        && !remove_failed
        && after != before
        && let Err(error) = files::edit(&path, after.as_bytes(), before.as_bytes())
    {
        // The error to return is the rollout's own.
        log::error!("linksctl: `instances` in links.toml could not be restored: {error:#}");
    }
    scaled
}

/// Runs `linksctl recover`, at boot and before the first instance starts.
///
/// # Errors
/// Something that an interrupted rollout has changed cannot be restored.
pub fn recover(layout: &Layout) -> anyhow::Result<()> {
    require_root()?;
    // A live rollout restarts instances, which starts this command. It needs no recovery.
    let Some(_lock) = Lock::try_take(layout)? else {
        return Ok(());
    };
    // An error here must not prevent the rest. The start of links.service asks nginx for the group and tries again.
    if let Err(error) = edge::restore_sockets(layout) {
        log::error!("{error:#}");
    }
    secrets::Files::new(layout).make_missing()?;
    let services = Services::of_host(OnBehalfOf::Person);
    if let Some(text) = take_back(layout, services)? {
        log::notice!("{text}");
    }
    for text in edge::recover(layout, services)? {
        log::notice!("{text}");
    }
    Ok(())
}

/// Runs `linksctl prepare-downgrade` or `abort-downgrade`. They set or remove the downgrade marker, which decides who counts
/// the clicks, and change the site. The site has to list the ports before a downgrade, because linksctl 0.1.0 changes the site
/// only after it has moved the instances to their ports.
///
/// # Errors
/// The marker or the site cannot be changed.
pub fn change_stage(layout: &Layout, stage: Stage) -> anyhow::Result<()> {
    require_root()?;
    let services = Services::of_host(OnBehalfOf::caller());
    let _session = Session::begin(layout, services, LockWait::Until(DPKG_TIMEOUT), Style::Text)?;
    let marker = layout.downgrade_marker();
    match stage {
        Stage::Transition => files::replace(&marker, b"", 0o644)?,
        Stage::Final => files::remove_if_present(&marker)?,
    }
    // links.toml may contain changes that are not applied yet.
    let (applied, _) = Snapshots::new(layout).of_instance(1);
    let config = load_links(&applied)?;
    if stage == Stage::Transition && peers::lead_to_ports(layout, &config) {
        return Ok(());
    }
    let mode = edge::Mode {
        stage,
        ..edge::Mode::default()
    };
    for notice in edge::install(layout, &config, services, mode)? {
        eprintln!("linksctl: {notice}");
    }
    Ok(())
}

/// Describes an unfinished rollout, for `linksctl status`.
///
/// # Errors
/// The journal cannot be read.
pub fn unfinished(layout: &Layout) -> anyhow::Result<Option<String>> {
    let Some(journal) = Journal::read(&layout.rollout_journal())? else {
        return Ok(None);
    };
    Ok(Some(match held_by(layout) {
        Some(holder) => format!("to {}, under way, by process {holder}", journal.wanted),
        None => format!(
            "to {}, interrupted: `linksctl rollout` takes it back and goes on from there",
            journal.wanted
        ),
    }))
}
