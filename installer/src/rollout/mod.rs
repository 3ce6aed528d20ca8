//! Every change of what runs: one instance after the other, one rollout at a time, and back where it fails.

mod apply;
mod host;
mod journal;
mod lock;
mod outcome;
mod plan;
mod releases;
mod report;
mod scale;
pub mod snapshot;
mod state;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use nix::sys::stat::{Mode, umask};

pub use apply::Failure;
pub use journal::Journal;
pub use lock::{Lock, Patience, held_by};
pub use outcome::{Outcome, Verdict};
pub use plan::{Version, Wanted};
pub use releases::list;
pub use report::Style;
pub use state::State;

use crate::cli::{RestartArgs, RollbackArgs, RolloutArgs, ScaleArgs};
use crate::config::check::Loaded;
use crate::config::links::Config;
use crate::config::load::{load_as_kept, load_links};
use crate::layout::{self, Layout};
use crate::peers::{self, Stage};
use crate::privileges::require_root;
use crate::release::{Release, Store};
use crate::services::{OnBehalfOf, Services};
use crate::{click_journal, edge, files, log, secrets};
use host::{Host, Interruption, observe};
use plan::{Observed, Plan};
use report::{Event, Reporter};

/// For a rollout that is under way when dpkg replaces the package.
const DPKG_PATIENCE: Duration = Duration::from_secs(10 * 60);

/// The right to change what runs.
pub struct Session<'a> {
    layout: &'a Layout,
    services: Services,
    reporter: Reporter,
    interruption: Interruption,
    begun: Instant,
    _lock: Lock,
}

impl<'a> Session<'a> {
    /// Also takes back what a rollout that was cut off has left.
    ///
    /// # Errors
    /// Somebody else has the right, or what was left cannot be taken back.
    pub fn begin(layout: &'a Layout, services: Services, patience: Patience, style: Style) -> anyhow::Result<Self> {
        Self::with(layout, services, Lock::take(layout, patience)?, style)
    }

    fn with(layout: &'a Layout, services: Services, lock: Lock, style: Style) -> anyhow::Result<Self> {
        // links.service has a strict one for its agent; what is made here is for others to read, unless it says otherwise.
        umask(Mode::S_IWGRP | Mode::S_IWOTH);
        let mut session = Self {
            layout,
            services,
            reporter: Reporter::new(style),
            interruption: Interruption::watch()?,
            begun: Instant::now(),
            _lock: lock,
        };
        edge::keep_connections(layout)?;
        secrets::make_missing(layout)?;
        if let Some(text) = click_journal::take_over(layout)? {
            session.reporter.tell(&Event::Recovered { text });
        }
        if let Some(text) = take_back(layout, services)? {
            session.reporter.tell(&Event::Recovered { text });
        }
        for text in edge::recover(layout, services)? {
            session.reporter.tell(&Event::Recovered { text });
        }
        Ok(session)
    }

