//! What needs to be known of SQL texts and of the database's messages, apart from any database.

use std::fmt;

use crate::settings::Invalid;

/// The scripts that lead from one version of the tables to the next, version 0 being none.
pub const SCHEMA: [&str; 5] = [
    include_str!("../../sql/0001_links.sql"),
    include_str!("../../sql/0002_request_ids.sql"),
    include_str!("../../sql/0003_clicks.sql"),
    include_str!("../../sql/0004_click_limits.sql"),
    include_str!("../../sql/0005_deleted_links.sql"),
];

/// Whether the variable `database_place` says that the database is on another machine.
///
/// # Errors
/// Another word than "local" and "remote".
pub fn is_remote(database_place: &str) -> Result<bool, Invalid> {
    match database_place.trim() {
        "" | "local" => Ok(false),
        "remote" => Ok(true),
        _ => Err(Invalid {
            variable: "database_place",
            wanted: "\"local\" or \"remote\"",
        }),
    }
}

/// The statements of a script. One ends at the `;` that ends a line before an empty line or the end; so a trigger's
/// body, which has no empty line in it, stays whole.
pub fn statements(script: &str) -> impl Iterator<Item = &str> {
    script
        .split(";\n\n")
        .map(|statement| statement.trim().trim_end_matches(';'))
        .filter(|statement| !statement.is_empty())
}

/// Whether a statement of a schema failed because an earlier run of it did its work: a column cannot be added "if not
/// exists".
pub fn is_done(message: &str) -> bool {
    message.to_ascii_lowercase().contains("duplicate column name")
}

/// Whether a database does not take a statement because of its kind, as remote ones do with most pragmas.
pub fn is_refused(message: &str) -> bool {
    let message = message.to_ascii_lowercase();
    message.contains("unsupported statement") || message.contains("not allowed")
}

/// What a database error means for the request that met it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// Another connection writes: the same statement works a moment later.
    Busy,
    /// The tables are not there, or are older than this release, on a database that was made or replaced after this connection began.
    NoSchema,
    /// Anything else. A kept connection may be the cause (a remote database ends idle ones): a new one may work.
    Other,
}

impl Trouble {
    /// Judges by the message: neither Spin's interface nor the remote protocol hands on SQLite's result code.
    pub fn of(message: &str) -> Trouble {
        let message = message.to_ascii_lowercase();
        let says = |text| message.contains(text);
        if says("locked") || says("busy") {
            Trouble::Busy
        } else if ["no such table", "no such column", "has no column named"]
            .into_iter()
            .any(says)
        {
            Trouble::NoSchema
        } else {
            Trouble::Other
        }
    }
}

/// What is said of a statement that did not end in its time.
pub const NO_ANSWER: &str = "no answer in time";

/// The kind of trouble, for anybody to read: a database's own message may name what is nobody's business.
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
    /// By the message, as [`Trouble::of`].
    pub fn of(message: &str) -> Cause {
        let message = message.to_ascii_lowercase();
        let says = |texts: &[&str]| texts.iter().any(|text| message.contains(text));
        if message == NO_ANSWER {
            Cause::NoAnswer
        } else if says(&["auth", "jwt", "forbidden", "status=401", "status=403"]) {
            Cause::Refused
        } else if says(&["connect", "dns error", "unable to open"]) {
            Cause::Unreachable
        } else if Trouble::of(&message) == Trouble::Busy {
            Cause::Busy
        } else if says(&["is full"]) {
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
            Cause::Other => "it reports an error, which is in the log",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_falls_into_its_statements() {
        let script = "-- About; it\nCREATE TABLE a (b);\n\nCREATE TRIGGER t AFTER INSERT ON a BEGIN\n  SELECT 1;\n  SELECT 2;\nEND;\n";
        assert_eq!(
            statements(script).collect::<Vec<_>>(),
            [
                "-- About; it\nCREATE TABLE a (b)",
                "CREATE TRIGGER t AFTER INSERT ON a BEGIN\n  SELECT 1;\n  SELECT 2;\nEND"
            ]
        );
        assert_eq!(statements("\n").count(), 0);
    }

    #[test]
    fn a_column_that_is_there_was_added_before() {
        assert!(is_done("duplicate column name: request_id"));
        assert!(is_done("SQLite error: Duplicate column name: request_id"));
        assert!(!is_done("no such table: links") && !is_done("database is locked"));
    }

    #[test]
    fn is_local_unless_it_is_remote() {
        assert_eq!(is_remote(""), Ok(false));
        assert_eq!(is_remote("local"), Ok(false));
        assert_eq!(is_remote("remote\n"), Ok(true));
        assert!(is_remote("libsql").is_err_and(|invalid| invalid.variable == "database_place"));
    }

    #[test]
    fn a_pragma_that_is_refused_is_no_fault() {
        assert!(is_refused("unsupported statement"));
        assert!(is_refused(
            "SQL_PARSE_ERROR: SQL not allowed statement: PRAGMA journal_mode = WAL"
        ));
        assert!(!is_refused("database is locked") && !is_refused("disk I/O error"));
    }

    /// Those of libSQL as Spin 4.0.2 hands them on, the others SQLite's own.
    #[test]
    fn a_cause_is_told_without_the_message() {
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
            ("database is locked", Cause::Busy),
            ("the database is full", Cause::Full),
            ("disk I/O error", Cause::Other),
            ("unrecognized token: \"x\"", Cause::Other),
            ("", Cause::Other),
        ] {
            assert_eq!(Cause::of(message), cause, "{message}");
        }
        assert!(!Cause::of("disk I/O error at /secret").to_string().contains("secret"));
    }

    #[test]
    fn messages_have_a_meaning() {
        for (message, trouble) in [
            ("database is locked", Trouble::Busy),
            ("Error code 5: The database file is locked", Trouble::Busy),
            ("SQLITE_BUSY: database is locked", Trouble::Busy),
            ("database table is locked: links", Trouble::Busy),
            ("no such table: links", Trouble::NoSchema),
            ("table links has no column named request_id", Trouble::NoSchema),
            ("no such column: request_id", Trouble::NoSchema),
            ("disk I/O error", Trouble::Other),
            ("attempt to write a readonly database", Trouble::Other),
            ("", Trouble::Other),
        ] {
            assert_eq!(Trouble::of(message), trouble, "{message}");
        }
    }
}
