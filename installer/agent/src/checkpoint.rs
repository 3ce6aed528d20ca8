//! Checkpoints the local database on behalf of a runtime whose SQLite cannot do so safely (`links_store::checkpoints`).
//!
//! Spin 4.0.2 contains SQLite 3.49.1, whose checkpoints can lose commits while another process writes. Components on it never
//! checkpoint. The agent's own SQLite has the fix and checkpoints for them, in steps that depend on the size and the age of
//! the write-ahead log.
//!
//! SQLite also checkpoints when the last connection to a database closes. Therefore the agent keeps a connection open as long
//! as it runs; links.service stops after its instances, so the agent's connection closes last. If the agent does not run, the
//! log grows but nothing is lost: the last connection of an instance closes under an exclusive lock, while nobody can write.

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
use links_base::layout::Layout;
use links_base::{files, log};
use links_release::sqlite::{Report, databases_left_to_the_agent, log_bytes};

/// The interval between two checks of the logs.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// How often the component is asked for its version of SQLite.
const ASK_INTERVAL: Duration = Duration::from_secs(60);
/// How soon the component is asked again if it did not answer.
const ASK_AGAIN: Duration = Duration::from_secs(2);
/// The component's endpoint.
const PATH: &str = "/internal/sqlite";
/// The number of pending frames that triggers a checkpoint. It is the default of SQLite's own automatic checkpoints.
const MANY_FRAMES: u64 = 1000;
/// The maximum time that a commit waits for a checkpoint.
const MAX_AGE: Duration = Duration::from_secs(30);
/// The size at which a log is truncated, in bytes. While some connection is always reading, copying the frames alone does not
/// stop the log from growing.
const MAX_SIZE: u64 = 32 << 20;
/// How long a truncation may wait for readers to finish. Writers are blocked during this time.
const TRUNCATE_TIMEOUT: Duration = Duration::from_millis(250);
/// The pause after a failed attempt, for example because of a long read or a disk error.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// The state of a log, from which the next step follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Log {
    bytes: u64,
    /// The number of frames that are not in the database yet.
    pending: u64,
    since_checkpoint: Duration,
    /// `None` if the last truncation succeeded.
    since_failed_truncate: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Idle,
    /// Copies the frames that no reader needs. Nobody waits.
    Copy,
    /// Copies all frames and empties the file. Writers wait for at most [`TRUNCATE_TIMEOUT`].
    Truncate,
}

fn next_step(log: Log) -> Step {
    let may_truncate = log.since_failed_truncate.is_none_or(|since| since >= RETRY_INTERVAL);
    if log.bytes >= MAX_SIZE && may_truncate {
        Step::Truncate
    } else if log.pending >= MANY_FRAMES || log.pending > 0 && log.since_checkpoint >= MAX_AGE {
        Step::Copy
    } else {
        Step::Idle
    }
}

/// A database that the agent keeps open.
struct OpenDatabase {
    connection: Connection,
    /// The device and inode of the file, because another file may take its path.
    identity: (u64, u64),
    checkpointed: Instant,
    failed_truncate: Option<Instant>,
}

impl OpenDatabase {
    /// Opens the database. Returns `None` if it does not exist yet or has no write-ahead log yet.
    ///
    /// # Errors
    /// Fails if the database cannot be opened for writing.
    fn open(path: &Path) -> anyhow::Result<Option<Self>> {
        let Some(identity) = identity(path) else {
            return Ok(None);
        };
        // Without SQLITE_OPEN_CREATE: the first instance creates the database.
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags)?;
        connection.busy_timeout(TRUNCATE_TIMEOUT)?;
        // Closing must not delete a log: if another file has taken the path by then, the log is that file's.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        let mode: String = connection.query_row("PRAGMA journal_mode", [], |row| row.get(0))?;
        if mode != "wal" {
            return Ok(None);
        }
        // The first read opens the log and takes the shared lock that keeps any other connection from being the last one.
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get::<_, i64>(0))?;
        Ok(Some(Self {
            connection,
            identity,
            checkpointed: Instant::now(),
            failed_truncate: None,
        }))
    }

    /// Takes the next step with the log.
    ///
    /// # Errors
    /// Fails if SQLite does, for example because the disk is full or broken.
    fn maintain(&mut self, path: &Path) -> anyhow::Result<()> {
        let (_, frames, copied) = self.checkpoint("NOOP")?;
        let step = next_step(Log {
            bytes: log_bytes(path),
            pending: frames.saturating_sub(copied),
            since_checkpoint: self.checkpointed.elapsed(),
            since_failed_truncate: self.failed_truncate.map(|at| at.elapsed()),
        });
        match step {
            Step::Idle => {}
            Step::Copy => {
                self.checkpoint("PASSIVE")?;
                self.checkpointed = Instant::now();
            }
            Step::Truncate => {
                // Copies as much as possible before it takes the write lock.
                self.checkpoint("PASSIVE")?;
                self.checkpointed = Instant::now();
                let (is_busy, ..) = self.checkpoint("TRUNCATE")?;
                self.failed_truncate = is_busy.then(Instant::now);
            }
        }
        Ok(())
    }

    /// Runs a checkpoint. Returns whether it was blocked, the number of frames in the log, and how many of them are in the
    /// database.
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

