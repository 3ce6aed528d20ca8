//! The databases that a copy reads and writes: SQLite files and libSQL servers.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use links_store::sql::WRITE_AHEAD;
use nix::unistd::{User, geteuid};
use rusqlite::types::{Value, ValueRef};
use rusqlite::{Connection, OpenFlags, params_from_iter};

use super::choice::Database;
use crate::database;
use crate::libsql::{Cell, Client};
use links_config::arguments::DatabaseArg;

/// The time limit of one statement on a libSQL server.
const LIMIT: Duration = Duration::from_secs(60);

pub trait Endpoint {
    /// Executes one statement and returns its rows.
    ///
    /// # Errors
    /// The statement fails. The error ends with the database's own message, which [`links_platform::database::error`]
    /// classifies.
    fn rows(&mut self, sql: &str, arguments: &[Cell]) -> anyhow::Result<Vec<Vec<Cell>>>;
}

impl Endpoint for Client {
    fn rows(&mut self, sql: &str, arguments: &[Cell]) -> anyhow::Result<Vec<Vec<Cell>>> {
        Ok(Client::rows(self, sql, arguments)?)
    }
}

impl Endpoint for Connection {
    fn rows(&mut self, sql: &str, arguments: &[Cell]) -> anyhow::Result<Vec<Vec<Cell>>> {
        let mut statement = self.prepare(sql)?;
        let columns = statement.column_count();
        let mut rows = statement.query(params_from_iter(arguments.iter().map(value)))?;
        let mut all = vec![];
        while let Some(row) = rows.next()? {
            let cells: anyhow::Result<Vec<_>> = (0..columns).map(|index| cell(row.get_ref(index)?)).collect();
            all.push(cells?);
        }
        Ok(all)
    }
}

fn value(cell: &Cell) -> Value {
    match cell {
        Cell::Null => Value::Null,
        Cell::Integer(integer) => Value::Integer(*integer),
        Cell::Text(text) => Value::Text(text.clone()),
    }
}

fn cell(value: ValueRef<'_>) -> anyhow::Result<Cell> {
    Ok(match value {
        ValueRef::Null => Cell::Null,
        ValueRef::Integer(integer) => Cell::Integer(integer),
        other => Cell::Text(other.as_str()?.to_owned()),
    })
}

/// Opens a database for reading.
///
/// # Errors
/// The file is missing, or is not a database.
pub fn open(database: &Database) -> anyhow::Result<Box<dyn Endpoint>> {
    Ok(match &database.place {
        DatabaseArg::Sqlite(path) => Box::new(database::open(path).with_context(|| opening(path))?),
        DatabaseArg::LibSql(url) => Box::new(Client::new(url, &database.token, LIMIT)),
    })
}

/// Opens a database for writing, and creates the file if it is missing.
///
/// # Errors
/// The file cannot be created, or is not a database.
pub fn open_or_make(database: &Database) -> anyhow::Result<Box<dyn Endpoint>> {
    match &database.place {
        DatabaseArg::Sqlite(path) => Ok(Box::new(local(path).with_context(|| opening(path))?)),
        DatabaseArg::LibSql(_) => open(database),
    }
}

/// The context of an error. It names the user, because linksctl gives up root before it opens a database.
fn opening(path: &Path) -> String {
    let user = User::from_uid(geteuid()).ok().flatten();
    let user = user.map_or_else(|| geteuid().to_string(), |user| user.name);
    format!("Opening {} as user {user}", path.display())
}

fn local(path: &Path) -> anyhow::Result<Connection> {
    make_file(path)?;
    let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    connection.busy_timeout(database::BUSY_TIMEOUT)?;
    connection.query_row(WRITE_AHEAD, [], |_| Ok(()))?;
    Ok(connection)
}

fn make_file(path: &Path) -> anyhow::Result<()> {
    let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    match made {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error.into()),
        _ => Ok(()),
    }
}
