//! A SQLite connection: runs statements with or without blocking, and tracks whether another handle may reuse it.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use rusqlite::hooks::{AuthAction, AuthContext, Authorization};
use rusqlite::{OpenFlags, ffi};

use super::error::{io, would_wait};
use super::interrupt::{Abandon, Interrupt};
use super::lock_wait::LockWait;
use super::policy;
use super::rows::{Failure, Table, columns, each_row};
use super::wal;
use crate::bindings::sqlite::{Error, RowResult, Value};
use crate::storage::answer::{MAX_RESULT_BYTES, size, too_large};
use crate::storage::place::{Identity, Place};
use crate::storage::statement::is_query;

/// How long a read may occupy an executor thread before it is restarted on the blocking pool.
const QUICK_TIME: Duration = Duration::from_millis(2);
/// The maximum size of a quick read's result, in bytes. Larger results are streamed.
const QUICK_BYTES: usize = 256 << 10;
/// The number of instructions of SQLite's virtual machine between two calls of the progress handler.
const PROGRESS_EVERY: i32 = 1_000;
const CACHED_STATEMENTS: usize = 64;
/// The page cache of a connection, in KiB as a negative number (PRAGMA cache_size). Together with the size of the pool it bounds the
/// memory of a database of any size. A memory map of the file would avoid copying pages, but each connection would have its
/// own: 65 MiB each with a million links.
const CACHE_SIZE: i64 = -2_000;

/// The kind of a statement that cannot run as a quick read.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// Does not change the database, but may take long or wait for a lock.
    Read,
    /// May change the database.
    Write,
    /// Changes something else, such as the transaction or the connection, or is too rare to run as a quick read.
    Other,
}

/// The outcome of an attempt to run a statement without blocking.
#[derive(Debug)]
pub enum Attempt {
    Done(Table),
    /// The statement must run on the blocking pool.
    Later(Kind),
    /// The kind is unknown, because even compiling the statement must wait for another process.
    Unknown,
}

pub struct Connection {
    db: rusqlite::Connection,
    hooks: Arc<Hooks>,
    identity: Option<Identity>,
    /// Whether the file is known to have a write-ahead log, which it keeps as long as this connection is open.
    write_ahead: Cell<bool>,
    /// Whether commits leave the sync to [`Connection::sync`].
    defers_syncs: Cell<bool>,
}

/// The state that is shared with SQLite's callbacks.
#[derive(Debug, Default)]
struct Hooks {
    interrupt: Arc<Interrupt>,
    lock_wait: LockWait,
    /// Whether a statement was compiled that changes the connection itself. No other handle may use it afterwards.
    tainted: AtomicBool,
    /// Whether the statement that is being compiled is the host's own.
    host_statement: AtomicBool,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Connection")
    }
}

impl Hooks {
    fn authorize(&self, action: &AuthAction<'_>, allow_attach_file: bool) -> Authorization {
        let ruling = policy::rule(action, allow_attach_file);
        if ruling.taints && !self.host_statement.load(Relaxed) {
            self.tainted.store(true, Relaxed);
        }
        if let Some(milliseconds) = ruling.busy_timeout {
            self.lock_wait.replace(milliseconds);
        }
        ruling.authorization
    }
}

