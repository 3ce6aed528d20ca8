//! The file system as the checks see it. Tests replace it by an imaginary one.

use std::io;
use std::path::Path;

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
}
