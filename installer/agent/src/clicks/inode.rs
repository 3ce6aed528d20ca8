//! The identity of a file.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

/// The identity of a file, independent of its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inode {
    pub number: u64,
    /// When the file was created, in nanoseconds since 1970; 0 if the file system does not say. It is needed because inode
    /// numbers are reused.
    pub born: u64,
}

impl Inode {
    pub fn of(metadata: &fs::Metadata) -> Self {
        let born = metadata
            .created()
            .ok()
            .and_then(|born| born.duration_since(UNIX_EPOCH).ok());
        Self {
            number: metadata.ino(),
            born: born.map_or(0, |born| born.as_nanos() as u64),
        }
    }
}

/// The regular files in a directory.
pub fn files(directory: &Path) -> impl Iterator<Item = (Inode, PathBuf)> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| {
        let metadata = entry.metadata().ok().filter(fs::Metadata::is_file)?;
        Some((Inode::of(&metadata), entry.path()))
    })
}
