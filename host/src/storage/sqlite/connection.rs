//! A SQLite connection: runs statements with or without blocking, and tracks whether another handle may reuse it.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use rusqlite::hooks::{AuthAction, AuthContext, Authorization};
use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{CachedStatement, ErrorCode, OpenFlags, ToSql, ffi};

use crate::bindings::sqlite::{Error, RowResult, Value};
use crate::storage::answer::{Answer, MAX_RESULT_BYTES, Rows, size, too_large};
use crate::storage::place::Place;
use crate::storage::words::starts_with;

/// How long a read may occupy an executor thread before it is restarted on the blocking pool.
const QUICK_TIME: Duration = Duration::from_millis(2);
/// The maximum size of a quick read's result, in bytes. Larger results are streamed.
const QUICK_BYTES: usize = 256 << 10;
/// How long a statement waits for another process's lock, unless `PRAGMA busy_timeout` changes it. Same as in Spin.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a waiting statement retries the lock. SQLite's own handler backs off to 100 ms, which lets a process that writes
/// without a pause starve another one.
const BUSY_POLL: Duration = Duration::from_millis(1);
/// The number of instructions of SQLite's virtual machine between two calls of the progress handler.
const PROGRESS_EVERY: i32 = 1_000;
const CACHED_STATEMENTS: usize = 64;
/// The page cache of a connection, in KiB as a negative number (PRAGMA cache_size). Together with `max_pooled` it bounds the
/// memory of a database of any size. A memory map of the file would avoid copying pages, but each connection would have its
/// own: 65 MiB each with a million links.
const CACHE_SIZE: i64 = -2_000;

/// A complete result.
#[derive(Debug)]
pub struct Table {
    pub columns: Vec<String>,
    pub rows: Vec<RowResult>,
}

impl From<Table> for Answer {
    fn from(table: Table) -> Self {
        Self {
            columns: table.columns,
            rows: Rows::All(table.rows),
        }
    }
}

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
}

/// The state that is shared with SQLite's callbacks.
#[derive(Debug)]
struct Hooks {
    /// The deadline of the running quick read, in microseconds as returned by `now`, or 0 for none.
    deadline: AtomicU64,
    /// The busy timeout, in milliseconds.
    busy_timeout: AtomicU64,
    /// Whether `PRAGMA busy_timeout` was compiled, so that SQLite replaces our busy handler with its own.
    busy_replaced: AtomicBool,
    /// Whether a statement was compiled that changes the connection itself. No other handle may use it afterwards.
    tainted: AtomicBool,
    /// Whether the statement that is being compiled is the host's own.
    host_statement: AtomicBool,
    /// The number of the current or last statement on the blocking pool.
    running: AtomicU64,
    /// The number of the last abandoned statement on the blocking pool.
    abandoned: AtomicU64,
}

/// The time since the first call in microseconds, never 0.
fn now() -> u64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    u64::try_from(START.elapsed().as_micros()).unwrap_or(u64::MAX) + 1
}

impl Hooks {
    fn interrupts(&self) -> bool {
        let deadline = self.deadline.load(Relaxed);
        let running = self.running.load(Relaxed);
        (deadline != 0 && now() > deadline) || (running != 0 && self.abandoned.load(Relaxed) == running)
    }

    fn authorize(&self, action: &AuthAction<'_>, allow_attach_file: bool) -> Authorization {
        // SQLite does not report the file name of an ATTACH unless it is a string literal.
        let attached = match action {
            AuthAction::Attach { filename } => Some(Some(*filename)),
            AuthAction::Unknown { code, .. } if *code == ffi::SQLITE_ATTACH => Some(None),
            _ => None,
        };
        if let Some(filename) = attached {
            // VACUUM attaches a temporary database without a name and detaches it at the end.
            if filename != Some("") {
                self.tainted.store(true, Relaxed);
            }
            // As in Spin, only temporary and in-memory databases may be attached. VACUUM INTO attaches the file that it writes.
            let is_file = !matches!(filename, Some("" | ":memory:"));
            if is_file && !allow_attach_file {
                return Authorization::Deny;
            }
            return Authorization::Allow;
        }
        match action {
            AuthAction::Pragma {
                pragma_name,
                pragma_value: Some(value),
            } => {
                if pragma_name.eq_ignore_ascii_case("busy_timeout") {
                    self.busy_timeout.store(value.parse().unwrap_or(0), Relaxed);
                    self.busy_replaced.store(true, Relaxed);
                }
                if !self.host_statement.load(Relaxed) && changes_connection(pragma_name, value) {
                    self.tainted.store(true, Relaxed);
                }
            }
            AuthAction::CreateTempTable { .. }
            | AuthAction::CreateTempIndex { .. }
            | AuthAction::CreateTempTrigger { .. }
            | AuthAction::CreateTempView { .. } => self.tainted.store(true, Relaxed),
            _ => {}
        }
        Authorization::Allow
    }
}

