use links_domain::error::Unavailable;
use links_platform::database::error::Cause;
use links_platform::database::timeouts::Timeouts;
use links_platform::database::{Database, Mode, RowResult, Value};
use links_platform::log;
use links_platform::time::Instant;

use crate::checkpoints::Engine;
use crate::link_cache;
use crate::rows::single_count;
use crate::setup::{self, Tables};
use crate::size::DatabaseSize;
use crate::sql::{COUNT_LINKS, DATABASE_SIZE, HEALTH};

/// The id that stands for all links in the tables of clicks.
pub const ALL_LINKS: i64 = 0;

/// The database, as one request uses it.
///
/// Every statement is complete by itself, because the requests of an instance share its connection and several processes share
/// the database. Every statement may also be repeated: an insert or a deletion whose answer was lost finds its own row by the
/// id of the request.
pub struct Store {
    pub(crate) database: Database<Tables>,
}

impl Default for Store {
    /// A store for a request that begins now.
    fn default() -> Store {
        Store::since(Instant::now())
    }
}

impl Store {
    /// A store for a request that began at `since`, with the timeouts for a local or a remote database, as the variables say.
    pub fn since(since: Instant) -> Store {
        let timeouts = match link_cache::is_database_remote() {
            Some(true) => Timeouts::REMOTE,
            Some(false) | None => Timeouts::LOCAL,
        };
        Store {
            database: Database::new(timeouts, since),
        }
    }

    /// A store for a request that begins now, with timeouts of its own.
    pub fn with(timeouts: Timeouts) -> Store {
        Store {
            database: Database::new(timeouts, Instant::now()),
        }
    }

    /// Reads from the table of links. In a new database it first creates the tables.
    ///
    /// # Errors
    /// Fails with a cause that may be shown to the public.
    pub async fn check(&self) -> Result<(), Cause> {
        let outcome = self.database.query(HEALTH, &[], Mode::Read).await;
        outcome.map(drop).map_err(|error| Cause::of(&error))
    }

    /// Counts all links. No statement takes longer, so the circuit breaker ignores a failure of this one.
    ///
    /// # Errors
    /// Fails if the database does not answer.
    pub async fn size(&self) -> Result<DatabaseSize, Unavailable> {
        let count = self.database.query_unrecorded(COUNT_LINKS, &[], Mode::Read).await;
        let links = count.map_err(|_| Unavailable)?;
        let bytes = self.database.query_unrecorded(DATABASE_SIZE, &[], Mode::Read).await;
        Ok(DatabaseSize {
            links: single_count(&links).unwrap_or(0),
            bytes: single_count(&bytes.unwrap_or_default()),
        })
    }

    /// The SQLite behind the connections that requests use.
    ///
    /// # Errors
    /// Fails if the database does not answer.
    pub async fn engine(&self) -> Result<Engine, Unavailable> {
        let engine = self.database.with_connection(setup::engine).await;
        engine.map_err(|error| {
            log::line("cannot read the version of the database engine", error);
            Unavailable
        })
    }

    pub(crate) async fn query(
        &self,
        statement: &str,
        values: &[Value],
        mode: Mode,
    ) -> Result<Vec<RowResult>, Unavailable> {
        // The circuit breaker has already logged the error.
        let rows = self.database.query(statement, values, mode).await;
        rows.map_err(|_| Unavailable)
    }
}
