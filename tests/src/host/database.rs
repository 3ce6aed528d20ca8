//! The database of links on a host.

use std::time::Duration;

use anyhow::{Context as _, Result};
use rusqlite::{Connection, OpenFlags};

use super::Host;
use crate::servers::libsql::LibSql;

/// The path of the links' database in the default configuration.
pub const DATABASE: &str = "/var/lib/links/data/links.db";

impl Host {
    /// Runs `work` with a connection to an SQLite file, which it cannot change: it does not even checkpoint.
    ///
    /// # Errors
    /// Fails if the file cannot be opened, or if `work` fails.
    pub fn read_database<T: Send>(&self, file: &str, work: impl FnOnce(&Connection) -> Result<T> + Send) -> Result<T> {
        self.with_database(file, OpenFlags::SQLITE_OPEN_READ_ONLY, work)
            .with_context(|| format!("Reading the database {file}"))
    }

    /// Runs `work` with a connection to an SQLite file, as user root.
    ///
    /// # Errors
    /// Fails if the file cannot be opened, or if `work` fails.
    pub fn change_database<T: Send>(
        &self,
        file: &str,
        work: impl FnOnce(&Connection) -> Result<T> + Send,
    ) -> Result<T> {
        self.with_database(file, OpenFlags::default(), work)
            .with_context(|| format!("Changing the database {file}"))
    }

    fn with_database<T: Send>(
        &self,
        file: &str,
        flags: OpenFlags,
        work: impl FnOnce(&Connection) -> Result<T> + Send,
    ) -> Result<T> {
        self.inside(|| {
            let database = Connection::open_with_flags(file, flags)?;
            database.busy_timeout(Duration::from_secs(10))?;
            work(&database)
        })
    }

    /// The libSQL server of a host whose builder asked for one.
    pub fn libsql(&self) -> LibSql<'_> {
        LibSql::running_in(self)
    }

    /// The version of the tables in a database.
    ///
    /// # Errors
    /// Fails if the file is not a database of links.
    pub fn schema(&self, file: &str) -> Result<u32> {
        self.read_database(file, |database| {
            Ok(database.query_row("SELECT max(version) FROM schema_version", [], |row| row.get(0))?)
        })
    }

    /// The URLs with this prefix that have more than one link, each with the number of its links.
    ///
    /// # Errors
    /// Fails if the database cannot be read.
    pub fn duplicates(&self, prefix: &str) -> Result<Vec<(String, u32)>> {
        self.read_database(DATABASE, |database| {
            let mut query = database.prepare(
                "SELECT url, count(*) FROM links WHERE substr(url, 1, length(?1)) = ?1 GROUP BY url HAVING count(*) > 1",
            )?;
            let rows = query.query_map([prefix], |row| Ok((row.get(0)?, row.get(1)?)))?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }
}
