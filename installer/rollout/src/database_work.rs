//! Root's work on the local database. The database's directory belongs to user `links`, who can replace the file with anything,
//! so a process of that user opens it.

use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use rustix::fs::{Gid, Mode, Uid, fchmod, fchown, renameat};
use rustix::io::Errno;

use links_base::exec::Finished;
use links_base::layout::Layout;
use links_base::{beneath, exec, files, privileges, programs};
use links_config::arguments::DatabaseArg;
use links_config::backup::DatabaseFacts;

const COPY: &str = "copy.db";

/// What a copy of the database is for. At most one copy is made for each purpose at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    /// To go back to, after a change of the schema. Guarded by the rollout lock.
    Rollout,
    /// To become a part of a backup. Guarded by the backup lock.
    Backup,
}

impl Purpose {
    /// The prefix of the directory in which the copy is made. What begins with it is left from an interrupted copy.
    fn staging_prefix(self) -> &'static str {
        match self {
            Self::Rollout => ".backup-",
            Self::Backup => ".snapshot-",
        }
    }
}

/// How long reading the version may take. User `links` can suspend the process, which must not suspend the rollout.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// How long counting the links may take.
const COUNT_TIMEOUT: Duration = Duration::from_secs(5 * 60);
/// How long swapping two databases may take.
const SWAP_TIMEOUT: Duration = Duration::from_secs(5 * 60);
/// How long copying the database may take.
const COPY_TIMEOUT: Duration = Duration::from_secs(60 * 60);

/// How to work on the local database.
#[derive(Clone, Debug)]
pub struct DatabaseWork {
    /// The root of the layout, for links-db.
    root: PathBuf,
    /// A directory of root, for copies that are not complete yet.
    state: PathBuf,
    /// A directory of user `links`.
    data: PathBuf,
    /// Whether this process has root's privileges on the host, where the database belongs to user `links`.
    is_roots: bool,
}

impl DatabaseWork {
    pub fn new(layout: &Layout) -> Self {
        Self {
            root: layout.root().to_owned(),
            state: layout.state_dir(),
            data: layout.data_dir(),
            is_roots: privileges::are_roots(layout),
        }
    }

