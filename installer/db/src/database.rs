//! The local SQLite database: its schema version, the number of its links, and copies of it. The component owns its contents.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt as _, fchown};
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use rusqlite::{Connection, ErrorCode, OpenFlags};

use links_base::files;
use links_store::sql::{COUNT_LINKS, HAS_TABLE, SCHEMA_VERSION};

/// How long to wait for another process's lock. In WAL mode, readers do not wait for writers.
pub const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// The version of the tables, or none if there is no database or an empty one.
///
/// # Errors
/// The database cannot be read.
pub fn schema_version(path: &Path) -> anyhow::Result<Option<u32>> {
    if !path.exists() {
        return Ok(None);
    }
    let read = || {
        let database = open(path)?;
        match has_table(&database, "schema_version")? {
            true => database.query_row(SCHEMA_VERSION, [], |row| row.get(0)),
            false => Ok(None),
        }
    };
    read().with_context(|| format!("Reading the database {}", path.display()))
}

/// The number of links, or none if there is no database or an empty one. The time grows with the number of links.
///
/// # Errors
/// The database cannot be read.
pub fn count_links(path: &Path) -> anyhow::Result<Option<u64>> {
    if !path.exists() {
        return Ok(None);
    }
    let read = || -> rusqlite::Result<_> {
        let database = open(path)?;
        if !has_table(&database, "links")? {
            return Ok(None);
        }
        let links: i64 = database.query_row(COUNT_LINKS, [], |row| row.get(0))?;
        Ok(Some(links.unsigned_abs()))
    };
    read().with_context(|| format!("Reading the database {}", path.display()))
}

fn has_table(database: &Connection, name: &str) -> rusqlite::Result<bool> {
    database.query_row(HAS_TABLE, [name], |row| row.get(0))
}

/// Writes a copy of the database to `target`, completely or not at all, while others read and write. The copy has the
/// owner and the journal mode of the database, so it can replace the database as it is.
///
/// # Errors
/// The disk is full, or the database is damaged.
pub fn back_up(path: &Path, target: &Path) -> anyhow::Result<()> {
    let partial = target.with_extension("partial");
    let copy = || -> anyhow::Result<()> {
        files::remove_if_present(&partial)?;
        let database = open(path)?;
        database.execute("VACUUM INTO ?1", [partial.to_string_lossy()])?;
        // `VACUUM INTO` does not keep the journal mode, which is a property of the file. Closing removes the copy's WAL file.
        let copy = Connection::open_with_flags(&partial, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        copy.pragma_update(None, "journal_mode", "wal")?;
        copy.close().map_err(|(_, error)| error)?;
        let owner = fs::metadata(path)?;
        let made = File::open(&partial)?;
        fchown(&made, Some(owner.uid()), Some(owner.gid()))?;
        made.sync_all()?;
        fs::rename(&partial, target)?;
        files::sync_directory(target.parent().unwrap_or(Path::new("/")))?;
        Ok(())
    };
    copy()
        .inspect_err(|_| {
            // The first error is the one to report.
            let _ = files::remove_if_present(&partial);
        })
        .map_err(|error| explain(error, path))
        .with_context(|| format!("Copying the database to {}", target.display()))
}

fn explain(error: anyhow::Error, path: &Path) -> anyhow::Error {
    let full = error
        .downcast_ref::<rusqlite::Error>()
        .and_then(rusqlite::Error::sqlite_error_code)
        == Some(ErrorCode::DiskFull);
    match fs::metadata(path) {
        Ok(metadata) if full => error.context(format!("the copy may need {} bytes", metadata.len())),
        _ => error,
    }
}

/// Opens the database for reading.
///
/// # Errors
/// The file is missing, or is not a database.
pub fn open(path: &Path) -> rusqlite::Result<Connection> {
    // Opening a FIFO blocks until somebody writes to it.
    if fs::metadata(path).is_ok_and(|found| !found.is_file()) {
        let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CANTOPEN);
        let why = Some("it is not a regular file".to_owned());
        return Err(rusqlite::Error::SqliteFailure(code, why));
    }
    let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    Ok(connection)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use super::*;

    fn database(directory: &Path) -> (std::path::PathBuf, Connection) {
        let path = directory.join("links.db");
        let writer = Connection::open(&path).unwrap();
        writer
            .execute_batch(
                "PRAGMA journal_mode = WAL; CREATE TABLE schema_version (version INTEGER PRIMARY KEY);
                 INSERT INTO schema_version VALUES (1), (2); CREATE TABLE links (slug); INSERT INTO links VALUES ('a');",
            )
            .unwrap();
        (path, writer)
    }

    #[test]
    fn the_version_is_the_highest_applied_one() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(schema_version(&directory.path().join("links.db")).unwrap(), None);
        let (path, writer) = database(directory.path());
        assert_eq!(schema_version(&path).unwrap(), Some(2));
        writer.execute("DROP TABLE schema_version", []).unwrap();
        assert_eq!(schema_version(&path).unwrap(), None);
    }

    #[test]
    fn links_are_counted_beside_a_writer() {
        let directory = tempfile::tempdir().unwrap();
        let missing = directory.path().join("missing.db");
        assert_eq!(count_links(&missing).unwrap(), None);
        let (path, writer) = database(directory.path());
        writer.execute_batch("BEGIN; INSERT INTO links VALUES ('b')").unwrap();
        assert_eq!(count_links(&path).unwrap(), Some(1));
        writer.execute_batch("ROLLBACK; DROP TABLE links").unwrap();
        assert_eq!(count_links(&path).unwrap(), None);
    }

    #[test]
    fn a_copy_is_made_beside_a_writer_and_can_replace_the_database() {
        let directory = tempfile::tempdir().unwrap();
        let (path, writer) = database(directory.path());
        // The copy must not contain this open transaction.
        writer.execute_batch("BEGIN; INSERT INTO links VALUES ('b')").unwrap();
        let target = directory.path().join("copy.db");
        back_up(&path, &target).unwrap();
        back_up(&path, &target).unwrap();
        writer.execute_batch("COMMIT").unwrap();

        let copy = Connection::open(&target).unwrap();
        let links: i64 = copy
            .query_row("SELECT count(*) FROM links", [], |row| row.get(0))
            .unwrap();
        let mode: String = copy.query_row("PRAGMA journal_mode", [], |row| row.get(0)).unwrap();
        assert_eq!((links, mode.as_str()), (1, "wal"));
        drop(copy);
        let names: Vec<_> = fs::read_dir(directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.starts_with("copy"))
            .collect();
        assert_eq!(names, ["copy.db"]);
    }

    #[test]
    fn a_copy_that_fails_leaves_no_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("links.db");
        fs::write(
            &path,
            "no database at all, and longer than a header of one hundred bytes".repeat(4),
        )
        .unwrap();
        let target = directory.path().join("copy.db");
        let error = format!("{:#}", back_up(&path, &target).unwrap_err());
        assert!(error.contains("copy.db") && error.contains("not a database"), "{error}");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