    /// Makes it so, and removes what nobody needs any more.
    ///
    /// # Errors
    /// [`Failure`], or the host cannot be asked.
    pub fn bring_about(&mut self, goal: &Goal) -> anyhow::Result<()> {
        let Goal {
            wanted,
            config,
            database,
            force_site,
        } = goal;
        let database = database.as_deref();
        let mut notices = vec![];
        // Nothing moves for a site that nginx would not take.
        if wanted.site {
            let live = self.services.is_active(layout::SERVICE)?;
            edge::check(self.layout, config, self.services, *force_site, live)?;
        }
        let state = State::new(self.layout);
        state.adopt(&wanted.version.config)?;
        let mut observed = observe(self.layout, self.services, database)?;
        if observed.live && !self.services.allowed(&layout::instance_unit(1), "restart")? {
            observed.live = false;
            notices.push("not restarted, by policy: `linksctl rollout` does it".to_owned());
        }
        let plan = plan::plan(&observed, wanted);
        self.reporter.tell(&planned(&observed, wanted, &plan));
        let mut host = Host {
            layout: self.layout,
            services: self.services,
            config,
            database,
            journal: Journal::new(&observed, &plan.moving, wanted.version.clone(), state.previous()),
            interruption: &self.interruption,
            force_site: *force_site,
            begun: false,
            notices,
        };
        let applied = apply::apply(&plan, &observed, &mut host, &mut self.reporter);
        if !plan.moving.is_empty() || applied.is_err() {
            let release = &wanted.version.release;
            Outcome::now(Verdict::of(&applied), release, Some(self.begun.elapsed())).keep(self.layout);
        }
        for text in host.notices {
            self.reporter.tell(&Event::Notice { text });
        }
        // What could not be put back is still needed.
        if Journal::read(self.layout)?.is_none() {
            state.prune()?;
        }
        applied?;
        self.reporter.tell(&Event::Done {
            seconds: self.begun.elapsed().as_secs_f64(),
        });
        Ok(())
    }

    fn roll(&mut self, release: &Release, force: Force) -> anyhow::Result<()> {
        let goal = self.goal(release, force)?;
        self.bring_about(&goal)
    }

    /// Starts every instance that links.service has not started, and watches each until it has been healthy for
    /// rollout.min_healthy.
    ///
    /// # Errors
    /// One does not serve: which, and why.
    pub fn settle(&self, goal: &Goal) -> anyhow::Result<()> {
        host::settle_all(self.layout, self.services, &goal.config)
    }

    /// That release, with the configuration that a person has written.
    ///
    /// # Errors
    /// The configuration is wrong.
    pub fn goal(&self, release: &Release, force: Force) -> anyhow::Result<Goal> {
        let loaded = load_as_kept(self.layout)?;
        loaded.log_warnings();
        Goal::new(self.layout, release, snapshot::take(self.layout)?, loaded, force)
    }
}

/// What a rollout is to bring about, and with which settings.
pub struct Goal {
    pub wanted: Wanted,
    config: Config,
    /// The local database, where there is one.
    database: Option<PathBuf>,
    force_site: bool,
}

/// What is done although it does not seem to be needed, or to be wanted by somebody else.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Force {
    /// Restart also those that run the wanted version already.
    pub restart: bool,
    /// Replace a site that somebody else has edited.
    pub site: bool,
}

impl Goal {
    /// # Errors
    /// A credential is missing.
    fn new(layout: &Layout, release: &Release, config: String, loaded: Loaded, force: Force) -> anyhow::Result<Self> {
        Ok(Self {
            wanted: Wanted {
                version: Version {
                    release: release.id.clone(),
                    config,
                },
                schema: release.manifest.schema,
                instances: loaded.config.instances,
                force: force.restart,
                site: true,
                // Where a person keeps the site, nobody changes it beforehand.
                new_ports: !loaded.config.nginx.manage && has_new_ports(layout, &loaded.config),
                transition: loaded.config.nginx.manage && peers::need_transition(layout, &loaded.config, release),
                moves_endpoints: loaded.config.nginx.manage && peers::move_by(layout, &loaded.config, release),
                network: loaded.network()?,
            },
            database: loaded.local_database(layout),
            config: loaded.config,
            force_site: force.site,
        })
    }

    pub fn config(&self) -> &Config {
        &self.config
    }
}

/// By what instance 1 was configured with last.
fn has_new_ports(layout: &Layout, config: &Config) -> bool {
    let (own, _) = snapshot::of_instance(layout, 1);
    load_links(&own).is_ok_and(|before| before.base_port != config.base_port)
}

fn planned(observed: &Observed, wanted: &Wanted, plan: &Plan) -> Event {
    Event::Planned {
        wanted: wanted.version.clone(),
        instances: plan.moving.clone(),
        interrupts: plan.interrupts,
        live: observed.live,
    }
}

