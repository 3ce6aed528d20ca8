//! The limits of a commit group, and how a group is made durable.

use std::time::Duration;

use super::connection::Connection;
use crate::bindings::sqlite::Error;

pub struct Rules {
    /// The maximum number of changes in a group. The first one waits for the last.
    pub changes: usize,
    /// The size in bytes at which a group is closed: no further change starts in it.
    pub bytes: usize,
    /// The age at which a group is closed: no further change starts in it.
    pub time: Duration,
    /// Makes a group durable.
    pub sync: LogSync,
    /// Makes changes durable after `sync` failed.
    pub repair: LogSync,
    /// Called if `repair` fails as well.
    pub give_up: Box<dyn Fn() + Send + Sync>,
}

type LogSync = Box<dyn Fn(&Connection) -> Result<(), Error> + Send + Sync>;

/// EX_IOERR from sysexits.h.
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
