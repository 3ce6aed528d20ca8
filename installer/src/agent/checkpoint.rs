//! Checkpoints the local database in place of a runtime whose SQLite cannot do it safely (`links_store::checkpoints`).
//!
//! Spin 4.0.2 has SQLite 3.49.1, whose checkpoints can lose commits while another process writes. Its components are told
//! never to checkpoint, and the SQLite in here, which has the fix, does it for them: in steps that are chosen by the size
//! and the age of the write-ahead log. It holds a connection for as long as the agent runs, because SQLite also
//! checkpoints when the last connection to a database closes. links.service stops after its instances, so this one closes
//! last. Should the agent be missing, the log grows and nothing is lost: the last connection of an instance closes under an
//! exclusive lock, when nobody else can write.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use links_store::checkpoints::Engine;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};

use super::instances::{Instances, Question};
use crate::layout::Layout;
use crate::sqlite::{Report, databases_left_to_the_agent, log_bytes};
use crate::{files, log};

/// Between two looks at the logs.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Between two questions to the component, which SQLite it runs on; and how soon it is asked again without an answer.
const ASK_AGAIN: Duration = Duration::from_secs(60);
const ASK_SOON: Duration = Duration::from_secs(2);
/// Answered by the component.
const PATH: &str = "/internal/sqlite";
/// As many frames as SQLite itself lets pass before it checkpoints.
const MANY_FRAMES: u64 = 1000;
/// What was committed waits no longer than this for a checkpoint.
const OLDEST: Duration = Duration::from_secs(30);
/// A log of this size is cut. Copying its frames does not end its growth while somebody always reads.
const LARGEST: u64 = 32 << 20;
/// For how long writers may be kept waiting while the last readers of a log that is to be cut go on.
const CUT_TIMEOUT: Duration = Duration::from_millis(250);
/// After a try that failed, because somebody reads for long, or the disk is broken.
const TRY_AGAIN: Duration = Duration::from_secs(5);

/// What is known of a log when the next step is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Log {
    bytes: u64,
    /// Frames that are not in the database yet.
    pending: u64,
    since_checkpoint: Duration,
    /// None: it did not fail.
    since_failed_cut: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Rest,
    /// Copies what no reader needs; nobody waits.
    Copy,
    /// Copies everything and empties the file; writers wait, at most [`CUT_TIMEOUT`].
    Cut,
}

fn next_step(log: Log) -> Step {
    let may_cut = log.since_failed_cut.is_none_or(|since| since >= TRY_AGAIN);
    if log.bytes >= LARGEST && may_cut {
        Step::Cut
    } else if log.pending >= MANY_FRAMES || log.pending > 0 && log.since_checkpoint >= OLDEST {
        Step::Copy
    } else {
        Step::Rest
    }
}

/// A database that is held open.
struct Held {
    connection: Connection,
    /// Another file may take the path.
    identity: (u64, u64),
    checkpoint: Instant,
    failed_cut: Option<Instant>,
}

