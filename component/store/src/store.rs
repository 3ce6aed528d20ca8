use links_domain::error::Unavailable;
use links_platform::database::error::Cause;
use links_platform::database::timeouts::Timeouts;
use links_platform::database::{Database, Mode, RowResult, Value};
use links_platform::log;

use crate::checkpoints::Engine;
use crate::link_cache;
use crate::rows::single_count;
use crate::setup::{self, Tables};
use crate::size::DatabaseSize;
use crate::sql::{COUNT_LINKS, DATABASE_SIZE, HEALTH};

/// The id that stands for all links in the tables of clicks.
pub const ALL_LINKS: i64 = 0;

/// The database for one request.
///
/// Every statement is complete by itself, because requests share the connection of their instance and several processes
/// share the database. Every statement may also be repeated: an insert whose answer was lost finds its own row by the
/// request's id, and so does a deletion.
pub struct Store {
    pub(crate) database: Database<Tables>,
}

impl Default for Store {
    /// With the time limits for a database on this machine or for one on another, as the variables have it.
    fn default() -> Store {
        Store::with(match link_cache::is_database_remote() {
            Some(true) => Timeouts::REMOTE,
            Some(false) | None => Timeouts::LOCAL,
        })
    }
}

impl Store {
    pub fn with(timeouts: Timeouts) -> Store {
        Store {
            database: Database::new(timeouts),
        }
    }

    /// Reads from the table of links; on a new database it creates the tables first.
    ///
    /// # Errors
    /// The cause, fit for anybody to read.
    pub async fn check(&self) -> Result<(), Cause> {
        let outcome = self.database.query(HEALTH, &[], Mode::Read).await;
        outcome.map(drop).map_err(|error| Cause::of(&error))
    }

    /// Counts all links. This takes longest of all statements, so its failure says nothing about others.
    ///
    /// # Errors
    /// The database did not answer.
    pub async fn size(&self) -> Result<DatabaseSize, Unavailable> {
        let count = self.database.query_unrecorded(COUNT_LINKS, &[], Mode::Read).await;
        let links = count.map_err(|_| Unavailable)?;
        let bytes = self.database.query_unrecorded(DATABASE_SIZE, &[], Mode::Read).await;
        Ok(DatabaseSize {
            links: single_count(&links).unwrap_or(0),
            bytes: single_count(&bytes.unwrap_or_default()),
        })
    }

    /// The SQLite that runs the statements, asked over a connection as requests use it.
    ///
    /// # Errors
    /// The database did not answer.
    pub async fn engine(&self) -> Result<Engine, Unavailable> {
        let engine = self.database.with_connection(setup::engine).await;
        engine.map_err(|error| {
            log::line("cannot ask the database for its version", error);
            Unavailable
        })
    }

    pub(crate) async fn query(
        &self,
        statement: &str,
        values: &[Value],
        mode: Mode,
    ) -> Result<Vec<RowResult>, Unavailable> {
        // The circuit breaker has logged the message.
        let rows = self.database.query(statement, values, mode).await;
        rows.map_err(|_| Unavailable)
    }
}
