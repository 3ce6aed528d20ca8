//! Reports which SQLite the instances have, who checkpoints its write-ahead log, and whether that is safe. See
//! `links_store::checkpoints`.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use links_store::checkpoints::Engine;
use serde::{Deserialize, Serialize};

use super::manifest::RuntimeKind;
use super::snapshot::Snapshots;
use super::state::State;
use super::store::Store;
use links_base::layout::Layout;
use links_base::{clock, files};
use links_config::files::ConfigFiles;
use links_config::load::local_database;

/// The age in seconds from which a report is ignored, because its agent no longer runs.
const STALE: u64 = 30;
/// The size in bytes from which a log has not been truncated for too long. The agent truncates it at an eighth of that.
const SUSPICIOUS: u64 = 256 << 20;

/// The agent's report about checkpoints, which it writes to a file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The SQLite that an instance reported. `None` if no instance was asked yet, or if its release does not report it.
    pub engine: Option<Engine>,
    /// Whether the agent checkpoints every database that the instances leave to it.
    pub holds: bool,
    /// The size of the largest of their logs.
    pub log_bytes: Option<u64>,
    /// How many steps failed since the agent started.
    pub failures: u64,
    /// Why the last step failed, if it did.
    pub trouble: Option<String>,
    /// When the report was written, in Unix seconds.
    pub written: u64,
}

impl Report {
    /// Reads the agent's report ([`Layout::checkpoints`]). `None` if no agent is running.
    ///
    /// # Errors
    /// This user may not read the report.
    pub fn read(path: &Path) -> io::Result<Option<Self>> {
        let bytes = match fs::read(path) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Err(error),
            bytes => bytes.unwrap_or_default(),
        };
        let report = serde_json::from_slice::<Self>(&bytes).ok();
        Ok(report.filter(|report| report.written + STALE >= clock::now()))
    }
}

/// The size in bytes of a database and its write-ahead log.
///
/// # Errors
/// There is no database, or this user may not access it.
pub fn size(path: &Path) -> io::Result<u64> {
    Ok(fs::metadata(path)?.len() + log_bytes(path))
}

/// The size in bytes of a database's write-ahead log. If the path is a symbolic link, the log is beside the link's target.
pub fn log_bytes(database: &Path) -> u64 {
    let file = fs::canonicalize(database).unwrap_or_else(|_| database.to_owned());
    fs::symlink_metadata(files::with_suffix(&file, "-wal")).map_or(0, |metadata| metadata.len())
}

/// The local databases of the instances whose runtime may have an SQLite that does not checkpoint safely. links-host always
/// has the SQLite of linksctl.
pub fn databases_left_to_the_agent(layout: &Layout) -> BTreeSet<PathBuf> {
    let (store, snapshots) = (Store::new(layout), Snapshots::new(layout));
    let instances = State::new(layout).instances().unwrap_or_default();
    instances
        .into_iter()
        .filter(|instance| {
            let release = store.of_instance(*instance);
            release.is_ok_and(|release| release.manifest.runtime.kind == RuntimeKind::Spin)
        })
        .filter_map(|instance| local_database(&snapshots.of_instance(instance).0))
        .collect()
}

/// Who checkpoints the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum By {
    Runtime,
    Agent,
    Nobody,
}

/// The state of SQLite, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Sqlite {
    /// The version of the SQLite in the runtime. `None` if no instance has reported it.
    pub version: Option<String>,
    pub checkpoints: By,
    /// Why SQLite may lose commits or fill the disk, if so.
    pub warning: Option<String>,
}

/// The state of SQLite. `None` if the database is not local, or if this user may not read the agent's report.
pub fn observe(layout: &Layout) -> Option<Sqlite> {
    local_database(&ConfigFiles::new(layout))?;
    let report = Report::read(&layout.checkpoints()).ok()?;
    let left = databases_left_to_the_agent(layout);
    let log_bytes = left.iter().map(|path| log_bytes(path)).max();
    judge(!left.is_empty(), report, log_bytes.unwrap_or(0))
}