    /// The version of the database's tables. `None` if there is no database yet, or an empty one.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn schema_version(&self, database: &Path) -> anyhow::Result<Option<u32>> {
        let version = self.delegate(&["schema-version".into(), database.into()], READ_TIMEOUT)?;
        match version.trim() {
            "" => Ok(None),
            version => version
                .parse()
                .map(Some)
                .with_context(|| format!("Parsing the version {version:?} of {}", database.display())),
        }
    }

    /// The number of links. `None` if there is no database yet, or an empty one.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn count_links(&self, database: &Path) -> anyhow::Result<Option<u64>> {
        let count = self.delegate(&["count-links".into(), database.into()], COUNT_TIMEOUT)?;
        match count.trim() {
            "" => Ok(None),
            count => count.parse().map(Some).context("Parsing the number of links"),
        }
    }

    /// Copies the database to `target` while others go on reading and writing. The copy appears complete or not at all.
    ///
    /// # Errors
    /// The disk is full, or the database is damaged.
    pub fn back_up(&self, database: &Path, target: &Path) -> anyhow::Result<()> {
        let work = |copy: &Path| vec!["back-up".into(), database.into(), copy.into()];
        self.make(target, Purpose::Rollout, work).map(drop)
    }

    /// Copies the database to `target` for a backup, as [`Self::back_up`] does, and returns what the copy holds.
    ///
    /// # Errors
    /// Those of [`Self::back_up`].
    pub fn snapshot(&self, database: &Path, target: &Path) -> anyhow::Result<DatabaseFacts> {
        let work = |copy: &Path| vec!["snapshot".into(), database.into(), copy.into()];
        parse(&self.make(target, Purpose::Backup, work)?)
    }

    /// Copies the links on the libSQL server of runtime.toml to the new SQLite file `target`, without their clicks. Returns
    /// their number.
    ///
    /// # Errors
    /// The server does not answer, or the disk is full.
    pub fn copy_from_server(&self, target: &Path) -> anyhow::Result<u64> {
        let work = |copy: &Path| {
            let to = DatabaseArg::Sqlite(copy.to_owned()).to_string();
            ["copy", "--json", "--to", &to].map(OsString::from).to_vec()
        };
        let report = self.make(target, Purpose::Backup, work)?;
        let report: serde_json::Value = serde_json::from_str(&report).context("Parsing the report of the copy")?;
        report["links"]
            .as_u64()
            .context("The report of the copy has no number of links")
    }

    /// Has links-db make a file, and moves it to `target`. `work` are the arguments, for the path at which it makes the file.
    /// Returns its standard output.
    fn make(
        &self,
        target: &Path,
        purpose: Purpose,
        work: impl FnOnce(&Path) -> Vec<OsString>,
    ) -> anyhow::Result<String> {
        if !self.is_roots {
            return self.delegate(&work(target), COPY_TIMEOUT);
        }
        let user = privileges::links()?;
        let (user, group) = (Uid::from_raw(user.uid.as_raw()), Gid::from_raw(user.gid.as_raw()));
        let state = &self.state;
        files::remove_leftovers(state, purpose.staging_prefix())?;
        let make = || -> anyhow::Result<String> {
            let staging = tempfile::Builder::new()
                .prefix(purpose.staging_prefix())
                .permissions(Permissions::from_mode(0o700))
                .tempdir_in(state)?;
            let directory = beneath::directory(staging.path())?;
            fchown(&directory, Some(user), Some(group))?;
            let made = self.delegate(&work(&staging.path().join(COPY)), COPY_TIMEOUT);
            // Root takes the directory back before it opens what is inside. The mode also revokes what an access control list
            // granted.
            fchown(&directory, Some(Uid::ROOT), Some(Gid::ROOT))?;
            fchmod(&directory, Mode::RWXU)?;
            let output = made?;
            let (mut file, found) = beneath::regular_file(&directory, Path::new(COPY))?;
            ensure!(
                found.st_nlink == 1 && found.st_uid == user.as_raw(),
                "the copy was replaced while it was made"
            );
            fchmod(&file, Mode::RUSR | Mode::WUSR)?;
            file.sync_all()?;
            if keep(&directory, target)? {
                return Ok(output);
            }
            // The target is on another file system.
            files::replace_from(target, &mut file, 0o600)?;
            let kept = fs::File::open(target)?;
            fchown(&kept, Some(user), Some(group))?;
            Ok(output)
        };
        make().with_context(|| format!("Copying the database to {}", target.display()))
    }

    /// Checks the database that `feed` writes, and returns what it holds. Nothing is kept.
    ///
    /// # Errors
    /// It is not a sound database, or the disk is full.
    pub fn inspect(&self, feed: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> anyhow::Result<DatabaseFacts> {
        parse(&self.feed(&["inspect".into(), self.inspected_in().into()], feed)?)
    }

    /// The directory in which [`Self::inspect`] writes the database: one to which its process can write.
    pub fn inspected_in(&self) -> PathBuf {
        match self.is_roots {
            true => self.data.clone(),
            false => std::env::temp_dir(),
        }
    }

    /// Writes what `feed` writes beside the database and checks it, before [`Self::swap`]. Returns what it holds.
    ///
    /// # Errors
    /// It is not a sound database, or the disk is full.
    pub fn stage(
        &self,
        database: &Path,
        feed: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> anyhow::Result<DatabaseFacts> {
        parse(&self.feed(&["stage".into(), database.into()], feed)?)
    }

    /// Removes what [`Self::stage`] has written.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn unstage(&self, database: &Path) -> anyhow::Result<()> {
        self.delegate(&["unstage".into(), database.into()], SWAP_TIMEOUT)
            .map(drop)
    }

    /// Makes what [`Self::stage`] has written the database, and keeps the former one under its name with the suffix `aside`.
    ///
    /// # Errors
    /// Another process has the database open, or the file system refuses a change.
    pub fn swap(&self, database: &Path, aside: &str) -> anyhow::Result<()> {
        let work = ["swap".into(), database.into(), aside.into()];
        self.delegate(&work, SWAP_TIMEOUT).map(drop)
    }

    /// Undoes [`Self::swap`], also one that was cut off. `replaced` is whether there was a database before, and `undone` the
    /// suffix under which the restored database is kept. `None` removes it.
    ///
    /// # Errors
    /// The file system refuses a change.
    pub fn unswap(&self, database: &Path, aside: &str, replaced: bool, undone: Option<&str>) -> anyhow::Result<()> {
        let mut work = vec!["unswap".into(), database.into(), aside.into()];
        work.extend(replaced.then(|| OsString::from("--replaced")));
        work.extend(
            undone
                .into_iter()
                .flat_map(|undone| ["--undone", undone].map(OsString::from)),
        );
        self.delegate(&work, SWAP_TIMEOUT).map(drop)
    }

    /// The arguments of links-db and its path.
    fn command(&self, work: &[OsString]) -> anyhow::Result<(String, Vec<OsString>)> {
        let program = programs::path(programs::DATABASE)?;
        let root = ["--root".into(), self.root.clone().into_os_string()];
        let arguments = root.into_iter().chain(work.iter().cloned()).collect();
        Ok((program.to_string_lossy().into_owned(), arguments))
    }

    /// Runs links-db, which works as user `links` if that user owns the database. Returns its standard output.
    fn delegate(&self, work: &[OsString], timeout: Duration) -> anyhow::Result<String> {
        let (program, arguments) = self.command(work)?;
        succeeded(exec::finish_within(&program, arguments, timeout)?, timeout)
    }

    /// Like [`Self::delegate`], with what `feed` writes as standard input.
    fn feed(&self, work: &[OsString], feed: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> anyhow::Result<String> {
        let (program, arguments) = self.command(work)?;
        succeeded(
            exec::feed_within(&program, arguments, COPY_TIMEOUT, feed)?,
            COPY_TIMEOUT,
        )
    }
}

fn succeeded(finished: Option<Finished>, timeout: Duration) -> anyhow::Result<String> {
    let Some(finished) = finished else {
        bail!(
            "the process that works on the database did not finish within {} s and was killed",
            timeout.as_secs()
        );
    };
    let reason = exec::tail(&finished.stderr, 12);
    ensure!(finished.success, "{}", reason.trim_start_matches("linksctl: "));
    Ok(finished.stdout)
}

fn parse(facts: &str) -> anyhow::Result<DatabaseFacts> {
    serde_json::from_str(facts).context("Parsing what the database holds")
}

/// Moves the copy to `target`. Returns false if that is on another file system.
fn keep(staging: impl AsFd, target: &Path) -> io::Result<bool> {
    let backups = target.parent().unwrap_or(Path::new("/"));
    let into = beneath::directory(backups)?;
    match renameat(staging, COPY, &into, target.file_name().unwrap_or_default()) {
        Ok(()) => files::sync_directory(backups).map(|()| true),
        Err(Errno::XDEV) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
