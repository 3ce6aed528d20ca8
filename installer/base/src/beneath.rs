//! How root opens files in directories that user `links` can write: through a descriptor of the directory, without following
//! symbolic links, without blocking on a FIFO, and reading only a bounded number of bytes.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path};

use rustix::fs::{CWD, FileType, Mode, OFlags, Stat, fstat, openat};
use rustix::io::Errno;

/// Opens a directory whose path only root can change. Symbolic links in it are the administrator's, and are followed.
///
/// # Errors
/// The path does not exist, or is not a directory.
pub fn directory(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(openat(CWD, path, flags, Mode::empty())?)
}

/// Opens a directory below another one.
///
/// # Errors
/// The path does not exist, is not a directory, or contains a symbolic link.
pub fn subdirectory(base: impl AsFd, path: &Path) -> io::Result<OwnedFd> {
    walk(base.as_fd(), path, OFlags::RDONLY | OFlags::DIRECTORY)
}

/// Opens a regular file below a directory for reading, and returns it with its metadata.
///
/// # Errors
/// The path does not exist, is not a regular file, or contains a symbolic link.
pub fn regular_file(base: impl AsFd, path: &Path) -> io::Result<(File, Stat)> {
    // Without O_NONBLOCK, opening a FIFO would wait for a writer. The flag has no effect on a regular file.
    let file = walk(base.as_fd(), path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY)?;
    let found = fstat(&file)?;
    match FileType::from_raw_mode(found.st_mode) {
        FileType::RegularFile => Ok((file.into(), found)),
        other => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{} is {}, not a regular file", path.display(), name(other)),
        )),
    }
}

/// The contents of a regular file below `base`, which is opened by [`directory`].
///
/// # Errors
/// Those of [`directory`] and [`regular_file`], or the file is longer than `limit` bytes.
pub fn read(base: &Path, path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let (file, _) = regular_file(directory(base)?, path)?;
    let mut contents = vec![];
    file.take(limit + 1).read_to_end(&mut contents)?;
    if contents.len() as u64 > limit {
        let why = format!("{} is longer than {limit} bytes", path.display());
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, why));
    }
    Ok(contents)
}

/// Opens the components of `path` one after the other. openat2(2) would do this in one call, but a unit with RestrictSUIDSGID=
/// forbids it, because a system call filter cannot see openat2's flags.
fn walk(base: BorrowedFd<'_>, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    let mut components = path.components().peekable();
    let mut directory: Option<OwnedFd> = None;
    while let Some(component) = components.next() {
        let Component::Normal(name) = component else {
            return Err(Errno::XDEV.into());
        };
        let is_last = components.peek().is_none();
        let flags = if is_last {
            flags
        } else {
            OFlags::PATH | OFlags::DIRECTORY
        };
        let at = directory.as_ref().map_or(base, AsFd::as_fd);
        let opened = openat(at, name, flags | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty())?;
        if is_last {
            return Ok(opened);
        }
        directory = Some(opened);
    }
    Err(Errno::NOENT.into())
}

/// The type of a file in words, with its article.
pub fn name(of: FileType) -> &'static str {
    match of {
        FileType::RegularFile => "a regular file",
        FileType::Directory => "a directory",
        FileType::Symlink => "a symbolic link",
        FileType::Fifo => "a FIFO",
        FileType::Socket => "a socket",
        FileType::CharacterDevice | FileType::BlockDevice => "a device",
        FileType::Unknown => "of an unknown type",
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn only_a_regular_file_of_bounded_size_is_read() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        let read = |name: &str| read(root.path(), Path::new(name), 4);
        fs::create_dir(at("1")).unwrap();
        fs::write(at("1/runs"), "four").unwrap();
        assert_eq!(read("1/runs").unwrap(), b"four");
        assert_eq!(read("1/none").unwrap_err().kind(), io::ErrorKind::NotFound);

        fs::write(at("1/long"), "fives").unwrap();
        assert_eq!(read("1/long").unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        symlink(at("1/runs"), at("1/link")).unwrap();
        symlink(at("1"), at("2")).unwrap();
        for (name, error) in [("1/link", Errno::LOOP), ("2/runs", Errno::NOTDIR)] {
            assert_eq!(
                read(name).unwrap_err().raw_os_error(),
                Some(error.raw_os_error()),
                "{name}"
            );
        }
        // Without O_NONBLOCK, this read would wait for a writer.
        rustix::fs::mknodat(CWD, at("1/fifo"), FileType::Fifo, Mode::RWXU, 0).unwrap();
        let error = read("1/fifo").unwrap_err().to_string();
        assert_eq!(error, "1/fifo is a FIFO, not a regular file");
        assert_eq!(
            read("1").unwrap_err().to_string(),
            "1 is a directory, not a regular file"
        );
        assert!(read("../etc/passwd").is_err());
    }

    #[test]
    fn only_files_below_the_directory_are_opened() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        let walk = |name: &str| {
            let base = directory(root.path()).unwrap();
            walk(base.as_fd(), Path::new(name), OFlags::RDONLY).map(|opened| {
                let mut contents = String::new();
                File::from(opened).read_to_string(&mut contents).unwrap();
                contents
            })
        };
        fs::create_dir_all(at("1/2")).unwrap();
        fs::write(at("1/2/runs"), "found").unwrap();
        symlink(at("1/2/runs"), at("1/link")).unwrap();
        symlink(at("1"), at("directory")).unwrap();
        assert_eq!(walk("1/2/runs").unwrap(), "found");
        for name in ["1/link", "directory/2/runs", "../runs", "/etc/passwd", "", "1/none"] {
            assert!(walk(name).is_err(), "{name}");
        }
    }
}
