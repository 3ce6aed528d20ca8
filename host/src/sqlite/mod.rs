//! SQLite databases: a pool of connections for each, one writer at a time, and the interface `spin:sqlite`.
//!
//! What a component opens is a handle. It has a connection of the pool while it runs a statement, and keeps one only for a
//! transaction or after it changed the connection itself. So there are as many connections as statements that run at once, not
//! as many as handles, and what they hold in memory is used again at once.
//!
//! A quick read runs where it is called, without a change of thread; everything else runs on the blocking pool. Statements
//! that may write queue up, first come first served, before a lock of this process, so that of each process only one
//! connection ever waits for SQLite's own lock. A transaction holds that lock from its first write to its end. Changes
//! outside of one are run by whoever has the turn, in groups.

mod connection;
mod group;
mod host;

use std::sync::Mutex as StdMutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use anyhow::{Context as _, Result};
use rusqlite::ffi;
use tokio::sync::{Mutex, OwnedMutexGuard, OwnedRwLockWriteGuard, RwLock, mpsc, oneshot};
use tokio::task::spawn_blocking;

use self::connection::{Abandon, Attempt, Connection, Identity, Kind, Table, counts_changes, identity, io, is_change};
pub use self::connection::{MOST_BYTES, size, starts_with, too_large};
use self::group::{Queue, Rules};
use crate::bindings::sqlite::{Error, RowResult, Value};
use crate::config::Place;

/// How many unused connections a database keeps open: one for each thread that runs quick reads, one for a group of changes, one
/// for a transaction.
fn pooled() -> usize {
    static POOLED: LazyLock<usize> = LazyLock::new(|| std::thread::available_parallelism().map_or(2, usize::from) + 2);
    *POOLED
}

/// Rows that are read ahead of a component, and handed to it at a time.
pub const ROWS_AHEAD: usize = 64;
/// How long a writer waits while another one holds the lock and gets nowhere.
const WRITER_TIMEOUT: Duration = Duration::from_secs(5);

/// For the whole process, before anything else of SQLite: it shall not count what it allocates, for which it takes a lock each
/// time, and which nobody asks it for.
pub fn configure() {
    // SAFETY: main calls this before there is a second thread. The option takes one int.
    let code = unsafe { ffi::sqlite3_config(ffi::SQLITE_CONFIG_MEMSTATUS, 0) };
    if code != ffi::SQLITE_OK {
        tracing::debug!("SQLite counts its memory: {code}");
    }
}

/// A database that components may open.
pub struct Database {
    place: Place,
    allow_attach_file: bool,
    pool: StdMutex<Pool>,
    writer: Arc<Mutex<()>>,
    /// How often the lock was given: it tells a slow queue from a stuck one.
    turns: AtomicU64,
    /// How many wait for it, apart from the changes in the queue.
    waiters: AtomicU64,
    queue: Queue,
    rules: Rules,
}

/// The connections that nobody uses.
#[derive(Default)]
struct Pool {
    connections: Vec<Connection>,
    /// The file that they have opened.
    identity: Option<Identity>,
}

impl std::fmt::Debug for Database {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Database")
            .field("place", &self.place)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Connection")
    }
}

impl Database {
    pub fn new(place: Place, allow_attach_file: bool) -> Arc<Self> {
        Self::with_rules(place, allow_attach_file, Rules::default())
    }

    /// For what may be lost at a power failure: no change waits for the disk.
    pub fn relaxed(place: Place) -> Arc<Self> {
        let rules = Rules {
            sync: Box::new(|_| Ok(())),
            ..Rules::default()
        };
        Self::with_rules(place, false, rules)
    }

    fn with_rules(place: Place, allow_attach_file: bool, rules: Rules) -> Arc<Self> {
        Arc::new(Self {
            place,
            allow_attach_file,
            pool: StdMutex::default(),
            writer: Arc::default(),
            turns: AtomicU64::new(0),
            waiters: AtomicU64::new(0),
            queue: Queue::default(),
            rules,
        })
    }

