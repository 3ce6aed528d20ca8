//! SQLite databases: a pool of connections for each, one writer at a time, and the interface `spin:sqlite`.
//!
//! A quick read runs where it is called, without a change of thread; everything else runs on the blocking pool. Statements
//! that may write queue up, first come first served, before a lock of this process, so that of each process only one
//! connection ever waits for SQLite's own lock. A transaction holds that lock from its first write to its end. Changes
//! outside of one are run by whoever has the turn, in groups.

mod connection;
mod group;
mod host;

use std::sync::Arc;
use std::sync::Mutex as StdMutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::sync::{Mutex, OwnedMutexGuard, OwnedRwLockWriteGuard, RwLock, mpsc, oneshot};
use tokio::task::spawn_blocking;

use self::connection::{Abandon, Attempt, Connection, Kind, Table, io, is_change};
pub use self::connection::{MOST_BYTES, size, starts_with, too_large};
use self::group::{Queue, Rules};
use crate::bindings::sqlite::{Error, RowResult, Value};
use crate::config::Place;

/// How many unused connections a database keeps open.
const POOLED: usize = 32;
/// Rows that are read ahead of a component, and handed to it at a time.
pub const ROWS_AHEAD: usize = 64;
/// How long a writer waits while another one holds the lock and gets nowhere.
const WRITER_TIMEOUT: Duration = Duration::from_secs(5);

/// A database that components may open.
pub struct Database {
    place: Place,
    allow_attach_file: bool,
    idle: StdMutex<Vec<Connection>>,
    writer: Arc<Mutex<()>>,
    /// How often the lock was given: it tells a slow queue from a stuck one.
    turns: AtomicU64,
    /// How many wait for it, apart from the changes in the queue.
    waiters: AtomicU64,
    queue: Queue,
    rules: Rules,
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
            idle: StdMutex::default(),
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
        self.give_back(connection);
        Ok(())
    }

    /// A handle with a connection of its own.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub async fn open(self: &Arc<Self>) -> Result<Handle, Error> {
        let connection = match self.take() {
            Some(connection) => connection,
            None => {
                let database = self.clone();
                let open = move || Connection::open(&database.place, database.allow_attach_file);
                on_blocking_pool(open).await?.map_err(|error| io(&error))?
            }
        };
        let session = Session {
            database: self.clone(),
            connection: Some(StdMutex::new(connection)),
            turn: None,
            plain: true,
            wrote: AtomicBool::new(false),
        };
        Ok(Handle(Arc::new(RwLock::new(session))))
    }

    fn take(&self) -> Option<Connection> {
        loop {
            let connection = self.idle().pop()?;
            if connection.is_current(&self.place) {
                return Some(connection);
            }
        }
    }

    fn give_back(&self, mut connection: Connection) {
        // A database in memory belongs to one handle and ends with it.
        if self.place != Place::Memory && connection.reset() {
            let mut idle = self.idle();
            if idle.len() < POOLED {
                idle.push(connection);
            }
        }
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Connection>> {
        // Nothing that can panic happens under this lock.
        self.idle.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
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

/// A connection that a component has opened. Statements on it run one after the other.
///
/// Changes outside of a transaction share the session while they wait for their turn; everything else has it alone.
#[derive(Clone, Debug)]
pub struct Handle(Arc<RwLock<Session>>);

#[derive(Debug)]
struct Session {
    database: Arc<Database>,
    /// Taken out only when the session ends.
    connection: Option<StdMutex<Connection>>,
    /// Held from the first write of a transaction to its end.
    turn: Option<OwnedMutexGuard<()>>,
    /// In no transaction, and not changed in a way that needs care.
    plain: bool,
    /// Whether this handle has written, and not only one that had the connection before it.
    wrote: AtomicBool,
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
            if session.plain {
                return group::change(session, sql, parameters).await;
            }
        }
        let session = self.0.clone().write_owned().await;
        let attempt = session.connection()?.attempt(&sql, &parameters)?;
        let (session, kind) = match attempt {
            Attempt::Done(table) => return Ok(table.into()),
            Attempt::Later(kind) => (session, kind),
            Attempt::Unclear => classify(session, sql.clone()).await?,
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
        Ok(self.0.write().await.connection()?.last_insert_rowid())
    }

    /// How many rows the last INSERT, UPDATE or DELETE through this handle has changed.
    pub async fn changes(&self) -> Result<u64, Error> {
        let session = self.0.write().await;
        Ok(if session.wrote.load(Relaxed) {
            session.connection()?.changes()
        } else {
            0
        })
    }
}

impl Session {
    /// Never waits: only one at a time runs the changes that share the session.
    fn connection(&self) -> Result<std::sync::MutexGuard<'_, Connection>, Error> {
        let connection = self.connection.as_ref().ok_or(Error::InvalidConnection)?;
        // Who panicked while he had it was not in the middle of anything: SQLite's statements end when dropped.
        Ok(connection.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    /// After a statement on the blocking pool.
    fn settle(&mut self) -> Result<(), Error> {
        let mut connection = self.connection()?;
        let settled = connection.settle();
        let (in_transaction, plain) = (connection.in_transaction(), connection.is_quick_to_end());
        drop(connection);
        self.plain = plain;
        if !in_transaction {
            self.turn = None;
        }
        settled
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

async fn classify(session: Owned, sql: String) -> Result<(Owned, Kind), Error> {
    on_blocking_pool(move || {
        let kind = session.connection()?.classify(&sql)?;
        Ok((session, kind))
    })
    .await?
}

/// Waits for the turn to write, unless the session's transaction has it already.
async fn with_turn(mut session: Owned) -> Result<Owned, Error> {
    if session.turn.is_none() {
        let database = session.database.clone();
        let turn = database.turn().await?;
        session.turn = Some(turn);
    }
    Ok(session)
}

/// Runs a statement to its end, whether somebody waits for it or not.
async fn run(mut session: Owned, sql: String, parameters: Vec<Value>, writes: bool) -> Result<Answer, Error> {
    on_blocking_pool(move || {
        session.wrote.fetch_or(writes, Relaxed);
        let result = session.connection()?.run(&sql, &parameters);
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