/// Says what it did; none where no rollout is unfinished.
fn take_back(layout: &Layout, services: Services) -> anyhow::Result<Option<String>> {
    let Some(journal) = Journal::read(layout)? else {
        return Ok(None);
    };
    let new: Vec<_> = journal
        .take_back(layout)?
        .into_iter()
        .map(layout::instance_unit)
        .collect();
    services.disable(&new)?;
    Outcome::now(Verdict::Interrupted, &journal.wanted.release, None).keep(layout);
    Ok(Some(format!(
        "a rollout to {} was cut off: every instance is to run again what it ran before",
        journal.wanted
    )))
}

/// `linksctl rollout`
///
/// # Errors
/// See [`Session::bring_about`]; no such release.
pub fn rollout(layout: &Layout, args: &RolloutArgs) -> anyhow::Result<()> {
    require_root()?;
    let services = Services::of_host(OnBehalfOf::Person);
    if args.dry_run {
        return show(layout, services, args);
    }
    let style = if args.json { Style::Json } else { Style::Text };
    if args.from_systemd {
        return from_systemd(layout, services);
    }
    let mut session = Session::begin(layout, services, Patience::None, style)?;
    let release = choose(layout, args.release.as_deref())?;
    session.roll(&release, args.force())
}

impl RolloutArgs {
    fn force(&self) -> Force {
        Force {
            restart: self.force,
            site: self.force,
        }
    }
}

/// The end of a start of links.service. What was edited meanwhile is put into effect; where that fails, what ran before goes
/// on. The start has succeeded if links answers through nginx then.
fn from_systemd(layout: &Layout, services: Services) -> anyhow::Result<()> {
    services.await_start(layout)?;
    // The process that holds the lock may be starting us. It brings everything about, and reports whether it serves.
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
    // links.toml may be what is wrong.
    let (applied, _) = snapshot::of_instance(layout, 1);
    edge::require_serving(layout, &load_links(&applied)?)
}

/// Without touching anything.
fn show(layout: &Layout, services: Services, args: &RolloutArgs) -> anyhow::Result<()> {
    if Journal::read(layout)?.is_some() {
        println!("take back what an interrupted rollout has changed");
    }
    let release = match args.release.as_deref() {
        None => release_in_force(layout)?,
        // It is not imported now.
        Some(name) => match in_store(layout, name) {
            Some(release) => release,
            None => Release::open(Path::new(name))?,
        },
    };
    let loaded = load_as_kept(layout)?;
    let Goal { wanted, database, .. } = Goal::new(layout, &release, snapshot::digest(layout)?, loaded, args.force())?;
    let observed = observe(layout, services, database.as_deref())?;
    let plan = plan::plan(&observed, &wanted);
    let mut reporter = Reporter::new(if args.json { Style::Json } else { Style::Text });
    reporter.tell(&planned(&observed, &wanted, &plan));
    for step in &plan.steps {
        reporter.tell(&Event::step(step));
    }
    Ok(())
}

/// The release of that name, or of that path; without one, the one that is in force.
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

/// Of the last rollout that succeeded; before the first one, the installed one.
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

/// `linksctl rollback`
///
/// # Errors
/// There is no release to go back to; see [`Session::bring_about`].
pub fn rollback(layout: &Layout, args: &RollbackArgs) -> anyhow::Result<()> {
    require_root()?;
    let style = if args.json { Style::Json } else { Style::Text };
    let mut session = Session::begin(layout, Services::of_host(OnBehalfOf::Person), Patience::None, style)?;
    let previous = State::new(layout).previous();
    let previous = previous.context("there is no release to go back to: no other one has run here")?;
    let release = choose(layout, Some(&previous))?;
    session.roll(&release, Force::default())
}