    /// Creates the directory of the file and opens the database once, so that a fault shows at the start.
    ///
    /// # Errors
    /// Names the file.
    pub fn prepare(&self) -> Result<()> {
        let Place::File(path) = &self.place else { return Ok(()) };
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir).with_context(|| format!("Creating the directory {}", dir.display()))?;
        }
        let next = "it and its directory must be readable and writable for this user";
        let connection = Connection::open(&self.place, self.allow_attach_file)
            .with_context(|| format!("Opening the database {}: {next}", path.display()))?;
        let readonly = connection
            .check()
            .with_context(|| format!("Reading the database {}: {next}", path.display()))?;
        if readonly {
            tracing::warn!(
                "the database {} can only be read: writing to it will fail; {next}",
                path.display()
            );
        } else if let Err(error) = connection.empty_log() {
            // The process before this one may have ended because it could not make its commits durable (group.rs).
            if error != locked() {
                return Err(anyhow::anyhow!("{error}"))
                    .with_context(|| format!("Emptying the write-ahead log of the database {}", path.display()));
            }
            tracing::debug!("{self:?}: others use the write-ahead log, it is not emptied");
        }
        self.pool().identity = connection.identity();
        self.give_back(connection);
        Ok(())
    }

    /// A handle for a component.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub async fn open(self: &Arc<Self>) -> Result<Handle, Error> {
        let mut session = Session {
            database: self.clone(),
            connection: None,
            turn: None,
            written: StdMutex::default(),
        };
        if self.place == Place::Memory {
            session.connection = Some(StdMutex::new(self.connection().await?));
        } else if !self.is_current() {
            let connection = self.connection().await?;
            self.pool().identity = connection.identity();
            self.give_back(connection);
        }
        Ok(Handle(Arc::new(RwLock::new(session))))
    }

    /// Whether the file that is there now was opened before; forgets connections to another one.
    fn is_current(&self) -> bool {
        let identity = identity(&self.place);
        let mut pool = self.pool();
        let is_current = identity.is_some() && pool.identity == identity;
        if !is_current {
            pool.connections.clear();
        }
        is_current
    }

    /// A connection for a statement.
    ///
    /// # Errors
    /// The file cannot be opened.
    async fn connection(self: &Arc<Self>) -> Result<Connection, Error> {
        let unused = self.pool().connections.pop();
        match unused {
            Some(connection) => Ok(connection),
            None => {
                let database = self.clone();
                on_blocking_pool(move || database.new_connection()).await?
            }
        }
    }

    /// The same on a thread that may block.
    ///
    /// # Errors
    /// The file cannot be opened.
    fn connection_now(&self) -> Result<Connection, Error> {
        let unused = self.pool().connections.pop();
        unused.map_or_else(|| self.new_connection(), Ok)
    }

    fn new_connection(&self) -> Result<Connection, Error> {
        Connection::open(&self.place, self.allow_attach_file).map_err(|error| io(&error))
    }

    fn give_back(&self, mut connection: Connection) {
        // A database in memory belongs to one handle and ends with it.
        if self.place != Place::Memory && connection.reset() {
            let mut pool = self.pool();
            if pool.connections.len() < pooled() && pool.identity == connection.identity() {
                pool.connections.push(connection);
            }
        }
    }

    fn pool(&self) -> std::sync::MutexGuard<'_, Pool> {
        // Nothing that can panic happens under this lock.
        self.pool.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Waits for the turn to write.
    ///
    /// # Errors
    /// Nobody's turn has ended for a while: a component keeps a transaction open.
    async fn turn(&self) -> Result<OwnedMutexGuard<()>, Error> {
        loop {
            let turns = self.turns.load(Relaxed);
            let waiter = Waiter::new(&self.waiters);
            if let Ok(turn) = tokio::time::timeout(WRITER_TIMEOUT, self.writer.clone().lock_owned()).await {
                drop(waiter);
                self.turns.fetch_add(1, Relaxed);
                return Ok(turn);
            }
            if self.turns.load(Relaxed) == turns {
                return Err(locked());
            }
        }
    }
}

/// Counted as long as it waits for the turn.
struct Waiter<'a>(&'a AtomicU64);

