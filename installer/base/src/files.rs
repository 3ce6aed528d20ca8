//! Atomic replacement of files: the new file is complete and on disk before it takes the place of the old one.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write as _};
use std::os::unix::fs::{
    DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown, symlink,
};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use rustix::fs::{AtFlags, CWD, FileType, StatxAttributes, StatxFlags, statx};

use crate::exec;

/// Writes `contents` to a temporary file beside `path`, syncs it and renames it. The file gets exactly `mode`, whatever the
/// umask.
///
/// # Errors
/// The directory is missing, full or not writable. `path` is then unchanged.
pub fn replace(path: &Path, contents: &[u8], mode: u32) -> anyhow::Result<()> {
    replace_from(path, &mut &*contents, mode)
}

/// Like [`replace`], with the contents read from `contents` to its end.
///
/// # Errors
/// Those of [`replace`], or `contents` cannot be read.
pub fn replace_from(path: &Path, contents: &mut impl Read, mode: u32) -> anyhow::Result<()> {
    let temporary = temporary_name(path)?;
    let written = (|| -> io::Result<()> {
        // An interrupted write may have left this file with another mode.
        remove_if_present(&temporary)?;
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&temporary)?;
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        io::copy(contents, &mut file)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        sync_parent(path)
    })();
    written.or_else(|error| {
        remove_if_present(&temporary)?;
        Err(error).with_context(|| format!("Writing {}", path.display()))
    })
}

/// The file has changed since its contents were read for the edit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{} was edited by somebody else in the meantime, so it was left unchanged", .0.display())]
pub struct Edited(PathBuf);

/// Replaces the contents of a file that people edit too. The file keeps its owner and mode, and `path` may be a symbolic link
/// to it. The contents must still be `before`, so that this does not undo somebody else's edit.
///
/// # Errors
/// [`Edited`] if the contents are no longer `before`. Otherwise the file is missing, or its directory is full or not writable.
pub fn edit(path: &Path, before: &[u8], after: &[u8]) -> anyhow::Result<()> {
    let real = fs::canonicalize(path).with_context(|| format!("Opening {}", path.display()))?;
    let edited = (|| -> anyhow::Result<()> {
        let metadata = fs::metadata(&real)?;
        let directory = real.parent().unwrap_or(Path::new("/"));
        let mut new = tempfile::Builder::new().prefix(".edit-").tempfile_in(directory)?;
        new.write_all(after)?;
        fchown(new.as_file(), Some(metadata.uid()), Some(metadata.gid()))?;
        new.as_file().set_permissions(metadata.permissions())?;
        new.as_file().sync_all()?;
        if fs::read(&real)? != before {
            anyhow::bail!(Edited(path.to_owned()));
        }
        new.persist(&real)?;
        Ok(sync_directory(directory)?)
    })();
    edited.with_context(|| format!("Editing {}", path.display()))
}

/// Makes `link` a symbolic link to `target`, and atomically replaces a previous one.
///
/// # Errors
/// The directory is missing, full or not writable. `link` is then unchanged.
pub fn replace_link(link: &Path, target: &Path) -> anyhow::Result<()> {
    let temporary = temporary_name(link)?;
    let written = (|| -> io::Result<()> {
        remove_if_present(&temporary)?;
        symlink(target, &temporary)?;
        fs::rename(&temporary, link)?;
        sync_parent(link)
    })();
    written.or_else(|error| {
        remove_if_present(&temporary)?;
        Err(error).with_context(|| format!("Pointing {} to {}", link.display(), target.display()))
    })
}

/// Removes a file or a symbolic link, if it exists.
///
/// # Errors
/// The file exists and cannot be removed.
pub fn remove_if_present(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Removes a directory with all its contents, if it exists.
///
/// # Errors
/// The directory exists and cannot be removed.
pub fn remove_directory_if_present(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// What remains of a directory after [`remove_tree`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Left {
    Nothing,
    /// One or more mount points, which are empty now but cannot be removed. This is the first of them.
    MountPoint(PathBuf),
}

/// Removes a directory with all its contents, if it exists. Mount points in it are emptied and remain.
///
/// # Errors
/// A file or directory in it cannot be removed.
pub fn remove_tree(directory: &Path) -> anyhow::Result<Left> {
    // rm continues after a file that it cannot remove, and does not follow symbolic links.
    let removed = exec::finish("rm", ["-rf".as_ref(), "--".as_ref(), directory.as_os_str()])?;
    if removed.success {
        return Ok(Left::Nothing);
    }
    match first_busy(directory) {
        Ok(Some(busy)) => Ok(Left::MountPoint(busy)),
        _ => anyhow::bail!("Removing {}: {}", directory.display(), exec::tail(&removed.stderr, 4)),
    }
}

/// The first mount point in a tree that holds only mount points and their parent directories. `None` for any other tree.
fn first_busy(directory: &Path) -> io::Result<Option<PathBuf>> {
    let found = statx(CWD, directory, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::BASIC_STATS)?;
    if FileType::from_raw_mode(found.stx_mode.into()) != FileType::Directory {
        return Ok(None);
    }
    let is_mount_point = found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT);
    let mut first = is_mount_point.then(|| directory.to_owned());
    for entry in fs::read_dir(directory)? {
        match first_busy(&entry?.path())? {
            None => return Ok(None),
            inner => first = first.or(inner),
        }
    }
    Ok(first)
}

