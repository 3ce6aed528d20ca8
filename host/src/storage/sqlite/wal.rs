//! The write-ahead log: makes its commits durable where SQLite itself does not wait for the disk.

use rusqlite::{Connection, ffi};

use super::error::{io, locked};
use crate::bindings::sqlite::Error;

/// How much of the log is rewritten at once, in bytes.
const BLOCK: i64 = 64 << 10;

/// Whether the database has a write-ahead log.
pub fn is_used(db: &Connection) -> bool {
    let mode = db.query_row("PRAGMA journal_mode", [], |row| row.get::<_, String>(0));
    mode.is_ok_and(|mode| mode == "wal")
}

/// Makes all commits in the log durable, whichever connection made them.
///
/// # Errors
/// The sync fails, or the connection has not opened a log. The commits may be lost.
pub fn sync(db: &Connection) -> Result<(), Error> {
    with_log(db, |log, methods| match methods.xSync {
        // SAFETY: see `with_log`.
        Some(sync) => unsafe { sync(log, ffi::SQLITE_SYNC_NORMAL) },
        None => ffi::SQLITE_IOERR_FSYNC,
    })
}

/// Makes the commits in the log durable after a failed sync, and empties the log.
///
/// First it rewrites the log, because the kernel may consider its pages written, and syncs it. Then a checkpoint copies the log
/// into the database. A checkpoint alone would leave a log with a hole next to a newer database while it runs. Waits for other
/// connections as long as a statement does.
///
/// # Errors
/// Reading or writing fails, or other connections block the checkpoint.
pub fn empty(db: &Connection) -> Result<(), Error> {
    // The first access opens the log. While this connection holds SQLite's write lock, no other process changes the log.
    db.execute_batch("BEGIN IMMEDIATE").map_err(|error| io(&error))?;
    let rewritten = with_log(db, rewrite);
    db.execute_batch("ROLLBACK").map_err(|error| io(&error))?;
    rewritten?;
    let is_blocked = db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, bool>(0));
    match is_blocked.map_err(|error| io(&error))? {
        true => Err(locked()),
        // The truncation must be durable before new commits rely on it.
        false => sync(db),
    }
}

/// Passes the file of the log and SQLite's methods for it to `work`, which returns a result code.
fn with_log(
    db: &Connection,
    work: impl FnOnce(*mut ffi::sqlite3_file, &ffi::sqlite3_io_methods) -> i32,
) -> Result<(), Error> {
    let mut file: *mut ffi::sqlite3_file = std::ptr::null_mut();
    // SAFETY: the handle belongs to an open connection that no other thread uses. The call returns a pointer to a file object
    // that lives as long as the connection and has no methods while the file is closed (sqlite3.h,
    // SQLITE_FCNTL_JOURNAL_POINTER).
    let (code, methods) = unsafe {
        let code = ffi::sqlite3_file_control(
            db.handle(),
            c"main".as_ptr(),
            ffi::SQLITE_FCNTL_JOURNAL_POINTER,
            (&raw mut file).cast(),
        );
        (code, file.as_ref().and_then(|file| file.pMethods.as_ref()))
    };
    let code = match methods {
        Some(methods) if code == ffi::SQLITE_OK => work(file, methods),
        _ => ffi::SQLITE_IOERR_FSYNC,
    };
    match code {
        ffi::SQLITE_OK => Ok(()),
        code => Err(io(&rusqlite::Error::SqliteFailure(ffi::Error::new(code), None))),
    }
}

/// Overwrites a file with its own content and syncs it.
fn rewrite(file: *mut ffi::sqlite3_file, methods: &ffi::sqlite3_io_methods) -> i32 {
    let (Some(size_of), Some(read), Some(write), Some(sync)) =
        (methods.xFileSize, methods.xRead, methods.xWrite, methods.xSync)
    else {
        return ffi::SQLITE_IOERR_FSYNC;
    };
    let mut buffer = vec![0_u8; BLOCK as usize];
    let mut size = 0;
    // SAFETY: the file is open and used only by this thread, and `length` does not exceed the buffer.
    unsafe {
        let mut code = size_of(file, &raw mut size);
        let mut offset = 0;
        while code == ffi::SQLITE_OK && offset < size {
            let length = (size - offset).min(BLOCK) as i32;
            code = read(file, buffer.as_mut_ptr().cast(), length, offset);
            if code == ffi::SQLITE_OK {
                code = write(file, buffer.as_ptr().cast(), length, offset);
            }
            offset += i64::from(length);
        }
        match code {
            ffi::SQLITE_OK => sync(file, ffi::SQLITE_SYNC_NORMAL),
            code => code,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic fails the test")]
mod tests {
    use super::*;

    #[test]
    fn emptying_the_log_keeps_its_commits() {
        let dir = tempfile::tempdir().unwrap();
        let (file, log) = (dir.path().join("a.db"), dir.path().join("a.db-wal"));
        let db = Connection::open(&file).unwrap();
        assert!(!is_used(&db));
        assert!(sync(&db).is_err());
        db.execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE t (a); INSERT INTO t VALUES (7)")
            .unwrap();
        assert!(is_used(&db) && log.metadata().unwrap().len() > 0);
        sync(&db).unwrap();
        empty(&db).unwrap();
        assert_eq!(log.metadata().unwrap().len(), 0);
        let number: i64 = db.query_row("SELECT a FROM t", [], |row| row.get(0)).unwrap();
        assert_eq!(number, 7);
    }

    #[test]
    fn a_reader_blocks_the_emptying() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.db");
        let (db, reader) = (Connection::open(&file).unwrap(), Connection::open(&file).unwrap());
        db.busy_timeout(std::time::Duration::from_millis(1)).unwrap();
        db.execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE t (a)")
            .unwrap();
        reader.execute_batch("BEGIN; SELECT * FROM t").unwrap();
        assert_eq!(empty(&db), Err(locked()));
    }
}
