//! The commands `linksctl restore`, with `--check` and `--dry-run`, and `linksctl restore --undo`.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use serde::Serialize;
use serde_json::json;

use super::apply::{Host as _, apply};
use super::executor::{Executor, marker};
use super::journal::Journal;
use super::observe::observe;
use super::plan::{Plan, Step, plan};
use super::staging::{Purpose, Staging, Unpacking};
use crate::check::{Contents, agrees};
use crate::manifest::Manifest;
use crate::names;
use crate::report::{Reporter, Style};
use crate::source::{self, Source};
use links_base::layout::{self, Layout};
use links_base::privileges::require_root;
use links_base::{clock, files};
use links_config::backup::{Location, Problem};
use links_config::check::Loaded;
use links_config::files::ConfigFiles;
use links_config::links::{Config, TlsMode};
use links_rollout::{self as rollout, Appliance, LockWait, RestoreInterrupted, Session, Stage, held_by, peers};

/// The beginning of the names of temporary directories.
const APART: &str = ".restore-";

/// What `linksctl restore` was asked for.
#[derive(Clone, Debug)]
pub struct Request {
    pub from: Location,
    /// The file with the secret keys.
    pub identity: Option<PathBuf>,
    pub mode: Mode,
    /// Whether the backup may replace links that are here.
    pub force: bool,
    pub style: Style,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Restore,
    /// Only check whether the backup can be restored here.
    Check,
    /// Only show the steps.
    DryRun,
}

/// The result of a restore, for a script.
#[derive(Serialize)]
struct Report<'a> {
    event: &'static str,
    location: &'a Location,
    contents: Contents,
    /// The paths of what was replaced.
    kept: Vec<PathBuf>,
    /// The file with links that could not become the database.
    links_file: Option<&'a Path>,
}

/// Runs `linksctl restore`.
///
/// # Errors
/// The backup cannot be read or does not fit this host, or a step fails; everything is put back then.
pub fn run(layout: &Layout, appliance: &Appliance, request: &Request) -> anyhow::Result<()> {
    require_root()?;
    ensure!(
        layout.is_host(),
        "a restore works on this host, and not on a tree below --root"
    );
    let reporter = Reporter::new(request.style);
    let restored = locked(layout, appliance, request, &reporter);
    restored.inspect_err(|error| reporter.failure(error))
}

fn locked(layout: &Layout, appliance: &Appliance, request: &Request, reporter: &Reporter) -> anyhow::Result<()> {
    let path = layout.backup_lock();
    let holder = format!("{} (`linksctl restore`)", std::process::id());
    let Some(_lock) = files::lock(&path, 0o644, &holder)? else {
        bail!(
            "a backup or a restore is under way already, by process {}",
            held_by(&path).unwrap_or_default()
        );
    };
    let identity = request.identity.as_deref().map(source::identity).transpose()?;
    let source = Source::new(layout, request.from.clone(), identity);
    let restoring = Restoring {
        layout,
        appliance,
        reporter,
        source,
        edited: ConfigFiles::new(layout),
        now: clock::now(),
        force: request.force,
    };
    match request.mode {
        Mode::Restore => restoring.restore(request.style),
        Mode::Check => restoring.check(),
        Mode::DryRun => restoring.preview(),
    }
}

/// One restore.
struct Restoring<'a> {
    layout: &'a Layout,
    appliance: &'a Appliance,
    reporter: &'a Reporter,
    source: Source,
    edited: ConfigFiles,
    now: u64,
    force: bool,
}

/// A backup that was read, checked and planned.
struct Prepared {
    manifest: Manifest,
    loaded: Loaded,
    plan: Plan,
    was_active: bool,
}