/// The thread that checkpoints, and the one that asks the instances for their version of SQLite.
#[derive(Debug)]
pub struct Checkpoints {
    running: Sender<()>,
    thread: JoinHandle<()>,
}

impl Checkpoints {
    /// Starts both threads.
    ///
    /// # Errors
    /// Fails if the kernel refuses to create a thread.
    pub fn start(layout: Layout) -> anyhow::Result<Self> {
        let engine = Arc::new(Mutex::new(None));
        let (answer, instances) = (Arc::clone(&engine), Instances::new(layout.clone()));
        let (asking, end) = mpsc::channel::<()>();
        // This thread may wait for an instance that hangs, which must not delay checkpoints.
        std::thread::Builder::new()
            .name("sqlite".to_owned())
            .spawn(move || {
                loop {
                    let now = ask(&instances);
                    let pause = if now.is_some() { ASK_INTERVAL } else { ASK_AGAIN };
                    *answer.lock().unwrap_or_else(PoisonError::into_inner) = now;
                    if end.recv_timeout(pause) == Err(RecvTimeoutError::Disconnected) {
                        return;
                    }
                }
            })
            .context("Starting the thread that asks for the version of SQLite")?;
        let (running, ended) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("checkpoints".to_owned())
            .spawn(move || {
                // Dropped when this thread ends, which ends the other one.
                let _asking = asking;
                let mut worker = Worker::new(layout);
                loop {
                    let engine = engine.lock().unwrap_or_else(PoisonError::into_inner).clone();
                    worker.run_once(engine);
                    if ended.recv_timeout(CHECK_INTERVAL) == Err(RecvTimeoutError::Disconnected) {
                        worker.close();
                        return;
                    }
                }
            })
            .context("Starting the checkpoint thread")?;
        Ok(Self { running, thread })
    }

    /// Whether the thread has panicked, so nobody checkpoints any more.
    pub fn is_gone(&self) -> bool {
        self.thread.is_finished()
    }

    /// Ends the threads. Returns when the databases are checkpointed and closed.
    pub fn stop(self) {
        drop(self.running);
        // The panic hook has already reported a panic.
        let _ = self.thread.join();
    }
}

fn ask(instances: &Instances) -> Option<Engine> {
    // An error is not logged here, because a release may not support this request. Those who need the answer report that it is
    // missing.
    instances.ask(PATH, Question::Get(None)).ok()
}

struct Worker {
    layout: Layout,
    open: BTreeMap<PathBuf, OpenDatabase>,
    /// The last error of each database, which is logged once.
    errors: BTreeMap<PathBuf, String>,
    /// When the last failed attempt was made.
    failed: BTreeMap<PathBuf, Instant>,
    failures: u64,
    /// Why the last report could not be written.
    unwritten: Option<String>,
}

impl Worker {
    fn new(layout: Layout) -> Self {
        Self {
            layout,
            open: BTreeMap::new(),
            errors: BTreeMap::new(),
            failed: BTreeMap::new(),
            failures: 0,
            unwritten: None,
        }
    }

