//! A SQLite database, wherever it is: in a file of this machine, or on a libSQL server.

use std::sync::Arc;

use crate::bindings::sqlite::{Error, RowResult, Value};
use crate::{libsql, sqlite};

pub use crate::sqlite::{Answer, Rows};

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
    /// A connection; one to a server is made by its first statement.
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
    /// Where the database is, as traces show it.
    pub fn backend(&self) -> String {
        match self {
            Self::File(_) => "SQLite".to_owned(),
            Self::Server(connection) => connection.server(),
        }
    }

    /// Runs a statement. The rows of a long read come as a stream.
    ///
    /// # Errors
    /// The database's, and those on the way to it.
    pub async fn execute(&self, sql: String, parameters: Vec<Value>) -> Result<Answer, Error> {
        match self {
            Self::File(handle) => handle.execute(sql, parameters).await,
            Self::Server(connection) => connection.execute(sql, parameters).await,
        }
    }

    /// Runs a statement and collects its rows.
    ///
    /// # Errors
    /// As [`Self::execute`], and a result too large to hold.
    pub async fn execute_all(
        &self,
        sql: String,
        parameters: Vec<Value>,
    ) -> Result<(Vec<String>, Vec<RowResult>), Error> {
        self.execute(sql, parameters).await?.collect().await
    }

    /// The row id of the last INSERT; always 0 on a server, as in Spin: `RETURNING` tells it everywhere.
    ///
    /// # Errors
    /// The connection has ended.
    pub async fn last_insert_rowid(&self) -> Result<i64, Error> {
        match self {
            Self::File(handle) => handle.last_insert_rowid().await,
            Self::Server(_) => Ok(0),
        }
    }

    /// How many rows the last statement has changed; always 0 on a server, as in Spin: `RETURNING` tells it everywhere.
    ///
    /// # Errors
    /// The connection has ended.
    pub async fn changes(&self) -> Result<u64, Error> {
        match self {
            Self::File(handle) => handle.changes().await,
            Self::Server(_) => Ok(0),
        }
    }
}
