//! The database: the one place that talks to it, and that knows its statements (component/sql).
//!
//! Every statement is whole by itself, because requests share the connection of their instance and several processes
//! share the database. Every statement may also be repeated: an insert that was done although its answer got lost finds
//! its own row, which is a taken slug to the caller and costs at worst an unused row.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use links_core::expiry::Expiry;
use links_core::link::{NewLink, Stored};
use links_core::problem::Problem;
use links_core::slug::Slug;
use links_core::sql::{self, Trouble};
use spin_sdk::sqlite::{Connection, Error, RowResult, Value};

use crate::{clock, log};

const SCHEMA_VERSION: i64 = 1;
const SCHEMA: &str = include_str!("../../sql/0001_links.sql");
const APPLIED: &str = include_str!("../../sql/schema_version.sql");
const WRITE_AHEAD: &str = include_str!("../../sql/write_ahead.sql");
const INSERT_LINK: &str = include_str!("../../sql/insert_link.sql");
const FIND_LINK: &str = include_str!("../../sql/find_link.sql");
const HEALTH: &str = include_str!("../../sql/health.sql");

/// Longest wait for one statement. A local database waits up to 5 s for a lock before it says "busy"; a remote one that
/// hangs would never say anything.
const STATEMENT_LIMIT: Duration = Duration::from_secs(6);

/// After this long no statement is tried again for a request. With the statement then under way that makes 14 s at
/// most.
const RETRY_LIMIT: Duration = Duration::from_secs(8);

/// First pause before a busy database is asked again; doubled each time, up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(200);

thread_local! {
    /// This instance's connection, opened by the first request that needs it: opening one for every request costs more
    /// than the request. Requests take a share of it and never hold the cell itself while they wait.
    static KEPT: RefCell<Option<Rc<Connection>>> = const { RefCell::new(None) };
}

/// The database for one request.
pub struct Store {
    since: Instant,
}

impl Store {
    pub fn new() -> Store {
        Store { since: Instant::now() }
    }

    /// # Errors
    /// 503
    pub async fn find(&self, slug: &Slug) -> Result<Option<Stored>, Problem> {
        let rows = self.run(FIND_LINK, &[Value::Text(slug.as_str().to_owned())]).await?;
        // The table is STRICT and the statement names two columns, so a row has this form.
        Ok(rows.into_iter().next().and_then(|row| {
            let expiry = row.get::<i64>(1).map(Expiry);
            match row.values.into_iter().next() {
                Some(Value::Text(url)) => Some(Stored { url, expiry }),
                _ => None,
            }
        }))
    }

    /// Whether the link now exists by this call; `false`: the slug is taken. `now` in Unix seconds.
    ///
    /// # Errors
    /// 503
    pub async fn insert(&self, slug: &Slug, link: &NewLink, now: i64) -> Result<bool, Problem> {
        let row = [
            Value::Text(slug.as_str().to_owned()),
            Value::Text(link.target.as_str().to_owned()),
            Value::Integer(now),
            link.expiry
                .map_or(Value::Null, |Expiry(seconds)| Value::Integer(seconds)),
        ];
        Ok(!self.run(INSERT_LINK, &row).await?.is_empty())
    }

    /// Reads from the table of links; on a new database it makes it first.
    ///
    /// # Errors
    /// 503
    pub async fn check(&self) -> Result<(), Problem> {
        self.run(HEALTH, &[]).await.map(drop)
    }

    /// The rows of one statement, tried again where that can help.
    async fn run(&self, statement: &str, values: &[Value]) -> Result<Vec<RowResult>, Problem> {
        let mut pause = FIRST_PAUSE;
        let mut renewed = false;
        loop {
            let kept = KEPT.with_borrow(Option::clone);
            let was_kept = kept.is_some();
            let work = async {
                let connection = match kept {
                    Some(connection) => connection,
                    None => open().await?,
                };
                rows(&connection, statement, values).await
            };
            let error = match clock::within(STATEMENT_LIMIT, work).await {
                Some(Ok(rows)) => return Ok(rows),
                Some(Err(error)) => error,
                None => {
                    forget();
                    return Err(unavailable("no answer in time"));
                }
            };
            match Trouble::of(&error) {
                Trouble::Busy if self.since.elapsed() < RETRY_LIMIT => {
                    spin_sdk::time::sleep(pause).await;
                    pause = LONGEST_PAUSE.min(pause * 2);
                }
                Trouble::NoSchema | Trouble::Other if was_kept && !renewed => {
                    forget();
                    renewed = true;
                }
                _ => {
                    forget();
                    return Err(unavailable(&error));
                }
            }
        }
    }
}

/// What is wrong with the database is for the operator to read, in the log; the client learns that it is not its fault.
fn unavailable(error: &str) -> Problem {
    log::line("the database does not answer", error);
    Problem::unavailable("The database does not answer at the moment. Try again.")
}

/// Gives up the kept connection: it may be what is broken. Others who have a share of it find out for themselves.
fn forget() {
    drop(KEPT.take());
}

/// Opens a connection, makes sure that the tables are there, and keeps it for the requests to come. Two at once on one
/// instance are one connection too many for a moment, no more.
async fn open() -> Result<Rc<Connection>, String> {
    let connection = Rc::new(Connection::open_default().await.map_err(message)?);
    if applied(&connection).await? < SCHEMA_VERSION {
        apply_schema(&connection).await?;
    }
    drop(KEPT.replace(Some(connection.clone())));
    Ok(connection)
}

/// The version of the tables; 0 for none.
async fn applied(connection: &Connection) -> Result<i64, String> {
    match rows(connection, APPLIED, &[]).await {
        Ok(rows) => Ok(rows.first().and_then(|row| row.get(0)).unwrap_or(0)),
        Err(error) if Trouble::of(&error) == Trouble::NoSchema => Ok(0),
        Err(error) => Err(error),
    }
}

async fn apply_schema(connection: &Connection) -> Result<(), String> {
    match rows(connection, WRITE_AHEAD, &[]).await {
        Err(error) if Trouble::of(&error) == Trouble::Busy => return Err(error),
        Err(error) => log::line("going on without a write-ahead log", error),
        Ok(_) => {}
    }
    for statement in sql::statements(SCHEMA) {
        rows(connection, statement, &[]).await?;
    }
    Ok(())
}

/// All rows of a statement. They are taken to the last: a statement is done, and says whether it failed, only then.
async fn rows(connection: &Connection, statement: &str, values: &[Value]) -> Result<Vec<RowResult>, String> {
    connection
        .execute(statement, values.iter().cloned())
        .await
        .map_err(message)?
        .collect()
        .await
        .map_err(message)
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