/// The names in `directory`, sorted. A missing directory counts as empty.
///
/// # Errors
/// The directory cannot be read.
pub fn list(directory: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(vec![]),
        entries => entries?,
    };
    let mut names = vec![];
    for entry in entries {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// Removes the directories in `directory` whose name starts with `prefix`: leftovers of interrupted work.
///
/// # Errors
/// The directory cannot be read, or one of them cannot be removed.
pub fn remove_leftovers(directory: &Path, prefix: &str) -> anyhow::Result<()> {
    let names = list(directory).with_context(|| format!("Reading {}", directory.display()))?;
    for name in names.iter().filter(|name| name.starts_with(prefix)) {
        let path = directory.join(name);
        fs::remove_dir_all(&path).with_context(|| format!("Removing {}", path.display()))?;
    }
    Ok(())
}

/// The path with this suffix after its name, such as that of a file that SQLite keeps beside a database.
pub fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// The time between two attempts at a lock that is held.
const LOCK_INTERVAL: Duration = Duration::from_millis(100);

/// A locked file. The lock ends when this is dropped.
pub type Lock = Flock<File>;

/// Locks the file at `path`, and writes `holder` into it. Creates the file with `mode` if it is missing. Returns `None` if
/// another process holds the lock. The kernel releases the lock when this process ends, even if it is killed.
///
/// # Errors
/// The file cannot be opened or written.
pub fn lock(path: &Path, mode: u32, holder: &str) -> anyhow::Result<Option<Lock>> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(mode)
        .open(path)
        .with_context(|| format!("Opening {}", path.display()))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(mut locked) => {
            locked.set_len(0)?;
            locked.write_all(holder.as_bytes())?;
            Ok(Some(locked))
        }
        Err((_, Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, error)) => Err(error).with_context(|| format!("Locking {}", path.display())),
    }
}

/// Does the same as [`lock`], and waits up to `timeout` while another process holds the lock: flock(2) has no timeout.
///
/// # Errors
/// As [`lock`].
pub fn lock_within(path: &Path, mode: u32, holder: &str, timeout: Duration) -> anyhow::Result<Option<Lock>> {
    let deadline = Instant::now() + timeout;
    loop {
        let locked = lock(path, mode, holder)?;
        if locked.is_some() || Instant::now() >= deadline {
            return Ok(locked);
        }
        std::thread::sleep(LOCK_INTERVAL);
    }
}

/// Syncs a directory, so that its new and renamed entries survive a power failure.
///
/// # Errors
/// The directory cannot be opened or synced.
pub fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

fn sync_parent(path: &Path) -> io::Result<()> {
    sync_directory(path.parent().unwrap_or(Path::new("/")))
}

fn temporary_name(path: &Path) -> anyhow::Result<PathBuf> {
    let name = path
        .file_name()
        .with_context(|| format!("{} has no file name", path.display()))?;
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    hidden.push(".new");
    Ok(path.with_file_name(hidden))
}

/// Creates a directory with exactly this mode, with its parents. An existing directory gets the mode.
///
/// # Errors
/// The directory cannot be created, or its mode cannot be set.
pub fn make_directory(path: &Path, mode: u32) -> anyhow::Result<()> {
    let made = || -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(mode).create(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(mode))
    };
    made().with_context(|| format!("Creating {}", path.display()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use super::*;

    #[test]
    fn a_replacement_changes_contents_and_mode_and_leaves_no_temporary_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("secret");
        replace(&path, b"old", 0o644).unwrap();
        replace(&path, b"new", 0o600).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_failed_replacement_keeps_the_old_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("taken");
        fs::create_dir(&path).unwrap();
        fs::write(path.join("inside"), b"kept").unwrap();
        let error = replace(&path, b"new", 0o644).unwrap_err();
        assert!(error.to_string().contains("taken"), "{error:#}");
        assert_eq!(fs::read(path.join("inside")).unwrap(), b"kept");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn an_edit_keeps_owner_mode_and_link() {
        let directory = tempfile::tempdir().unwrap();
        let (path, real) = (directory.path().join("links.toml"), directory.path().join("real"));
        fs::write(&real, "a").unwrap();
        fs::set_permissions(&real, fs::Permissions::from_mode(0o640)).unwrap();
        // Fails unless the tests run as root; the file then keeps its owner.
        let _ = std::os::unix::fs::chown(&real, Some(1), Some(2));
        let owner = |path: &Path| {
            let found = fs::metadata(path).unwrap();
            (found.uid(), found.gid(), found.mode() & 0o7777)
        };
        let before = owner(&real);
        symlink("real", &path).unwrap();
        edit(&path, b"a", b"b").unwrap();
        assert!(path.is_symlink());
        assert_eq!((fs::read(&real).unwrap(), owner(&real)), (b"b".to_vec(), before));
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2);
    }

    #[test]
    fn an_edit_of_a_file_that_somebody_else_has_edited_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("links.toml");
        fs::write(&path, "theirs").unwrap();
        let error = edit(&path, b"a", b"b").unwrap_err();
        assert_eq!(error.downcast_ref(), Some(&Edited(path.clone())), "{error:#}");
        assert_eq!(fs::read(&path).unwrap(), b"theirs");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_tree_is_removed_without_following_symbolic_links() {
        let directory = tempfile::tempdir().unwrap();
        let (tree, other) = (directory.path().join("tree"), directory.path().join("other"));
        fs::create_dir_all(tree.join("a/b")).unwrap();
        fs::create_dir(&other).unwrap();
        fs::write(other.join("kept"), "").unwrap();
        symlink("../other", tree.join("link")).unwrap();
        assert_eq!(remove_tree(&tree).unwrap(), Left::Nothing);
        assert_eq!(remove_tree(&tree).unwrap(), Left::Nothing);
        assert!(other.join("kept").exists());
    }

    #[test]
    fn a_link_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let link = directory.path().join("1");
        replace_link(&link, Path::new("../a")).unwrap();
        replace_link(&link, Path::new("../b")).unwrap();
        assert_eq!(fs::read_link(&link).unwrap(), Path::new("../b"));
    }
}
