//! Carries out the steps of a restore on this host, and takes them back.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use data_encoding::HEXLOWER;
use rand::TryRng as _;
use rand::rngs::SysRng;

use super::apply;
use super::journal::{self, Journal};
use super::plan::{Step, undone};
use super::staging::Staging;
use crate::certificates;
use crate::report::{Reporter, count};
use links_base::exec;
use links_base::files::{self, make_directory};
use links_base::layout::{self, Layout};
use links_config::links::Config;
use links_config::load::load_links;
use links_edge::Mode;
use links_rollout::{Appliance, Force, Goal, Session, Stage, install_site};

/// The host, with the right to change what runs.
pub struct Executor<'a, 's> {
    pub layout: &'a Layout,
    pub appliance: &'a Appliance,
    pub session: &'a mut Session<'s>,
    pub reporter: &'a Reporter,
    pub journal: Journal,
    pub staging: &'a Staging,
    /// What was rolled out, once it was.
    pub rolled_out: Option<Goal>,
    /// Held while certificates are swapped, so that links-acme does not write into either of them.
    pub certificates: Option<files::Lock>,
}

impl Executor<'_, '_> {
    fn config(&self) -> anyhow::Result<Config> {
        Ok(load_links(self.appliance.snapshots.edited())?)
    }

    /// Takes the lock of links-acme if certificates are among what is swapped.
    fn lock_certificates(&mut self) -> anyhow::Result<()> {
        let directory = self.layout.tls_dir();
        if self.certificates.is_some() || !self.journal.items.iter().any(|item| item.path.starts_with(&directory)) {
            return Ok(());
        }
        make_directory(&directory, 0o755)?;
        self.certificates = certificates::lock(self.layout, Duration::ZERO)?;
        Ok(())
    }

    /// Leaves nothing if it fails.
    fn begin(&mut self) -> anyhow::Result<()> {
        self.lock_certificates()?;
        let asides: BTreeSet<_> = self.journal.items.iter().map(|item| &item.aside).collect();
        for aside in &asides {
            // Never one of an earlier restore.
            ensure!(!aside.exists(), "{} exists already", aside.display());
        }
        let path = self.layout.restore_journal();
        let begun = asides
            .iter()
            .try_for_each(|aside| make_directory(aside, 0o700))
            .and_then(|()| self.journal.write(&path));
        begun.inspect_err(|_| {
            self.remove_empty_asides();
            // The first error is the one to report.
            let _ = Journal::remove(&path);
        })
    }

    fn remove_empty_asides(&self) {
        for item in &self.journal.items {
            // It is gone already, or something is in it.
            let _ = fs::remove_dir(&item.aside);
        }
    }

    /// Stops the agent and all instances, also those that were started by hand.
    fn stop(&self) -> anyhow::Result<()> {
        exec::run("systemctl", ["stop", layout::SERVICE, layout::INSTANCES]).map(drop)
    }

    fn swap_item(&self, path: &Path, aside: &Path) -> anyhow::Result<()> {
        let relative = path.strip_prefix(self.layout.root()).unwrap_or(path);
        let staged = self.staging.path_of(relative).context("it may not be in a backup")?;
        journal::swap(path, aside, &staged)
    }

    fn renew_journal(&self) -> anyhow::Result<()> {
        let mut random = [0; 16];
        SysRng
            .try_fill_bytes(&mut random)
            .context("Asking the kernel for randomness")?;
        let id = format!("{}\n", HEXLOWER.encode(&random));
        files::replace(&self.layout.restored_marker(), id.as_bytes(), 0o644)
    }

    /// Points the instances to the configuration in /etc/links. The site comes after they have started.
    fn roll_out(&mut self) -> anyhow::Result<()> {
        let release = self.session.release_in_force()?;
        let mut goal = self.session.goal(&release, Force::default())?;
        goal.wanted.site = false;
        self.session.bring_about(&goal)?;
        self.rolled_out = Some(goal);
        Ok(())
    }

    fn start(&self) -> anyhow::Result<()> {
        self.appliance.services.carry_out("start", layout::SERVICE)
    }

    fn soak(&self) -> anyhow::Result<()> {
        match &self.rolled_out {
            Some(goal) => self.session.soak(goal),
            None => Ok(()),
        }
    }

