//! SQLite's errors, as components see them.

use rusqlite::ErrorCode;

use crate::bindings::sqlite::Error;

/// Converts an error the way Spin does for all errors of SQLite.
pub fn io(error: &rusqlite::Error) -> Error {
    Error::Io(error.to_string())
}

/// The error for a lock that is not free in time. Components know SQLite's wording.
pub fn locked() -> Error {
    Error::Io("database is locked".to_owned())
}

/// Whether a statement failed only because it may not wait.
pub fn would_wait(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked | ErrorCode::OperationInterrupted)
    )
}
