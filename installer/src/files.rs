//! Files that are replaced: always whole, always on the disk before the old ones are gone.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write as _};
use std::os::unix::fs::{
    DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown, symlink,
};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use rustix::fs::{AtFlags, CWD, FileType, StatxAttributes, StatxFlags, statx};

use crate::exec;

/// Writes `contents` under a temporary name beside `path`, syncs and renames it. `mode` counts whatever the umask is.
///
/// # Errors
/// The directory is missing, full or not writable; `path` is then as it was.
pub fn replace(path: &Path, contents: &[u8], mode: u32) -> anyhow::Result<()> {
    replace_from(path, &mut &*contents, mode)
}

/// As [`replace`], with everything that `contents` gives.
///
/// # Errors
/// As [`replace`], or `contents` cannot be read.
pub fn replace_from(path: &Path, contents: &mut impl Read, mode: u32) -> anyhow::Result<()> {
    let temporary = temporary_name(path)?;
    let written = (|| -> io::Result<()> {
        // A left-over of a write that was cut off may have been opened with another mode.
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

/// The file differs from what it was when the edit was decided on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{} was edited by somebody else meanwhile, and is left as it is", .0.display())]
pub struct Edited(PathBuf);

/// Replaces the contents of a person's file, which keeps its owner, its mode, and the symbolic links that lead to it. Only
/// where they are still `before`: two editors must not undo each other's work.
///
/// # Errors
/// [`Edited`]; the file is missing, or its directory full or not writable.
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

/// Makes `link` a symbolic link to `target`, replacing one that is there, in one step.
///
/// # Errors
/// The directory is missing, full or not writable; `link` is then as it was.
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

/// Removes a file or a link; that it is not there is as good.
///
/// # Errors
/// It is there and cannot be removed.
pub fn remove_if_present(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Removes a directory with all that is in it; that it is not there is as good.
///
/// # Errors
/// It is there and cannot be removed.
pub fn remove_directory_if_present(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// What is left of a directory that was to be removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Left {
    Nothing,
    /// Directories, the first of which is named: a mount point is emptied and stays.
    MountPoint(PathBuf),
}

/// Removes a directory with all that is in it, other people's mount points excepted, which it empties. That it is not there
/// is as good.
///
/// # Errors
/// Something in it cannot be removed.
pub fn remove_tree(directory: &Path) -> anyhow::Result<Left> {
    // It goes on after what it cannot remove, and follows no link.
    let removed = exec::finish("rm", ["-rf".as_ref(), "--".as_ref(), directory.as_os_str()])?;
    if removed.success {
        return Ok(Left::Nothing);
    }
    match first_busy(directory) {
        Ok(Some(busy)) => Ok(Left::MountPoint(busy)),
        _ => anyhow::bail!("Removing {}: {}", directory.display(), exec::tail(&removed.stderr, 4)),
    }
}

/// The first mount point in a tree of nothing else but directories that lead to mount points.
fn first_busy(directory: &Path) -> io::Result<Option<PathBuf>> {
    let asked = statx(CWD, directory, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::BASIC_STATS)?;
    if FileType::from_raw_mode(asked.stx_mode.into()) != FileType::Directory {
        return Ok(None);
    }
    let is_mount_point = asked.stx_attributes.contains(StatxAttributes::MOUNT_ROOT);
    let mut found = is_mount_point.then(|| directory.to_owned());
    for entry in fs::read_dir(directory)? {
        match first_busy(&entry?.path())? {
            None => return Ok(None),
            inner => found = found.or(inner),
        }
    }
    Ok(found)
}

/// The names in `directory`, in order; none where it is missing.
///
/// # Errors
/// It cannot be read.
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

/// Removes the directories in `directory` whose name starts with `prefix`: what was being made there when it was cut off.
///
/// # Errors
/// It cannot be read, or one cannot be removed.
pub fn remove_leftovers(directory: &Path, prefix: &str) -> anyhow::Result<()> {
    let names = list(directory).with_context(|| format!("Reading {}", directory.display()))?;
    for name in names.iter().filter(|name| name.starts_with(prefix)) {
        let path = directory.join(name);
        fs::remove_dir_all(&path).with_context(|| format!("Removing {}", path.display()))?;
    }
    Ok(())
}

/// Locks the file at `path`, which is made with `mode` where it is missing, and writes into it what `holder` says. None
/// where another process holds it. The kernel lets go of it when this process ends, whatever its end is.
///
/// # Errors
/// It cannot be opened or written.
pub fn lock(path: &Path, mode: u32, holder: &str) -> anyhow::Result<Option<Flock<File>>> {
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

/// Makes the names in `directory` durable.
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

/// Makes a directory with exactly this mode, or gives it that mode.
///
/// # Errors
/// It cannot be made.
pub fn make_directory(path: &Path, mode: u32) -> anyhow::Result<()> {
    let made = || -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(mode).create(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(mode))
    };
    made().with_context(|| format!("Making {}", path.display()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use super::*;

    #[test]
    fn replaces_contents_and_mode_and_leaves_nothing_beside() {
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
        // Where tests do not run as root, it stays theirs.
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
    fn a_tree_is_removed_and_a_link_out_of_it_not_followed() {
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
    fn moves_a_link() {
        let directory = tempfile::tempdir().unwrap();
        let link = directory.path().join("1");
        replace_link(&link, Path::new("../a")).unwrap();
        replace_link(&link, Path::new("../b")).unwrap();
        assert_eq!(fs::read_link(&link).unwrap(), Path::new("../b"));
    }
}
