//! A database, and the session behind a component's handle.

use std::sync::{Arc, Mutex};

use anyhow::{Context as _, Result};
use tokio::sync::{OwnedRwLockReadGuard, oneshot};
use tokio::task::spawn_blocking;

use super::connection::Connection;
use super::error::{io, locked};
use super::pool::Pool;
use super::queue::Queue;
use super::rules::Rules;
use super::write_lock::{WriteGuard, WriteLock};
use crate::bindings::sqlite::{Error, Value};
use crate::storage::answer::Answer;
use crate::storage::place::Place;
use crate::storage::statement::counts_changes;

/// A database that components may open.
pub struct Database {
    pub place: Place,
    pub pool: Pool,
    pub write_lock: WriteLock,
    pub queue: Queue<Change>,
    pub rules: Rules,
}

impl std::fmt::Debug for Database {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Database")
            .field("place", &self.place)
            .finish_non_exhaustive()
    }
}

impl Database {
    pub fn new(place: Place, allow_attach_file: bool) -> Arc<Self> {
        Self::with_rules(place, allow_attach_file, Rules::default())
    }

    /// A database whose latest changes may be lost at a power failure, because no change waits for the disk.
    pub fn relaxed(place: Place) -> Arc<Self> {
        let rules = Rules {
            sync: Box::new(|_| Ok(())),
            ..Rules::default()
        };
        Self::with_rules(place, false, rules)
    }

    pub fn with_rules(place: Place, allow_attach_file: bool, rules: Rules) -> Arc<Self> {
        Arc::new(Self {
            pool: Pool::new(place.clone(), allow_attach_file),
            place,
            write_lock: WriteLock::default(),
            queue: Queue::default(),
            rules,
        })
    }

    /// Creates the directory of the file and opens the database once, so that a problem is reported at startup.
    ///
    /// # Errors
    /// The database cannot be used. The error names the file.
    pub fn prepare(&self) -> Result<()> {
        let Place::File(path) = &self.place else { return Ok(()) };
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir).with_context(|| format!("Creating the directory {}", dir.display()))?;
        }
        let next = "the file and its directory must be readable and writable for this user";
        let connection = self
            .pool
            .open()
            .with_context(|| format!("Opening the database {}: {next}", path.display()))?;
        let readonly = connection
            .check()
            .with_context(|| format!("Reading the database {}: {next}", path.display()))?;
        if readonly {
            tracing::warn!(
                "the database {} is read-only, so writing to it will fail; {next}",
                path.display()
            );
        } else if let Err(error) = connection.empty_log() {
            // The previous process may have exited because it could not make its commits durable (group.rs).
            if error != locked() {
                return Err(anyhow::anyhow!("{error}"))
                    .with_context(|| format!("Emptying the write-ahead log of the database {}", path.display()));
            }
            tracing::debug!("{self:?}: the write-ahead log is in use by another process and was not emptied");
        }
        self.pool.adopt(connection);
        Ok(())
    }

    /// Takes a connection from the pool, or opens one without blocking.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub async fn connection(self: &Arc<Self>) -> Result<Connection, Error> {
        match self.pool.take_idle() {
            Some(connection) => Ok(connection),
            None => {
                let database = self.clone();
                on_blocking_pool(move || database.pool.open().map_err(|error| io(&error))).await?
            }
        }
    }
}

/// The state of a component's handle.
#[derive(Debug)]
pub struct Session {
    pub database: Arc<Database>,
    /// The connection during a statement. Between statements it is kept only if it is in a transaction, was changed by a
    /// statement, or is an in-memory database.
    pub connection: Option<Mutex<Connection>>,
    /// The write lock, held from the first write of a transaction to its end.
    pub write_lock: Option<WriteGuard>,
    pub written: Mutex<Written>,
}

/// Values that SQLite keeps for each connection, kept here for each handle. The SQL function changes() returns the value of
/// the connection, so it is reliable only within a transaction.
#[derive(Clone, Copy, Debug, Default)]
pub struct Written {
    /// The number of rows that the last INSERT, UPDATE or DELETE changed.
    pub changes: u64,
    /// The row id of the last INSERT, or 0 before the first one.
    pub last_insert_rowid: i64,
}

/// A statement that changes rows outside of a transaction.
#[derive(Debug)]
pub struct Change {
    /// The session, shared with other changes of this handle. Other statements wait until it is released.
    pub session: OwnedRwLockReadGuard<Session>,
    pub sql: String,
    pub parameters: Vec<Value>,
    pub answer: oneshot::Sender<Result<Answer, Error>>,
}

impl Session {
    pub fn use_connection(&mut self, connection: Connection) {
        // For the SQL function last_insert_rowid().
        connection.set_last_insert_rowid(self.written().last_insert_rowid);
        self.connection = Some(Mutex::new(connection));
    }

    /// Locks the connection. Never blocks, because a statement has exclusive use of the session.
    pub fn connection(&self) -> Result<std::sync::MutexGuard<'_, Connection>, Error> {
        let connection = self.connection.as_ref().ok_or(Error::InvalidConnection)?;
        // A panic leaves no statement half done, because statements end when dropped.
        Ok(connection.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    pub fn written(&self) -> std::sync::MutexGuard<'_, Written> {
        // Nothing that can panic happens under this lock.
        self.written.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Runs a statement that may change the database, with the handle's row id and change count in place.
    pub fn write<T>(&self, connection: &Connection, sql: &str, run: impl FnOnce() -> T) -> T {
        connection.set_last_insert_rowid(self.written().last_insert_rowid);
        // A statement that does not compile leaves SQLite's count unchanged.
        let counts = counts_changes(sql) && connection.classify(sql).is_ok();
        let result = run();
        let mut written = self.written();
        written.last_insert_rowid = connection.last_insert_rowid();
        if counts {
            written.changes = connection.changes();
        }
        result
    }

    /// Cleans up after a statement.
    pub fn finish_statement(&mut self) -> Result<(), Error> {
        let mut connection = self.connection()?;
        let finished = connection.finish_statement();
        let in_transaction = connection.in_transaction();
        drop(connection);
        if !in_transaction {
            self.write_lock = None;
        }
        self.release();
        finished
    }

    /// Returns the connection to the pool, unless this handle must keep it.
    pub fn release(&mut self) {
        let must_keep =
            self.database.place == Place::Memory || !self.connection().is_ok_and(|connection| connection.is_clean());
        if !must_keep && let Some(connection) = self.connection.take() {
            self.database.pool.give_back(
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
        let is_clean = connection.is_clean();
        let (database, write_lock) = (self.database.clone(), self.write_lock.take());
        let end = move || {
            database.pool.give_back(connection);
            drop(write_lock);
        };
        // Rolling back or closing an unclean connection may write to the disk.
        if is_clean {
            end();
        } else if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn_blocking(end);
        } else {
            end();
        }
    }
}

/// Runs `work` on a thread that may block.
pub async fn on_blocking_pool<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
    spawn_blocking(work)
        .await
        .map_err(|error| Error::Io(format!("internal runtime error: {error}")))
}