impl Held {
    /// None: there is no database yet, or it has no write-ahead log yet.
    ///
    /// # Errors
    /// It cannot be opened for writing.
    fn open(path: &Path) -> anyhow::Result<Option<Self>> {
        let Some(identity) = identity(path) else {
            return Ok(None);
        };
        // Without SQLITE_OPEN_CREATE: the first instance makes it.
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags)?;
        connection.busy_timeout(CUT_TIMEOUT)?;
        // Closing must not delete a log: if another file has taken the path by then, the log is that file's.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        let mode: String = connection.query_row("PRAGMA journal_mode", [], |row| row.get(0))?;
        if mode != "wal" {
            return Ok(None);
        }
        // The log is opened, and the shared lock taken that keeps others from being the last, by the first read.
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get::<_, i64>(0))?;
        Ok(Some(Self {
            connection,
            identity,
            checkpoint: Instant::now(),
            failed_cut: None,
        }))
    }

    /// # Errors
    /// SQLite's: the disk is full, or broken.
    fn look(&mut self, path: &Path) -> anyhow::Result<()> {
        let (_, frames, copied) = self.checkpoint("NOOP")?;
        let step = next_step(Log {
            bytes: log_bytes(path),
            pending: frames.saturating_sub(copied),
            since_checkpoint: self.checkpoint.elapsed(),
            since_failed_cut: self.failed_cut.map(|at| at.elapsed()),
        });
        match step {
            Step::Rest => {}
            Step::Copy => {
                self.checkpoint("PASSIVE")?;
                self.checkpoint = Instant::now();
            }
            Step::Cut => {
                // What can be copied without the writers' lock is copied before it is taken.
                self.checkpoint("PASSIVE")?;
                self.checkpoint = Instant::now();
                let (is_busy, ..) = self.checkpoint("TRUNCATE")?;
                self.failed_cut = is_busy.then(Instant::now);
            }
        }
        Ok(())
    }

    /// Whether somebody was in the way, the frames in the log, and how many of them are in the database.
    fn checkpoint(&self, mode: &str) -> rusqlite::Result<(bool, u64, u64)> {
        self.connection
            .query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |row| {
                let count = |index| row.get::<_, i64>(index).map(|count| u64::try_from(count).unwrap_or(0));
                Ok((row.get::<_, i64>(0)? != 0, count(1)?, count(2)?))
            })
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::metadata(path)
        .ok()
        .filter(Metadata::is_file)
        .map(|metadata| (metadata.dev(), metadata.ino()))
}

/// The threads that checkpoint, and that ask which SQLite serves.
#[derive(Debug)]
pub struct Checkpoints {
    running: Sender<()>,
    thread: JoinHandle<()>,
}

impl Checkpoints {
    /// # Errors
    /// The kernel gives no thread.
    pub fn start(layout: Layout) -> anyhow::Result<Self> {
        let engine = Arc::new(Mutex::new(None));
        let (answer, instances) = (Arc::clone(&engine), Instances::new(layout.clone()));
        let (asking, end) = mpsc::channel::<()>();
        // A thread of its own: it may wait for an instance that hangs, and no checkpoint waits with it.
        std::thread::Builder::new()
            .name("sqlite".to_owned())
            .spawn(move || {
                loop {
                    let now = ask(&instances);
                    let pause = if now.is_some() { ASK_AGAIN } else { ASK_SOON };
                    *answer.lock().unwrap_or_else(PoisonError::into_inner) = now;
                    if end.recv_timeout(pause) == Err(RecvTimeoutError::Disconnected) {
                        return;
                    }
                }
            })
            .context("Starting to ask for the version of SQLite")?;
        let (running, ended) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("checkpoints".to_owned())
            .spawn(move || {
                // Dropped at the end of this thread, which ends the other one.
                let _asking = asking;
                let mut worker = Worker::new(layout);
                loop {
                    let engine = engine.lock().unwrap_or_else(PoisonError::into_inner).clone();
                    worker.look(engine);
                    if ended.recv_timeout(LOOK_AGAIN) == Err(RecvTimeoutError::Disconnected) {
                        worker.close();
                        return;
                    }
                }
            })
            .context("Starting the checkpoints")?;
        Ok(Self { running, thread })
    }

    /// It panicked: nobody checkpoints any more.
    pub fn is_gone(&self) -> bool {
        self.thread.is_finished()
    }

    /// Returns when the databases are checkpointed and closed.
    pub fn stop(self) {
        drop(self.running);
        // A panic has been reported already.
        let _ = self.thread.join();
    }
}

fn ask(instances: &Instances) -> Option<Engine> {
    // Why nobody answers is reported by those who need the answer: a release may not know the question.
    instances.ask(PATH, Question::Get(None)).ok()
}