/// Whether a pragma with a value changes the connection, unlike pragmas that change the file or only query it.
fn changes_connection(name: &str, value: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let about_the_file = [
        "application_id",
        "foreign_key_check",
        "foreign_key_list",
        "incremental_vacuum",
        "index_info",
        "index_list",
        "index_xinfo",
        "integrity_check",
        "optimize",
        "quick_check",
        "table_info",
        "table_list",
        "table_xinfo",
        "user_version",
        "wal_checkpoint",
    ];
    // WAL mode is a property of the file; the other journal modes are not.
    !(about_the_file.contains(&name.as_str()) || name == "journal_mode" && value.eq_ignore_ascii_case("wal"))
}

impl Connection {
    /// # Errors
    /// The file cannot be opened or created.
    pub fn open(place: &Place, allow_attach_file: bool) -> rusqlite::Result<Self> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let (mut db, identity) = match place {
            Place::Memory => (rusqlite::Connection::open_in_memory()?, None),
            Place::File(path) => (rusqlite::Connection::open_with_flags(path, flags)?, identity(place)),
        };
        let hooks = Arc::new(Hooks {
            deadline: AtomicU64::new(0),
            busy_timeout: AtomicU64::new(u64::try_from(BUSY_TIMEOUT.as_millis()).unwrap_or(u64::MAX)),
            busy_replaced: AtomicBool::new(false),
            tainted: AtomicBool::new(false),
            host_statement: AtomicBool::new(false),
            running: AtomicU64::new(0),
            abandoned: AtomicU64::new(0),
        });
        db.set_prepared_statement_cache_capacity(CACHED_STATEMENTS);
        db.pragma_update(None, "cache_size", CACHE_SIZE)?;
        let progress = hooks.clone();
        db.progress_handler(PROGRESS_EVERY, Some(move || progress.interrupts()))?;
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
        })
    }

    /// Runs a statement if it is a quick read. Otherwise it has no effect, and the statement must run on the blocking pool.
    ///
    /// # Errors
    /// The statement fails. Having to wait is not an error.
    pub fn attempt(&self, sql: &str, parameters: &[Value]) -> Result<Attempt, Error> {
        self.hooks.running.store(0, Relaxed);
        self.hooks.deadline.store(now() + micros(QUICK_TIME), Relaxed);
        let result = self.attempt_until_deadline(sql, parameters);
        self.hooks.deadline.store(0, Relaxed);
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
    /// acknowledged only after `sync`.
    pub fn run_unsynced(&self, sql: &str, parameters: &[Value]) -> (Result<Table, Error>, bool) {
        // Without a write-ahead log, more than one file must be synced. On a connection that a guest has changed, its own
        // settings apply.
        if !self.is_clean() || !self.has_write_ahead_log() || self.set_synchronous("NORMAL").is_err() {
            return (self.run(sql, parameters), false);
        }
        let result = self.run(sql, parameters);
        if self.set_synchronous("FULL").is_err() {
            // No other handle may use a connection that is left at NORMAL.
            self.hooks.tainted.store(true, Relaxed);
        }
        (result, true)
    }

    /// With a write-ahead log, FULL syncs the log at each commit and NORMAL only at checkpoints.
    fn set_synchronous(&self, level: &str) -> rusqlite::Result<()> {
        self.hooks.host_statement.store(true, Relaxed);
        let set = self.db.execute_batch(&format!("PRAGMA synchronous = {level}"));
        self.hooks.host_statement.store(false, Relaxed);
        set
    }

    fn has_write_ahead_log(&self) -> bool {
        if !self.write_ahead.get() {
            let mode = self
                .db
                .query_row("PRAGMA journal_mode", [], |row| row.get::<_, String>(0));
            self.write_ahead.set(mode.is_ok_and(|mode| mode == "wal"));
        }
        self.write_ahead.get()
    }

    /// Makes all commits in the write-ahead log durable, whichever connection made them.
    ///
    /// # Errors
    /// The sync fails. The commits may be lost.
    pub fn sync(&self) -> Result<(), Error> {
        self.with_log(|log, methods| match methods.xSync {
            // SAFETY: see `with_log`.
            Some(sync) => unsafe { sync(log, ffi::SQLITE_SYNC_NORMAL) },
            None => ffi::SQLITE_IOERR_FSYNC,
        })
    }

    /// Passes the file of the write-ahead log and SQLite's methods for it to `work`, which returns a result code.
    fn with_log(
        &self,
        work: impl FnOnce(*mut ffi::sqlite3_file, &ffi::sqlite3_io_methods) -> i32,
    ) -> Result<(), Error> {
        let mut file: *mut ffi::sqlite3_file = std::ptr::null_mut();
        // SAFETY: the handle belongs to an open connection that no other thread uses. The call returns a pointer to a file
        // object that lives as long as the connection and has no methods while the file is closed (sqlite3.h,
        // SQLITE_FCNTL_JOURNAL_POINTER).
        let (code, methods) = unsafe {
            let code = ffi::sqlite3_file_control(
                self.db.handle(),
                c"main".as_ptr(),
                ffi::SQLITE_FCNTL_JOURNAL_POINTER,
                (&raw mut file).cast(),
            );
            (code, file.as_ref().and_then(|file| file.pMethods.as_ref()))
        };
        let code = match methods {
            Some(methods) if code == ffi::SQLITE_OK => work(file, methods),
            _ => ffi::SQLITE_IOERR_FSYNC,
        };
        match code {
            ffi::SQLITE_OK => Ok(()),
            code => Err(io(&rusqlite::Error::SqliteFailure(ffi::Error::new(code), None))),
        }
    }

    /// Makes the commits in the write-ahead log durable after a failed sync, and empties the log.
    ///
    /// First it rewrites the log, because the kernel may consider its pages written, and syncs it. Then a checkpoint copies
    /// the log into the database. A checkpoint alone would leave a log with a hole next to a newer database while it runs.
    /// Waits for other connections as long as a statement does.
    ///
    /// # Errors
    /// Reading or writing fails, or other connections block the checkpoint.
    pub fn empty_log(&self) -> Result<(), Error> {
        if !self.has_write_ahead_log() {
            return Ok(());
        }
        // The first access opens the log. While this connection holds SQLite's write lock, no other process changes the log.
        self.run("BEGIN IMMEDIATE", &[])?;
        let rewritten = self.with_log(rewrite);
        self.run("ROLLBACK", &[])?;
        rewritten?;
        let table = self.run("PRAGMA wal_checkpoint(TRUNCATE)", &[])?;
        match table.rows.first().and_then(|row| row.values.first()) {
            // The truncation must be durable before new commits rely on it.
            Some(Value::Integer(0)) => self.sync(),
            _ => Err(Error::Io("database is locked".to_owned())),
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
        static NUMBERS: AtomicU64 = AtomicU64::new(1);
        let number = NUMBERS.fetch_add(1, Relaxed);
        self.hooks.running.store(number, Relaxed);
        Abandon {
            hooks: self.hooks.clone(),
            number,
        }
    }

    /// Cleans up after a statement.
    ///
    /// # Errors
    /// SQLite refuses the busy handler, which does not happen in practice.
    pub fn finish_statement(&mut self) -> Result<(), Error> {
        self.hooks.running.store(0, Relaxed);
        if self.hooks.busy_replaced.swap(false, Relaxed) {
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

/// Interrupts its statement when dropped, unless that has ended.
#[derive(Debug)]
pub struct Abandon {
    hooks: Arc<Hooks>,
    number: u64,
}

impl Drop for Abandon {
    fn drop(&mut self) {
        self.hooks.abandoned.store(self.number, Relaxed);
    }
}

fn install_busy_handler(db: &mut rusqlite::Connection, hooks: &Arc<Hooks>) -> rusqlite::Result<()> {
    let hooks = hooks.clone();
    let mut since = 0;
    db.busy_handler(Some(move |tries| {
        if tries == 0 {
            since = now();
        }
        // A quick read runs on an executor thread, which must not block.
        let is_quick_read = hooks.deadline.load(Relaxed) != 0;
        if is_quick_read || hooks.interrupts() || now() - since >= hooks.busy_timeout.load(Relaxed) * 1_000 {
            return false;
        }
        std::thread::sleep(BUSY_POLL);
        true
    }))
}

/// Overwrites a file with its own content and syncs it.
fn rewrite(file: *mut ffi::sqlite3_file, methods: &ffi::sqlite3_io_methods) -> i32 {
    let (Some(size_of), Some(read), Some(write), Some(sync)) =
        (methods.xFileSize, methods.xRead, methods.xWrite, methods.xSync)
    else {
        return ffi::SQLITE_IOERR_FSYNC;
    };
    let mut buffer = vec![0_u8; 64 << 10];
    let mut size = 0;
    // SAFETY: the file is open and used only by this thread, and `length` does not exceed the buffer.
    unsafe {
        let mut code = size_of(file, &raw mut size);
        let mut offset = 0;
        while code == ffi::SQLITE_OK && offset < size {
            let length = (size - offset).min(64 << 10) as i32;
            code = read(file, buffer.as_mut_ptr().cast(), length, offset);
            if code == ffi::SQLITE_OK {
                code = write(file, buffer.as_ptr().cast(), length, offset);
            }
            offset += i64::from(length);
        }
        match code {
            ffi::SQLITE_OK => sync(file, ffi::SQLITE_SYNC_NORMAL),
            code => code,
        }
    }
}

/// The device and inode of a file, which reveal that the file was replaced.
pub type Identity = (u64, u64);

pub fn identity(place: &Place) -> Option<Identity> {
    use std::os::unix::fs::MetadataExt as _;
    let Place::File(path) = place else { return None };
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Whether a statement starts like a query, so that running it again repeats nothing but reads.
///
/// `Statement::readonly` is not enough, because it is also true for BEGIN, COMMIT and ATTACH.
fn is_query(sql: &str) -> bool {
    starts_with(sql, &["SELECT", "WITH", "VALUES"])
}

/// Whether a statement certainly changes rows and does nothing else. WITH is excluded, because it may also start a query.
pub fn is_change(sql: &str) -> bool {
    starts_with(sql, &["INSERT", "UPDATE", "DELETE", "REPLACE"])
}

/// Whether a statement that is not read-only sets `sqlite3_changes`.
pub fn counts_changes(sql: &str) -> bool {
    is_change(sql) || starts_with(sql, &["WITH"])
}

fn would_wait(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked | ErrorCode::OperationInterrupted)
    )
}

fn columns(statement: &CachedStatement<'_>) -> Vec<String> {
    statement.column_names().map(str::to_owned).collect()
}

/// The reason why rows ended early.
enum Failure {
    Sqlite(rusqlite::Error),
    Other(Error),
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Sqlite(error) => io(&error),
            Failure::Other(error) => error,
        }
    }
}

/// Runs the statement and passes its rows to `visit` until that returns false. Returns whether all rows were visited.
fn each_row(
    statement: &mut CachedStatement<'_>,
    parameters: &[Value],
    mut visit: impl FnMut(RowResult) -> Result<bool, Error>,
) -> Result<bool, Failure> {
    let count = statement.column_count();
    let mut rows = statement.query(rusqlite::params_from_iter(parameters.iter().map(Parameter)))?;
    while let Some(row) = rows.next()? {
        let mut values = Vec::with_capacity(count);
        for column in 0..count {
            values.push(value(row.get_ref(column)?).map_err(Failure::Other)?);
        }
        if !visit(RowResult { values }).map_err(Failure::Other)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn value(value: ValueRef<'_>) -> Result<Value, Error> {
    Ok(match value {
        ValueRef::Null => Value::Null,
        ValueRef::Integer(integer) => Value::Integer(integer),
        ValueRef::Real(real) => Value::Real(real),
        ValueRef::Text(text) => {
            let text =
                std::str::from_utf8(text).map_err(|error| Error::Io(format!("a text value is not UTF-8: {error}")))?;
            Value::Text(text.to_owned())
        }
        ValueRef::Blob(blob) => Value::Blob(blob.to_vec()),
    })
}

struct Parameter<'a>(&'a Value);

impl ToSql for Parameter<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self.0 {
            Value::Null => ValueRef::Null,
            Value::Integer(integer) => ValueRef::Integer(*integer),
            Value::Real(real) => ValueRef::Real(*real),
            Value::Text(text) => ValueRef::Text(text.as_bytes()),
            Value::Blob(blob) => ValueRef::Blob(blob),
        }))
    }
}

