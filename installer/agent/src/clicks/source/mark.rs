//! Recognizes a journal that was renamed, copied, replaced or emptied.

use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use sha2::{Digest as _, Sha256};

use super::super::inode::{Inode, files};
use super::super::line;
use super::Source;

/// The number of bytes before a position by which a file is recognized. They are enough to be unique to one line.
pub const TAIL: usize = 64;

/// How many milliseconds the time of a line may seem to precede the birth of its file, because clocks have ticks.
const BIRTH_TOLERANCE: u64 = 1000;

/// A digest of the bytes before a position, in hexadecimal.
pub type Mark = String;

/// The mark of the bytes before a position.
pub(super) fn mark(tail: &[u8]) -> Mark {
    let digest = Sha256::digest(tail);
    digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

impl Source {
    /// Opens the file with this inode, whatever its name in the directory.
    pub fn find(directory: &Path, inode: Inode) -> Option<Self> {
        let (_, path) = files(directory).find(|(found, _)| *found == inode)?;
        Self::open(&path).ok()
    }

    /// Opens the journal that replaced the one with this inode, whatever its name in the directory is by now. Returns `None` if
    /// there is none, or if the file system does not record when files were created.
    pub fn following(directory: &Path, inode: Inode) -> Option<Self> {
        let mut later: Vec<_> = files(directory).filter(|(found, _)| found.born > inode.born).collect();
        later.sort_unstable_by_key(|(found, _)| found.born);
        let mut sources = later.into_iter().filter_map(|(_, path)| Self::open(&path).ok());
        sources.find_map(|mut source| match source.is_copy() {
            Ok(false) => Some(source),
            Ok(true) | Err(_) => None,
        })
    }

    /// Opens a file in the directory that has the marked bytes before the position.
    pub fn copy_of(directory: &Path, position: u64, known: &Mark) -> Option<Self> {
        let mut sources = files(directory).filter_map(|(_, path)| Self::open(&path).ok());
        sources.find(|source| position > 0 && source.continues(position, known).unwrap_or(false))
    }

    /// Whether this file was copied from another one. In a copy the first line is older than the file. A file whose first line
    /// cannot be parsed is not a journal; it is treated as a copy, too.
    ///
    /// # Errors
    /// Fails if the file cannot be read.
    pub fn is_copy(&mut self) -> io::Result<bool> {
        let mut first = None;
        self.read(0, |line, _| {
            first = Some(line::parse(line).map(|line| line.at));
            false
        })?;
        Ok(match first {
            // The file has no line: nginx has just created it.
            None => false,
            Some(Some(at)) => (at + BIRTH_TOLERANCE) * 1_000_000 < self.inode.born,
            Some(None) => true,
        })
    }

    /// The mark by which the file is recognized: a digest of the last bytes before `position`. The bytes themselves are not
    /// kept, because they may contain an address.
    ///
    /// # Errors
    /// Fails if the file system does, or if the file ends before `position`.
    pub fn mark(&self, position: u64) -> io::Result<Mark> {
        Ok(mark(&self.tail(position)?))
    }

    /// Whether the bytes before `position` match the mark, or were released.
    ///
    /// # Errors
    /// Fails if the file system does.
    pub fn continues(&self, position: u64, known: &Mark) -> io::Result<bool> {
        if self.size()? < position {
            return Ok(false);
        }
        let found = self.tail(position)?;
        // `release` may leave the last line feed.
        let released = found.strip_suffix(b"\n").unwrap_or(&found);
        Ok(mark(&found) == *known || released.iter().all(|byte| *byte == 0))
    }

    fn tail(&self, position: u64) -> io::Result<Vec<u8>> {
        let mut tail = vec![0; TAIL.min(usize::try_from(position).unwrap_or(TAIL))];
        let start = position - tail.len() as u64;
        self.file.read_exact_at(&mut tail, start)?;
        Ok(tail)
    }
}
