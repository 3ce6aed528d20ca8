//! Group commit: one sync of the write-ahead log makes all changes durable that wait at the same time.
//!
//! The leader holds the write lock and runs the queued changes of its followers in one transaction, so that a page that several
//! of them change is written once. A change that fails takes back only itself. The commit does not wait for the disk. One sync
//! then makes the whole group durable, and only after it are the followers answered, so a crash loses no acknowledged change.
//! This differs from SQLite's own `synchronous = FULL` in two ways: others may read a change shortly before it is durable, and
//! after a failed sync, which is reported to the whole group, its changes may still be there.
//!
//! Some errors, such as a full disk, make SQLite roll back the whole transaction. Then each change of the group runs again by
//! itself, and gets its own result.
//!
//! After a failed sync, the kernel may consider the pages written and report no further error (PostgreSQL's "fsyncgate",
//! <https://wiki.postgresql.org/wiki/Fsync_Errors>). The log then has a hole on the disk, and a power failure would lose
//! everything behind the hole. So nothing is acknowledged until the log has been rewritten, and a checkpoint has copied it
//! into the database and emptied it. If that fails as well, the process exits, and the next one starts with the repair.
//!
//! Other processes write between two groups. A change that finds no other in the queue runs without a transaction.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use tokio::sync::{OwnedRwLockReadGuard, oneshot};
use tokio::task::spawn_blocking;

use super::connection::Connection;
use super::database::{Change, Database, Session};
use super::error::locked;
use super::rows::Table;
use super::write_lock::{WRITER_TIMEOUT, WriteGuard};
use crate::bindings::sqlite::{Error, Value};
use crate::storage::answer::{Answer, broken, size};

/// The size in bytes from which a group's memory is returned to the kernel. A batch of clicks is larger, single links are not.
const LARGE: usize = 64 << 10;
/// How often the repair is attempted. It starts with a sync, and each file descriptor reports a disk error once.
const REPAIR_ATTEMPTS: usize = 3;

/// A caller that waits for its change. Dropping it withdraws the change, unless the change has started.
struct Follower {
    database: Arc<Database>,
    number: u64,
}

/// Runs a change in a group with others that wait.
///
/// # Errors
/// The change or the sync fails, or the write lock has not changed hands for a while.
pub async fn change(
    session: OwnedRwLockReadGuard<Session>,
    sql: String,
    parameters: Vec<Value>,
) -> Result<Answer, Error> {
    static NUMBERS: AtomicU64 = AtomicU64::new(0);
    let database = session.database.clone();
    let (sender, mut answer) = oneshot::channel();
    let follower = Follower {
        database: database.clone(),
        number: NUMBERS.fetch_add(1, Relaxed),
    };
    let change = Change {
        session,
        sql,
        parameters,
        answer: sender,
    };
    let needs_leader = database.queue.push(follower.number, change);
    if needs_leader {
        tokio::spawn(lead(database.clone()));
    }
    loop {
        let grants = database.write_lock.grants();
        match tokio::time::timeout(WRITER_TIMEOUT, &mut answer).await {
            Ok(answer) => return answer.map_err(|_| broken())?,
            // A change that has started cannot be withdrawn, so wait for it however long it takes.
            Err(_) if database.write_lock.grants() == grants && follower.withdraw() => return Err(locked()),
            Err(_) => {}
        }
    }
}

impl Follower {
    /// Removes the change from the queue. Returns false if it has started.
    fn withdraw(&self) -> bool {
        self.database.queue.remove(self.number).is_some()
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.withdraw();
    }
}

/// Runs as the leader until no change waits.
async fn lead(database: Arc<Database>) {
    loop {
        let write_lock = database.write_lock.wait().await;
        let database = database.clone();
        match spawn_blocking(move || run_groups(&database, write_lock)).await {
            Ok(true) => {}
            Ok(false) => return,
            // The caller of the change notices that its channel is closed. The others still need a leader.
            Err(error) if error.is_panic() => {}
            Err(_) => return,
        }
    }
}

/// Runs groups until the queue is empty or others wait for the write lock. Returns true in the latter case.
fn run_groups(database: &Database, write_lock: WriteGuard) -> bool {
    let mut largest = 0;
    let mut others_wait = false;
    while !others_wait && let Some(first) = database.queue.pop_or_step_down() {
        largest = largest.max(run_group(database, first));
        database.write_lock.count_grant();
        others_wait = database.write_lock.waiters() > 0;
    }
    drop(write_lock);
    if largest >= LARGE {
        return_memory();
    }
    others_wait
}