impl Connection {
    /// # Errors
    /// The file cannot be opened or created.
    pub fn open(place: &Place, allow_attach_file: bool) -> rusqlite::Result<Self> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let (mut db, identity) = match place {
            Place::Memory => (rusqlite::Connection::open_in_memory()?, None),
            Place::File(path) => (rusqlite::Connection::open_with_flags(path, flags)?, place.identity()),
        };
        let hooks = Arc::new(Hooks::default());
        db.set_prepared_statement_cache_capacity(CACHED_STATEMENTS);
        db.pragma_update(None, "cache_size", CACHE_SIZE)?;
        let interrupt = hooks.interrupt.clone();
        db.progress_handler(PROGRESS_EVERY, Some(move || interrupt.is_due()))?;
        let authorizer = hooks.clone();
        db.authorizer(Some(move |context: AuthContext<'_>| {
            authorizer.authorize(&context.action, allow_attach_file)
        }))?;
        install_busy_handler(&mut db, &hooks)?;
        Ok(Self {
            db,
            hooks,
            identity,
            write_ahead: Cell::new(false),
            defers_syncs: Cell::new(false),
        })
    }

    /// Runs a statement if it is a quick read. Otherwise it has no effect, and the statement must run on the blocking pool.
    ///
    /// # Errors
    /// The statement fails. Having to wait is not an error.
    pub fn attempt(&self, sql: &str, parameters: &[Value]) -> Result<Attempt, Error> {
        self.hooks.interrupt.begin_quick_read(QUICK_TIME);
        let result = self.attempt_until_deadline(sql, parameters);
        self.hooks.interrupt.end_quick_read();
        result
    }

    fn attempt_until_deadline(&self, sql: &str, parameters: &[Value]) -> Result<Attempt, Error> {
        let mut statement = match self.db.prepare_cached(sql) {
            Ok(statement) => statement,
            Err(error) if would_wait(&error) => return Ok(Attempt::Unknown),
            Err(error) => return Err(io(&error)),
        };
        if !statement.readonly() {
            return Ok(Attempt::Later(Kind::Write));
        }
        if !is_query(sql) {
            return Ok(Attempt::Later(Kind::Other));
        }
        let mut table = Table {
            columns: columns(&statement),
            rows: Vec::new(),
        };
        let mut bytes = 0;
        let done = each_row(&mut statement, parameters, |row| {
            bytes += size(&row.values);
            table.rows.push(row);
            // The progress handler enforces the deadline. Checking it here would fail even single rows on a busy machine.
            Ok(bytes <= QUICK_BYTES)
        });
        match done {
            Ok(true) => Ok(Attempt::Done(table)),
            Ok(false) => Ok(Attempt::Later(Kind::Read)),
            Err(Failure::Sqlite(error)) if would_wait(&error) => Ok(Attempt::Later(Kind::Read)),
            Err(failure) => Err(failure.into()),
        }
    }

    /// Returns the kind of a statement. May wait for another process.
    ///
    /// # Errors
    /// The statement does not compile.
    pub fn classify(&self, sql: &str) -> Result<Kind, Error> {
        let statement = self.db.prepare_cached(sql).map_err(|error| io(&error))?;
        Ok(match statement.readonly() {
            false => Kind::Write,
            true if is_query(sql) => Kind::Read,
            true => Kind::Other,
        })
    }

    /// Runs a statement to its end, waiting for other processes, and returns all rows.
    ///
    /// # Errors
    /// The statement fails, or its result is too large.
    pub fn run(&self, sql: &str, parameters: &[Value]) -> Result<Table, Error> {
        let mut statement = self.db.prepare_cached(sql).map_err(|error| io(&error))?;
        let mut table = Table {
            columns: columns(&statement),
            rows: Vec::new(),
        };
        let mut bytes = 0;
        each_row(&mut statement, parameters, |row| {
            bytes += size(&row.values);
            table.rows.push(row);
            if bytes > MAX_RESULT_BYTES {
                Err(too_large())
            } else {
                Ok(true)
            }
        })?;
        Ok(table)
    }

    /// Runs a change like `run`, but without waiting for the disk if possible. If it returns true, the change may be
    /// acknowledged only after `sync`. [`Self::sync_commits`] must follow the last such change.
    pub fn run_unsynced(&self, sql: &str, parameters: &[Value]) -> (Result<Table, Error>, bool) {
        // Without a write-ahead log, more than one file must be synced. On a connection that a guest has changed, its own
        // settings apply.
        let unsynced = self.is_clean() && self.has_write_ahead_log() && self.defer_syncs();
        (self.run(sql, parameters), unsynced)
    }

    /// Begins a transaction for several changes, whose commit does not wait for the disk. Returns false if the changes must run one
    /// by one, each with [`Self::run_unsynced`].
    ///
    /// # Errors
    /// Another process holds SQLite's write lock for too long.
    pub fn begin_group(&self) -> Result<bool, Error> {
        if !self.is_clean() || !self.has_write_ahead_log() || !self.defer_syncs() {
            return Ok(false);
        }
        self.run("BEGIN IMMEDIATE", &[])?;
        Ok(true)
    }

    /// Commits the transaction of a group.
    ///
    /// # Errors
    /// The transaction has been rolled back, so that none of its changes is made.
    pub fn commit_group(&self) -> Result<(), Error> {
        let committed = self.run("COMMIT", &[]);
        if self.in_transaction() {
            self.run("ROLLBACK", &[])?;
        }
        committed.map(drop)
    }

    /// With a write-ahead log, FULL syncs the log at each commit and NORMAL only at checkpoints. The level is not changed for
    /// each change of a group, because SQLite compiles the pragma each time.
    fn defer_syncs(&self) -> bool {
        if !self.defers_syncs.get() {
            self.defers_syncs.set(self.set_synchronous("NORMAL").is_ok());
        }
        self.defers_syncs.get()
    }

    /// Makes this connection sync its commits itself again, as other handles expect.
    pub fn sync_commits(&self) {
        if self.defers_syncs.take() && self.set_synchronous("FULL").is_err() {
            self.hooks.tainted.store(true, Relaxed);
        }
    }

    fn set_synchronous(&self, level: &str) -> rusqlite::Result<()> {
        self.hooks.host_statement.store(true, Relaxed);
        let set = self.db.execute_batch(&format!("PRAGMA synchronous = {level}"));
        self.hooks.host_statement.store(false, Relaxed);
        set
    }

    fn has_write_ahead_log(&self) -> bool {
        if !self.write_ahead.get() {
            self.write_ahead.set(wal::is_used(&self.db));
        }
        self.write_ahead.get()
    }

    /// Makes all commits in the write-ahead log durable, whichever connection made them.
    ///
    /// # Errors
    /// The sync fails. The commits may be lost.
    pub fn sync(&self) -> Result<(), Error> {
        wal::sync(&self.db)
    }

    /// Makes the commits in the write-ahead log durable after a failed sync, and empties the log, if there is one.
    ///
    /// # Errors
    /// As for [`wal::empty`].
    pub fn empty_log(&self) -> Result<(), Error> {
        match self.has_write_ahead_log() {
            true => wal::empty(&self.db),
            false => Ok(()),
        }
    }

    /// Runs a read, passing its columns to `head` and each row to `row`, which returns whether to continue.
    ///
    /// # Errors
    /// The statement fails, or a row is too large.
    pub fn stream(
        &self,
        sql: &str,
        parameters: &[Value],
        head: impl FnOnce(Vec<String>),
        mut row: impl FnMut(RowResult) -> bool,
    ) -> Result<(), Error> {
        let mut statement = self.db.prepare_cached(sql).map_err(|error| io(&error))?;
        head(columns(&statement));
        each_row(&mut statement, parameters, |values| {
            if size(&values.values) > MAX_RESULT_BYTES {
                Err(too_large())
            } else {
                Ok(row(values))
            }
        })?;
        Ok(())
    }

    /// Returns a guard that interrupts the next statement on the blocking pool when dropped.
    pub fn abandonable(&self) -> Abandon {
        self.hooks.interrupt.abandonable()
    }

    /// Cleans up after a statement.
    ///
    /// # Errors
    /// SQLite refuses the busy handler, which does not happen in practice.
    pub fn finish_statement(&mut self) -> Result<(), Error> {
        self.hooks.interrupt.end();
        if self.hooks.lock_wait.was_replaced() {
            install_busy_handler(&mut self.db, &self.hooks).map_err(|error| io(&error))?;
        }
        Ok(())
    }

    pub fn in_transaction(&self) -> bool {
        !self.db.is_autocommit()
    }

    /// Whether the connection can return to the pool without a rollback or a close.
    pub fn is_clean(&self) -> bool {
        !self.in_transaction() && !self.is_tainted()
    }

    /// Whether a statement has changed the connection itself.
    fn is_tainted(&self) -> bool {
        // Database 0 is the main one and 1 holds temporary tables, so any other is attached.
        self.hooks.tainted.load(Relaxed) || self.db.db_name(2).is_ok()
    }

    pub fn changes(&self) -> u64 {
        self.db.changes()
    }

    pub fn last_insert_rowid(&self) -> i64 {
        self.db.last_insert_rowid()
    }

    pub fn set_last_insert_rowid(&self, rowid: i64) {
        // SAFETY: the handle belongs to an open connection, and only this thread uses it, because `self` is not `Sync`.
        unsafe { ffi::sqlite3_set_last_insert_rowid(self.db.handle(), rowid) };
    }

    /// Resets the connection for another handle. Returns false if it must be closed instead.
    pub fn reset(&mut self) -> bool {
        if self.in_transaction() && self.db.execute_batch("ROLLBACK").is_err() {
            return false;
        }
        self.set_last_insert_rowid(0);
        !self.is_tainted()
    }

    pub fn identity(&self) -> Option<Identity> {
        self.identity
    }

    /// Checks that the file is a database, and returns whether it is read-only.
    ///
    /// # Errors
    /// The file is not a database or cannot be read.
    pub fn check(&self) -> rusqlite::Result<bool> {
        self.db
            .query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))?;
        self.db.is_readonly("main")
    }
}