struct Worker {
    layout: Layout,
    held: BTreeMap<PathBuf, Held>,
    /// By database; logged once each.
    troubles: BTreeMap<PathBuf, String>,
    tried: BTreeMap<PathBuf, Instant>,
    failures: u64,
    /// Why the last report was not written.
    unwritten: Option<String>,
}

impl Worker {
    fn new(layout: Layout) -> Self {
        Self {
            layout,
            held: BTreeMap::new(),
            troubles: BTreeMap::new(),
            tried: BTreeMap::new(),
            failures: 0,
            unwritten: None,
        }
    }

    /// Opens what is to be held, takes the next step with each, and reports.
    fn look(&mut self, engine: Option<Engine>) {
        let wanted = databases_left_to_the_agent(&self.layout);
        self.held
            .retain(|path, held| wanted.contains(path) && identity(path) == Some(held.identity));
        self.troubles.retain(|path, _| wanted.contains(path));
        for path in &wanted {
            let is_due = self.tried.get(path).is_none_or(|tried| tried.elapsed() >= TRY_AGAIN);
            if is_due && let Err(error) = self.step(path) {
                self.failures += 1;
                self.tried.insert(path.clone(), Instant::now());
                let text = format!("checkpoints of {}: {error:#}", path.display());
                if self.troubles.insert(path.clone(), text.clone()).as_ref() != Some(&text) {
                    log::error!("{text}");
                }
            }
        }
        let report = self.report(&wanted, engine);
        let write = || files::replace(&self.layout.checkpoints(), &serde_json::to_vec(&report)?, 0o640);
        if let Err(error) = write() {
            let text = format!("{error:#}");
            if self.unwritten.as_ref() != Some(&text) {
                log::error!("{text}");
            }
            self.unwritten = Some(text);
        }
    }

    fn step(&mut self, path: &Path) -> anyhow::Result<()> {
        if !self.held.contains_key(path) {
            let Some(held) = Held::open(path)? else {
                return Ok(());
            };
            log::notice!("checkpoints {} in place of the runtime's SQLite", path.display());
            self.held.insert(path.to_owned(), held);
        }
        let Some(held) = self.held.get_mut(path) else {
            return Ok(());
        };
        held.look(path)?;
        self.troubles.remove(path);
        self.tried.remove(path);
        Ok(())
    }

    fn report(&self, wanted: &BTreeSet<PathBuf>, engine: Option<Engine>) -> Report {
        Report {
            engine,
            holds: wanted.iter().all(|path| self.held.contains_key(path)) && !wanted.is_empty(),
            log_bytes: wanted.iter().map(|path| log_bytes(path)).max(),
            failures: self.failures,
            trouble: self.troubles.values().next().cloned(),
            written: crate::sqlite::now(),
        }
    }

