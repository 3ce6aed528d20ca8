//! A session: the right to change what runs, which only one process has at a time.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

use nix::sys::stat::{Mode, umask};

use crate::apply::{self, Failure};
use crate::host::{self, Host, Interruption, observe};
use crate::lock::{Lock, LockWait};
use crate::plan::{self, Observed, Plan, Wanted};
use crate::report::{Event, Reporter, Style};
use links_base::layout::{self, Layout};
use links_base::secrets;
use links_base::services::Services;
use links_config::check::Loaded;
use links_config::files::{ConfigFiles, Places};
use links_config::links::Config;
use links_config::load::{load_as_kept, load_links};
use links_edge as edge;
use links_edge::click_journal;
use links_edge::peers;
use links_release::{Journal, Outcome, Release, Snapshots, State, Verdict, Version};

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
    /// Takes the right, and undoes what an interrupted rollout has left.
    ///
    /// # Errors
    /// Another process has the right, or what was left cannot be undone.
    pub fn begin(layout: &'a Layout, services: Services, wait: LockWait, style: Style) -> anyhow::Result<Self> {
        Self::with(layout, services, Lock::take(layout, wait)?, style)
    }

    pub(crate) fn with(layout: &'a Layout, services: Services, lock: Lock, style: Style) -> anyhow::Result<Self> {
        // links.service sets a strict umask for its agent. Files that are created here are for others to read, unless their
        // mode says otherwise.
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
        secrets::Files::new(layout).make_missing()?;
        if let Some(text) = click_journal::take_over(layout)? {
            session.reporter.report(&Event::Recovered { text });
        }
        if let Some(text) = take_back(layout, services)? {
            session.reporter.report(&Event::Recovered { text });
        }
        for text in edge::recover(layout, services)? {
            session.reporter.report(&Event::Recovered { text });
        }
        Ok(session)
    }

    /// Brings the goal about, and removes releases and configurations that are not needed any more.
    ///
    /// # Errors
    /// The rollout fails ([`Failure`]), or the state of the host cannot be read.
    pub fn bring_about(&mut self, goal: &Goal) -> anyhow::Result<()> {
        let Goal {
            wanted,
            config,
            database,
            force_site,
        } = goal;
        let database = database.as_deref();
        let mut notices = vec![];
        // If nginx would not take the site, nothing is changed.
        if wanted.site {
            let live = self.services.is_active(layout::SERVICE)?;
            edge::check(self.layout, config, self.services, *force_site, live)?;
        }
        let state = State::new(self.layout);
        state.adopt(&wanted.version.config)?;
        let mut observed = observe(self.layout, self.services, database)?;
        if observed.live && !self.services.allowed(&layout::instance_unit(1), "restart")? {
            observed.live = false;
            notices.push("not restarted, by policy: `linksctl rollout` restarts the instances".to_owned());
        }
        let plan = plan::plan(&observed, wanted);
        self.reporter.report(&planned(&observed, wanted, &plan));
        let mut host = Host {
            layout: self.layout,
            services: self.services,
            config,
            database,
            journal: Journal::new(&state, wanted.version.clone(), points_of(&observed, &plan.moving)),
            interruption: &self.interruption,
            force_site: *force_site,
            begun: false,
            notices,
        };
        let applied = apply::apply(&plan, &observed, &mut host, &mut self.reporter);
        if !plan.moving.is_empty() || applied.is_err() {
            let release = &wanted.version.release;
            Outcome::now(verdict(&applied), release, Some(self.begun.elapsed())).keep(&self.layout.last_rollout());
        }
        for text in host.notices {
            self.reporter.report(&Event::Notice { text });
        }
        // If something could not be undone, its old release is still needed.
        if Journal::read(&self.layout.rollout_journal())?.is_none() {
            state.prune()?;
        }
        applied?;
        self.reporter.report(&Event::Done {
            seconds: self.begun.elapsed().as_secs_f64(),
        });
        Ok(())
    }

    pub(crate) fn roll(&mut self, release: &Release, force: Force) -> anyhow::Result<()> {
        let goal = self.goal(release, force)?;
        self.bring_about(&goal)
    }

    /// Starts every instance that links.service has not started, and watches each until it has been healthy for
    /// rollout.min_healthy.
    ///
    /// # Errors
    /// An instance does not serve. The error says which and why.
    pub fn soak(&self, goal: &Goal) -> anyhow::Result<()> {
        host::soak_all(self.layout, self.services, &goal.config)
    }

    /// The goal to run this release with the current configuration.
    ///
    /// # Errors
    /// The configuration is invalid.
    pub fn goal(&self, release: &Release, force: Force) -> anyhow::Result<Goal> {
        let loaded = load_as_kept(&ConfigFiles::new(self.layout))?;
        loaded.log_warnings();
        Goal::new(self.layout, release, Snapshots::new(self.layout).take()?, loaded, force)
    }
}

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
    /// The goal to run `release` with the configuration `loaded`, whose snapshot is `config`.
    ///
    /// # Errors
    /// A credential is missing.
    pub(crate) fn new(
        layout: &Layout,
        release: &Release,
        config: String,
        loaded: Loaded,
        force: Force,
    ) -> anyhow::Result<Self> {
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
                // If the administrator manages the site, nobody changes it before the instances move.
                new_ports: !loaded.config.nginx.manage && has_new_ports(layout, &loaded.config),
                transition: loaded.config.nginx.manage && peers::need_transition(layout, &loaded.config, release),
                moves_endpoints: loaded.config.nginx.manage && peers::move_by(layout, &loaded.config, release),
                network: loaded.network()?,
            },
            database: loaded.local_database(&Places::new(layout)),
            config: loaded.config,
            force_site: force.site,
        })
    }

    pub fn config(&self) -> &Config {
        &self.config
    }
}

