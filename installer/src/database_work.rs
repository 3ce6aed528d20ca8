//! What root wants of the local database. Its directory belongs to user `links`, who can put anything in the place of the
//! file, so a process of that user opens it.

use std::fs::{self, Permissions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use rustix::fs::{Gid, Mode, Uid, fchmod, fchown, renameat};
use rustix::io::Errno;

use crate::cli::DatabaseWork;
use crate::layout::Layout;
use crate::{beneath, database, exec, files, privileges};

const STAGING_PREFIX: &str = ".backup-";
const COPY: &str = "copy.db";

/// Somebody who stops the process must not stop the rollout.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
const COPY_TIMEOUT: Duration = Duration::from_secs(60 * 60);

/// The work itself, as `linksctl database-work`.
///
/// # Errors
/// The database is damaged, or the disk is full.
pub fn run(layout: &Layout, work: &DatabaseWork) -> anyhow::Result<()> {
    if privileges::are_roots(layout) {
        privileges::give_up()?;
    }
    match work {
        DatabaseWork::SchemaVersion { database } => {
            if let Some(version) = database::schema_version(database)? {
                println!("{version}");
            }
        }
        DatabaseWork::BackUp { database, target } => database::back_up(database, target)?,
    }
    Ok(())
}

/// As [`database::schema_version`].
///
/// # Errors
/// As there.
pub fn schema_version(layout: &Layout, database: &Path) -> anyhow::Result<Option<u32>> {
    if !privileges::are_roots(layout) {
        return database::schema_version(database);
    }
    let version = delegate(&["schema-version".as_ref(), database], READ_TIMEOUT)?;
    match version.trim() {
        "" => Ok(None),
        version => version
            .parse()
            .map(Some)
            .with_context(|| format!("the version {version:?} of {}", database.display())),
    }
}

/// As [`database::back_up`].
///
/// # Errors
/// As there.
pub fn back_up(layout: &Layout, database: &Path, target: &Path) -> anyhow::Result<()> {
    if !privileges::are_roots(layout) {
        return database::back_up(database, target);
    }
    let user = privileges::links()?;
    let (user, group) = (Uid::from_raw(user.uid.as_raw()), Gid::from_raw(user.gid.as_raw()));
    let state = layout.state_dir();
    files::remove_leftovers(&state, STAGING_PREFIX)?;
    let copy = || -> anyhow::Result<()> {
        let staging = tempfile::Builder::new()
            .prefix(STAGING_PREFIX)
            .permissions(Permissions::from_mode(0o700))
            .tempdir_in(&state)?;
        let directory = beneath::directory(staging.path())?;
        fchown(&directory, Some(user), Some(group))?;
        let made = delegate(
            &["back-up".as_ref(), database, &staging.path().join(COPY)],
            COPY_TIMEOUT,
        );
        // Root's again before root looks at what is in it; the mode takes back what an access control list gave.
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
        // The backups are on a disk of their own.
        files::replace_from(target, &mut file, 0o600)?;
        let kept = fs::File::open(target)?;
        Ok(fchown(&kept, Some(user), Some(group))?)
    };
    copy().with_context(|| format!("Copying the database to {}", target.display()))
}

/// Moves the copy to its place; false where that is on another file system.
fn keep(staging: impl AsFd, target: &Path) -> io::Result<bool> {
    let backups = target.parent().unwrap_or(Path::new("/"));
    let into = beneath::directory(backups)?;
    match renameat(staging, COPY, &into, target.file_name().unwrap_or_default()) {
        Ok(()) => files::sync_directory(backups).map(|()| true),
        Err(Errno::XDEV) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Has this program do the work in a process of its own; returns what that writes to standard output.
fn delegate(work: &[&Path], timeout: Duration) -> anyhow::Result<String> {
    // Not by its name: dpkg may have put another version there.
    let arguments = ["database-work".as_ref()]
        .into_iter()
        .chain(work.iter().map(|word| word.as_os_str()));
    let Some(finished) = exec::finish_within("/proc/self/exe", arguments, timeout)? else {
        bail!(
            "the process that works on the database did not end within {} s and was killed",
            timeout.as_secs()
        );
    };
    let complaint = exec::tail(&finished.stderr, 12);
    ensure!(finished.success, "{}", complaint.trim_start_matches("linksctl: "));
    Ok(finished.stdout)
}