    fn empty_cache(&self) -> anyhow::Result<()> {
        self.appliance.edge.empty_cache(&self.config()?)
    }

    fn site(&self) -> anyhow::Result<()> {
        let config = self.config()?;
        for notice in install_site(self.appliance, &config, Stage::Final, Mode::default())? {
            self.reporter.notice(&notice);
        }
        match self.appliance.services.running() {
            true => self.appliance.edge.require_serving(&config),
            false => Ok(()),
        }
    }

    fn count_links(&self, path: &Path, links: u64) -> anyhow::Result<()> {
        let found = self.appliance.database_work.count_links(path)?.unwrap_or(0);
        if found != links {
            bail!(
                "{} has {}, and the backup has {links}",
                path.display(),
                count(found, "link")
            );
        }
        Ok(())
    }

    /// Puts the files back. links is stopped then.
    fn put_files_back(&mut self) -> anyhow::Result<()> {
        self.lock_certificates()?;
        let journal = &self.journal;
        if self.appliance.services.running() {
            self.stop()?;
        }
        if let Some(database) = &journal.database {
            let undone = journal.is_started.then(|| undone(&journal.stamp));
            self.appliance.database_work.unswap(
                &database.path,
                &database.aside,
                database.replaces,
                undone.as_deref(),
            )?;
            let file = fs::canonicalize(&database.path).unwrap_or_else(|_| database.path.clone());
            let kept = undone.map(|undone| files::with_suffix(&file, &undone));
            if let Some(kept) = kept.filter(|kept| kept.exists()) {
                self.reporter.notice(&format!(
                    "the restored database is kept as {}, because links may have been started with it",
                    kept.display()
                ));
            }
        }
        journal.items.iter().rev().try_for_each(journal::unswap)?;
        let marker = self.layout.restored_marker();
        match &journal.marker {
            Some(text) => files::replace(&marker, text.as_bytes(), 0o644)?,
            None => files::remove_if_present(&marker).with_context(|| format!("Removing {}", marker.display()))?,
        }
        self.remove_empty_asides();
        self.certificates = None;
        self.staging.clean()
    }

    /// Starts links as before, with the former files.
    fn start_as_before(&mut self) -> anyhow::Result<()> {
        self.roll_out()?;
        if !self.journal.was_active {
            return Ok(());
        }
        self.start()?;
        self.soak()?;
        if self.journal.is_started {
            self.empty_cache()?;
        }
        self.site()
    }
}

impl apply::Host for Executor<'_, '_> {
    fn perform(&mut self, step: &Step) -> anyhow::Result<()> {
        self.reporter.step(step.name(), &step.to_string());
        match step {
            Step::Begin => self.begin(),
            Step::Stop => self.stop(),
            Step::SwapDatabase { path, aside, .. } => self.appliance.database_work.swap(path, aside),
            Step::SwapItem { path, aside, .. } => self.swap_item(path, aside),
            Step::RenewJournal => self.renew_journal(),
            Step::RollOut => {
                self.certificates = None;
                self.roll_out()
            }
            Step::Start => {
                self.journal.is_started = true;
                self.journal.write(&self.layout.restore_journal())?;
                self.start()
            }
            Step::Soak => self.soak(),
            Step::EmptyCache => self.empty_cache(),
            Step::Site => self.site(),
            Step::CountLinks { path, links } => self.count_links(path, *links),
            Step::Commit => Journal::remove(&self.layout.restore_journal()),
        }
    }

    fn take_back(&mut self) -> anyhow::Result<()> {
        self.reporter
            .undo("put the former files back, and start links with them");
        self.put_files_back()?;
        // Nothing of the restore is left, so nothing is left to undo either. Until links runs, nobody counts clicks.
        Journal::remove(&self.layout.restore_journal())?;
        if !self.appliance.services.running() {
            return Ok(());
        }
        self.start_as_before()
            .context("The former files are back, but links does not run with them: fix that, then `linksctl rollout`")
    }

    fn is_interrupted(&mut self) -> bool {
        self.session.is_interrupted()
    }
}

/// The contents of the marker that the last restore of the database has left.
///
/// # Errors
/// It cannot be read.
pub fn marker(layout: &Layout) -> anyhow::Result<Option<String>> {
    let path = layout.restored_marker();
    match fs::read_to_string(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        text => text.map(Some).with_context(|| format!("Reading {}", path.display())),
    }
}