    /// Leaves databases whose logs are empty, where nobody is in the way any more.
    fn close(&mut self) {
        for (path, held) in std::mem::take(&mut self.held) {
            if identity(&path) == Some(held.identity)
                && let Err(error) = held.checkpoint("TRUNCATE")
            {
                log::error!("the last checkpoint of {}: {error}", path.display());
            }
        }
        // As good as stale.
        let _ = files::remove_if_present(&self.layout.checkpoints());
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::layout::temporary;

    fn log(bytes: u64, pending: u64, seconds: u64) -> Log {
        Log {
            bytes,
            pending,
            since_checkpoint: Duration::from_secs(seconds),
            since_failed_cut: None,
        }
    }

    #[test]
    fn a_step_follows_from_the_size_and_the_age_of_the_log() {
        for (seen, step) in [
            (log(0, 0, 3600), Step::Rest),
            (log(4096, 1, 29), Step::Rest),
            (log(4096, 1, 30), Step::Copy),
            (log(4096, MANY_FRAMES, 0), Step::Copy),
            (log(LARGEST - 1, 0, 3600), Step::Rest),
            (log(LARGEST, 0, 0), Step::Cut),
        ] {
            assert_eq!(next_step(seen), step, "{seen:?}");
        }
        let after = |since| Log {
            since_failed_cut: Some(since),
            ..log(LARGEST, MANY_FRAMES, 1)
        };
        assert_eq!(next_step(after(Duration::from_secs(1))), Step::Copy);
        assert_eq!(next_step(after(TRY_AGAIN)), Step::Cut);
    }

    /// As an instance on Spin: WAL, and no checkpoint of its own.
    fn instance(path: &Path) -> Connection {
        let connection = Connection::open(path).unwrap();
        connection
            .execute_batch(
                "PRAGMA journal_mode = WAL; PRAGMA wal_autocheckpoint = 0; PRAGMA synchronous = OFF;
                 CREATE TABLE IF NOT EXISTS t (x BLOB)",
            )
            .unwrap();
        connection
    }

    fn insert(connection: &Connection, megabytes: u64) {
        for _ in 0..megabytes {
            connection
                .execute("INSERT INTO t VALUES (zeroblob(1048576))", [])
                .unwrap();
        }
    }

    #[test]
    fn a_log_stays_bounded_while_somebody_always_reads() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("links.db");
        assert!(Held::open(&path).unwrap().is_none(), "there is no database yet");
        let writer = instance(&path);
        let mut held = Held::open(&path).unwrap().unwrap();
        // Three readers: there is hardly a moment without one.
        let stop = AtomicBool::new(false);
        let mut largest = 0;
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    let reader = Connection::open(&path).unwrap();
                    while !stop.load(Ordering::Relaxed) {
                        reader
                            .query_row("SELECT sum(length(x)) FROM t", [], |_| Ok(()))
                            .unwrap();
                    }
                });
            }
            for _ in 0..30 {
                insert(&writer, 8);
                held.look(&path).unwrap();
                largest = largest.max(log_bytes(&path));
                // As if the time had passed.
                held.failed_cut = None;
            }
            stop.store(true, Ordering::Relaxed);
        });
        assert!(largest < 3 * LARGEST, "{largest}");
        let rows: i64 = writer
            .query_row("SELECT count(*) FROM t", [], |row| row.get(0))
            .unwrap();
        assert_eq!(rows, 240);
    }

    #[test]
    fn what_others_close_is_not_checkpointed_while_it_is_held_and_the_agent_leaves_an_empty_log() {
        let (_root, layout) = temporary(&[Layout::data_dir, Layout::metrics_dir]);
        let path = layout.data_dir().join("links.db");
        let writer = instance(&path);
        let mut worker = Worker::new(layout.clone());
        worker.held.insert(path.clone(), Held::open(&path).unwrap().unwrap());
        insert(&writer, 2);
        let before = log_bytes(&path);
        drop(writer);
        assert_eq!(log_bytes(&path), before, "the last instance is not the last connection");

        worker.close();
        assert_eq!(log_bytes(&path), 0);
        let rows: i64 = Connection::open(&path)
            .unwrap()
            .query_row("SELECT count(*) FROM t", [], |row| row.get(0))
            .unwrap();
        assert_eq!(rows, 2);
    }

    #[test]
    fn a_file_that_takes_the_path_keeps_its_log() {
        let directory = tempfile::tempdir().unwrap();
        let [path, other] = ["links.db", "other.db"].map(|name| directory.path().join(name));
        drop(instance(&path));
        let held = Held::open(&path).unwrap().unwrap();
        let writer = instance(&other);
        insert(&writer, 1);
        for suffix in ["", "-wal", "-shm"] {
            let at = |path: &Path| {
                let mut name = path.as_os_str().to_owned();
                name.push(suffix);
                name
            };
            fs::rename(at(&other), at(&path)).unwrap();
        }
        assert_ne!(identity(&path), Some(held.identity));
        drop(held);
        assert!(log_bytes(&path) > 1 << 20);
    }
}
