//! How long a request waits for the database.

use std::time::Duration;

/// A database that takes longer than this is as good as down for callers with a fallback.
pub const SOON: Duration = Duration::from_secs(1);

/// For a statement that reads: readers wait for no lock.
pub const READ_LIMIT: Duration = Duration::from_millis(4500);

/// Both runtimes let an instance serve this many requests concurrently by default.
const REQUESTS_AT_A_TIME: usize = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// For one statement.
    pub statement: Duration,
    /// After this long no statement is tried again.
    pub retries: Duration,
    /// For the whole request.
    pub request: Duration,
    /// How many connections of an instance are kept for such requests. The statements on one connection run one after the
    /// other, which costs nothing on a local database and a round trip each on a remote one.
    pub connections: usize,
}

impl Timeouts {
    /// A local database waits up to 5 s for a lock before it reports that it is busy.
    pub const LOCAL: Timeouts = Timeouts {
        statement: Duration::from_secs(6),
        retries: Duration::from_secs(8),
        request: Duration::from_secs(14),
        connections: 1,
    };

    /// A database on another machine waits for its own locks; one that hangs would never answer.
    pub const REMOTE: Timeouts = Timeouts {
        statement: READ_LIMIT,
        retries: Duration::from_secs(6),
        request: Duration::from_secs(10),
        connections: REQUESTS_AT_A_TIME,
    };

    /// For callers with a fallback.
    pub const WITH_FALLBACK: Timeouts = Timeouts {
        statement: SOON,
        retries: SOON,
        request: SOON,
        connections: REQUESTS_AT_A_TIME,
    };

    /// For the health probe, which polls every second and times out after two.
    pub const PROBE: Timeouts = Timeouts {
        statement: Duration::from_millis(1500),
        retries: Duration::from_millis(1500),
        request: Duration::from_millis(1500),
        connections: 1,
    };

    /// For counting all rows, which takes longer the more there are.
    pub const COUNT: Timeouts = Timeouts {
        statement: Duration::from_secs(14),
        retries: Duration::from_secs(6),
        request: Duration::from_secs(14),
        connections: 1,
    };
}
