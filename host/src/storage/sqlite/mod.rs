//! SQLite databases, each with a connection pool and one writer at a time.
//!
//! A component opens a handle. The handle borrows a connection from the pool for each statement. It keeps the connection only
//! during a transaction, or if a statement changed the connection itself. So there are only as many connections as concurrent
//! statements, and their page caches stay warm.
//!
//! A quick read runs on the calling thread; everything else runs on the blocking pool. Writers queue in FIFO order for the
//! write lock of this process, so that only one connection per process ever waits for SQLite's own lock. A transaction holds
//! the write lock from its first write to its end. Changes outside of a transaction are run in groups by a leader, which
//! holds the write lock (group commit, see `group`).

mod connection;
mod database;
mod error;
mod group;
mod handle;
mod interrupt;
mod lock_wait;
mod policy;
mod pool;
mod queue;
mod rows;
mod rules;
mod wal;
mod write_lock;

use rusqlite::ffi;

pub use database::Database;
pub use handle::Handle;

/// Turns off SQLite's memory statistics, which nothing reads and which take a global lock at each allocation. Must be called
/// before any other use of SQLite in the process.
pub fn configure() {
    // SAFETY: main calls this before starting a second thread. The option takes one int.
    let code = unsafe { ffi::sqlite3_config(ffi::SQLITE_CONFIG_MEMSTATUS, 0) };
    if code != ffi::SQLITE_OK {
        tracing::debug!("SQLite's memory statistics cannot be turned off: code {code}");
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic fails the test")]
mod power;
#[cfg(test)]
mod tests;