impl<'a> Waiter<'a> {
    fn new(waiters: &'a AtomicU64) -> Self {
        waiters.fetch_add(1, Relaxed);
        Self(waiters)
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// SQLite's own words for it, which components know.
fn locked() -> Error {
    Error::Io("database is locked".to_owned())
}

fn broken() -> Error {
    Error::Io("internal runtime error".to_owned())
}

/// What a component takes for a connection. Statements of it run one after the other.
///
/// Changes outside of a transaction share the session while they wait for their turn; everything else has it alone.
#[derive(Clone, Debug)]
pub struct Handle(Arc<RwLock<Session>>);

#[derive(Debug)]
struct Session {
    database: Arc<Database>,
    /// There during a statement. Between statements: it is in a transaction, was changed in a way that needs care, or is a
    /// database in memory.
    connection: Option<StdMutex<Connection>>,
    /// Held from the first write of a transaction to its end.
    turn: Option<OwnedMutexGuard<()>>,
    written: StdMutex<Written>,
}

/// What SQLite keeps for a connection, and here belongs to a handle. (SQL's own function changes() is the connection's, and
/// so of use in a transaction only.)
#[derive(Clone, Copy, Debug, Default)]
struct Written {
    /// How many rows the last INSERT, UPDATE or DELETE has changed.
    changes: u64,
    /// Of the last INSERT; 0 before one.
    last_insert_rowid: i64,
}

/// The answer to a statement.
#[derive(Debug)]
pub struct Answer {
    pub columns: Vec<String>,
    pub rows: Rows,
}

#[derive(Debug)]
pub enum Rows {
    All(Vec<RowResult>),
    Stream(RowStream),
}

/// Rows that are still being read. Dropping it ends the statement.
#[derive(Debug)]
pub struct RowStream {
    pub rows: mpsc::Receiver<RowResult>,
    pub end: oneshot::Receiver<Result<(), Error>>,
    pub abandon: Producer,
}

/// What reads the rows: dropping it ends that.
#[derive(Debug)]
pub enum Producer {
    Statement(#[expect(dead_code, reason = "it is there to be dropped")] Abandon),
    Task(#[expect(dead_code, reason = "it is there to be dropped")] AbortOnDrop),
}

/// A task that ends when this is dropped.
#[derive(Debug)]
pub struct AbortOnDrop(pub tokio::task::AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Answer {
    /// Its columns and all of its rows.
    ///
    /// # Errors
    /// What ended the rows, and a result too large to hold.
    pub async fn collect(self) -> Result<(Vec<String>, Vec<RowResult>), Error> {
        let rows = match self.rows {
            Rows::All(rows) => rows,
            Rows::Stream(stream) => stream.collect().await?,
        };
        Ok((self.columns, rows))
    }
}

impl From<Table> for Answer {
    fn from(table: Table) -> Self {
        Self {
            columns: table.columns,
            rows: Rows::All(table.rows),
        }
    }
}

impl Handle {
    /// Runs a statement. The rows of a long read come as a stream.
    ///
    /// # Errors
    /// SQLite's.
    pub async fn execute(&self, sql: String, parameters: Vec<Value>) -> Result<Answer, Error> {
        if is_change(&sql) {
            let session = self.0.clone().read_owned().await;
            if session.connection.is_none() {
                return group::change(session, sql, parameters).await;
            }
        }
        let mut session = with_connection(self.0.clone().write_owned().await).await?;
        let attempt = session.connection()?.attempt(&sql, &parameters);
        let (session, kind) = match attempt {
            Ok(Attempt::Done(table)) => {
                session.settle()?;
                return Ok(table.into());
            }
            Ok(Attempt::Later(kind)) => (session, kind),
            Ok(Attempt::Unclear) => classify(session, sql.clone()).await?,
            Err(error) => {
                session.settle()?;
                return Err(error);
            }
        };
        match kind {
            Kind::Read => read(session, sql, parameters).await,
            Kind::Write => {
                let session = with_turn(session).await?;
                run(session, sql, parameters, true).await
            }
            Kind::Other => run(session, sql, parameters, false).await,
        }
    }

    /// The row id of the last INSERT through this handle; 0 before one.
    pub async fn last_insert_rowid(&self) -> Result<i64, Error> {
        Ok(self.0.write().await.written().last_insert_rowid)
    }

    /// How many rows the last INSERT, UPDATE or DELETE through this handle has changed.
    pub async fn changes(&self) -> Result<u64, Error> {
        Ok(self.0.write().await.written().changes)
    }
}

impl Session {
    /// Never waits: a statement has the session for itself.
    fn connection(&self) -> Result<std::sync::MutexGuard<'_, Connection>, Error> {
        let connection = self.connection.as_ref().ok_or(Error::InvalidConnection)?;
        // Who panicked while he had it was not in the middle of anything: SQLite's statements end when dropped.
        Ok(connection.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    fn written(&self) -> std::sync::MutexGuard<'_, Written> {
        // Nothing that can panic happens under this lock.
        self.written.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Runs a statement that may change the database, as if this handle had always had the connection.
    fn write<T>(&self, connection: &Connection, sql: &str, run: impl FnOnce() -> T) -> T {
        connection.set_last_insert_rowid(self.written().last_insert_rowid);
        // What does not compile leaves SQLite's count as it was.
        let counts = counts_changes(sql) && connection.classify(sql).is_ok();
        let result = run();
        let mut written = self.written();
        written.last_insert_rowid = connection.last_insert_rowid();
        if counts {
            written.changes = connection.changes();
        }
        result
    }

    /// After a statement.
    fn settle(&mut self) -> Result<(), Error> {
        let mut connection = self.connection()?;
        let settled = connection.settle();
        let in_transaction = connection.in_transaction();
        drop(connection);
        if !in_transaction {
            self.turn = None;
        }
        self.release();
        settled
    }

    /// Gives the connection back, unless this handle needs that very one.
    fn release(&mut self) {
        let is_own = self.database.place == Place::Memory || !self.connection().is_ok_and(|own| own.is_quick_to_end());
        if !is_own && let Some(connection) = self.connection.take() {
            self.database.give_back(
                connection
                    .into_inner()
                    .unwrap_or_else(std::sync::PoisonError::into_inner),
            );
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let Some(connection) = self.connection.take() else {
            return;
        };
        let connection = connection
            .into_inner()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let quick = connection.is_quick_to_end();
        let (database, turn) = (self.database.clone(), self.turn.take());
        let end = move || {
            database.give_back(connection);
            drop(turn);
        };
        // Rolling back and closing may write to the disk.
        if quick {
            end();
        } else if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn_blocking(end);
        } else {
            end();
        }
    }
}

type Owned = OwnedRwLockWriteGuard<Session>;

async fn classify(mut session: Owned, sql: String) -> Result<(Owned, Kind), Error> {
    on_blocking_pool(move || {
        let kind = session.connection()?.classify(&sql);
        if kind.is_err() {
            session.settle()?;
        }
        kind.map(|kind| (session, kind))
    })
    .await?
}

async fn with_connection(mut session: Owned) -> Result<Owned, Error> {
    if session.connection.is_none() {
        let database = session.database.clone();
        let connection = database.connection().await?;
        // For SQL's own function last_insert_rowid().
        connection.set_last_insert_rowid(session.written().last_insert_rowid);
        session.connection = Some(StdMutex::new(connection));
    }
    Ok(session)
}

/// Waits for the turn to write, unless the session's transaction has it already.
async fn with_turn(mut session: Owned) -> Result<Owned, Error> {
    if session.turn.is_some() {
        return Ok(session);
    }
    // Many may wait.
    session.release();
    let database = session.database.clone();
    let turn = database.turn().await?;
    let mut session = with_connection(session).await?;
    session.turn = Some(turn);
    Ok(session)
}

/// Runs a statement to its end, whether somebody waits for it or not.
async fn run(mut session: Owned, sql: String, parameters: Vec<Value>, writes: bool) -> Result<Answer, Error> {
    on_blocking_pool(move || {
        let connection = session.connection()?;
        let result = if writes {
            session.write(&connection, &sql, || connection.run(&sql, &parameters))
        } else {
            connection.run(&sql, &parameters)
        };
        drop(connection);
        session.settle()?;
        Ok(result?.into())
    })
    .await?
}

/// Runs a read for as long as somebody wants its rows.
async fn read(mut session: Owned, sql: String, parameters: Vec<Value>) -> Result<Answer, Error> {
    let (head_sender, head) = oneshot::channel();
    let (row_sender, rows) = mpsc::channel(ROWS_AHEAD);
    let (end_sender, end) = oneshot::channel();
    let abandon = session.connection()?.abandonable();
    spawn_blocking(move || {
        // That nobody receives any more is what ends the statement; it needs no error.
        let head = |columns| drop(head_sender.send(columns));
        let row = |row| row_sender.blocking_send(row).is_ok();
        let result = session
            .connection()
            .and_then(|connection| connection.stream(&sql, &parameters, head, row));
        let settled = session.settle();
        drop(session);
        drop(end_sender.send(result.and(settled)));
    });
    match head.await {
        Ok(columns) => Ok(Answer {
            columns,
            rows: Rows::Stream(RowStream {
                rows,
                end,
                abandon: Producer::Statement(abandon),
            }),
        }),
        // It did not compile; the end says why.
        Err(_) => Err(end.await.unwrap_or(Ok(())).err().unwrap_or_else(broken)),
    }
}

impl RowStream {
    async fn collect(mut self) -> Result<Vec<RowResult>, Error> {
        let (mut rows, mut bytes) = (Vec::new(), 0);
        while let Some(row) = self.rows.recv().await {
            bytes += size(&row.values);
            if bytes > MOST_BYTES {
                return Err(too_large());
            }
            rows.push(row);
        }
        self.end.await.map_err(|_| broken())??;
        Ok(rows)
    }
}

/// Runs on a thread that may block.
async fn on_blocking_pool<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
    spawn_blocking(work)
        .await
        .map_err(|error| Error::Io(format!("internal runtime error: {error}")))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "what goes wrong here is a failed test")]
mod power;
#[cfg(test)]
mod tests;
