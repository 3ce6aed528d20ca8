//! The file system as the checks see it. Tests replace it by an imaginary one.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

pub trait Reader {
    /// The contents of a file.
    ///
    /// # Errors
    /// The file does not exist, or it cannot be read.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;

    /// The entries of a directory, sorted by name.
    ///
    /// # Errors
    /// The directory does not exist, or it cannot be read.
    fn list(&self, directory: &Path) -> io::Result<Vec<Entry>>;
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub name: String,
    pub is_file: bool,
    /// Whether this is a symbolic link whose target is missing.
    pub dangles: bool,
    /// The permission bits.
    pub mode: u32,
}

/// Reads each file and each directory only once, and then repeats the result. So everything that is derived from it belongs to
/// one state, even if somebody edits the files meanwhile.
pub struct Once<R> {
    reader: R,
    files: Results<Vec<u8>>,
    directories: Results<Vec<Entry>>,
}

/// The results by path. Of an error, only the kind is kept.
type Results<T> = RefCell<BTreeMap<PathBuf, Result<T, io::ErrorKind>>>;

impl<R> Once<R> {
    pub fn new(reader: R) -> Self {
        Self {
            reader,
            files: RefCell::default(),
            directories: RefCell::default(),
        }
    }
}

impl<R: Reader> Reader for Once<R> {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        once(&self.files, path, || self.reader.read(path))
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<Entry>> {
        once(&self.directories, directory, || self.reader.list(directory))
    }
}

fn once<T: Clone>(results: &Results<T>, path: &Path, read: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    if let Some(result) = results.borrow().get(path) {
        return result.clone().map_err(io::Error::from);
    }
    let result = read();
    let kept = match &result {
        Ok(contents) => Ok(contents.clone()),
        Err(error) => Err(error.kind()),
    };
    results.borrow_mut().insert(path.to_owned(), kept);
    result
}

/// The real file system.
#[derive(Clone, Copy, Debug, Default)]
pub struct Disk;

impl Reader for Disk {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        std::fs::read(path)
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<Entry>> {
        use std::os::unix::fs::PermissionsExt as _;
        let mut entries = Vec::new();
        for entry in std::fs::read_dir(directory)? {
            let entry = entry?;
            // Follows symbolic links, as reading does. Fails for a dangling one.
            let metadata = std::fs::metadata(entry.path()).ok();
            entries.push(Entry {
                name: entry.file_name().to_string_lossy().into_owned(),
                dangles: metadata.is_none(),
                is_file: metadata.as_ref().is_some_and(std::fs::Metadata::is_file),
                mode: metadata.map_or(0, |metadata| metadata.permissions().mode() & 0o7777),
            });
        }
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    #[test]
    fn entries_have_a_kind_and_a_mode() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        std::fs::write(at("secret"), "x\n").unwrap();
        std::fs::set_permissions(at("secret"), std::fs::Permissions::from_mode(0o640)).unwrap();
        std::fs::create_dir(at("directory")).unwrap();
        symlink(at("secret"), at("link")).unwrap();
        symlink(at("nowhere"), at("dangling")).unwrap();
        let entries = Disk.list(directory.path()).unwrap();
        let found: Vec<_> = entries
            .iter()
            .map(|entry| {
                (
                    entry.name.as_str(),
                    entry.is_file,
                    if entry.is_file { entry.mode } else { 0 },
                )
            })
            .collect();
        assert_eq!(
            found,
            [
                ("dangling", false, 0),
                ("directory", false, 0),
                ("link", true, 0o640),
                ("secret", true, 0o640)
            ]
        );
        assert_eq!(Disk.read(&at("link")).unwrap(), b"x\n");
        assert_eq!(Disk.list(&at("nowhere")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn what_was_read_once_stays_the_same() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        std::fs::write(at("file"), "before").unwrap();
        let once = Once::new(Disk);
        for _ in 0..2 {
            assert_eq!(once.read(&at("file")).unwrap(), b"before");
            assert_eq!(once.read(&at("new")).unwrap_err().kind(), io::ErrorKind::NotFound);
            assert_eq!(once.list(directory.path()).unwrap().len(), 1);
            assert_eq!(once.list(&at("new")).unwrap_err().kind(), io::ErrorKind::NotFound);
            std::fs::write(at("file"), "after").unwrap();
            std::fs::write(at("new"), "").unwrap();
        }
    }
}
