//! Group commit: changes that wait at the same time become durable by one sync of the write-ahead log.
//!
//! Each change runs by itself, as it would alone; only its commit does not wait for the disk. When
//! the group has run, one sync makes all of it durable, and not before that is anybody answered. So a crash takes
//! nothing from anybody who was told that it is there. What differs from SQLite's own `synchronous = FULL`: others may read
//! a change in the moment before it is durable, and after a failed sync, which every one of the group is told, the changes
//! may be there all the same.
//!
//! After a failed sync the kernel may take the pages for written and report no further error (PostgreSQL's "fsyncgate",
//! https://wiki.postgresql.org/wiki/Fsync_Errors). The log then has a hole on the disk, and at a power failure everything
//! behind the hole would be lost. So nothing is acknowledged any more until the log was written once more, and a checkpoint
//! has copied it into the database and emptied it. If that fails as well, the process ends: the next one begins with it.
//!
//! Other processes get their chance between any two changes of a group, as no lock of SQLite is held there.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedMutexGuard, OwnedRwLockReadGuard, oneshot};
use tokio::task::spawn_blocking;

use super::connection::{Connection, Table, size};
use super::{Answer, Database, Session, WRITER_TIMEOUT, broken, locked};
use crate::bindings::sqlite::{Error, Value};

/// How groups are formed and made durable.
pub struct Rules {
    /// The first of a group waits for the last: so many are one group at most,
    pub changes: usize,
    /// and none begins in a group that holds so many bytes
    pub bytes: usize,
    /// or has run for so long.
    pub time: Duration,
    pub sync: LogSync,
    /// What makes changes durable after a sync that failed.
    pub repair: LogSync,
    /// What is done when that fails as well.
    pub give_up: Box<dyn Fn() + Send + Sync>,
}

type LogSync = Box<dyn Fn(&Connection) -> Result<(), Error> + Send + Sync>;

/// After a group of this many bytes, memory is given back to the kernel: a batch of clicks, not links that are made one by one.
const LARGE: usize = 64 << 10;
/// How often the repair is tried: it syncs the log first, and each descriptor reports an error of the disk once more.
const REPAIRS: usize = 3;
/// EX_IOERR of sysexits.h.
const IO_ERROR: i32 = 74;

impl Default for Rules {
    fn default() -> Self {
        Self {
            changes: 64,
            bytes: 1 << 20,
            time: Duration::from_millis(2),
            sync: Box::new(Connection::sync),
            repair: Box::new(Connection::empty_log),
            give_up: Box::new(|| std::process::exit(IO_ERROR)),
        }
    }
}

/// The changes that wait.
#[derive(Debug, Default)]
pub struct Queue(Mutex<Waiting>);

#[derive(Debug, Default)]
struct Waiting {
    changes: VecDeque<Change>,
    /// Whether somebody is at work who will take them.
    taken_care_of: bool,
}

/// A statement that changes the database, outside of a transaction.
#[derive(Debug)]
struct Change {
    number: u64,
    /// Shared with other changes of this handle; what is no such change waits for it.
    session: OwnedRwLockReadGuard<Session>,
    sql: String,
    parameters: Vec<Value>,
    answer: oneshot::Sender<Result<Answer, Error>>,
}

/// The place of a change in the queue. Dropping it gives the change up, unless it has begun.
struct Place {
    database: Arc<Database>,
    number: u64,
}

/// Runs a change, together with others that wait.
///
/// # Errors
/// SQLite's, and that nobody's turn has ended for a while.
pub async fn change(
    session: OwnedRwLockReadGuard<Session>,
    sql: String,
    parameters: Vec<Value>,
) -> Result<Answer, Error> {
    static NUMBERS: AtomicU64 = AtomicU64::new(0);
    let database = session.database.clone();
    let (sender, mut answer) = oneshot::channel();
    let place = Place {
        database: database.clone(),
        number: NUMBERS.fetch_add(1, Relaxed),
    };
    let is_first = database.queue.push(Change {
        number: place.number,
        session,
        sql,
        parameters,
        answer: sender,
    });
    if is_first {
        tokio::spawn(take_care(database.clone()));
    }
    loop {
        let turns = database.turns.load(Relaxed);
        match tokio::time::timeout(WRITER_TIMEOUT, &mut answer).await {
            Ok(answer) => return answer.map_err(|_| broken())?,
            // One that has begun is waited for, however long it takes.
            Err(_) if database.turns.load(Relaxed) == turns && place.leave() => return Err(locked()),
            Err(_) => {}
        }
    }
}

impl Place {
    /// False: the change has begun.
    fn leave(&self) -> bool {
        self.database.queue.remove(self.number).is_some()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.leave();
    }
}

impl Queue {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        // Nothing that can panic happens under this lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it is now up to the caller that the queue is taken care of.
    fn push(&self, change: Change) -> bool {
        let mut waiting = self.waiting();
        waiting.changes.push_back(change);
        !std::mem::replace(&mut waiting.taken_care_of, true)
    }

