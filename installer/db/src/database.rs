//! The local SQLite database: its schema version, the number of its links, and copies of it. The component owns its contents.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt as _, fchown};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use rusqlite::{Connection, ErrorCode, OpenFlags};

use links_base::files;
use links_config::backup::{DatabaseFacts, JournalPosition};
use links_store::sql::{
    COUNT_CLICKS, COUNT_LINKS, COUNT_UNFINISHED_BATCHES, HAS_TABLE, JOURNAL_POSITIONS, QUICK_CHECK, SCHEMA_VERSION,
};

/// How long to wait for another process's lock. In WAL mode, readers do not wait for writers.
pub const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a snapshot waits for a moment at which no batch of clicks is added in parts.
const BATCH_TIMEOUT: Duration = Duration::from_secs(10);
const BATCH_INTERVAL: Duration = Duration::from_millis(50);
/// The beginning of the names of databases that are inspected.
const INSPECTED: &str = ".inspected-";

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

/// Like [`back_up`], if possible at a moment at which no batch of clicks is added in parts. Returns what the copy holds.
///
/// # Errors
/// Those of [`back_up`].
pub fn snapshot(path: &Path, target: &Path) -> anyhow::Result<DatabaseFacts> {
    await_whole_batches(path).with_context(|| format!("Reading the database {}", path.display()))?;
    back_up(path, target)?;
    let facts = facts(&open_own(target)?);
    facts.with_context(|| format!("Reading the copy {}", target.display()))
}

/// Waits until every batch of clicks is added completely, but not for long: the copy of a batch of which a part is missing lacks
/// clicks of a few seconds, and that is no reason not to make one.
fn await_whole_batches(path: &Path) -> rusqlite::Result<()> {
    let database = open(path)?;
    if !has_table(&database, "click_batches")? {
        return Ok(());
    }
    let deadline = Instant::now() + BATCH_TIMEOUT;
    while Instant::now() < deadline {
        let unfinished: i64 = database.query_row(COUNT_UNFINISHED_BATCHES, [], |row| row.get(0))?;
        if unfinished == 0 {
            break;
        }
        // SQLite tells nobody about another connection's changes.
        std::thread::sleep(BATCH_INTERVAL);
    }
    Ok(())
}

/// Checks a database that belongs to this process, and returns what it holds.
///
/// # Errors
/// It is not a sound database.
pub fn inspect(path: &Path) -> anyhow::Result<DatabaseFacts> {
    let database = open_own(path)?;
    let verdict: String = database.query_row(QUICK_CHECK, [], |row| row.get(0))?;
    ensure!(verdict == "ok", "the database is damaged: {verdict}");
    let facts = facts(&database)?;
    database.close().map_err(|(_, error)| error)?;
    Ok(facts)
}

/// Inspects the database that `input` returns, in a temporary file in `directory`.
///
/// # Errors
/// Those of [`inspect`], or the file cannot be written.
pub fn inspect_stream(input: &mut impl Read, directory: &Path) -> anyhow::Result<DatabaseFacts> {
    files::remove_leftovers(directory, INSPECTED)?;
    // A directory, because SQLite makes files beside the database.
    let own = tempfile::Builder::new()
        .prefix(INSPECTED)
        .tempdir_in(directory)
        .with_context(|| format!("Making a directory in {}", directory.display()))?;
    let path = own.path().join("links.db");
    let mut file = File::create_new(&path)?;
    io::copy(input, &mut file).with_context(|| format!("Writing {}", path.display()))?;
    inspect(&path)
}

/// Opens a database that no other process uses. Reading a database in WAL mode creates files beside it.
fn open_own(path: &Path) -> rusqlite::Result<Connection> {
    Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE)
}

fn facts(database: &Connection) -> rusqlite::Result<DatabaseFacts> {
    let count = |sql: &str| database.query_row(sql, [], |row| row.get::<_, i64>(0).map(i64::unsigned_abs));
    let mut facts = DatabaseFacts::default();
    if has_table(database, "schema_version")? {
        let version: Option<u32> = database.query_row(SCHEMA_VERSION, [], |row| row.get(0))?;
        facts.schema = version.unwrap_or(0);
    }
    if has_table(database, "links")? {
        facts.links = count(COUNT_LINKS)?;
    }
    if has_table(database, "click_days")? {
        facts.clicks = count(COUNT_CLICKS)?;
        let mut statement = database.prepare(JOURNAL_POSITIONS)?;
        let rows = statement.query_map([], |row| {
            Ok(JournalPosition {
                journal: row.get(0)?,
                position: row.get::<_, i64>(1)?.unsigned_abs(),
            })
        })?;
        facts.journals = rows.collect::<Result<_, _>>()?;
    }
    Ok(facts)
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
    fn a_snapshot_tells_what_it_holds() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("links.db");
        let writer = Connection::open(&path).unwrap();
        for statement in links_store::schema::SCHEMA.concat() {
            writer.execute(statement, []).unwrap();
        }
        writer
            .execute_batch(
                "INSERT INTO links (slug, url, created_at) VALUES ('a', 'https://example.com/', 1);
                 INSERT INTO click_days VALUES (1, 0, 5, 2), (1, 1, 5, 2);
                 INSERT INTO click_batches VALUES ('0a', 0, 900, '~', 10, '{}'), ('0b', 300, 700, '~', 20, '{}')",
            )
            .unwrap();
        let facts = snapshot(&path, &directory.path().join("copy.db")).unwrap();
        let position = |journal: &str, position| JournalPosition {
            journal: journal.to_owned(),
            position,
        };
        let expected = DatabaseFacts {
            schema: u32::try_from(links_store::schema::SCHEMA.len()).unwrap(),
            links: 1,
            clicks: 7,
            journals: vec![position("0b", 700), position("0a", 900)],
        };
        assert_eq!(facts, expected);
        let copy = fs::read(directory.path().join("copy.db")).unwrap();
        assert_eq!(inspect_stream(&mut &copy[..], directory.path()).unwrap(), expected);
        assert!(inspect_stream(&mut &copy[..copy.len() / 2], directory.path()).is_err());
        let left = files::list(directory.path()).unwrap();
        assert!(left.iter().all(|name| !name.starts_with(INSPECTED)), "{left:?}");
    }

    #[test]
    fn a_snapshot_waits_for_a_batch_that_is_added_in_parts() {
        let directory = tempfile::tempdir().unwrap();
        let (path, writer) = database(directory.path());
        writer
            .execute_batch("CREATE TABLE click_batches (through); INSERT INTO click_batches VALUES ('a')")
            .unwrap();
        let begun = Instant::now();
        let finisher = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(200));
            writer.execute("UPDATE click_batches SET through = '~'", []).unwrap();
        });
        await_whole_batches(&path).unwrap();
        assert!((Duration::from_millis(150)..BATCH_TIMEOUT).contains(&begun.elapsed()));
        finisher.join().unwrap();
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