/// Whether the base port differs from the one that instance 1 was last configured with.
fn has_new_ports(layout: &Layout, config: &Config) -> bool {
    let (own, _) = Snapshots::new(layout).of_instance(1);
    load_links(&own).is_ok_and(|before| before.base_port != config.base_port)
}

/// The version that each instance in `moving` runs from its next start on, before the rollout.
fn points_of(observed: &Observed, moving: &[u16]) -> BTreeMap<u16, Option<Version>> {
    let points = |instance: &u16| observed.instances.get(instance).and_then(|is| is.points.clone());
    moving.iter().map(|instance| (*instance, points(instance))).collect()
}

/// The verdict on a rollout. A failure after the commit counts as one, although nothing was undone.
fn verdict(applied: &Result<(), Failure>) -> Verdict {
    match applied {
        Ok(()) => Verdict::Succeeded,
        Err(Failure::Interrupted(_)) => Verdict::Interrupted,
        Err(Failure::Step { .. } | Failure::Afterwards { .. }) => Verdict::Failed,
    }
}

pub(crate) fn planned(observed: &Observed, wanted: &Wanted, plan: &Plan) -> Event {
    Event::Planned {
        wanted: wanted.version.clone(),
        instances: plan.moving.clone(),
        interrupts: plan.interrupts,
        live: observed.live,
    }
}

/// Undoes an unfinished rollout, and returns a message about it. `None` if there is none.
pub(crate) fn take_back(layout: &Layout, services: Services) -> anyhow::Result<Option<String>> {
    let Some(journal) = Journal::read(&layout.rollout_journal())? else {
        return Ok(None);
    };
    let new: Vec<_> = journal
        .take_back(&State::new(layout), &layout.rollout_journal())?
        .into_iter()
        .map(layout::instance_unit)
        .collect();
    services.disable(&new)?;
    Outcome::now(Verdict::Interrupted, &journal.wanted.release, None).keep(&layout.last_rollout());
    Ok(Some(format!(
        "a rollout to {} was cut off: every instance goes back to what it ran before",
        journal.wanted
    )))
}
