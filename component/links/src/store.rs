//! The database: the one place that talks to it, and that knows its statements (component/sql).
//!
//! Every statement is whole by itself, because requests share the connection of their instance and several processes
//! share the database. Every statement may also be repeated: an insert that was done although its answer got lost finds
//! its own row, by the request's id. Without one that is a taken slug to the caller, and costs at worst an unused row.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use links_core::expiry::Expiry;
use links_core::link::{NewLink, Stored};
use links_core::problem::Problem;
use links_core::request_id::RequestId;
use links_core::slug::Slug;
use links_core::sql::{self, Trouble};
use spin_sdk::sqlite::{Connection, Error, RowResult, Value};

use crate::{clock, log};

/// The scripts that lead from one version of the tables to the next, version 0 being none.
const SCHEMA: [&str; 2] = [
    include_str!("../../sql/0001_links.sql"),
    include_str!("../../sql/0002_request_ids.sql"),
];
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
        Ok(rows.into_iter().next().and_then(|row| {
            let [url, expires_at] = row.values.try_into().ok()?;
            stored(url, &expires_at)
        }))
    }

    /// The link that this request has now, made by this call or before by one with the same id; `None`: the slug is
    /// taken by a link of others. `now` in Unix seconds.
    ///
    /// # Errors
    /// 503
    pub async fn insert(
        &self,
        slug: &Slug,
        link: &NewLink,
        id: Option<RequestId>,
        now: i64,
    ) -> Result<Option<(Slug, Stored)>, Problem> {
        let row = [
            Value::Text(slug.as_str().to_owned()),
            Value::Text(link.target.as_str().to_owned()),
            Value::Integer(now),
            link.expiry
                .map_or(Value::Null, |Expiry(seconds)| Value::Integer(seconds)),
            id.map_or(Value::Null, |id| Value::Blob(id.as_bytes().to_vec())),
        ];
        let rows = self.run(INSERT_LINK, &row).await?;
        Ok(rows.into_iter().next().and_then(|row| {
            let [slug, url, expires_at] = row.values.try_into().ok()?;
            let Value::Text(slug) = slug else { return None };
            Some((Slug::in_path(&slug)?, stored(url, &expires_at)?))
        }))
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

/// A link of two columns. The table is STRICT, so they have these types.
fn stored(url: Value, expires_at: &Value) -> Option<Stored> {
    let Value::Text(url) = url else { return None };
    let expiry = match expires_at {
        Value::Integer(seconds) => Some(Expiry(*seconds)),
        _ => None,
    };
    Some(Stored { url, expiry })
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
    let missing = SCHEMA.get(applied(&connection).await?..).unwrap_or_default();
    if !missing.is_empty() {
        write_ahead(&connection).await?;
    }
    for script in missing {
        apply(&connection, script).await?;
    }
    drop(KEPT.replace(Some(connection.clone())));
    Ok(connection)
}

/// The version of the tables; 0 for none.
async fn applied(connection: &Connection) -> Result<usize, String> {
    match rows(connection, APPLIED, &[]).await {
        Ok(rows) => {
            let version = rows.first().and_then(|row| row.get::<i64>(0));
            Ok(version.and_then(|version| version.try_into().ok()).unwrap_or(0))
        }
        Err(error) if Trouble::of(&error) == Trouble::NoSchema => Ok(0),
        Err(error) => Err(error),
    }
}

async fn write_ahead(connection: &Connection) -> Result<(), String> {
    match rows(connection, WRITE_AHEAD, &[]).await {
        Err(error) if Trouble::of(&error) == Trouble::Busy => return Err(error),
        Err(error) => log::line("going on without a write-ahead log", error),
        Ok(_) => {}
    }
    Ok(())
}

/// Another process may be about the same, so each statement may have been run before.
async fn apply(connection: &Connection, script: &str) -> Result<(), String> {
    for statement in sql::statements(script) {
        match rows(connection, statement, &[]).await {
            Err(error) if !sql::is_done(&error) => return Err(error),
            _ => {}
        }
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
