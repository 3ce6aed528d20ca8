//! Which SQLite serves, who checkpoints its write-ahead log, and whether that is safe (`links_store::checkpoints`).

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use links_store::checkpoints::Engine;
use serde::{Deserialize, Serialize};

use crate::config::load::local_database;
use crate::layout::Layout;
use crate::release::Store;
use crate::release::manifest::RuntimeKind;
use crate::rollout::{State, snapshot};

/// A report that is older was written by an agent that is gone, in seconds.
const STALE: u64 = 30;
/// A log of this size was not cut for a long time: the agent does so at an eighth of it.
const SUSPICIOUS: u64 = 256 << 20;

/// What the agent knows, in a file of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// As an instance says; none where none was asked yet, or its release does not know.
    pub engine: Option<Engine>,
    /// Whether the agent checkpoints every database that is left to it.
    pub holds: bool,
    /// The largest log of them.
    pub log_bytes: Option<u64>,
    /// Steps that failed since the agent started.
    pub failures: u64,
    /// Why the last step failed.
    pub trouble: Option<String>,
    /// In Unix seconds.
    pub written: u64,
}

impl Report {
    /// None: there is no agent.
    ///
    /// # Errors
    /// This user may not look.
    pub fn read(layout: &Layout) -> io::Result<Option<Self>> {
        let bytes = match std::fs::read(layout.checkpoints()) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Err(error),
            bytes => bytes.unwrap_or_default(),
        };
        let report = serde_json::from_slice::<Self>(&bytes).ok();
        Ok(report.filter(|report| report.written + STALE >= now()))
    }
}

pub fn now() -> u64 {
    // A clock before 1970 is not set at all.
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |time| time.as_secs())
}

/// The bytes of a database's write-ahead log, which is beside the file itself where the path is a symbolic link to it.
pub fn log_bytes(database: &Path) -> u64 {
    let file = std::fs::canonicalize(database).unwrap_or_else(|_| database.to_owned());
    let mut log = file.into_os_string();
    log.push("-wal");
    std::fs::symlink_metadata(log).map_or(0, |metadata| metadata.len())
}

/// The local databases of instances whose runtime may have an SQLite that does not checkpoint safely. links-host is
/// built with the SQLite of linksctl.
pub fn databases_left_to_the_agent(layout: &Layout) -> BTreeSet<PathBuf> {
    let store = Store::new(layout);
    let instances = State::new(layout).instances().unwrap_or_default();
    instances
        .into_iter()
        .filter(|instance| {
            let release = store.of_instance(*instance);
            release.is_ok_and(|release| release.manifest.runtime.kind == RuntimeKind::Spin)
        })
        .filter_map(|instance| local_database(&snapshot::of_instance(layout, instance).0))
        .collect()
}

/// Who shortens the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum By {
    Runtime,
    Agent,
    Nobody,
}

/// For people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Sqlite {
    /// Of the SQLite in the runtime; none where no instance has said.
    pub version: Option<String>,
    pub checkpoints: By,
    /// Why it may lose commits, or fill the disk.
    pub warning: Option<String>,
}

/// None: the database is not a local one, or this user may not know.
pub fn observe(layout: &Layout) -> Option<Sqlite> {
    local_database(layout)?;
    let report = Report::read(layout).ok()?;
    let left = databases_left_to_the_agent(layout);
    let log_bytes = left.iter().map(|path| log_bytes(path)).max();
    judge(!left.is_empty(), report, log_bytes.unwrap_or(0))
}

/// `is_left`: an instance's database is left to the agent.
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
                None => "links.service does not run, or has not opened the database yet; `systemctl start links` starts it"
                    .to_owned(),
            };
            Some(format!(
                "nobody checkpoints the database, and its write-ahead log ({} KiB) grows with every change: {why}",
                log_bytes.div_ceil(1024)
            ))
        }
        (None, By::Agent) => Some(
            "no instance has said yet which SQLite it has; one of a release before 0.2.0 never does, and checkpoints by \
             itself, which can lose commits: run `linksctl rollout` then"
                .to_owned(),
        ),
        (_, By::Agent) if log_bytes >= SUSPICIOUS => Some(format!(
            "the write-ahead log has {} MiB: it cannot be cut while a program reads the database for minutes; \
             `fuser -v /var/lib/links/data/links.db` shows which do",
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
    /// `3.49.1, checkpointed by the agent's 3.54.1`
    pub fn text(&self) -> String {
        let version = self.version.as_deref().unwrap_or("of the runtime, version unknown");
        match self.checkpoints {
            By::Runtime => version.to_owned(),
            By::Agent => format!("{version}, checkpointed by the agent's {}", rusqlite::version()),
            By::Nobody => format!("{version}, checkpointed by nobody"),
        }
    }
}

#[cfg(test)]
mod tests {
    use links_store::checkpoints::checkpoints_safely;

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
    fn an_old_one_is_no_trouble_while_the_agent_holds_the_database() {
        assert_eq!(verdict(true, report("3.49.1", false, true), 0), (By::Agent, None));
        let (by, warning) = verdict(true, report("3.49.1", false, true), SUSPICIOUS);
        assert!(by == By::Agent && warning.is_some_and(|warning| warning.contains("256 MiB")));
    }

    #[test]
    fn a_measure_that_is_not_in_effect_is_named() {
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
    fn a_report_counts_while_its_agent_lives() {
        let (_root, layout) = crate::layout::temporary(&[Layout::metrics_dir]);
        let write = |written| {
            let report = Report {
                written,
                ..Report::default()
            };
            let bytes = serde_json::to_vec(&report).unwrap_or_default();
            assert!(std::fs::write(layout.checkpoints(), bytes).is_ok());
        };
        let lives = || Report::read(&layout).is_ok_and(|report| report.is_some());
        assert!(!lives());
        write(now());
        assert!(lives());
        write(now() - STALE - 2);
        assert!(!lives());
    }

    #[test]
    fn our_own_sqlite_has_the_fix() {
        assert!(checkpoints_safely(rusqlite::version()), "{}", rusqlite::version());
    }
}
