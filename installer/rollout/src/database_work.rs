//! Root's work on the local database. The database's directory belongs to user `links`, who can replace the file with anything,
//! so a process of that user opens it.

use std::fs::{self, Permissions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use rustix::fs::{Gid, Mode, Uid, fchmod, fchown, renameat};
use rustix::io::Errno;

use links_base::layout::Layout;
use links_base::{beneath, exec, files, privileges, programs};

const STAGING_PREFIX: &str = ".backup-";
const COPY: &str = "copy.db";

/// How long reading the version may take. User `links` can suspend the process, which must not suspend the rollout.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// How long copying the database may take.
const COPY_TIMEOUT: Duration = Duration::from_secs(60 * 60);

/// How to work on the local database.
#[derive(Clone, Debug)]
pub struct DatabaseWork {
    /// The root of the layout, for links-db.
    root: PathBuf,
    /// A directory of root, for copies that are not complete yet.
    state: PathBuf,
    /// Whether this process has root's privileges on the host, where the database belongs to user `links`.
    is_roots: bool,
}

impl DatabaseWork {
    pub fn new(layout: &Layout) -> Self {
        Self {
            root: layout.root().to_owned(),
            state: layout.state_dir(),
            is_roots: privileges::are_roots(layout),
        }
    }

    /// The version of the database's tables. `None` if there is no database yet, or an empty one.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn schema_version(&self, database: &Path) -> anyhow::Result<Option<u32>> {
        let version = self.delegate(&["schema-version".as_ref(), database], READ_TIMEOUT)?;
        match version.trim() {
            "" => Ok(None),
            version => version
                .parse()
                .map(Some)
                .with_context(|| format!("Parsing the version {version:?} of {}", database.display())),
        }
    }

    /// Copies the database to `target` while others go on reading and writing. The copy appears complete or not at all.
    ///
    /// # Errors
    /// The disk is full, or the database is damaged.
    pub fn back_up(&self, database: &Path, target: &Path) -> anyhow::Result<()> {
        if !self.is_roots {
            return self
                .delegate(&["back-up".as_ref(), database, target], COPY_TIMEOUT)
                .map(drop);
        }
        let user = privileges::links()?;
        let (user, group) = (Uid::from_raw(user.uid.as_raw()), Gid::from_raw(user.gid.as_raw()));
        let state = &self.state;
        files::remove_leftovers(state, STAGING_PREFIX)?;
        let copy = || -> anyhow::Result<()> {
            let staging = tempfile::Builder::new()
                .prefix(STAGING_PREFIX)
                .permissions(Permissions::from_mode(0o700))
                .tempdir_in(state)?;
            let directory = beneath::directory(staging.path())?;
            fchown(&directory, Some(user), Some(group))?;
            let made = self.delegate(
                &["back-up".as_ref(), database, &staging.path().join(COPY)],
                COPY_TIMEOUT,
            );
            // Root takes the directory back before it opens what is inside. The mode also revokes what an access control list
            // granted.
            fchown(&directory, Some(Uid::ROOT), Some(Gid::ROOT))?;
            fchmod(&directory, Mode::RWXU)?;
            made?;
            let (mut file, found) = beneath::regular_file(&directory, Path::new(COPY))?;
            ensure!(
                found.st_nlink == 1 && found.st_uid == user.as_raw(),
                "the copy was replaced while it was made"
            );
            fchmod(&file, Mode::RUSR | Mode::WUSR)?;
            file.sync_all()?;
            if keep(&directory, target)? {
                return Ok(());
            }
            // The backups are on another file system.
            files::replace_from(target, &mut file, 0o600)?;
            let kept = fs::File::open(target)?;
            Ok(fchown(&kept, Some(user), Some(group))?)
        };
        copy().with_context(|| format!("Copying the database to {}", target.display()))
    }

    /// Runs links-db, which works as user `links` if that user owns the database. Returns its standard output.
    fn delegate(&self, work: &[&Path], timeout: Duration) -> anyhow::Result<String> {
        let program = programs::path(programs::DATABASE)?;
        let arguments = ["--root".as_ref(), self.root.as_path()]
            .into_iter()
            .chain(work.iter().copied());
        let Some(finished) = exec::finish_within(&program.to_string_lossy(), arguments, timeout)? else {
            bail!(
                "the process that works on the database did not finish within {} s and was killed",
                timeout.as_secs()
            );
        };
        let reason = exec::tail(&finished.stderr, 12);
        ensure!(finished.success, "{}", reason.trim_start_matches("linksctl: "));
        Ok(finished.stdout)
    }
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
