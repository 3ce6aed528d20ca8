//! Handles, through which components run statements.

use std::sync::Arc;
use std::sync::Mutex as StdMutex;

use tokio::sync::{OwnedRwLockWriteGuard, RwLock, mpsc, oneshot};
use tokio::task::spawn_blocking;

use super::connection::{Attempt, Kind};
use super::database::{Database, Session, on_blocking_pool};
use super::group;
use crate::bindings::sqlite::{Error, Value};
use crate::storage::answer::{Answer, ROWS_AHEAD, RowStream, Rows, broken};
use crate::storage::place::Place;
use crate::storage::statement::is_change;

impl Database {
    /// Opens a handle for a component.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub async fn open(self: &Arc<Self>) -> Result<Handle, Error> {
        let mut session = Session {
            database: self.clone(),
            connection: None,
            write_lock: None,
            written: StdMutex::default(),
        };
        if self.place == Place::Memory {
            session.connection = Some(StdMutex::new(self.connection().await?));
        } else if !self.pool.is_current() {
            let connection = self.connection().await?;
            self.pool.adopt(connection);
        }
        Ok(Handle(Arc::new(RwLock::new(session))))
    }
}

/// A connection from a component's point of view. Its statements run one after the other.
///
/// Changes outside of a transaction share the session while they wait for the leader; other statements use it exclusively.
#[derive(Clone, Debug)]
pub struct Handle(pub(super) Arc<RwLock<Session>>);

impl Handle {
    /// Runs a statement. The rows of a long read are streamed.
    ///
    /// # Errors
    /// The statement fails, or the write lock is not free in time.
    pub async fn execute(&self, sql: String, parameters: Vec<Value>) -> Result<Answer, Error> {
        if is_change(&sql) {
            let session = self.0.clone().read_owned().await;
            if session.connection.is_none() {
                return Box::pin(group::change(session, sql, parameters)).await;
            }
        }
        let mut session = match self.session_now() {
            Some(session) => session,
            None => Box::pin(self.session()).await?,
        };
        let attempt = session.connection()?.attempt(&sql, &parameters);
        match attempt {
            // The other futures are boxed, because they are large and this one is created for every redirect.
            Ok(Attempt::Later(kind)) => Box::pin(execute_kind(session, sql, parameters, Some(kind))).await,
            Ok(Attempt::Unknown) => Box::pin(execute_kind(session, sql, parameters, None)).await,
            Ok(Attempt::Done(table)) => {
                session.finish_statement()?;
                Ok(table.into())
            }
            Err(error) => {
                session.finish_statement()?;
                Err(error)
            }
        }
    }

    /// The session with a connection; `None` if either has to be waited for.
    fn session_now(&self) -> Option<Owned> {
        let mut session = self.0.clone().try_write_owned().ok()?;
        if session.connection.is_none() {
            let connection = session.database.pool.take_idle()?;
            session.use_connection(connection);
        }
        Some(session)
    }

    /// The session with a connection.
    async fn session(&self) -> Result<Owned, Error> {
        with_connection(self.0.clone().write_owned().await).await
    }

    /// The row id of the last INSERT through this handle, or 0 before the first one.
    pub async fn last_insert_rowid(&self) -> Result<i64, Error> {
        Ok(self.0.write().await.written().last_insert_rowid)
    }

    /// The number of rows that the last INSERT, UPDATE or DELETE through this handle changed.
    pub async fn changes(&self) -> Result<u64, Error> {
        Ok(self.0.write().await.written().changes)
    }
}

type Owned = OwnedRwLockWriteGuard<Session>;

/// Executes a statement that is not a quick read. Its kind may be unknown.
async fn execute_kind(
    session: Owned,
    sql: String,
    parameters: Vec<Value>,
    kind: Option<Kind>,
) -> Result<Answer, Error> {
    let (session, kind) = match kind {
        Some(kind) => (session, kind),
        None => classify(session, sql.clone()).await?,
    };
    match kind {
        Kind::Read => read(session, sql, parameters).await,
        Kind::Write => {
            let session = with_write_lock(session).await?;
            run(session, sql, parameters, true).await
        }
        Kind::Other => run(session, sql, parameters, false).await,
    }
}

async fn classify(mut session: Owned, sql: String) -> Result<(Owned, Kind), Error> {
    on_blocking_pool(move || {
        let kind = session.connection()?.classify(&sql);
        if kind.is_err() {
            session.finish_statement()?;
        }
        kind.map(|kind| (session, kind))
    })
    .await?
}

async fn with_connection(mut session: Owned) -> Result<Owned, Error> {
    if session.connection.is_none() {
        let database = session.database.clone();
        session.use_connection(database.connection().await?);
    }
    Ok(session)
}

/// Acquires the write lock, unless the session's transaction already holds it.
async fn with_write_lock(mut session: Owned) -> Result<Owned, Error> {
    if session.write_lock.is_some() {
        return Ok(session);
    }
    // Many sessions may wait, and waiting needs no connection.
    session.release();
    let database = session.database.clone();
    let write_lock = database.write_lock.acquire().await?;
    let mut session = with_connection(session).await?;
    session.write_lock = Some(write_lock);
    Ok(session)
}

/// Runs a statement to its end, even if the caller goes away.
async fn run(mut session: Owned, sql: String, parameters: Vec<Value>, writes: bool) -> Result<Answer, Error> {
    on_blocking_pool(move || {
        let connection = session.connection()?;
        let result = if writes {
            session.write(&connection, &sql, || connection.run(&sql, &parameters))
        } else {
            connection.run(&sql, &parameters)
        };
        drop(connection);
        session.finish_statement()?;
        Ok(result?.into())
    })
    .await?
}

/// Runs a read until its end, or until the receiver of its rows is dropped.
async fn read(mut session: Owned, sql: String, parameters: Vec<Value>) -> Result<Answer, Error> {
    let (head_sender, head) = oneshot::channel();
    let (row_sender, rows) = mpsc::channel(ROWS_AHEAD);
    let (end_sender, end) = oneshot::channel();
    let abandon = session.connection()?.abandonable();
    spawn_blocking(move || {
        // Sending fails only if the receiver was dropped, which ends the statement without an error.
        let head = |columns| drop(head_sender.send(columns));
        let row = |row| row_sender.blocking_send(row).is_ok();
        let result = session
            .connection()
            .and_then(|connection| connection.stream(&sql, &parameters, head, row));
        let finished = session.finish_statement();
        drop(session);
        drop(end_sender.send(result.and(finished)));
    });
    match head.await {
        Ok(columns) => Ok(Answer {
            columns,
            rows: Rows::Stream(RowStream {
                rows,
                end,
                abandon: Box::new(abandon),
            }),
        }),
        // The statement did not compile; `end` holds the reason.
        Err(_) => Err(end.await.unwrap_or(Ok(())).err().unwrap_or_else(broken)),
    }
}