    /// Opens the databases that the agent must checkpoint, takes the next step with each, and writes the report.
    fn run_once(&mut self, engine: Option<Engine>) {
        let wanted = databases_left_to_the_agent(&self.layout);
        self.open
            .retain(|path, open| wanted.contains(path) && identity(path) == Some(open.identity));
        self.errors.retain(|path, _| wanted.contains(path));
        for path in &wanted {
            let is_due = self
                .failed
                .get(path)
                .is_none_or(|failed| failed.elapsed() >= RETRY_INTERVAL);
            if is_due && let Err(error) = self.step(path) {
                self.failures += 1;
                self.failed.insert(path.clone(), Instant::now());
                let text = format!("checkpoints of {}: {error:#}", path.display());
                if self.errors.insert(path.clone(), text.clone()).as_ref() != Some(&text) {
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
        if !self.open.contains_key(path) {
            let Some(database) = OpenDatabase::open(path)? else {
                return Ok(());
            };
            log::notice!("checkpointing {} on behalf of the runtime's SQLite", path.display());
            self.open.insert(path.to_owned(), database);
        }
        let Some(database) = self.open.get_mut(path) else {
            return Ok(());
        };
        database.maintain(path)?;
        self.errors.remove(path);
        self.failed.remove(path);
        Ok(())
    }

    fn report(&self, wanted: &BTreeSet<PathBuf>, engine: Option<Engine>) -> Report {
        Report {
            engine,
            holds: wanted.iter().all(|path| self.open.contains_key(path)) && !wanted.is_empty(),
            log_bytes: wanted.iter().map(|path| log_bytes(path)).max(),
            failures: self.failures,
            trouble: self.errors.values().next().cloned(),
            written: links_base::clock::now(),
        }
    }

    /// Empties the logs, if no other connection prevents that, and closes the databases.
    fn close(&mut self) {
        for (path, database) in std::mem::take(&mut self.open) {
            if identity(&path) == Some(database.identity)
                && let Err(error) = database.checkpoint("TRUNCATE")
            {
                log::error!("the last checkpoint of {}: {error}", path.display());
            }
        }
        // If this fails, readers still see that the report is stale.
        let _ = files::remove_if_present(&self.layout.checkpoints());
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use links_base::layout::temporary;
    use links_store::checkpoints::checkpoints_safely;

    fn log(bytes: u64, pending: u64, seconds: u64) -> Log {
        Log {
            bytes,
            pending,
            since_checkpoint: Duration::from_secs(seconds),
            since_failed_truncate: None,
        }
    }

    #[test]
    fn the_step_depends_on_the_size_and_the_age_of_the_log() {
        for (seen, step) in [
            (log(0, 0, 3600), Step::Idle),
            (log(4096, 1, 29), Step::Idle),
            (log(4096, 1, 30), Step::Copy),
            (log(4096, MANY_FRAMES, 0), Step::Copy),
            (log(MAX_SIZE - 1, 0, 3600), Step::Idle),
            (log(MAX_SIZE, 0, 0), Step::Truncate),
        ] {
            assert_eq!(next_step(seen), step, "{seen:?}");
        }
        let after = |since| Log {
            since_failed_truncate: Some(since),
            ..log(MAX_SIZE, MANY_FRAMES, 1)
        };
        assert_eq!(next_step(after(Duration::from_secs(1))), Step::Copy);
        assert_eq!(next_step(after(RETRY_INTERVAL)), Step::Truncate);
    }

    /// A connection like that of an instance on Spin: WAL without automatic checkpoints.
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
    fn a_log_stays_bounded_under_constant_reads() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("links.db");
        assert!(OpenDatabase::open(&path).unwrap().is_none(), "there is no database yet");
        let writer = instance(&path);
        let mut open = OpenDatabase::open(&path).unwrap().unwrap();
        // With three readers there is hardly a moment without one.
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
                open.maintain(&path).unwrap();
                largest = largest.max(log_bytes(&path));
                // As if the pause were over.
                open.failed_truncate = None;
            }
            stop.store(true, Ordering::Relaxed);
        });
        assert!(largest < 3 * MAX_SIZE, "{largest}");
        let rows: i64 = writer
            .query_row("SELECT count(*) FROM t", [], |row| row.get(0))
            .unwrap();
        assert_eq!(rows, 240);
    }

    #[test]
    fn the_last_instance_to_close_does_not_checkpoint_but_the_agent_does() {
        let (_root, layout) = temporary(&[Layout::data_dir, Layout::metrics_dir]);
        let path = layout.data_dir().join("links.db");
        let writer = instance(&path);
        let mut worker = Worker::new(layout.clone());
        worker
            .open
            .insert(path.clone(), OpenDatabase::open(&path).unwrap().unwrap());
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
    fn another_file_at_the_path_keeps_its_log() {
        let directory = tempfile::tempdir().unwrap();
        let [path, other] = ["links.db", "other.db"].map(|name| directory.path().join(name));
        drop(instance(&path));
        let open = OpenDatabase::open(&path).unwrap().unwrap();
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
        assert_ne!(identity(&path), Some(open.identity));
        drop(open);
        assert!(log_bytes(&path) > 1 << 20);
    }

    #[test]
    fn our_own_sqlite_has_the_fix() {
        assert!(checkpoints_safely(rusqlite::version()), "{}", rusqlite::version());
    }
}
