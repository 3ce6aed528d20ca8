//! The state of click counting, for metrics.

use super::traffic::Traffic;

/// A snapshot of the state. A line that is read again after a fault counts once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    pub lines: u64,
    /// How many of the lines are not in nginx's format.
    pub malformed: u64,
    /// The requests that the lines describe.
    pub traffic: Traffic,
    /// Clicks of people that the database has counted.
    pub clicks: u64,
    /// Clicks of bots that the database has counted.
    pub bots: u64,
    pub batches: u64,
    /// Bytes of the journal that are not counted yet.
    pub lag_bytes: u64,
    /// The time of the first click that has been read but not counted yet, in milliseconds since 1970.
    pub oldest: Option<u64>,
    /// How many times another file replaced the journal.
    pub replaced: u64,
    /// How many times somebody emptied the journal.
    pub emptied: u64,
    /// Why clicks are not being counted, or another problem with them.
    pub error: Option<String>,
}