/// `is_left` is whether an instance leaves its database to the agent.
fn judge(is_left: bool, report: Option<Report>, log_bytes: u64) -> Option<Sqlite> {
    let engine = report.as_ref().and_then(|report| report.engine.clone());
    let holds = report.as_ref().is_some_and(|report| report.holds);
    let checkpoints = match &engine {
        Some(engine) if engine.checkpoints => By::Runtime,
        _ if is_left && holds => By::Agent,
        _ if is_left => By::Nobody,
        Some(_) => By::Nobody,
        None => By::Runtime,
    };
    let warning = match (&engine, checkpoints) {
        (Some(engine), By::Runtime) if engine.is_unsafe() => Some(format!(
            "SQLite {} in the runtime checkpoints while other processes write, which can lose commits (fixed in 3.51.3); \
             this release does not leave that to the agent: install links 0.2.0 or later and run `linksctl rollout`",
            engine.version
        )),
        (_, By::Nobody) => {
            let why = match report.and_then(|report| report.trouble) {
                Some(trouble) => trouble,
                None => "links.service is not running, or has not opened the database yet; `systemctl start links` starts it"
                    .to_owned(),
            };
            Some(format!(
                "nobody checkpoints the database, and its write-ahead log ({} KiB) grows with every change: {why}",
                log_bytes.div_ceil(1024)
            ))
        }
        (None, By::Agent) => Some(
            "no instance has reported its SQLite version yet; releases before 0.2.0 never do, and checkpoint by \
             themselves, which can lose commits: if one still runs, run `linksctl rollout`"
                .to_owned(),
        ),
        (_, By::Agent) if log_bytes >= SUSPICIOUS => Some(format!(
            "the write-ahead log has grown to {} MiB: it cannot be truncated while a program keeps reading the database; \
             `fuser -v /var/lib/links/data/links.db` lists the programs",
            log_bytes >> 20
        )),
        _ => None,
    };
    if !is_left && engine.is_none() {
        return None;
    }
    Some(Sqlite {
        version: engine.map(|engine| engine.version),
        checkpoints,
        warning,
    })
}

impl Sqlite {
    /// For example `3.49.1, checkpointed by the agent`.
    pub fn text(&self) -> String {
        let version = self.version.as_deref().unwrap_or("of the runtime, version unknown");
        match self.checkpoints {
            By::Runtime => version.to_owned(),
            By::Agent => format!("{version}, checkpointed by the agent"),
            By::Nobody => format!("{version}, not checkpointed"),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic fails the test")]
mod tests {
    use super::*;

    fn report(version: &str, checkpoints: bool, holds: bool) -> Option<Report> {
        Some(Report {
            engine: Some(Engine {
                version: version.into(),
                checkpoints,
            }),
            holds,
            ..Report::default()
        })
    }

    #[test]
    fn the_size_of_a_database_includes_its_log() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("links.db");
        assert!(size(&path).is_err());
        for (name, bytes) in [("links.db", 10), ("links.db-wal", 5)] {
            fs::write(directory.path().join(name), vec![0; bytes]).unwrap();
        }
        assert_eq!(size(&path).unwrap(), 15);
    }

    fn verdict(is_left: bool, report: Option<Report>, log_bytes: u64) -> (By, Option<String>) {
        judge(is_left, report, log_bytes).map_or((By::Runtime, None), |sqlite| (sqlite.checkpoints, sqlite.warning))
    }

    #[test]
    fn a_fixed_sqlite_checkpoints_for_itself() {
        assert_eq!(verdict(false, report("3.54.1", true, false), 0), (By::Runtime, None));
        assert_eq!(verdict(true, report("3.51.3", true, true), 0), (By::Runtime, None));
        assert_eq!(judge(false, None, 0), None);
    }

    #[test]
    fn an_old_sqlite_is_safe_while_the_agent_checkpoints() {
        assert_eq!(verdict(true, report("3.49.1", false, true), 0), (By::Agent, None));
        let (by, warning) = verdict(true, report("3.49.1", false, true), SUSPICIOUS);
        assert!(by == By::Agent && warning.is_some_and(|warning| warning.contains("256 MiB")));
    }

    #[test]
    fn an_unsafe_state_has_a_warning() {
        let (by, warning) = verdict(true, report("3.49.1", true, true), 0);
        assert!(by == By::Runtime && warning.is_some_and(|warning| warning.contains("3.49.1")));
        let silent = Report {
            holds: true,
            ..Report::default()
        };
        let (by, warning) = verdict(true, Some(silent), 0);
        assert!(by == By::Agent && warning.is_some_and(|warning| warning.contains("before 0.2.0")));
        let (by, warning) = verdict(true, None, 2048);
        assert!(by == By::Nobody && warning.is_some_and(|warning| warning.contains("2 KiB")));
        let broken = report("3.49.1", false, false).map(|report| Report {
            trouble: Some("checkpoints of /x: disk I/O error".into()),
            ..report
        });
        let (by, warning) = verdict(true, broken, 0);
        assert!(by == By::Nobody && warning.is_some_and(|warning| warning.contains("disk I/O error")));
    }

    #[test]
    fn a_report_is_used_only_while_its_agent_runs() {
        let (_root, layout) = links_base::layout::temporary(&[Layout::metrics_dir]);
        let write = |written| {
            let report = Report {
                written,
                ..Report::default()
            };
            let bytes = serde_json::to_vec(&report).unwrap_or_default();
            assert!(fs::write(layout.checkpoints(), bytes).is_ok());
        };
        let is_current = || Report::read(&layout.checkpoints()).is_ok_and(|report| report.is_some());
        assert!(!is_current());
        write(clock::now());
        assert!(is_current());
        write(clock::now() - STALE - 2);
        assert!(!is_current());
    }
}
