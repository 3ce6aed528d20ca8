//! A connection to the database, and the two ways in which the runtime runs a statement on it.
//!
//! The SDK reads rows from a stream: the task is suspended until they arrive, and the instance's other requests continue. A row
//! of a local file takes a few microseconds to read, so suspending and resuming would be most of the cost of a redirect. The
//! interface's synchronous `execute` returns the rows directly, and nothing else runs in the instance meanwhile. The SDK does
//! not wrap it, so the generated binding is called.

use crate::sdk::sqlite::wit::sqlite;
use crate::sdk::sqlite::{Error, RowResult, Value};

pub struct Connection(sqlite::Connection);

impl Connection {
    /// Opens the database "default".
    ///
    /// # Errors
    /// The runtime's message.
    pub async fn open() -> Result<Connection, String> {
        let opened = sqlite::Connection::open_async("default".to_owned()).await;
        opened.map(Connection).map_err(message)
    }

    /// All rows of a statement. They are read to the end, because a statement may still fail until then.
    ///
    /// # Errors
    /// The database's message.
    pub async fn rows(&self, statement: &str, values: &[Value]) -> Result<Vec<RowResult>, String> {
        let result = self.0.execute_async(statement.to_owned(), values.to_vec()).await;
        let (_, rows, end) = result.map_err(message)?;
        let rows = rows.collect().await;
        end.await.map(|()| rows).map_err(message)
    }

    /// The row of a statement that returns at most one. Once the row has arrived, there is no need to wait for the end.
    ///
    /// # Errors
    /// The database's message.
    pub async fn only_row(&self, statement: &str, values: &[Value]) -> Result<Vec<RowResult>, String> {
        let result = self.0.execute_async(statement.to_owned(), values.to_vec()).await;
        let (_, mut rows, end) = result.map_err(message)?;
        match rows.next().await {
            Some(row) => Ok(vec![row]),
            None => end.await.map(|()| vec![]).map_err(message),
        }
    }

    /// All rows of a quick statement that waits for no lock, from a local file. No time limit can interrupt it.
    ///
    /// # Errors
    /// The database's message.
    pub fn rows_in_place(&self, statement: &str, values: &[Value]) -> Result<Vec<RowResult>, String> {
        self.0
            .execute(statement, values)
            .map(|result| result.rows)
            .map_err(message)
    }
}

fn message(error: Error) -> String {
    match error {
        Error::NoSuchDatabase => "the runtime configuration has no database \"default\"".to_owned(),
        Error::AccessDenied => "spin.toml does not grant the database \"default\"".to_owned(),
        Error::InvalidConnection => "the connection is gone".to_owned(),
        Error::DatabaseFull => "the database is full".to_owned(),
        Error::Io(message) => message,
    }
}