/// Returns freed memory to the kernel. SQLite needs many times the size of a JSON text to expand it, and glibc keeps freed
/// memory of an arena that lies below a block still in use.
fn return_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim(3) may be called at any time from any thread.
    unsafe {
        nix::libc::malloc_trim(0);
    }
}

/// Runs a group that starts with `first`. Returns the size of the group in bytes.
fn run_group(database: &Database, first: Change) -> usize {
    let connection = match database.pool.take() {
        Ok(connection) => connection,
        Err(error) => {
            // Sending fails if the caller has gone.
            drop(first.answer.send(Err(error)));
            return 0;
        }
    };
    let together = match database.queue.is_empty() {
        true => Ok(false),
        false => connection.begin_group(),
    };
    let together = match together {
        Ok(together) => together,
        Err(error) => {
            database.pool.give_back(connection);
            drop(first.answer.send(Err(error)));
            return 0;
        }
    };
    let (rules, start) = (&database.rules, Instant::now());
    let mut group = vec![first.run(&connection, together)];
    let mut bytes = 0;
    while let Some(done) = group.last() {
        bytes += done.bytes();
        let rolled_back = together && !connection.in_transaction();
        if rolled_back || group.len() >= rules.changes || bytes >= rules.bytes || start.elapsed() >= rules.time {
            break;
        }
        match database.queue.pop() {
            Some(change) => group.push(change.run(&connection, together)),
            None => break,
        }
    }
    if together && connection.commit_group().is_err() {
        let alone = |done: Done| done.change.run(&connection, false);
        group = group.into_iter().map(alone).collect();
    }
    connection.sync_commits();
    let synced = sync(database, &connection, &group);
    database.pool.give_back(connection);
    for done in group {
        done.answer(&synced);
    }
    bytes
}

/// Syncs once for the whole group. The caller holds the write lock, so nothing else in this process writes before a failed
/// sync is repaired.
fn sync(database: &Database, connection: &Connection, group: &[Done]) -> Result<(), Error> {
    if !group.iter().any(|done| done.unsynced) {
        return Ok(());
    }
    (database.rules.sync)(connection).inspect_err(|error| repair(database, connection, error))
}

fn repair(database: &Database, connection: &Connection, error: &Error) {
    tracing::error!("{database:?}: syncing the write-ahead log failed: {error}");
    // The file descriptors of pooled connections would report the same error again.
    database.pool.clear();
    for _ in 0..REPAIR_ATTEMPTS {
        match (database.rules.repair)(connection) {
            Ok(()) => {
                tracing::warn!("{database:?}: a checkpoint has made the commits durable after the failed sync");
                return;
            }
            Err(error) => tracing::error!("{database:?}: the checkpoint after the failed sync failed: {error}"),
        }
    }
    tracing::error!("{database:?}: commits cannot be made durable; exiting so that a new process can recover");
    (database.rules.give_up)();
}

impl Change {
    /// Runs the change, in the transaction of its group if it has one.
    fn run(self, connection: &Connection, together: bool) -> Done {
        let (result, unsynced) = self.session.write(connection, &self.sql, || match together {
            true => (connection.run(&self.sql, &self.parameters), true),
            false => connection.run_unsynced(&self.sql, &self.parameters),
        });
        Done {
            change: self,
            result,
            unsynced,
        }
    }
}

/// A change that has run.
struct Done {
    change: Change,
    result: Result<Table, Error>,
    unsynced: bool,
}

impl Done {
    /// The memory that the change holds until the group ends, in bytes.
    fn bytes(&self) -> usize {
        let rows = self.result.as_ref().map_or(&[][..], |table| &table.rows);
        size(&self.change.parameters) + rows.iter().map(|row| size(&row.values)).sum::<usize>()
    }

    fn answer(self, synced: &Result<(), Error>) {
        let result = match (self.result, synced) {
            (Ok(_), Err(error)) if self.unsynced => Err(error.clone()),
            (result, _) => result,
        };
        let Change { session, answer, .. } = self.change;
        // Release the session first, so that the caller can use its handle at once.
        drop(session);
        // Sending fails if the caller has gone; the change is made regardless.
        drop(answer.send(result.map(Answer::from)));
    }
}
