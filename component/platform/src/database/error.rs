//! The meaning of a database's messages. Neither Spin's interface nor the remote protocol passes on SQLite's result code.

use std::fmt;

/// Whether `ALTER TABLE ... ADD COLUMN`, which has no `IF NOT EXISTS`, failed because the column exists.
pub fn is_duplicate_column(message: &str) -> bool {
    contains(&message.to_ascii_lowercase(), "duplicate column name")
}

/// Whether the database does not support this kind of statement, as remote ones do not support most pragmas.
pub fn is_unsupported(message: &str) -> bool {
    let message = message.to_ascii_lowercase();
    contains(&message, "unsupported statement") || contains(&message, "not allowed")
}

/// Like `str::contains`, which is faster and brings 8 KB of code into a component. Messages are short and rare.
fn contains(message: &str, phrase: &str) -> bool {
    let mut windows = message.as_bytes().windows(phrase.len());
    windows.any(|window| window == phrase.as_bytes())
}

/// What an error means for the statement that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// Another connection is writing. The same statement works a moment later.
    Busy,
    /// The tables are missing or older than this release; the database may have been replaced after this connection was opened.
    NoSchema,
    /// Anything else. A new connection may work: a remote database closes idle ones.
    Other,
}

impl ErrorKind {
    pub fn of(message: &str) -> ErrorKind {
        let words = Words::of(message);
        if words.include_any(&["locked", "busy"]) {
            ErrorKind::Busy
        } else if words.include_any(&["no such table", "no such column", "has no column named"]) {
            ErrorKind::NoSchema
        } else {
            ErrorKind::Other
        }
    }
}

/// The words of a message in lower case, so that "author" is not taken for "auth", nor "blocked" for "locked". Everything but
/// ASCII letters and digits separates words: `SQLITE_BUSY` and `status=401` have two each.
/// There is one space before, between and after the words.
struct Words(Vec<u8>);

impl Words {
    fn of(message: &str) -> Words {
        let mut words = vec![b' '];
        for byte in message.bytes() {
            if byte.is_ascii_alphanumeric() {
                words.push(byte.to_ascii_lowercase());
            } else if words.last() != Some(&b' ') {
                words.push(b' ');
            }
        }
        words.push(b' ');
        Words(words)
    }

    /// Whether one of these phrases is among the words.
    fn include_any(&self, phrases: &[&str]) -> bool {
        phrases.iter().any(|phrase| {
            let mut windows = self.0.windows(phrase.len() + 2);
            windows.any(|window| matches!(window, [b' ', text @ .., b' '] if text == phrase.as_bytes()))
        })
    }
}

/// What a message says if the server does not accept the token.
const REFUSALS: &[&str] = &[
    "auth",
    "authenticate",
    "authenticated",
    "authentication",
    "unauthenticated",
    "authorization",
    "authorized",
    "unauthorized",
    "jwt",
    "forbidden",
    "status 401",
    "status 403",
];

/// What a message says if the database cannot be reached or opened.
const FAILED_CONNECTIONS: &[&str] = &[
    "connect",
    "connected",
    "connecting",
    "connection",
    "connections",
    "disconnected",
    "dns error",
    "unable to open",
];

/// The message for a statement that did not finish in time.
pub const NO_ANSWER: &str = "no answer in time";

/// The cause of an error, in words that anybody may see. The database's own message may contain confidential details.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    NoAnswer,
    Unreachable,
    Refused,
    Busy,
    Full,
    Other,
}

impl Cause {
    pub fn of(message: &str) -> Cause {
        let words = Words::of(message);
        if message == NO_ANSWER {
            Cause::NoAnswer
        } else if words.include_any(REFUSALS) {
            Cause::Refused
        } else if words.include_any(FAILED_CONNECTIONS) {
            Cause::Unreachable
        } else if ErrorKind::of(message) == ErrorKind::Busy {
            Cause::Busy
        } else if words.include_any(&["is full"]) {
            Cause::Full
        } else {
            Cause::Other
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Cause::NoAnswer => "no answer in time",
            Cause::Unreachable => "it cannot be reached or opened",
            Cause::Refused => "it refuses the token",
            Cause::Busy => "it is locked by others",
            Cause::Full => "it is full",
            Cause::Other => "it reports an error; see the log",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duplicate_column_is_recognised() {
        assert!(is_duplicate_column("duplicate column name: request_id"));
        assert!(is_duplicate_column("SQLite error: Duplicate column name: request_id"));
        assert!(!is_duplicate_column("no such table: links") && !is_duplicate_column("database is locked"));
    }

    #[test]
    fn an_unsupported_pragma_is_recognised() {
        assert!(is_unsupported("unsupported statement"));
        assert!(is_unsupported(
            "SQL_PARSE_ERROR: SQL not allowed statement: PRAGMA journal_mode = WAL"
        ));
        assert!(!is_unsupported("database is locked") && !is_unsupported("disk I/O error"));
    }

    /// The messages of libSQL are as Spin 4.0.2 passes them on; the others are SQLite's own.
    #[test]
    fn a_cause_does_not_repeat_the_message() {
        for (message, cause) in [
            (NO_ANSWER, Cause::NoAnswer),
            (
                "Hrana: `http error: `error trying to connect: tcp connect error: Connection refused (os error 111)``",
                Cause::Unreachable,
            ),
            (
                "Hrana: `http error: `error trying to connect: dns error: failed to lookup address``",
                Cause::Unreachable,
            ),
            (
                "unable to open database file: /var/lib/links/data/links.db",
                Cause::Unreachable,
            ),
            ("the connection is gone", Cause::Unreachable),
            (
                "Hrana: `api error: `{\"error\":\"Unauthorized: bad token\"}``",
                Cause::Refused,
            ),
            (
                "Hrana: `api error: `{\"error\":\"The JWT is invalid\"}``",
                Cause::Refused,
            ),
            ("Hrana: `api error: `status=401 Unauthorized, body=``", Cause::Refused),
            ("Hrana: `api error: `status=403, body=``", Cause::Refused),
            ("AUTH_JWT_INVALID", Cause::Refused),
            ("database is locked", Cause::Busy),
            ("the database is full", Cause::Full),
            ("disk I/O error", Cause::Other),
            ("unrecognized token: \"x\"", Cause::Other),
            // Parts of words mean nothing.
            ("no such column: author", Cause::Other),
            ("no such table: connectors", Cause::Other),
            ("the request is blocked", Cause::Other),
            ("it is fuller than before", Cause::Other),
            ("status=4010", Cause::Other),
            ("", Cause::Other),
        ] {
            assert_eq!(Cause::of(message), cause, "{message}");
        }
        assert!(!Cause::of("disk I/O error at /secret").to_string().contains("secret"));
    }

    #[test]
    fn each_message_has_its_kind() {
        for (message, kind) in [
            ("database is locked", ErrorKind::Busy),
            ("Error code 5: The database file is locked", ErrorKind::Busy),
            ("SQLITE_BUSY: database is locked", ErrorKind::Busy),
            ("database table is locked: links", ErrorKind::Busy),
            ("SQL read operations are blocked", ErrorKind::Other),
            ("no such column: blocked", ErrorKind::NoSchema),
            ("no such table: links", ErrorKind::NoSchema),
            ("table links has no column named request_id", ErrorKind::NoSchema),
            ("no such column: request_id", ErrorKind::NoSchema),
            ("disk I/O error", ErrorKind::Other),
            ("attempt to write a readonly database", ErrorKind::Other),
            ("", ErrorKind::Other),
        ] {
            assert_eq!(ErrorKind::of(message), kind, "{message}");
        }
    }
}
