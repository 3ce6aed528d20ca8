//! An instance's connections, and the retries of statements on them.
//!
//! Every statement must be complete by itself, because requests share the connections of their instance. It must also be
//! repeatable, because it is tried again if its answer is lost.

use std::cell::{Cell, RefCell};
use std::marker::PhantomData;
use std::rc::Rc;
use std::thread::LocalKey;
use std::time::Duration;

use crate::sdk::sqlite::{RowResult, Value};

use super::connection::Connection;
use super::error::{ErrorKind, NO_ANSWER};
use super::timeouts::{READ_LIMIT, SOON, Timeouts};
use crate::circuit_breaker::{CircuitBreaker, Memory};
use crate::clock;
use crate::time::Instant;

/// The pause before a busy database is asked again. It is doubled each time, up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(200);

type Connections = RefCell<Vec<Rc<Connection>>>;

thread_local! {
    /// Connections for statements that read. Opening one for every request would cost more than the request. Requests share a
    /// connection by its `Rc`, and never borrow the cell across an await.
    static READING: Connections = const { RefCell::new(Vec::new()) };
    /// Connections for statements that run in place, and for no others. A statement on the same connection might be waiting for
    /// its task to take rows, which cannot happen while the one in place waits for the connection.
    static IN_PLACE: Connections = const { RefCell::new(Vec::new()) };
    /// Connections for statements that write. A write may wait for the locks of others, and everything on its connection waits
    /// with it.
    static WRITING: Connections = const { RefCell::new(Vec::new()) };
    /// Whether the tables are known to be those of this release.
    static IS_MIGRATED: Cell<bool> = const { Cell::new(false) };
    static OUTAGE: Memory = const { Memory::new(false) };
}

/// Whether the database answers. Instances whose requests have a fallback share this ([`CircuitBreaker::share`]).
pub const BREAKER: CircuitBreaker = CircuitBreaker {
    name: "the database",
    outage_key: "links:outage:database",
    end_key: "links:outage-end:database",
    pause: Duration::from_secs(3),
    peek_interval: Duration::from_secs(1),
    memory: &OUTAGE,
};

/// What a statement needs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Reads one row from tables of any version. Not checking the version saves a round trip. If the tables are too old, the
    /// database's error says so.
    ReadAnyVersion,
    /// Reads rows from tables of any version in a local file, without suspending the task (see [`Connection::rows_in_place`]).
    ReadAnyVersionInPlace,
    /// Reads from the tables of this release.
    Read,
    /// Writes to the tables of this release.
    Write,
}

impl Mode {
    fn connections(self) -> &'static LocalKey<Connections> {
        match self {
            Mode::ReadAnyVersion | Mode::Read => &READING,
            Mode::ReadAnyVersionInPlace => &IN_PLACE,
            Mode::Write => &WRITING,
        }
    }

    fn takes_any_version(self) -> bool {
        matches!(self, Mode::ReadAnyVersion | Mode::ReadAnyVersionInPlace)
    }
}

/// How the owner of the tables prepares connections.
#[expect(async_fn_in_trait, reason = "nothing here is sent between threads")]
pub trait Setup {
    /// Prepares a new connection.
    ///
    /// # Errors
    /// The database's message.
    async fn connected(connection: &Connection) -> Result<(), String>;

    /// Makes sure that the tables are those of this release. Another process may be doing the same, and a time limit may
    /// interrupt this at any statement. The next request that needs the tables then runs it again.
    ///
    /// # Errors
    /// The database's message.
    async fn migrate(connection: &Connection) -> Result<(), String>;
}

/// The database for one request.
pub struct Database<S> {
    since: Instant,
    timeouts: Timeouts,
    setup: PhantomData<S>,
}

impl<S: Setup> Database<S> {
    /// The database for a request that began at `since`.
    pub fn new(timeouts: Timeouts, since: Instant) -> Self {
        Database {
            since,
            timeouts,
            setup: PhantomData,
        }
    }

    /// The rows of a statement. The [`BREAKER`] records whether the database answered.
    ///
    /// # Errors
    /// The database's message.
    pub async fn query(&self, statement: &str, values: &[Value], mode: Mode) -> Result<Vec<RowResult>, String> {
        let outcome = self.query_unrecorded(statement, values, mode).await;
        match &outcome {
            Ok(_) if !BREAKER.expects_success() => {}
            Ok(_) => {
                let took = self.since.elapsed();
                if took < SOON {
                    BREAKER.record_success(took).await;
                }
            }
            Err(error) => BREAKER.record_failure(error, self.since.elapsed()).await,
        }
        outcome
    }