impl Restoring<'_> {
    /// Reads the backup into the staging area, and decides the steps.
    fn prepare(&self, unpacking: &mut Unpacking<'_>) -> anyhow::Result<Prepared> {
        self.reporter.doing("reading the backup");
        let manifest = self.source.read(unpacking)?;
        agrees(&manifest, unpacking.found.as_ref())?;
        let loaded = unpacking.staging.check(&self.edited)?;
        let observed = observe(self.layout, self.appliance, &manifest, &loaded)?;
        let plan = match plan(&manifest, &observed, self.now, self.force) {
            // Nothing is going to be replaced yet.
            Err(refusal) if unpacking.purpose.is_read_only() && Problem::of(&refusal) == Problem::Refusal => {
                self.reporter.notice(&format!("{refusal:#}"));
                plan(&manifest, &observed, self.now, true)?
            }
            planned => planned?,
        };
        if observed.has_systemd {
            // Before links is stopped, so that a site that nginx would refuse interrupts nothing.
            let ahead = without_files(&loaded.config);
            let peers = peers(self.appliance, &ahead, Stage::Final);
            self.appliance.edge.check(&ahead, &peers, false, false)?;
        }
        Ok(Prepared {
            manifest,
            loaded,
            plan,
            was_active: observed.is_active,
        })
    }

    fn apart(&self) -> anyhow::Result<Staging> {
        let state = self.layout.state_dir();
        files::remove_leftovers(&state, APART)?;
        let directory = tempfile::Builder::new()
            .prefix(APART)
            // It has secrets.
            .permissions(Permissions::from_mode(0o700))
            .tempdir_in(&state)
            .with_context(|| format!("Making a directory in {}", state.display()))?;
        Ok(Staging::Apart(directory))
    }

    fn check(&self) -> anyhow::Result<()> {
        let staging = self.apart()?;
        let work = &self.appliance.database_work;
        let prepared = self.prepare(&mut Unpacking::new(&staging, work, &self.edited, Purpose::Check))?;
        let contents = Contents::of(&prepared.manifest);
        let text = format!("{} can be restored here: {}", self.source.location, contents.text());
        let value = json!({ "event": "done", "location": &self.source.location, "contents": &contents });
        self.reporter.result(&text, &value)
    }

    fn preview(&self) -> anyhow::Result<()> {
        let staging = self.apart()?;
        let work = &self.appliance.database_work;
        let prepared = self.prepare(&mut Unpacking::new(&staging, work, &self.edited, Purpose::Preview))?;
        for step in &prepared.plan.steps {
            self.reporter.step(step.name(), &step.to_string());
        }
        Ok(())
    }

    fn restore(&self, style: Style) -> anyhow::Result<()> {
        let of_rollouts = match style {
            Style::Text => rollout::Style::Text,
            Style::Json => rollout::Style::Json,
        };
        let mut session = Session::begin_in_restore(self.appliance, LockWait::None, of_rollouts)?;
        ensure!(
            Journal::read(&self.layout.restore_journal())?.is_none(),
            RestoreInterrupted
        );
        let stamp = names::stamp(self.now);
        let staging = Staging::Beside {
            root: self.layout.root().to_owned(),
            stamp: stamp.clone(),
        };
        staging.clean()?;
        let work = &self.appliance.database_work;
        let mut unpacking = Unpacking::new(&staging, work, &self.edited, Purpose::Restore { now: self.now });
        let prepared = self.prepare(&mut unpacking);
        let staged_at = unpacking.staged_at.take();
        let clean = || -> anyhow::Result<()> {
            if let Some(database) = &staged_at {
                work.unstage(database)?;
            }
            staging.clean()
        };
        let prepared = prepared.inspect_err(|_| {
            // The first error is the one to report.
            let _ = clean();
        })?;
        prepared.loaded.log_warnings();
        let mut executor = Executor {
            layout: self.layout,
            appliance: self.appliance,
            session: &mut session,
            reporter: self.reporter,
            journal: Journal::new(&prepared.plan, &stamp, prepared.was_active, marker(self.layout)?),
            staging: &staging,
            rolled_out: None,
            certificates: None,
        };
        apply(&prepared.plan, &mut executor).inspect_err(|_| {
            let _ = clean();
        })?;
        staging.clean()?;
        self.report(&prepared)
    }

    fn report(&self, prepared: &Prepared) -> anyhow::Result<()> {
        let contents = Contents::of(&prepared.manifest);
        let kept = kept(&prepared.plan);
        let mut text = format!("restored {}: {}", self.source.location, contents.text());
        if !kept.is_empty() {
            let paths: Vec<_> = kept.iter().map(|path| path.display().to_string()).collect();
            text.push_str(&format!(
                "\nWhat it replaced is kept until you remove it: {}",
                paths.join(" ")
            ));
        }
        if let Some(file) = &prepared.plan.links_file {
            text.push_str(&format!(
                "\nThe links of the backup are in {}, because the database is on a server. This adds those that are missing \
                 there: linksctl db copy --resume --from sqlite:{}",
                file.display(),
                file.display()
            ));
        }
        if !prepared.manifest.secrets {
            text.push_str("\nThe backup has no secrets: the credentials of this host are as they were");
        }
        let report = Report {
            event: "done",
            location: &self.source.location,
            contents,
            kept,
            links_file: prepared.plan.links_file.as_deref(),
        };
        self.reporter.result(&text, &report)
    }
}

