//! The idle connections of a database.

use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};

use super::connection::Connection;
use super::error::io;
use crate::bindings::sqlite::Error;
use crate::storage::place::{Identity, Place};

/// The maximum number of idle connections of a database: one for each thread that runs quick reads, one for group commit and
/// one for a transaction.
fn max_pooled() -> usize {
    static MAX_POOLED: LazyLock<usize> = LazyLock::new(|| thread::available_parallelism().map_or(2, usize::from) + 2);
    *MAX_POOLED
}

/// Opens connections, and keeps idle ones for reuse.
pub struct Pool {
    place: Place,
    allow_attach_file: bool,
    idle: Mutex<Idle>,
}

#[derive(Default)]
struct Idle {
    /// Each with the thread that used it last.
    connections: Vec<(ThreadId, Connection)>,
    /// The identity of the file that the connections have opened.
    identity: Option<Identity>,
}

impl Pool {
    pub fn new(place: Place, allow_attach_file: bool) -> Self {
        Self {
            place,
            allow_attach_file,
            idle: Mutex::default(),
        }
    }

    fn idle(&self) -> MutexGuard<'_, Idle> {
        // Nothing that can panic happens under this lock.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a new connection. May block.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn open(&self) -> rusqlite::Result<Connection> {
        Connection::open(&self.place, self.allow_attach_file)
    }

    /// Takes an idle connection, if possible one whose pages are in the cache of this thread's processor.
    pub fn take_idle(&self) -> Option<Connection> {
        let this = thread::current().id();
        let mut idle = self.idle();
        let connections = &mut idle.connections;
        let of_this = connections.iter().rposition(|(thread, _)| *thread == this);
        let place = of_this.or(connections.len().checked_sub(1))?;
        // In order, so that the last one is always the most recently used.
        let (_, connection) = connections.remove(place);
        Some(connection)
    }

    /// Takes an idle connection, or opens one. May block.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn take(&self) -> Result<Connection, Error> {
        let idle = self.take_idle();
        idle.map_or_else(|| self.open().map_err(|error| io(&error)), Ok)
    }

    /// Resets a connection and keeps it, unless there are enough or the file was replaced.
    pub fn give_back(&self, mut connection: Connection) {
        // An in-memory database belongs to one handle and ends with it.
        if self.place != Place::Memory && connection.reset() {
            let mut idle = self.idle();
            if idle.connections.len() < max_pooled() && idle.identity == connection.identity() {
                idle.connections.push((thread::current().id(), connection));
            }
        }
    }

    /// Keeps a new connection, and from now on only others with the same file.
    pub fn adopt(&self, connection: Connection) {
        self.idle().identity = connection.identity();
        self.give_back(connection);
    }

    /// Whether the idle connections belong to the file that is there now. If the file was replaced, they are closed.
    pub fn is_current(&self) -> bool {
        let identity = self.place.identity();
        let mut idle = self.idle();
        let is_current = identity.is_some() && idle.identity == identity;
        if !is_current {
            idle.connections.clear();
        }
        is_current
    }

    /// Closes all idle connections.
    pub fn clear(&self) {
        self.idle().connections.clear();
    }

    /// The number of idle connections.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.idle().connections.len()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic fails the test")]
mod tests {
    use super::*;

    #[test]
    fn a_thread_takes_the_connection_that_it_used_last() {
        let dir = tempfile::tempdir().unwrap();
        let pool = Pool::new(Place::File(dir.path().join("a.db")), false);
        pool.adopt(pool.open().unwrap());
        let here = pool.take_idle().unwrap();
        here.run("CREATE TABLE t (a)", &[]).unwrap();
        here.run("INSERT INTO t VALUES (1)", &[]).unwrap();
        pool.give_back(here);
        thread::scope(|scope| {
            let there = scope.spawn(|| pool.give_back(pool.open().unwrap()));
            there.join().unwrap();
        });
        assert_eq!(pool.len(), 2);
        // Only the connection of this thread has changed rows.
        assert_eq!(pool.take_idle().unwrap().changes(), 1);
        assert_eq!(pool.take_idle().unwrap().changes(), 0, "another's is better than none");
        assert!(pool.take_idle().is_none());
    }
}
