//! How long a request waits for the database.

use std::time::Duration;

/// The limit for callers with a fallback. For them, a database that takes longer is as good as down.
pub const SOON: Duration = Duration::from_secs(1);

/// The limit for a statement that only reads. Readers do not wait for locks.
pub const READ_LIMIT: Duration = Duration::from_millis(4500);

/// Both runtimes let an instance serve this many requests concurrently by default.
const REQUESTS_AT_A_TIME: usize = 16;

/// The time limits of a request, and the connections for requests of its kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// The limit for one statement.
    pub statement: Duration,
    /// The time after which no statement is tried again.
    pub retries: Duration,
    /// The limit for the whole request.
    pub request: Duration,
    /// The maximum number of connections that an instance keeps for such requests. Statements on the same connection run one
    /// after the other, which costs nothing on a local database and a round trip each on a remote one.
    pub connections: usize,
}

impl Timeouts {
    /// For a local database, which waits up to 5 s for a lock before it reports that it is busy.
    pub const LOCAL: Timeouts = Timeouts {
        statement: Duration::from_secs(6),
        retries: Duration::from_secs(8),
        request: Duration::from_secs(14),
        connections: 1,
    };

    /// For a database on another machine. It waits for locks by itself, and might never answer if it hangs.
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

    /// For counting all rows, which takes longer the more rows there are.
    pub const COUNT: Timeouts = Timeouts {
        statement: Duration::from_secs(14),
        retries: Duration::from_secs(6),
        request: Duration::from_secs(14),
        connections: 1,
    };
}