fn install_busy_handler(db: &mut rusqlite::Connection, hooks: &Arc<Hooks>) -> rusqlite::Result<()> {
    let hooks = hooks.clone();
    let mut since = Instant::now();
    db.busy_handler(Some(move |tries| {
        if tries == 0 {
            since = Instant::now();
        }
        hooks.lock_wait.retries(since, &hooks.interrupt)
    }))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic, reason = "a panic fails the test")]
mod tests {
    use super::super::lock_wait::BUSY_TIMEOUT;
    use super::*;

    fn memory() -> Connection {
        let connection = Connection::open(&Place::Memory, false).unwrap();
        connection
            .run("CREATE TABLE t (a INTEGER PRIMARY KEY, b TEXT)", &[])
            .unwrap();
        connection
    }

    fn kind(connection: &Connection, sql: &str) -> Option<Kind> {
        match connection.attempt(sql, &[]).unwrap() {
            Attempt::Done(_) => None,
            Attempt::Later(kind) => Some(kind),
            Attempt::Unknown => panic!("{sql}: unknown kind"),
        }
    }

    #[test]
    fn only_reads_run_as_quick_reads() {
        let connection = memory();
        for read in [
            "SELECT 1",
            " -- a\n /* b */ select b from t",
            "WITH x AS (SELECT 1) SELECT * FROM x",
            "VALUES (1)",
        ] {
            assert_eq!(kind(&connection, read), None, "{read}");
        }
        for write in [
            "INSERT INTO t VALUES (1, 'x')",
            "INSERT INTO t VALUES (2, 'x') RETURNING a",
            "WITH x AS (SELECT 3) INSERT INTO t SELECT *, 'x' FROM x",
            "DELETE FROM t",
            "BEGIN IMMEDIATE",
            "PRAGMA journal_mode = WAL",
            "VACUUM",
        ] {
            assert_eq!(kind(&connection, write), Some(Kind::Write), "{write}");
        }
        for other in ["BEGIN", "COMMIT", "PRAGMA foreign_keys", "EXPLAIN SELECT 1"] {
            assert_eq!(kind(&connection, other), Some(Kind::Other), "{other}");
        }
        // None of the attempts has done anything.
        assert_eq!(
            connection.run("SELECT count(*) FROM t", &[]).unwrap().rows[0].values,
            [Value::Integer(0)]
        );
        assert!(!connection.in_transaction());
    }