    /// Like [`Database::query`], but the [`BREAKER`] records nothing. This is for slow statements, whose failure proves nothing
    /// about others.
    ///
    /// # Errors
    /// The database's message.
    pub async fn query_unrecorded(
        &self,
        statement: &str,
        values: &[Value],
        mut mode: Mode,
    ) -> Result<Vec<RowResult>, String> {
        let Timeouts {
            statement: limit,
            retries,
            request,
            connections,
        } = self.timeouts;
        let mut pause = FIRST_PAUSE;
        let mut is_reconnected = false;
        loop {
            let kept = kept(mode.connections(), connections);
            let was_kept = kept.is_some();
            let work = async {
                let connection = match kept {
                    Some(connection) => connection,
                    None => connect::<S>(mode.connections(), connections).await?,
                };
                if !mode.takes_any_version() && !IS_MIGRATED.get() {
                    S::migrate(&connection).await?;
                    IS_MIGRATED.set(true);
                }
                match mode {
                    Mode::ReadAnyVersion => connection.only_row(statement, values).await,
                    Mode::ReadAnyVersionInPlace => connection.rows_in_place(statement, values),
                    Mode::Read | Mode::Write => connection.rows(statement, values).await,
                }
            };
            let limit = if mode.takes_any_version() {
                limit.min(READ_LIMIT)
            } else {
                limit
            };
            let end = async {
                let left = request.saturating_sub(self.since.elapsed());
                clock::sleep(limit.min(left)).await;
            };
            let error = match clock::before(end, work).await {
                Some(Ok(rows)) => return Ok(rows),
                Some(Err(error)) => error,
                None => {
                    disconnect();
                    return Err(NO_ANSWER.to_owned());
                }
            };
            match ErrorKind::of(&error) {
                ErrorKind::Busy if self.since.elapsed() < retries => {
                    clock::sleep(pause).await;
                    pause = LONGEST_PAUSE.min(pause.saturating_mul(2));
                }
                ErrorKind::NoSchema if mode.takes_any_version() => mode = Mode::Read,
                ErrorKind::NoSchema | ErrorKind::Other if was_kept && !is_reconnected => {
                    disconnect();
                    is_reconnected = true;
                }
                _ => {
                    disconnect();
                    return Err(error);
                }
            }
        }
    }

    /// Runs `work` with a connection for [`Mode::Write`], without checking the version of the tables.
    ///
    /// # Errors
    /// The database's message.
    pub async fn with_connection<T>(
        &self,
        work: impl AsyncFnOnce(&Connection) -> Result<T, String>,
    ) -> Result<T, String> {
        let Timeouts {
            request, connections, ..
        } = self.timeouts;
        let work = async {
            let connection = match kept(&WRITING, connections) {
                Some(connection) => connection,
                None => connect::<S>(&WRITING, connections).await?,
            };
            work(&connection).await
        };
        let outcome = clock::within(request, work).await;
        outcome.unwrap_or_else(|| Err(NO_ANSWER.to_owned()))
    }
}

/// A connection that is not in use, or a shared one if `most` are kept.
fn kept(connections: &'static LocalKey<Connections>, most: usize) -> Option<Rc<Connection>> {
    connections.with_borrow(|kept| {
        let free = kept.iter().find(|connection| Rc::strong_count(connection) == 1);
        free.or_else(|| kept.first().filter(|_| kept.len() >= most)).cloned()
    })
}

/// Drops the kept connections, because they may be broken. Requests that still use one find out by themselves.
fn disconnect() {
    for connections in [&READING, &IN_PLACE, &WRITING] {
        drop(connections.take());
    }
    IS_MIGRATED.set(false);
}

/// Opens a connection. It is kept unless `most` are kept already, which happens if two requests open one at the same time.
async fn connect<S: Setup>(connections: &'static LocalKey<Connections>, most: usize) -> Result<Rc<Connection>, String> {
    let connection = Connection::open().await?;
    S::connected(&connection).await?;
    let connection = Rc::new(connection);
    connections.with_borrow_mut(|kept| {
        if kept.len() < most {
            kept.push(connection.clone());
        }
    });
    Ok(connection)
}
