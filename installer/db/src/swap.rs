//! Replaces the database of a stopped service by another file, and keeps the one that it replaces.
//!
//! The new file is staged beside the database first, which may take long. The swap itself is a hard link and a rename, so at
//! every moment, and after a crash at any moment, a complete database has the name.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};

use crate::database::{self, BUSY_TIMEOUT};
use links_base::files::{self, with_suffix};
use links_config::backup::DatabaseFacts;
use links_store::sql::EMPTY_LOG;

/// The write-ahead log that SQLite keeps beside a database.
const LOG: &str = "-wal";
/// The files that SQLite keeps beside a database.
const COMPANIONS: [&str; 2] = [LOG, "-shm"];
/// The suffixes of a database and its companions in the order of a move. The database is the last: wherever the move is cut off,
/// the next one finishes it, and no log is left beside another database.
const MOVED: [&str; 3] = [COMPANIONS[0], COMPANIONS[1], ""];

/// The file behind the database's path. SQLite keeps its companions beside that one.
fn real(database: &Path) -> PathBuf {
    fs::canonicalize(database).unwrap_or_else(|_| database.to_owned())
}

/// The name of a file that is to become the database.
fn staged(database: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(database.file_name().unwrap_or_default());
    name.push(".restored");
    database.with_file_name(name)
}

/// Writes `input` beside the database, checks it as a database, and returns what it holds.
///
/// # Errors
/// The disk is full, this user may not write there, or `input` is not a sound database.
pub fn stage(database: &Path, input: &mut impl Read) -> anyhow::Result<DatabaseFacts> {
    let path = staged(&real(database));
    let mut write = || -> anyhow::Result<DatabaseFacts> {
        remove_with_companions(&path)?;
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)?;
        io::copy(input, &mut file)?;
        file.sync_all()?;
        let facts = database::inspect(&path)?;
        remove_companions(&path)?;
        Ok(facts)
    };
    write()
        .inspect_err(|_| {
            // The first error is the one to report.
            let _ = remove_with_companions(&path);
        })
        .with_context(|| format!("Writing {}", path.display()))
}

/// Removes the staged file, if there is one.
///
/// # Errors
/// It cannot be removed.
pub fn unstage(database: &Path) -> anyhow::Result<()> {
    remove_with_companions(&staged(&real(database)))
        .with_context(|| format!("Cleaning up beside {}", database.display()))
}

/// Makes the staged file the database. The former database gets the suffix `aside` after its name.
///
/// # Errors
/// Another process has the database open, nothing is staged, or the file system refuses a change.
pub fn swap(database: &Path, aside: &str) -> anyhow::Result<()> {
    let database = &real(database);
    let swapped = || -> anyhow::Result<()> {
        let new = staged(database);
        ensure!(new.exists(), "{} is missing", new.display());
        if database.exists() {
            put_aside(database, &with_suffix(database, aside))?;
        } else {
            // SQLite would apply the log of a database that is gone to the new one.
            remove_companions(database)?;
        }
        fs::rename(&new, database)?;
        Ok(sync_parent(database)?)
    };
    swapped().with_context(|| format!("Replacing {}", database.display()))
}

