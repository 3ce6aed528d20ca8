//! The database: the one place that talks to it, and that knows its statements (component/sql).
//!
//! Every statement is whole by itself, because requests share the connection of their instance and several processes
//! share the database. Every statement may also be repeated: an insert that was done although its answer got lost finds
//! its own row, by the request's id, and so does a deletion.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::thread::LocalKey;
use std::time::{Duration, Instant};

use links_core::change::Change;
use links_core::clicks::{Batch, MAX_REUSES, Position, Reuse, WHOLE};
use links_core::expiry::Expiry;
use links_core::held::Held;
use links_core::link::{Details, Limit, NewLink, Stored};
use links_core::problem::Problem;
use links_core::request_id::RequestId;
use links_core::slug::Slug;
use links_core::sql::{self, Cause, SCHEMA, Trouble};
use links_core::sqlite::Engine;
use links_core::stats::{Found, Granularity, Link, Span, TOP};
use spin_sdk::sqlite::{RowResult, Value};

use crate::connection::Connection;
use crate::outage::Service;
use crate::{cache, checkpoint, clock, log};

const APPLIED: &str = include_str!("../../sql/schema_version.sql");
const WRITE_AHEAD: &str = include_str!("../../sql/write_ahead.sql");
const INSERT_LINK: &str = include_str!("../../sql/insert_link.sql");
const TAKE_CLICK: &str = include_str!("../../sql/take_click.sql");
const FIND_LINK: &str = include_str!("../../sql/find_link.sql");
const SHOW_LINK: &str = include_str!("../../sql/show_link.sql");
const CHANGE_LINK: &str = include_str!("../../sql/change_link.sql");
const DELETE_LINK: &str = include_str!("../../sql/delete_link.sql");
const HEALTH: &str = include_str!("../../sql/health.sql");
const INSERT_CLICKS: &str = include_str!("../../sql/insert_clicks.sql");
const FIND_SLUG_REUSES: &str = include_str!("../../sql/find_slug_reuses.sql");
const FIND_CLICK_POSITION: &str = include_str!("../../sql/find_click_position.sql");
const FIND_LINK_ID: &str = include_str!("../../sql/find_link_id.sql");
const STATS_HOURS: &str = include_str!("../../sql/stats_hours.sql");
const STATS_DAYS: &str = include_str!("../../sql/stats_days.sql");
const STATS_VISITORS: &str = include_str!("../../sql/stats_visitors.sql");
const STATS_DETAILS: &str = include_str!("../../sql/stats_details.sql");
const STATS_TOP: &str = include_str!("../../sql/stats_top.sql");

/// What stands for all links in the tables of clicks.
pub const ALL_LINKS: i64 = 0;
const COUNT_LINKS: &str = include_str!("../../sql/count_links.sql");
const DATABASE_SIZE: &str = include_str!("../../sql/database_size.sql");

/// How long a request waits for the database.
#[derive(Clone, Copy)]
struct Patience {
    /// For one statement.
    statement: Duration,
    /// After this long no statement is tried again.
    tries: Duration,
    /// For all of it.
    whole: Duration,
    /// How many connections of an instance are kept for such requests. The statements of one run one after the other: on a
    /// local database that is no loss, on another machine each of them waits for a round trip.
    connections: usize,
}

/// A local database waits up to 5 s for a lock before it says "busy".
const LOCAL: Patience = Patience {
    statement: Duration::from_secs(6),
    tries: Duration::from_secs(8),
    whole: Duration::from_secs(14),
    connections: 1,
};

/// A database on another machine waits for its own locks; one that hangs would never say anything.
const REMOTE: Patience = Patience {
    statement: READ_LIMIT,
    tries: Duration::from_secs(6),
    whole: Duration::from_secs(10),
    connections: REQUESTS_AT_A_TIME,
};

/// So many an instance serves, by the runtimes' defaults.
const REQUESTS_AT_A_TIME: usize = 16;

/// No reader waits for a lock.
const READ_LIMIT: Duration = Duration::from_millis(4500);

/// For who has another answer at hand.
const HASTY: Patience = Patience {
    statement: SOON,
    tries: SOON,
    whole: SOON,
    connections: REQUESTS_AT_A_TIME,
};

