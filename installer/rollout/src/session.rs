//! A session: the right to change what runs, which only one process has at a time.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Instant;

use anyhow::ensure;
use nix::sys::stat::{Mode, umask};

use crate::appliance::Appliance;
use crate::apply::{self, Failure};
use crate::choice;
use crate::endpoints::Stage;
use crate::executor::Executor;
use crate::goal::{Force, Goal};
use crate::health;
use crate::interruption::Interruption;
use crate::lock::{Lock, LockWait};
use crate::observe::{observe, peers};
use crate::plan::{self, Observed, Plan};
use crate::recovery;
use crate::report::{Event, Reporter, Style};
use links_base::layout::{self, BACKUP_TIMER};
use links_release::{Journal, Outcome, Release, Verdict, Version};

/// A restore was interrupted, so that nobody knows which half of the host is that of the backup.
#[derive(Debug)]
pub struct RestoreInterrupted;

impl fmt::Display for RestoreInterrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "a restore was interrupted, or is under way: `linksctl restore --undo` puts everything back as it was before it"
        )
    }
}

impl std::error::Error for RestoreInterrupted {}

/// The right to change what runs.
pub struct Session<'a> {
    appliance: &'a Appliance,
    reporter: Reporter,
    interruption: Interruption,
    begun: Instant,
    _lock: Lock,
}

impl<'a> Session<'a> {
    /// Takes the right, and undoes what an interrupted rollout has left.
    ///
    /// # Errors
    /// Another process has the right, a restore was interrupted ([`RestoreInterrupted`]), or what was left cannot be undone.
    pub fn begin(appliance: &'a Appliance, wait: LockWait, style: Style) -> anyhow::Result<Self> {
        Self::with(appliance, Lock::take(&appliance.lock, wait)?, style)
    }

    /// Like [`Self::begin`], also after a restore that was interrupted.
    ///
    /// # Errors
    /// Another process has the right, or what was left cannot be undone.
    pub fn begin_in_restore(appliance: &'a Appliance, wait: LockWait, style: Style) -> anyhow::Result<Self> {
        Self::take(appliance, Lock::take(&appliance.lock, wait)?, style)
    }

    pub(crate) fn with(appliance: &'a Appliance, lock: Lock, style: Style) -> anyhow::Result<Self> {
        // Half of the configuration may be that of the backup.
        ensure!(!appliance.restore_journal.exists(), RestoreInterrupted);
        Self::take(appliance, lock, style)
    }

    fn take(appliance: &'a Appliance, lock: Lock, style: Style) -> anyhow::Result<Self> {
        // links.service sets a strict umask for its agent. Files that are created here are for others to read, unless their
        // mode says otherwise.
        umask(Mode::S_IWGRP | Mode::S_IWOTH);
        let mut session = Self {
            appliance,
            reporter: Reporter::new(style),
            interruption: Interruption::watch()?,
            begun: Instant::now(),
            _lock: lock,
        };
        appliance.edge.keep_connections()?;
        appliance.secrets.make_missing()?;
        let mut report = |text| session.reporter.report(&Event::Recovered { text });
        appliance.click_journal.take_over()?.into_iter().for_each(&mut report);
        recovery::recover(appliance, report)?;
        Ok(session)
    }

    /// The goal to run this release with the current configuration.
    ///
    /// # Errors
    /// The configuration is invalid.
    pub fn goal(&self, release: &Release, force: Force) -> anyhow::Result<Goal> {
        Goal::take(self.appliance, release, force)
    }

    /// Checks that nginx would take the site of the goal. `serves` is whether clients have to reach links afterwards.
    ///
    /// # Errors
    /// The site cannot be what links.toml wants, or nginx is stopped although links has to serve.
    pub fn check_site(&self, goal: &Goal, serves: bool) -> anyhow::Result<()> {
        let peers = peers(self.appliance, &goal.config, Stage::Final);
        let edge = &self.appliance.edge;
        edge.check(&goal.config, &peers, goal.force_site, serves)
    }

    /// Reports something that the administrator has to know.
    pub(crate) fn notice(&mut self, text: String) {
        self.reporter.report(&Event::Notice { text });
    }

    pub(crate) fn roll(&mut self, release: &Release, force: Force) -> anyhow::Result<()> {
        let goal = self.goal(release, force)?;
        self.bring_about(&goal)
    }