/// The configuration of a backup whose certificates are not in place yet. The step `site` checks those that are files.
fn without_files(config: &Config) -> Config {
    let mut ahead = config.clone();
    if ahead.tls.mode == TlsMode::Files {
        ahead.tls.mode = TlsMode::Off;
    }
    ahead
}

/// The paths of what a restore has replaced.
fn kept(plan: &Plan) -> Vec<PathBuf> {
    let mut kept = vec![];
    for step in &plan.steps {
        let path = match step {
            Step::SwapDatabase {
                path,
                aside,
                replaces: true,
            } => files::with_suffix(path, aside),
            Step::SwapItem {
                aside, is_here: true, ..
            } => aside.clone(),
            _ => continue,
        };
        if !kept.contains(&path) {
            kept.push(path);
        }
    }
    kept
}

/// Runs `linksctl restore --undo`: puts everything back after a restore that was interrupted.
///
/// # Errors
/// There is nothing to undo, or something cannot be put back.
pub fn undo(layout: &Layout, appliance: &Appliance, style: Style) -> anyhow::Result<()> {
    require_root()?;
    let reporter = Reporter::new(style);
    let undone = || -> anyhow::Result<()> {
        let mut session = Session::begin_in_restore(appliance, LockWait::None, rollout::Style::Text)?;
        let Some(mut journal) = Journal::read(&layout.restore_journal())? else {
            bail!(
                "no restore was interrupted, so there is nothing to undo. If links does not run since an undo, `linksctl \
                 rollout` and `systemctl start {}` bring it up",
                layout::SERVICE
            );
        };
        // Since the interruption, systemd or a person may have started links with what was restored.
        journal.is_started = true;
        let staging = Staging::Beside {
            root: layout.root().to_owned(),
            stamp: journal.stamp.clone(),
        };
        let mut executor = Executor {
            layout,
            appliance,
            session: &mut session,
            reporter: &reporter,
            journal,
            staging: &staging,
            rolled_out: None,
            certificates: None,
        };
        executor.take_back()
    };
    undone().inspect_err(|error| reporter.failure(error))?;
    let text = format!(
        "everything is as it was before the restore; `systemctl status {}` shows it",
        layout::SERVICE
    );
    reporter.result(&text, &json!({ "event": "done" }))
}

/// Describes a restore that is under way or was interrupted, for `linksctl status`.
///
/// # Errors
/// The journal cannot be read.
pub fn unfinished(layout: &Layout, appliance: &Appliance) -> anyhow::Result<Option<String>> {
    let Some(journal) = Journal::read(&layout.restore_journal())? else {
        return Ok(None);
    };
    Ok(Some(match appliance.rollout_holder() {
        Some(holder) => format!("under way, by process {holder}"),
        None => format!(
            "begun at {} and interrupted: `linksctl restore --undo` puts everything back; until then no click is counted",
            journal.stamp
        ),
    }))
}