/// Undoes [`swap`], and everything that it did before it was interrupted. The restored database is removed, or gets the suffix
/// `undone` if there is one: somebody may have written to it.
///
/// # Errors
/// The file system refuses a change.
pub fn unswap(database: &Path, aside: &str, undone: Option<&str>) -> anyhow::Result<()> {
    let database = &real(database);
    let old = with_suffix(database, aside);
    let unswapped = || -> anyhow::Result<()> {
        unstage(database)?;
        match fs::metadata(&old) {
            Ok(kept) => {
                // After a crash in the middle, both names may lead to the old database.
                let is_swapped = fs::metadata(database).is_ok_and(|found| found.ino() != kept.ino());
                if is_swapped {
                    put_away(database, undone)?;
                }
                for suffix in MOVED {
                    rename_if_present(&with_suffix(&old, suffix), &with_suffix(database, suffix))?;
                    // A rename between two names of one file does nothing (rename(2)).
                    files::remove_if_present(&with_suffix(&old, suffix))?;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
        Ok(sync_parent(database)?)
    };
    unswapped().with_context(|| format!("Putting {} back", database.display()))
}

/// Takes away a restored database where there was none before.
///
/// # Errors
/// The file system refuses a change.
pub fn take_away(database: &Path, undone: Option<&str>) -> anyhow::Result<()> {
    unstage(database)?;
    let database = &real(database);
    put_away(database, undone).with_context(|| format!("Taking {} away", database.display()))?;
    Ok(sync_parent(database)?)
}

fn put_away(database: &Path, undone: Option<&str>) -> anyhow::Result<()> {
    if let Some(undone) = undone.map(|undone| with_suffix(database, undone)) {
        // Somebody may have written to both of them.
        let is_taken = database.exists() && undone.exists();
        ensure!(!is_taken, "{} exists already: move it away first", undone.display());
    }
    for suffix in MOVED {
        let path = with_suffix(database, suffix);
        match undone {
            Some(undone) => rename_if_present(&path, &with_suffix(&with_suffix(database, undone), suffix))?,
            None => files::remove_if_present(&path)?,
        }
    }
    Ok(())
}

/// Gives the database a second name. A database that SQLite cannot read any more is moved with its log instead.
fn put_aside(database: &Path, aside: &Path) -> anyhow::Result<()> {
    ensure!(!aside.exists(), "{} exists already", aside.display());
    match empty_log(database) {
        Ok(true) => {}
        Ok(false) => bail!(
            "another process has the database open, so its latest changes cannot be kept (`fuser {}` lists the processes)",
            database.display()
        ),
        Err(_) => {
            for suffix in ["", LOG] {
                rename_if_present(&with_suffix(database, suffix), &with_suffix(aside, suffix))?;
            }
            // The other companion is an index of the log.
            return Ok(remove_companions(database)?);
        }
    }
    remove_companions(database)?;
    fs::hard_link(database, aside).or_else(|_| fs::rename(database, aside))?;
    Ok(())
}

/// Writes everything in the write-ahead log into the database. Returns false if another connection prevents that.
fn empty_log(database: &Path) -> rusqlite::Result<bool> {
    let connection = Connection::open_with_flags(database, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    // Otherwise SQLite changes a database that it cannot read, and deletes its log.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    let is_blocked = connection.query_row(EMPTY_LOG, [], |row| row.get::<_, bool>(0))?;
    connection.close().map_err(|(_, error)| error)?;
    Ok(!is_blocked)
}

fn rename_if_present(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn remove_companions(database: &Path) -> io::Result<()> {
    COMPANIONS
        .iter()
        .try_for_each(|suffix| files::remove_if_present(&with_suffix(database, suffix)))
}

fn remove_with_companions(database: &Path) -> io::Result<()> {
    files::remove_if_present(database)?;
    remove_companions(database)
}

fn sync_parent(path: &Path) -> io::Result<()> {
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use super::*;

    const ASIDE: &str = ".replaced-1";

    fn make(path: &Path, slugs: &[&str]) -> Connection {
        let connection = Connection::open(path).unwrap();
        let mode = "PRAGMA journal_mode = WAL";
        connection.query_row(mode, [], |_| Ok(())).unwrap();
        for statement in links_store::schema::SCHEMA.concat() {
            connection.execute(statement, []).unwrap();
        }
        for slug in slugs {
            let insert = "INSERT INTO links (slug, url, created_at) VALUES (?1, 'https://example.com/', 1)";
            connection.execute(insert, [slug]).unwrap();
        }
        connection
    }

    fn links(path: &Path) -> Option<u64> {
        database::count_links(path).unwrap()
    }

    fn bytes(slugs: &[&str]) -> Vec<u8> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("made.db");
        drop(make(&path, slugs));
        fs::read(path).unwrap()
    }

    fn names(directory: &Path) -> Vec<String> {
        files::list(directory).unwrap()
    }

    #[test]
    fn a_swap_keeps_the_former_database_and_can_be_undone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("links.db");
        drop(make(&path, &["a"]));
        let facts = stage(&path, &mut &bytes(&["b", "c"])[..]).unwrap();
        assert_eq!((facts.links, facts.clicks), (2, 0));
        assert_eq!(facts.schema as usize, links_store::schema::SCHEMA.len());
        assert_eq!(links(&path), Some(1));

        swap(&path, ASIDE).unwrap();
        let aside = directory.path().join("links.db.replaced-1");
        assert_eq!((links(&path), links(&aside)), (Some(2), Some(1)));

        unswap(&path, ASIDE, Some(".undone-1")).unwrap();
        let undone = directory.path().join("links.db.undone-1");
        assert_eq!((links(&path), links(&undone)), (Some(1), Some(2)));
        assert!(!aside.exists());
        // An undo that is repeated changes nothing.
        unswap(&path, ASIDE, None).unwrap();
        assert_eq!(links(&path), Some(1));
    }

    #[test]
    fn a_swap_that_was_cut_off_is_undone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("links.db");
        drop(make(&path, &["a"]));
        stage(&path, &mut &bytes(&["b", "c"])[..]).unwrap();
        // Before the rename, the old database has two names.
        put_aside(&path, &with_suffix(&path, ASIDE)).unwrap();
        unswap(&path, ASIDE, None).unwrap();
        assert_eq!(names(directory.path()), ["links.db"]);
        assert_eq!(links(&path), Some(1));
    }

    #[test]
    fn where_there_was_no_database_an_undo_leaves_none() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("links.db");
        stage(&path, &mut &bytes(&["b"])[..]).unwrap();
        swap(&path, ASIDE).unwrap();
        assert_eq!(links(&path), Some(1));
        take_away(&path, None).unwrap();
        assert_eq!(names(directory.path()), [""; 0]);
    }

    #[test]
    fn the_log_of_a_database_that_is_gone_is_not_applied_to_the_restored_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("links.db");
        let former = make(&path, &["former"]);
        // A copy of the log, as a crash leaves it.
        let log = fs::read(with_suffix(&path, LOG)).unwrap();
        assert!(!log.is_empty());
        drop(former);
        fs::remove_file(&path).unwrap();
        fs::write(with_suffix(&path, LOG), log).unwrap();
        stage(&path, &mut &bytes(&["b", "c"])[..]).unwrap();
        swap(&path, ASIDE).unwrap();
        assert_eq!(names(directory.path()), ["links.db"]);
        assert_eq!(links(&path), Some(2));
    }

    #[test]
    fn the_database_is_moved_after_its_companions() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("links.db");
        // A directory cannot be removed as a file, so the move ends there.
        fs::create_dir(&path).unwrap();
        for suffix in COMPANIONS {
            fs::write(with_suffix(&path, suffix), "x").unwrap();
        }
        assert!(put_away(&path, None).is_err());
        assert_eq!(names(directory.path()), ["links.db"]);
    }

    #[test]
    fn an_undo_that_was_cut_off_is_finished() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("links.db");
        let old = with_suffix(&path, ASIDE);
        // The restored database is away, and of the former one the log is back.
        fs::write(&old, "database").unwrap();
        fs::write(with_suffix(&path, LOG), "log").unwrap();
        unswap(&path, ASIDE, Some(".undone-1")).unwrap();
        assert_eq!(names(directory.path()), ["links.db", "links.db-wal"]);
        assert_eq!(fs::read_to_string(&path).unwrap(), "database");
    }

    #[test]
    fn an_undone_database_is_not_replaced_by_another_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("links.db");
        drop(make(&path, &["a"]));
        take_away(&path, Some(".undone-1")).unwrap();
        drop(make(&path, &["b", "c"]));
        assert!(take_away(&path, Some(".undone-1")).is_err());
        assert_eq!(links(&with_suffix(&path, ".undone-1")), Some(1));
        assert_eq!(links(&path), Some(2));
    }

    #[test]
    fn what_only_the_log_holds_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("links.db");
        let writer = make(&path, &["a"]);
        stage(&path, &mut &bytes(&["b", "c"])[..]).unwrap();
        // A connection in the middle of a transaction keeps the log from being emptied.
        writer.execute_batch("BEGIN; SELECT * FROM links").unwrap();
        writer.execute("DELETE FROM links", []).unwrap();
        assert!(swap(&path, ASIDE).is_err());
        writer.execute_batch("ROLLBACK").unwrap();
        drop(writer);
        swap(&path, ASIDE).unwrap();
        assert_eq!(links(&with_suffix(&path, ASIDE)), Some(1));
    }

    #[test]
    fn a_damaged_database_is_put_aside_as_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("links.db");
        let damaged = "no database at all, and longer than a header of one hundred bytes".repeat(4);
        fs::write(&path, &damaged).unwrap();
        fs::write(with_suffix(&path, "-wal"), "log").unwrap();
        stage(&path, &mut &bytes(&["b"])[..]).unwrap();
        swap(&path, ASIDE).unwrap();
        assert_eq!(links(&path), Some(1));
        assert_eq!(fs::read_to_string(with_suffix(&path, ASIDE)).unwrap(), damaged);
        assert!(directory.path().join("links.db.replaced-1-wal").exists());
        unswap(&path, ASIDE, None).unwrap();
        assert_eq!(names(directory.path()), ["links.db", "links.db-wal"]);
    }

    #[test]
    fn an_input_that_is_no_sound_database_is_not_staged() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("links.db");
        let mut half = bytes(&["b", "c"]);
        half.truncate(half.len() / 2);
        for input in [&b"nothing"[..], &half] {
            assert!(stage(&path, &mut &*input).is_err());
            assert_eq!(names(directory.path()), [""; 0]);
        }
    }
}