/// `linksctl restart`
///
/// # Errors
/// links does not run; see [`Session::bring_about`].
pub fn restart(layout: &Layout, args: &RestartArgs) -> anyhow::Result<()> {
    require_root()?;
    let services = Services::of_host(OnBehalfOf::Person);
    let style = if args.json { Style::Json } else { Style::Text };
    let mut session = Session::begin(layout, services, Patience::None, style)?;
    ensure!(
        services.is_active(layout::SERVICE)?,
        "links does not run: `systemctl start {}`",
        layout::SERVICE
    );
    let release = release_in_force(layout)?;
    let force = Force {
        restart: true,
        site: false,
    };
    session.roll(&release, force)
}

/// `linksctl scale N`
///
/// # Errors
/// links.toml cannot be edited; see [`Session::bring_about`]. links.toml is then as it was.
pub fn scale(layout: &Layout, args: &ScaleArgs) -> anyhow::Result<()> {
    require_root()?;
    let style = if args.json { Style::Json } else { Style::Text };
    let mut session = Session::begin(layout, Services::of_host(OnBehalfOf::Person), Patience::None, style)?;
    let path = layout.links_toml();
    let before = fs::read_to_string(&path).with_context(|| format!("Reading {}", path.display()))?;
    // Somebody else's mistake in the files is not to be mixed up with ours.
    load_as_kept(layout)?;
    let release = release_in_force(layout)?;
    let after = scale::with_instances(&before, args.instances)?;
    if after != before {
        files::edit(&path, before.as_bytes(), after.as_bytes())?;
    }
    let scaled = session.roll(&release, Force::default());
    let retire_failed = matches!(
        scaled.as_ref().map_err(|error| error.downcast_ref::<Failure>()),
        Err(Some(Failure::Afterwards { .. }))
    );
    if scaled.is_err()
        && !retire_failed
        && after != before
        && let Err(error) = files::edit(&path, after.as_bytes(), before.as_bytes())
    {
        // The rollout's own error is the one that the person waits for.
        log::error!("linksctl: `instances` stays as it is now: {error:#}");
    }
    scaled
}

/// `linksctl recover`, before the first instance starts at boot.
///
/// # Errors
/// A link cannot be moved back.
pub fn recover(layout: &Layout) -> anyhow::Result<()> {
    require_root()?;
    // A rollout that is alive restarts instances, which start this; it needs no help.
    let Some(_lock) = Lock::try_take(layout)? else {
        return Ok(());
    };
    // An error is no reason to leave the rest undone: the start of links.service asks nginx, and tries again.
    if let Err(error) = edge::restore_sockets(layout) {
        log::error!("{error:#}");
    }
    secrets::make_missing(layout)?;
    let services = Services::of_host(OnBehalfOf::Person);
    if let Some(text) = take_back(layout, services)? {
        log::notice!("{text}");
    }
    for text in edge::recover(layout, services)? {
        log::notice!("{text}");
    }
    Ok(())
}

/// `linksctl prepare-downgrade` and `abort-downgrade`: who counts, and the site for what runs. linksctl 0.1.0 changes the site
/// only after it has moved the instances to their ports.
///
/// # Errors
/// The site cannot be changed.
pub fn change_stage(layout: &Layout, stage: Stage) -> anyhow::Result<()> {
    require_root()?;
    let services = Services::of_host(OnBehalfOf::caller());
    let _session = Session::begin(layout, services, Patience::Until(DPKG_PATIENCE), Style::Text)?;
    let marker = layout.downgrade_marker();
    match stage {
        Stage::Transition => files::replace(&marker, b"", 0o644)?,
        Stage::Final => files::remove_if_present(&marker)?,
    }
    // links.toml may hold something that is not applied yet.
    let (applied, _) = snapshot::of_instance(layout, 1);
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

/// For `linksctl status`.
///
/// # Errors
/// The journal cannot be understood.
pub fn unfinished(layout: &Layout) -> anyhow::Result<Option<String>> {
    let Some(journal) = Journal::read(layout)? else {
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