    /// Brings the goal about, and removes releases and configurations that are not needed any more.
    ///
    /// # Errors
    /// The rollout fails ([`Failure`]), or the state of the host cannot be read.
    pub fn bring_about(&mut self, goal: &Goal) -> anyhow::Result<()> {
        let (observed, notices) = self.observe(goal)?;
        let plan = plan::plan(&observed, &goal.wanted);
        self.reporter.report(&planned(&observed, goal, &plan));
        let before = points_of(&observed, &plan.moving);
        let mut executor = Executor {
            appliance: self.appliance,
            config: &goal.config,
            database: goal.database.as_deref(),
            journal: Journal::new(&self.appliance.state, goal.wanted.version.clone(), before),
            interruption: &self.interruption,
            force_site: goal.force_site,
            begun: false,
            notices,
        };
        let applied = apply::apply(&plan, &observed, &mut executor, &mut self.reporter);
        let mut notices = executor.notices;
        self.keep_outcome(goal, &plan, &applied);
        if matches!(applied, Ok(()) | Err(Failure::Afterwards { .. })) {
            let updated = self
                .appliance
                .snapshots
                .update(&goal.wanted.version.config, &goal.inputs);
            notices.extend(updated.err().map(|error| format!("{error:#}")));
        }
        for text in notices {
            self.reporter.report(&Event::Notice { text });
        }
        self.prune()?;
        applied?;
        let Appliance {
            backup_timer, services, ..
        } = self.appliance;
        if let Err(error) = backup_timer.follow(&goal.config, *services) {
            // The rollout has succeeded nevertheless.
            let text = format!("{BACKUP_TIMER} is not as links.toml asks: {error:#}");
            self.reporter.report(&Event::Notice { text });
        }
        self.reporter.report(&Event::Done {
            seconds: self.begun.elapsed().as_secs_f64(),
        });
        Ok(())
    }

    /// Observes the host for the goal, and checks that the goal can be brought about. Also returns messages for the
    /// administrator.
    fn observe(&self, goal: &Goal) -> anyhow::Result<(Observed, Vec<String>)> {
        let Appliance { services, state, .. } = self.appliance;
        let database = goal.database.as_deref();
        let mut observed = observe(self.appliance, database)?;
        // If nginx would not take the site, nothing is changed.
        if goal.wanted.site {
            self.check_site(goal, observed.live)?;
        }
        if state.adopt(&goal.wanted.version.config)? {
            // Some instances have only now got a configuration.
            observed = observe(self.appliance, database)?;
        }
        let mut notices = vec![];
        if observed.live && !services.allowed(&layout::instance_unit(1), "restart")? {
            observed.live = false;
            notices.push("not restarted, by policy: `linksctl rollout` restarts the instances".to_owned());
        }
        Ok((observed, notices))
    }

    fn keep_outcome(&self, goal: &Goal, plan: &Plan, applied: &Result<(), Failure>) {
        if !plan.moving.is_empty() || applied.is_err() {
            let release = &goal.wanted.version.release;
            Outcome::now(verdict(applied), release, Some(self.begun.elapsed())).keep(&self.appliance.outcome);
        }
    }

    fn prune(&self) -> anyhow::Result<()> {
        // If something could not be undone, its old release is still needed.
        match Journal::read(&self.appliance.journal)? {
            None => self.appliance.state.prune(),
            Some(_) => Ok(()),
        }
    }

    /// The release of the last successful rollout. Before the first rollout, the installed one.
    ///
    /// # Errors
    /// The release is damaged, or none is installed.
    pub fn release_in_force(&self) -> anyhow::Result<Release> {
        choice::in_force(self.appliance)
    }

    /// Whether a signal asks this process to stop.
    pub fn is_interrupted(&self) -> bool {
        self.interruption.came()
    }

    /// Starts every instance that links.service has not started, and watches each until it has been healthy for
    /// rollout.min_healthy.
    ///
    /// # Errors
    /// An instance does not serve. The error says which and why.
    pub fn soak(&self, goal: &Goal) -> anyhow::Result<()> {
        health::soak_all(self.appliance, &goal.config)
    }
}

/// Shows the plan for the goal without changing anything.
///
/// # Errors
/// The state of the host cannot be read.
pub(crate) fn show(appliance: &Appliance, goal: &Goal, style: Style) -> anyhow::Result<()> {
    let observed = observe(appliance, goal.database.as_deref())?;
    let plan = plan::plan(&observed, &goal.wanted);
    let mut reporter = Reporter::new(style);
    reporter.report(&planned(&observed, goal, &plan));
    let steps = plan.steps.iter().map(Event::step);
    steps.for_each(|step| reporter.report(&step));
    Ok(())
}

fn planned(observed: &Observed, goal: &Goal, plan: &Plan) -> Event {
    Event::Planned {
        wanted: goal.wanted.version.clone(),
        instances: plan.moving.clone(),
        interrupts: plan.interrupts,
        live: observed.live,
    }
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