    #[test]
    fn a_slow_read_is_interrupted_and_can_run_to_its_end_later() {
        let connection = memory();
        let sql =
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000000) SELECT count(*) FROM n";
        let start = Instant::now();
        assert_eq!(kind(&connection, sql), Some(Kind::Read));
        assert!(start.elapsed() < QUICK_TIME * 25, "{:?}", start.elapsed());
        assert_eq!(
            connection.run(sql, &[]).unwrap().rows[0].values,
            [Value::Integer(3_000_000)]
        );
    }

    #[test]
    fn a_large_read_is_left_for_streaming() {
        let connection = memory();
        assert_eq!(kind(&connection, "SELECT zeroblob(1000000)"), Some(Kind::Read));
    }

    #[test]
    fn an_abandoned_statement_ends() {
        let connection = memory();
        let sql = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n";
        drop(connection.abandonable());
        assert!(matches!(connection.run(sql, &[]), Err(Error::Io(message)) if message.contains("interrupted")));
        let _next = connection.abandonable();
        assert!(connection.run("SELECT 1", &[]).is_ok());
    }

    #[test]
    fn a_transaction_does_not_survive_a_reset() {
        let mut connection = memory();
        connection.run("BEGIN IMMEDIATE", &[]).unwrap();
        connection.run("INSERT INTO t VALUES (7, 'x')", &[]).unwrap();
        assert!(connection.reset());
        assert!(!connection.in_transaction());
        assert_eq!(connection.last_insert_rowid(), 0);
        assert!(connection.run("SELECT * FROM t", &[]).unwrap().rows.is_empty());
    }

    #[test]
    fn a_changed_connection_is_not_reused() {
        for change in [
            "PRAGMA foreign_keys = ON",
            "PRAGMA synchronous = OFF",
            "PRAGMA busy_timeout = 10",
            "PRAGMA journal_mode = MEMORY",
            "CREATE TEMP TABLE x (a)",
            "ATTACH ':memory:' AS other",
            "ATTACH '' AS other",
        ] {
            let mut connection = memory();
            connection.run(change, &[]).unwrap();
            assert!(!connection.reset(), "{change}");
        }
        for harmless in [
            "PRAGMA journal_mode = WAL",
            "PRAGMA user_version = 3",
            "PRAGMA table_info(t)",
            "VACUUM",
        ] {
            let mut connection = memory();
            connection.run(harmless, &[]).unwrap();
            assert!(connection.reset(), "{harmless}");
        }
    }

    #[test]
    fn files_are_not_attached_unless_allowed() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("other.db").display().to_string();
        let forms = [
            (format!("ATTACH '{file}' AS other"), vec![]),
            (format!("ATTACH '{file}' || '' AS other"), vec![]),
            (format!("ATTACH (SELECT '{file}') AS other"), vec![]),
            ("ATTACH ?1 AS other".to_owned(), vec![Value::Text(file.clone())]),
            (format!("ATTACH 'file:{file}' AS other"), vec![]),
            ("ATTACH NULL AS other".to_owned(), vec![]),
            (format!("VACUUM INTO '{file}'"), vec![]),
            ("VACUUM INTO ?1".to_owned(), vec![Value::Text(file.clone())]),
        ];
        for (attach, parameters) in &forms {
            let mut connection = memory();
            let result = connection.run(attach, parameters);
            assert!(
                matches!(&result, Err(Error::Io(message)) if message.contains("authoriz")),
                "{attach}: {result:?}"
            );
            assert!(!connection.reset(), "{attach}: the connection is reused");
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "{attach}");
        }
        for (attach, parameters) in &forms[..4] {
            let mut connection = Connection::open(&Place::Memory, true).unwrap();
            connection.run(attach, parameters).unwrap();
            assert!(!connection.reset(), "{attach}: the connection is reused");
        }
    }

    #[test]
    fn a_guests_busy_timeout_applies() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place::File(dir.path().join("a.db"));
        let (one, mut other) = (
            Connection::open(&place, false).unwrap(),
            Connection::open(&place, false).unwrap(),
        );
        other.run("PRAGMA busy_timeout = 30", &[]).unwrap();
        other.finish_statement().unwrap();
        one.run("BEGIN IMMEDIATE", &[]).unwrap();
        let start = Instant::now();
        assert!(
            matches!(other.run("CREATE TABLE t (a)", &[]), Err(Error::Io(message)) if message == "database is locked")
        );
        let waited = start.elapsed();
        assert!(
            waited >= Duration::from_millis(30) && waited < BUSY_TIMEOUT,
            "{waited:?}"
        );
    }

    #[test]
    fn a_sync_needs_a_write_ahead_log() {
        let dir = tempfile::tempdir().unwrap();
        let connection = Connection::open(&Place::File(dir.path().join("a.db")), false).unwrap();
        let create = "CREATE TABLE t (a)";
        assert!(matches!(connection.run_unsynced(create, &[]), (Ok(_), false)));
        assert!(connection.sync().is_err());
        connection.run("PRAGMA journal_mode = WAL", &[]).unwrap();
        assert!(matches!(
            connection.run_unsynced("INSERT INTO t VALUES (1)", &[]),
            (Ok(_), true)
        ));
        connection.sync().unwrap();
        connection.sync_commits();
        let level = connection.run("PRAGMA synchronous", &[]).unwrap();
        assert!(
            matches!(level.rows[0].values[..], [Value::Integer(2)]),
            "the level is FULL again"
        );
        assert!(
            connection.is_clean(),
            "the host's own settings do not taint a connection"
        );
    }
}