/// Converts an error the way Spin does for all errors of SQLite.
pub fn io(error: &rusqlite::Error) -> Error {
    Error::Io(error.to_string())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic, reason = "a panic fails the test")]
mod tests {
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
    fn values_survive_a_round_trip() {
        let values = [
            Value::Integer(i64::MIN),
            Value::Real(0.5),
            Value::Text("ä".into()),
            Value::Blob(vec![0, 255]),
            Value::Null,
        ];
        let table = memory().run("SELECT ?, ?, ?, ?, ?", &values).unwrap();
        assert_eq!(table.rows[0].values, values);
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
        assert!(
            connection.is_clean(),
            "the host's own settings do not taint a connection"
        );
    }

    #[test]
    fn changes_are_recognized_by_their_first_word() {
        for change in [
            "INSERT INTO t VALUES (1)",
            " -- a\n /* b */ update t SET a = 1",
            "DELETE FROM t",
            "REPLACE INTO t VALUES (1)",
        ] {
            assert!(is_change(change), "{change}");
        }
        for other in [
            "WITH x AS (SELECT 1) INSERT INTO t SELECT * FROM x",
            "EXPLAIN INSERT INTO t VALUES (1)",
            "BEGIN IMMEDIATE",
            "PRAGMA x",
            "VACUUM",
            "",
        ] {
            assert!(!is_change(other), "{other}");
        }
    }
}