/// For who asks again every second, and gives up after two himself.
const PROBING: Patience = Patience {
    statement: Duration::from_millis(1500),
    tries: Duration::from_millis(1500),
    whole: Duration::from_millis(1500),
    connections: 1,
};

/// For who has time: what is counted takes the longer the more there is.
const COUNTING: Patience = Patience {
    statement: Duration::from_secs(14),
    tries: Duration::from_secs(6),
    whole: Duration::from_secs(14),
    connections: 1,
};

/// A database that takes longer than this is as good as down for who has another answer at hand.
const SOON: Duration = Duration::from_secs(1);

/// First pause before a busy database is asked again; doubled each time, up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(200);

thread_local! {
    /// This instance's connections, opened by the requests that need them: opening one for every request costs more than
    /// the request. Requests take a share of one and never hold the cell itself while they wait.
    static FOR_READING: Kept = const { RefCell::new(Vec::new()) };
    /// For statements that run in place, alone: another one on the same connection might wait for its request to take rows,
    /// which cannot while this one waits for the connection.
    static IN_PLACE: Kept = const { RefCell::new(Vec::new()) };
    /// A write may wait for the locks of others, and whatever has a share of its connection waits with it.
    static FOR_WRITING: Kept = const { RefCell::new(Vec::new()) };
    /// Whether the tables are known to be those of this release.
    static HAS_TABLES: Cell<bool> = const { Cell::new(false) };
}

type Kept = RefCell<Vec<Rc<Connection>>>;

/// What a statement needs to find.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Needs {
    /// Tables that it can read one row from, whatever their version. Without a look at the version it is there one round
    /// trip earlier; where they are too old, the database says so.
    AnyTables,
    /// The same, in a local file, where there is no reason to let go of the instance.
    AnyTablesInPlace,
    /// The tables of this release.
    Tables,
    /// These, to write to them.
    TablesToWrite,
}

impl Needs {
    /// The connections that are kept for it.
    fn kept(self) -> &'static LocalKey<Kept> {
        match self {
            Needs::AnyTables | Needs::Tables => &FOR_READING,
            Needs::AnyTablesInPlace => &IN_PLACE,
            Needs::TablesToWrite => &FOR_WRITING,
        }
    }

    fn takes_any_tables(self) -> bool {
        matches!(self, Needs::AnyTables | Needs::AnyTablesInPlace)
    }
}

/// The database for one request.
pub struct Store {
    since: Instant,
    patience: Patience,
}

impl Store {
    pub fn new() -> Store {
        Store::with(match cache::is_database_remote() {
            Some(true) => REMOTE,
            Some(false) | None => LOCAL,
        })
    }

    /// For a request that can be answered without the database, too: gives up after a second.
    pub fn hasty() -> Store {
        Store::with(HASTY)
    }

    /// For a probe, which wants to be told within its own time limit what is wrong.
    pub fn probing() -> Store {
        Store::with(PROBING)
    }

    /// For the agent, which asks once an hour.
    pub fn counting() -> Store {
        Store::with(COUNTING)
    }

    fn with(patience: Patience) -> Store {
        Store {
            since: Instant::now(),
            patience,
        }
    }

