//! A connection to the database, and the two ways in which the runtime runs a statement on it.
//!
//! Rows as the SDK gets them come through a stream: the request that asks leaves its instance until they are there, and
//! others go on in it meanwhile. For a row of a local file, which takes the database some microseconds, leaving and coming
//! back are most of what a redirect costs. `execute` of the same interface gives the rows as its result, in place; while it
//! runs, nothing else does in the instance. The SDK has no word of its own for it, only the generated one.

use spin_sdk::sqlite::wit::sqlite;
use spin_sdk::sqlite::{Error, RowResult, Value};

pub struct Connection(sqlite::Connection);

impl Connection {
    /// # Errors
    /// The runtime's words for why there is none.
    pub async fn open() -> Result<Connection, String> {
        let opened = sqlite::Connection::open_async("default".to_owned()).await;
        opened.map(Connection).map_err(message)
    }

    /// All rows of a statement. They are taken to the last: a statement is done, and says whether it failed, only then.
    ///
    /// # Errors
    /// The database's words.
    pub async fn rows(&self, statement: &str, values: &[Value]) -> Result<Vec<RowResult>, String> {
        let result = self.0.execute_async(statement.to_owned(), values.to_vec()).await;
        let (_, rows, end) = result.map_err(message)?;
        let rows = rows.collect().await;
        end.await.map(|()| rows).map_err(message)
    }

    /// The only row there can be, if there is one. Once it is here, there is no need to hear that it was the last.
    ///
    /// # Errors
    /// The database's words.
    pub async fn only_row(&self, statement: &str, values: &[Value]) -> Result<Vec<RowResult>, String> {
        let result = self.0.execute_async(statement.to_owned(), values.to_vec()).await;
        let (_, mut rows, end) = result.map_err(message)?;
        match rows.next().await {
            Some(row) => Ok(vec![row]),
            None => end.await.map(|()| vec![]).map_err(message),
        }
    }

    /// All rows of a quick statement that waits for nobody, from a local file: no time limit can end it.
    ///
    /// # Errors
    /// The database's words.
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