    /// Once there is none, the queue is taken care of no longer.
    fn first(&self) -> Option<Change> {
        let mut waiting = self.waiting();
        let change = waiting.changes.pop_front();
        waiting.taken_care_of = change.is_some();
        change
    }

    /// One more of the group.
    fn next(&self) -> Option<Change> {
        self.waiting().changes.pop_front()
    }

    fn remove(&self, number: u64) -> Option<Change> {
        let mut waiting = self.waiting();
        let index = waiting.changes.iter().position(|change| change.number == number)?;
        waiting.changes.remove(index)
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.waiting().changes.len()
    }
}

/// Runs changes until none waits.
async fn take_care(database: Arc<Database>) {
    loop {
        let turn = database.writer.clone().lock_owned().await;
        let database = database.clone();
        match spawn_blocking(move || run_groups(&database, turn)).await {
            Ok(true) => {}
            Ok(false) => return,
            // Whose change it was is told, by the end of its channel; the others must not wait for ever.
            Err(error) if error.is_panic() => {}
            Err(_) => return,
        }
    }
}

/// False: none waits any more. True: others wait for the turn.
fn run_groups(database: &Database, turn: OwnedMutexGuard<()>) -> bool {
    let mut largest = 0;
    let mut others_wait = false;
    while !others_wait && let Some(first) = database.queue.first() {
        largest = largest.max(run_group(database, first));
        database.turns.fetch_add(1, Relaxed);
        others_wait = database.waiters.load(Relaxed) > 0;
    }
    drop(turn);
    if largest >= LARGE {
        give_memory_back();
    }
    others_wait
}

/// SQLite takes many times the size of a JSON text to expand it, from an arena of the thread that it runs on, and glibc keeps
/// what is freed below something that is still in use.
fn give_memory_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim(3) may be called at any time from any thread.
    unsafe {
        nix::libc::malloc_trim(0);
    }
}

/// Returns how many bytes the group held.
fn run_group(database: &Database, first: Change) -> usize {
    let connection = match database.connection_now() {
        Ok(connection) => connection,
        Err(error) => {
            // Nobody may be waiting any more.
            drop(first.answer.send(Err(error)));
            return 0;
        }
    };
    let (rules, start) = (&database.rules, Instant::now());
    let mut group = vec![first.run(&connection)];
    let mut bytes = 0;
    while let Some(done) = group.last() {
        bytes += done.bytes();
        if group.len() >= rules.changes || bytes >= rules.bytes || start.elapsed() >= rules.time {
            break;
        }
        match database.queue.next() {
            Some(change) => group.push(change.run(&connection)),
            None => break,
        }
    }
    let synced = sync(database, &connection, &group);
    database.give_back(connection);
    for done in group {
        done.answer(&synced);
    }
    bytes
}

/// One sync for all of the group. The caller has the turn, so that nobody else of this process writes before a failed sync is
/// repaired.
fn sync(database: &Database, connection: &Connection, group: &[Done]) -> Result<(), Error> {
    if !group.iter().any(|done| done.unsynced) {
        return Ok(());
    }
    (database.rules.sync)(connection).inspect_err(|error| repair(database, connection, error))
}

fn repair(database: &Database, connection: &Connection, error: &Error) {
    tracing::error!("{database:?}: syncing the write-ahead log failed: {error}");
    // The descriptors of the others would report the same error again.
    database.pool().connections.clear();
    for _ in 0..REPAIRS {
        match (database.rules.repair)(connection) {
            Ok(()) => {
                tracing::warn!("{database:?}: a checkpoint has made durable what the sync did not");
                return;
            }
            Err(error) => tracing::error!("{database:?}: the checkpoint after it failed: {error}"),
        }
    }
    tracing::error!("{database:?}: commits can no longer be made durable: ending, so that a new process starts over");
    (database.rules.give_up)();
}

impl Change {
    fn run(self, connection: &Connection) -> Done {
        let (result, unsynced) = self.session.write(connection, &self.sql, || {
            connection.run_unsynced(&self.sql, &self.parameters)
        });
        Done {
            session: self.session,
            parameters: self.parameters,
            result,
            unsynced,
            answer: self.answer,
        }
    }
}

/// A change that has run.
struct Done {
    session: OwnedRwLockReadGuard<Session>,
    parameters: Vec<Value>,
    result: Result<Table, Error>,
    unsynced: bool,
    answer: oneshot::Sender<Result<Answer, Error>>,
}

impl Done {
    /// What it holds until the group ends.
    fn bytes(&self) -> usize {
        let rows = self.result.as_ref().map_or(&[][..], |table| &table.rows);
        size(&self.parameters) + rows.iter().map(|row| size(&row.values)).sum::<usize>()
    }

    fn answer(self, synced: &Result<(), Error>) {
        let result = match (self.result, synced) {
            (Ok(_), Err(error)) if self.unsynced => Err(error.clone()),
            (result, _) => result,
        };
        // Who asked may use the connection at once.
        drop(self.session);
        // Nobody may be waiting any more; the change is made all the same.
        drop(self.answer.send(result.map(Answer::from)));
    }
}
