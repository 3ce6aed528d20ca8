//! A SQLite database in a local file or on a libSQL server.

use std::sync::Arc;

use crate::bindings::sqlite::{Error, RowResult, Value};
use crate::storage::answer::Answer;
use crate::storage::{libsql, sqlite};

/// A database that components may open.
#[derive(Clone, Debug)]
pub enum Database {
    File(Arc<sqlite::Database>),
    Server(Arc<libsql::Server>),
}

/// A connection that a component has opened.
#[derive(Clone, Debug)]
pub enum Connection {
    File(sqlite::Handle),
    Server(libsql::Connection),
}

impl Database {
    /// Opens a connection. A connection to a server is established by its first statement.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub async fn open(&self) -> Result<Connection, Error> {
        Ok(match self {
            Self::File(database) => Connection::File(database.open().await?),
            Self::Server(server) => Connection::Server(server.open()),
        })
    }
}

impl Connection {
    /// The name of the database system in traces.
    pub fn backend(&self) -> String {
        match self {
            Self::File(_) => "SQLite".to_owned(),
            Self::Server(connection) => connection.server(),
        }
    }

    /// Runs a statement. The rows of a long read are streamed.
    ///
    /// # Errors
    /// The statement fails, or the server cannot be reached.
    pub async fn execute(&self, sql: String, parameters: Vec<Value>) -> Result<Answer, Error> {
        match self {
            Self::File(handle) => handle.execute(sql, parameters).await,
            // This future is large, and would make that of a local database as large.
            Self::Server(connection) => Box::pin(connection.execute(sql, parameters)).await,
        }
    }

    /// Runs a statement and collects its rows.
    ///
    /// # Errors
    /// As for [`Self::execute`]; also if the result is too large.
    pub async fn execute_all(
        &self,
        sql: String,
        parameters: Vec<Value>,
    ) -> Result<(Vec<String>, Vec<RowResult>), Error> {
        self.execute(sql, parameters).await?.collect().await
    }

    /// The row id of the last INSERT. As in Spin it is always 0 on a server; `RETURNING` works on both.
    ///
    /// # Errors
    /// The connection is closed.
    pub async fn last_insert_rowid(&self) -> Result<i64, Error> {
        match self {
            Self::File(handle) => handle.last_insert_rowid().await,
            Self::Server(_) => Ok(0),
        }
    }

    /// The number of rows that the last statement changed. As in Spin it is always 0 on a server; `RETURNING` works on both.
    ///
    /// # Errors
    /// The connection is closed.
    pub async fn changes(&self) -> Result<u64, Error> {
        match self {
            Self::File(handle) => handle.changes().await,
            Self::Server(_) => Ok(0),
        }
    }
}
