//! The local database, as a file that a rollout may have to bring to safety. Its contents are the component's business.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt as _, fchown};
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use rusqlite::{Connection, ErrorCode, OpenFlags};

use crate::files;

/// For a writer that is at it. Readers of a database in WAL mode wait for nobody else.
pub const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// The version of its tables; none where there is no database yet, or an empty one.
///
/// # Errors
/// It cannot be read.
pub fn schema_version(path: &Path) -> anyhow::Result<Option<u32>> {
    if !path.exists() {
        return Ok(None);
    }
    let read = || {
        let database = open(path)?;
        let versions: i64 = database.query_row(
            "SELECT count(*) FROM sqlite_schema WHERE name = 'schema_version'",
            [],
            |row| row.get(0),
        )?;
        if versions == 0 {
            return Ok(None);
        }
        database.query_row("SELECT max(version) FROM schema_version", [], |row| row.get(0))
    };
    read().with_context(|| format!("Reading the database {}", path.display()))
}

/// How many links it holds; none where there is no database yet, or an empty one. Takes the longer the more there are.
///
/// # Errors
/// It cannot be read.
pub fn count_links(path: &Path) -> anyhow::Result<Option<u64>> {
    if !path.exists() {
        return Ok(None);
    }
    let read = || -> rusqlite::Result<_> {
        let database = open(path)?;
        let tables: i64 = database.query_row(
            "SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name = 'links'",
            [],
            |row| row.get(0),
        )?;
        if tables == 0 {
            return Ok(None);
        }
        let links: i64 = database.query_row("SELECT count(*) FROM links", [], |row| row.get(0))?;
        Ok(Some(links.unsigned_abs()))
    };
    read().with_context(|| format!("Reading the database {}", path.display()))
}

/// The bytes of the file and its write-ahead log.
///
/// # Errors
/// There is no database, or this user may not look.
pub fn size(path: &Path) -> io::Result<u64> {
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    let log = fs::metadata(log).map_or(0, |metadata| metadata.len());
    Ok(fs::metadata(path)?.len() + log)
}

/// Writes a copy as of now to `target`, complete or absent, while others go on reading and writing. It can take the
/// database's place as it is: same owner, same journal mode.
///
/// # Errors
/// The disk is full, or the database is damaged.
pub fn back_up(path: &Path, target: &Path) -> anyhow::Result<()> {
    let partial = target.with_extension("partial");
    let copy = || -> anyhow::Result<()> {
        files::remove_if_present(&partial)?;
        let database = open(path)?;
        database.execute("VACUUM INTO ?1", [partial.to_string_lossy()])?;
        // The mode is a property of the file, and the copy has another one. Closing it leaves one file.
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
            // What the error is about is told already.
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
        Ok(metadata) if full => error.context(format!("it may take {} bytes there", metadata.len())),
        _ => error,
    }
}

/// To read.
///
/// # Errors
/// It is not there, or no database.
pub fn open(path: &Path) -> rusqlite::Result<Connection> {
    // A FIFO would have to be waited for until somebody writes into it.
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
    fn the_version_is_the_highest_that_was_applied() {
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
        assert!(size(&missing).is_err());
        let (path, writer) = database(directory.path());
        writer.execute_batch("BEGIN; INSERT INTO links VALUES ('b')").unwrap();
        assert_eq!(count_links(&path).unwrap(), Some(1));
        let alone = fs::metadata(&path).unwrap().len();
        assert!(size(&path).unwrap() > alone, "the log counts");
        writer.execute_batch("ROLLBACK; DROP TABLE links").unwrap();
        assert_eq!(count_links(&path).unwrap(), None);
    }

    #[test]
    fn a_copy_is_made_beside_a_writer_and_can_take_the_database_s_place() {
        let directory = tempfile::tempdir().unwrap();
        let (path, writer) = database(directory.path());
        // In the middle of a transaction, of which the copy must know nothing.
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
    fn a_copy_that_fails_leaves_nothing() {
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
