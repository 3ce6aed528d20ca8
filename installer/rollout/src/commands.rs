//! The commands of `linksctl` that change what runs: `rollout`, `rollback`, `restart`, `scale`, and those that the package and
//! systemd run.

use std::time::Duration;

use anyhow::ensure;

use crate::appliance::Appliance;
use crate::choice;
use crate::downgrade;
use crate::endpoints::Stage;
use crate::executor::install_site;
use crate::goal::{Force, Goal};
use crate::lock::{Lock, LockWait, held_by};
use crate::observe::{applied_config, site_lists_ports};
use crate::recovery;
use crate::report::Style;
use crate::scale::Change;
use crate::session::{Session, show};
use links_base::layout;
use links_base::privileges::require_root;
use links_base::{files, log};
use links_config::load::load_as_kept;
use links_edge as edge;
use links_release::Journal;

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
pub fn rollout(appliance: &Appliance, request: &Request) -> anyhow::Result<()> {
    require_root()?;
    match request.mode {
        Mode::DryRun => return preview(appliance, request),
        Mode::AtStart => return from_systemd(appliance),
        Mode::Apply => {}
    }
    let mut session = Session::begin(appliance, LockWait::None, request.style)?;
    let release = choice::choose(appliance, request.release.as_deref())?;
    session.roll(&release, request.force)
}

/// Shows the plan without changing anything.
fn preview(appliance: &Appliance, request: &Request) -> anyhow::Result<()> {
    if Journal::read(&appliance.journal)?.is_some() {
        println!("take back what an interrupted rollout has changed");
    }
    let release = choice::preview(appliance, request.release.as_deref())?;
    let goal = Goal::preview(appliance, &release, request.force)?;
    show(appliance, &goal, request.style)
}

/// Finishes a start of links.service by applying what was edited since the last rollout. If that fails, the former version goes
/// on, and the start still succeeds as long as links answers through nginx.
fn from_systemd(appliance: &Appliance) -> anyhow::Result<()> {
    appliance.services.await_start(&appliance.wants)?;
    // The rollout that holds the lock may have caused this start. It does the work and reports whether links serves.
    let Some(lock) = Lock::try_take(&appliance.lock)? else {
        log::notice!("a rollout is under way already");
        return Ok(());
    };
    let rolled = Session::with(appliance, lock, Style::Text)
        .and_then(|mut session| session.roll(&choice::in_force(appliance)?, Force::default()));
    let Err(error) = rolled else {
        return Ok(());
    };
    log::error!("linksctl: {error:#}");
    // links.toml may be the cause, so use the configuration that was applied last.
    appliance.edge.require_serving(&applied_config(appliance)?)
}

/// Runs `linksctl rollback`.
///
/// # Errors
/// There is no release to go back to. For others see [`Session::bring_about`].
pub fn rollback(appliance: &Appliance, style: Style) -> anyhow::Result<()> {
    require_root()?;
    let mut session = Session::begin(appliance, LockWait::None, style)?;
    let release = choice::previous(appliance)?;
    session.roll(&release, Force::default())
}

/// Runs `linksctl restart`.
///
/// # Errors
/// links is not running. For others see [`Session::bring_about`].
pub fn restart(appliance: &Appliance, style: Style) -> anyhow::Result<()> {
    require_root()?;
    let mut session = Session::begin(appliance, LockWait::None, style)?;
    ensure!(
        appliance.services.is_active(layout::SERVICE)?,
        "links is not running: `systemctl start {}`",
        layout::SERVICE
    );
    let release = choice::in_force(appliance)?;
    let force = Force {
        restart: true,
        site: false,
    };
    session.roll(&release, force)
}

/// Runs `linksctl scale INSTANCES`.
///
/// # Errors
/// The number of instances cannot be set. For others see [`Session::bring_about`]; the number is restored after those.
pub fn scale(appliance: &Appliance, instances: u16, style: Style) -> anyhow::Result<()> {
    require_root()?;
    let mut session = Session::begin(appliance, LockWait::None, style)?;
    let edited = appliance.snapshots.edited();
    // Report mistakes that are already in the configuration before changing it.
    let loaded = load_as_kept(edited)?;
    let release = choice::in_force(appliance)?;
    let change = Change::plan(edited, &loaded.inputs, instances)?;
    if let Some(replaces) = &change.replaces {
        session.notice(replaces.to_string());
    }
    change.file.roll_out(&mut session, &release)
}

/// Runs `linksctl recover`, at boot and before the first instance starts.
///
/// # Errors
/// Something that an interrupted rollout has changed cannot be restored.
pub fn recover(appliance: &Appliance) -> anyhow::Result<()> {
    require_root()?;
    // A live rollout restarts instances, which starts this command. It needs no recovery.
    let Some(_lock) = Lock::try_take(&appliance.lock)? else {
        return Ok(());
    };
    // An error here must not prevent the rest. The start of links.service asks nginx for the group and tries again.
    if let Err(error) = appliance.edge.restore_sockets() {
        log::error!("{error:#}");
    }
    appliance.secrets.make_missing()?;
    recovery::recover(appliance, |text| log::notice!("{text}"))
}

/// Runs `linksctl prepare-downgrade` or `abort-downgrade`. They set or remove the downgrade marker, which decides who counts
/// the clicks, and change the site. The site has to list the ports before a downgrade, because linksctl 0.1.0 changes the site
/// only after it has moved the instances to their ports. `prepare-downgrade` also brings the settings into the form of version
/// 0.1.0, which this version reads too.
///
/// # Errors
/// The marker or the site cannot be changed.
pub fn change_stage(appliance: &Appliance, stage: Stage) -> anyhow::Result<()> {
    require_root()?;
    let _session = Session::begin(appliance, LockWait::Until(DPKG_TIMEOUT), Style::Text)?;
    let marker = &appliance.downgrade_marker;
    match stage {
        Stage::Transition => files::replace(marker, b"", 0o644)?,
        Stage::Final => files::remove_if_present(marker)?,
    }
    if stage == Stage::Transition {
        prepare_settings(appliance);
    }
    let config = applied_config(appliance)?;
    if stage == Stage::Transition && site_lists_ports(appliance, &config) {
        return Ok(());
    }
    for notice in install_site(appliance, &config, stage, edge::Mode::default())? {
        eprintln!("linksctl: {notice}");
    }
    Ok(())
}

/// Brings the settings into the form of version 0.1.0. A failure does not prevent the downgrade, which the administrator wants.
fn prepare_settings(appliance: &Appliance) {
    let edited = appliance.snapshots.edited();
    let prepared = load_as_kept(edited)
        .map_err(anyhow::Error::from)
        .and_then(|loaded| downgrade::prepare(edited, &loaded.inputs));
    match prepared {
        Ok(notices) => notices.iter().for_each(|notice| eprintln!("linksctl: {notice}")),
        Err(error) => eprintln!("linksctl: version 0.1.0 may not read the settings as they are: {error:#}"),
    }
}

/// Describes an unfinished rollout, for `linksctl status`.
///
/// # Errors
/// The journal cannot be read.
pub fn unfinished(appliance: &Appliance) -> anyhow::Result<Option<String>> {
    let Some(journal) = Journal::read(&appliance.journal)? else {
        return Ok(None);
    };
    Ok(Some(match held_by(&appliance.lock) {
        Some(holder) => format!("to {}, under way, by process {holder}", journal.wanted),
        None => format!(
            "to {}, interrupted: `linksctl rollout` takes it back and goes on from there",
            journal.wanted
        ),
    }))
}
