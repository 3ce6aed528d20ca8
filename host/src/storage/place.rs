//! The location of a SQLite database.

use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

#[derive(Clone, Debug, PartialEq)]
pub enum Place {
    Memory,
    File(PathBuf),
}

/// The device and inode of a file, which reveal that the file was replaced.
pub type Identity = (u64, u64);

impl Place {
    /// The identity of the file that is there now; `None` without a file.
    pub fn identity(&self) -> Option<Identity> {
        let Self::File(path) = self else { return None };
        let metadata = std::fs::metadata(path).ok()?;
        Some((metadata.dev(), metadata.ino()))
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Memory => f.write_str("in memory"),
            Self::File(path) => path.display().fmt(f),
        }
    }
}