    /// # Errors
    /// 503
    pub async fn find(&self, slug: &Slug) -> Result<Option<Stored>, Problem> {
        let slug = [Value::Text(slug.as_str().to_owned())];
        let needs = match cache::is_database_remote() {
            Some(false) => Needs::AnyTablesInPlace,
            Some(true) | None => Needs::AnyTables,
        };
        let rows = self.ask(FIND_LINK, &slug, needs).await.map_err(unavailable)?;
        Ok(rows.into_iter().next().and_then(|row| {
            let [url, expires_at, max_clicks, clicks_left] = row.values.try_into().ok()?;
            stored(url, expires_at, max_clicks, clicks_left)
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
        id: RequestId,
        now: i64,
    ) -> Result<Option<(Slug, Stored)>, Problem> {
        let row = [
            Value::Text(slug.as_str().to_owned()),
            Value::Text(link.target.as_str().to_owned()),
            Value::Integer(now),
            link.expiry
                .map_or(Value::Null, |Expiry(seconds)| Value::Integer(seconds)),
            Value::Blob(id.as_bytes().to_vec()),
            link.max_clicks
                .map_or(Value::Null, |max_clicks| Value::Integer(max_clicks.get())),
        ];
        let rows = self.ask(INSERT_LINK, &row, Needs::TablesToWrite).await;
        let rows = rows.map_err(unavailable)?;
        Ok(rows.into_iter().next().and_then(|row| {
            let [slug, url, expires_at, max_clicks, clicks_left] = row.values.try_into().ok()?;
            let link = stored(url, expires_at, max_clicks, clicks_left)?;
            Some((Slug::in_path(&text(slug)?)?, link))
        }))
    }

    /// # Errors
    /// 503
    pub async fn show(&self, slug: &Slug) -> Result<Option<Details>, Problem> {
        let slug = [Value::Text(slug.as_str().to_owned())];
        let rows = self.ask(SHOW_LINK, &slug, Needs::Tables).await;
        Ok(rows.map_err(unavailable)?.into_iter().next().and_then(details))
    }

    /// The link as it is then; `None`: there is none.
    ///
    /// # Errors
    /// 503; it may have been changed.
    pub async fn change(&self, slug: &Slug, change: &Change) -> Result<Option<Details>, Problem> {
        let target = change.target.as_ref();
        let row = [
            Value::Text(slug.as_str().to_owned()),
            target.map_or(Value::Null, |target| Value::Text(target.as_str().to_owned())),
            Value::Integer(change.expiry.is_some().into()),
            change
                .expiry
                .flatten()
                .map_or(Value::Null, |Expiry(seconds)| Value::Integer(seconds)),
        ];
        let rows = self.ask(CHANGE_LINK, &row, Needs::TablesToWrite).await;
        Ok(rows.map_err(unavailable)?.into_iter().next().and_then(details))
    }

    /// Whether this request has removed it, by this call or before by one with the same id; `now` in Unix seconds. False:
    /// there was none.
    ///
    /// # Errors
    /// 503; it may have been removed.
    pub async fn remove(&self, slug: &Slug, id: RequestId, now: i64) -> Result<bool, Problem> {
        let row = [
            Value::Text(slug.as_str().to_owned()),
            Value::Blob(id.as_bytes().to_vec()),
            Value::Integer(now),
        ];
        let rows = self.ask(DELETE_LINK, &row, Needs::TablesToWrite).await;
        Ok(!rows.map_err(unavailable)?.is_empty())
    }

    /// Takes one click of a link with a limit, and returns where that link leads; `now` in Unix seconds. `None`: no click is
    /// left, or the link has expired. Should the answer get lost, the click may be lost with it, and another one is taken:
    /// never one more than there are.
    ///
    /// # Errors
    /// 503
    pub async fn take_click(&self, slug: &Slug, now: i64) -> Result<Option<String>, Problem> {
        let click = [Value::Text(slug.as_str().to_owned()), Value::Integer(now)];
        let rows = self.ask(TAKE_CLICK, &click, Needs::TablesToWrite).await;
        let row = rows.map_err(unavailable)?.into_iter().next();
        Ok(row.and_then(|row| row.values.into_iter().next()).and_then(text))
    }

    /// Reads from the table of links; on a new database it makes it first.
    ///
    /// # Errors
    /// 503, with the kind of trouble.
    pub async fn check(&self) -> Result<(), Problem> {
        let outcome = self.ask(HEALTH, &[], Needs::Tables).await.map(drop);
        outcome.map_err(|error| Problem::unavailable(format!("The database does not answer: {}.", Cause::of(&error))))
    }

    /// Adds the clicks of a batch; `text` is the batch as JSON, `now` in Unix seconds, `heeded` the number of the latest
    /// reuse of a slug that it heeds. False: it does not go on where its journal's latest one ended, so some of it, or all,
    /// was added before; or there are later reuses.
    ///
    /// # Errors
    /// 503
    pub async fn take_clicks(
        &self,
        batch: &Batch,
        text: String,
        now: i64,
        heeded: Option<i64>,
    ) -> Result<bool, Problem> {
        let position = |position: u64| Value::Integer(position.try_into().unwrap_or(i64::MAX));
        let row = [
            Value::Text(batch.journal.clone()),
            position(batch.start),
            position(batch.stop),
            Value::Text(batch.after.clone().unwrap_or_default()),
            Value::Text(batch.through.as_deref().unwrap_or(WHOLE).to_owned()),
            Value::Integer(now),
            Value::Text(text),
            heeded.map_or(Value::Null, Value::Integer),
        ];
        let rows = self
            .ask(INSERT_CLICKS, &row, Needs::TablesToWrite)
            .await
            .map_err(unavailable)?;
        Ok(!rows.is_empty())
    }

    /// The reuses of slugs after a number, at most [`MAX_REUSES`].
    ///
    /// # Errors
    /// 503
    pub async fn slug_reuses(&self, after: i64) -> Result<Vec<Reuse>, Problem> {
        let row = [Value::Integer(after), Value::Integer(MAX_REUSES)];
        let rows = self
            .ask(FIND_SLUG_REUSES, &row, Needs::Tables)
            .await
            .map_err(unavailable)?;
        let reuses = rows.into_iter().filter_map(|row| triple(row, number, text, count));
        Ok(reuses.map(|(number, slug, at)| Reuse(number, slug, at)).collect())
    }

    /// Up to where the clicks of a journal were added.
    ///
    /// # Errors
    /// 503
    pub async fn click_position(&self, journal: &str) -> Result<Position, Problem> {
        let journal = [Value::Text(journal.to_owned())];
        let rows = self.ask(FIND_CLICK_POSITION, &journal, Needs::Tables).await;
        let row = rows.map_err(unavailable)?.into_iter().next();
        let found = row.and_then(|row| triple(row, count, count, text));
        Ok(found.map_or_else(Position::default, |(start, stop, through)| {
            Position::of(start, stop, through)
        }))
    }

    /// What stands for a link in the tables of clicks.
    ///
    /// # Errors
    /// 503
    pub async fn find_id(&self, slug: &Slug) -> Result<Option<i64>, Problem> {
        let slug = [Value::Text(slug.as_str().to_owned())];
        let rows = self
            .ask(FIND_LINK_ID, &slug, Needs::Tables)
            .await
            .map_err(unavailable)?;
        Ok(rows.first().and_then(|row| row.get::<i64>(0)))
    }

    /// What is known of the clicks of a link, or of all.
    ///
    /// # Errors
    /// 503
    pub async fn stats(&self, link: i64, span: Span) -> Result<Found, Problem> {
        let ask = async |statement, values: [i64; 3]| {
            let rows = self.ask(statement, &values.map(Value::Integer), Needs::Tables).await;
            rows.map_err(unavailable)
        };
        let (first_day, last_day) = span.days();
        let mut found = Found::default();
        let clicks = match span.granularity {
            Granularity::Hour => STATS_HOURS,
            Granularity::Day => STATS_DAYS,
        };
        for row in ask(clicks, [link, span.start, span.stop]).await? {
            found.clicks.extend(triple(row, number, count, count));
        }
        if span.granularity == Granularity::Day {
            for row in ask(STATS_VISITORS, [link, span.start, span.stop]).await? {
                let [day, words] = pair(row);
                found.visitors.extend(number(day).zip(text(words)));
            }
        }
        for row in ask(STATS_DETAILS, [link, first_day, last_day]).await? {
            found.details.extend(triple(row, number, text, count));
        }
        if link == ALL_LINKS {
            let rows = ask(STATS_TOP, [first_day, last_day, TOP]).await?;
            let links = rows.into_iter().filter_map(|row| triple(row, text, count, count));
            let links = links.map(|(slug, clicks, bots)| Link { slug, clicks, bots });
            found.links = Some(links.collect());
        }
        Ok(found)
    }

    /// Counts all links. That it fails says nothing of other statements: it is the longest.
    ///
    /// # Errors
    /// 503
    pub async fn holds(&self) -> Result<Held, Problem> {
        let links = self.run(COUNT_LINKS, &[], Needs::Tables).await.map_err(unavailable)?;
        let bytes = self.run(DATABASE_SIZE, &[], Needs::Tables).await.unwrap_or_default();
        Ok(Held {
            links: only(&links).unwrap_or(0),
            bytes: only(&bytes),
        })
    }

    /// The SQLite that runs the statements, over a connection as requests use them.
    ///
    /// # Errors
    /// 503
    pub async fn engine(&self) -> Result<Engine, Problem> {
        let place = Needs::TablesToWrite.kept();
        let work = async {
            let connection = match kept(place, self.patience.connections) {
                Some(connection) => connection,
                None => connect(place, self.patience.connections).await?,
            };
            checkpoint::engine(&connection).await
        };
        let answer = clock::within(self.patience.whole, work).await;
        answer
            .unwrap_or_else(|| Err(sql::NO_ANSWER.to_owned()))
            .inspect_err(|error| log::line("cannot ask the database for its version", error))
            .map_err(unavailable)
    }

    /// The rows of one statement; whether they came is remembered, and told to the operator.
    async fn ask(&self, statement: &str, values: &[Value], needs: Needs) -> Result<Vec<RowResult>, String> {
        let outcome = self.run(statement, values, needs).await;
        let took = self.since.elapsed();
        match &outcome {
            Ok(_) if took < SOON => Service::Database.answered(took).await,
            Ok(_) => {}
            Err(error) => Service::Database.failed(error, took).await,
        }
        outcome
    }

    /// The rows of one statement, tried again where that can help.
    async fn run(&self, statement: &str, values: &[Value], mut needs: Needs) -> Result<Vec<RowResult>, String> {
        let Patience {
            statement: limit,
            tries,
            whole,
            connections,
        } = self.patience;
        let mut pause = FIRST_PAUSE;
        let mut renewed = false;
        loop {
            let place = needs.kept();
            let kept = kept(place, connections);
            let was_kept = kept.is_some();
            let work = async {
                let connection = match kept {
                    Some(connection) => connection,
                    None => connect(place, connections).await?,
                };
                if !needs.takes_any_tables() && !HAS_TABLES.get() {
                    make_tables(&connection).await?;
                    HAS_TABLES.set(true);
                }
                match needs {
                    Needs::AnyTables => connection.only_row(statement, values).await,
                    Needs::AnyTablesInPlace => connection.rows_in_place(statement, values),
                    Needs::Tables | Needs::TablesToWrite => connection.rows(statement, values).await,
                }
            };
            let left = whole.saturating_sub(self.since.elapsed());
            let limit = if needs.takes_any_tables() {
                limit.min(READ_LIMIT)
            } else {
                limit
            };
            let error = match clock::within(limit.min(left), work).await {
                Some(Ok(rows)) => return Ok(rows),
                Some(Err(error)) => error,
                None => {
                    forget();
                    return Err(sql::NO_ANSWER.to_owned());
                }
            };
            match Trouble::of(&error) {
                Trouble::Busy if self.since.elapsed() < tries => {
                    spin_sdk::time::sleep(pause).await;
                    pause = LONGEST_PAUSE.min(pause * 2);
                }
                Trouble::NoSchema if needs.takes_any_tables() => needs = Needs::Tables,
                Trouble::NoSchema | Trouble::Other if was_kept && !renewed => {
                    forget();
                    renewed = true;
                }
                _ => {
                    forget();
                    return Err(error);
                }
            }
        }
    }
}

/// A link of its columns. The table is STRICT, so they have these types.
fn stored(url: Value, expires_at: Value, max_clicks: Value, clicks_left: Value) -> Option<Stored> {
    let limit = number(max_clicks).zip(number(clicks_left));
    Some(Stored {
        url: text(url)?,
        expiry: number(expires_at).map(Expiry),
        limit: limit.map(|(most, left)| Limit { most, left }),
    })
}

/// The same, and when it was made.
fn details(row: RowResult) -> Option<Details> {
    let [url, expires_at, max_clicks, clicks_left, created_at] = row.values.try_into().ok()?;
    Some(Details {
        stored: stored(url, expires_at, max_clicks, clicks_left)?,
        created_at: number(created_at)?,
    })
}

fn number(value: Value) -> Option<i64> {
    match value {
        Value::Integer(number) => Some(number),
        _ => None,
    }
}

/// The one value of the one row.
fn only(rows: &[RowResult]) -> Option<u64> {
    let value = rows.first()?.get::<i64>(0)?;
    u64::try_from(value).ok()
}

fn count(value: Value) -> Option<u64> {
    number(value)?.try_into().ok()
}

fn text(value: Value) -> Option<String> {
    match value {
        Value::Text(text) => Some(text),
        _ => None,
    }
}

/// The two columns of a row.
fn pair(row: RowResult) -> [Value; 2] {
    row.values.try_into().unwrap_or([Value::Null, Value::Null])
}

/// The three columns of a row, where they are what they have to be.
fn triple<A, B, C>(
    row: RowResult,
    first: impl Fn(Value) -> Option<A>,
    second: impl Fn(Value) -> Option<B>,
    third: impl Fn(Value) -> Option<C>,
) -> Option<(A, B, C)> {
    let [a, b, c] = row.values.try_into().ok()?;
    Some((first(a)?, second(b)?, third(c)?))
}

/// What is wrong with the database is for the operator to read, in the log; the client learns that it is not its fault.
fn unavailable(_: String) -> Problem {
    Problem::unavailable("The database does not answer at the moment. Try again.")
}

/// One that nobody uses now, or a share of one where there are as many as there may be.
fn kept(place: &'static LocalKey<Kept>, most: usize) -> Option<Rc<Connection>> {
    place.with_borrow(|kept| {
        let free = kept.iter().find(|connection| Rc::strong_count(connection) == 1);
        free.or_else(|| kept.first().filter(|_| kept.len() >= most)).cloned()
    })
}

/// Gives up what is kept: it may be what is broken. Others who have a share of it find out for themselves.
fn forget() {
    drop(FOR_READING.take());
    drop(IN_PLACE.take());
    drop(FOR_WRITING.take());
    HAS_TABLES.set(false);
}

/// Opens a connection and keeps it for the requests to come, up to so many: two that open one at once may be one too many.
async fn connect(place: &'static LocalKey<Kept>, most: usize) -> Result<Rc<Connection>, String> {
    let connection = Connection::open().await?;
    checkpoint::set_up(&connection).await?;
    let connection = Rc::new(connection);
    place.with_borrow_mut(|kept| {
        if kept.len() < most {
            kept.push(connection.clone());
        }
    });
    Ok(connection)
}

/// Makes sure that the tables are there. What is cut off by a time limit is left to the next one who needs them.
async fn make_tables(connection: &Connection) -> Result<(), String> {
    let missing = SCHEMA.get(applied(connection).await?..).unwrap_or_default();
    if !missing.is_empty() {
        write_ahead(connection).await?;
    }
    for script in missing {
        apply(connection, script).await?;
    }
    Ok(())
}

/// The version of the tables; 0 for none.
async fn applied(connection: &Connection) -> Result<usize, String> {
    match connection.rows(APPLIED, &[]).await {
        Ok(rows) => {
            let version = rows.first().and_then(|row| row.get::<i64>(0));
            Ok(version.and_then(|version| version.try_into().ok()).unwrap_or(0))
        }
        Err(error) if Trouble::of(&error) == Trouble::NoSchema => Ok(0),
        Err(error) => Err(error),
    }
}

async fn write_ahead(connection: &Connection) -> Result<(), String> {
    match connection.rows(WRITE_AHEAD, &[]).await {
        Err(error) if Trouble::of(&error) == Trouble::Busy => return Err(error),
        Err(error) if !sql::is_refused(&error) => log::line("going on without a write-ahead log", error),
        _ => {}
    }
    Ok(())
}

/// Another process may be about the same, so each statement may have been run before.
async fn apply(connection: &Connection, script: &str) -> Result<(), String> {
    for statement in sql::statements(script) {
        match connection.rows(statement, &[]).await {
            Err(error) if !sql::is_done(&error) => return Err(error),
            _ => {}
        }
    }
    Ok(())
}
