//! The journal as a file: reads it line by line from a position, detects whether it is still the same file, and releases what
//! was counted. To release a range is to return its disk space to the file system: the range becomes a hole and reads as NULs.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::statfs::fstatfs;
use nix::unistd::{Whence, lseek};
use sha2::{Digest as _, Sha256};

use super::line;

/// The size of the buffer, which exceeds any line of nginx. Request heads have at most 32 KB, each byte of which may need four
/// when escaped.
const BUFFER: usize = 256 * 1024;

/// The number of bytes before a position by which a file is recognized. They are enough to be unique to one line.
pub const TAIL: usize = 64;

/// How many milliseconds the time of a line may seem to precede the birth of its file, because clocks have ticks.
const BIRTH_TOLERANCE: u64 = 1000;

/// The block size of file systems, in bytes. Holes of version 0.1.0 end at multiples of it.
const BLOCK: u64 = 4096;

/// The identity of a file, independent of its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inode {
    pub number: u64,
    /// When the file was created, in nanoseconds since 1970; 0 if the file system does not say. It is needed because inode
    /// numbers are reused.
    pub born: u64,
}

impl Inode {
    fn of(metadata: &fs::Metadata) -> Self {
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
fn files(directory: &Path) -> impl Iterator<Item = (Inode, PathBuf)> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| {
        let metadata = entry.metadata().ok().filter(fs::Metadata::is_file)?;
        Some((Inode::of(&metadata), entry.path()))
    })
}

/// A digest of the bytes before a position, in hexadecimal.
pub type Mark = String;

fn mark(tail: &[u8]) -> Mark {
    let digest = Sha256::digest(tail);
    digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// How far a read has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reached {
    /// The position after the last line that was taken.
    pub position: u64,
    pub end: End,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The callback returned false.
    Enough,
    /// No complete line is left.
    CaughtUp,
    /// The next line begins at the limit or after it.
    Limit,
}

#[derive(Debug)]
pub struct Source {
    path: PathBuf,
    file: File,
    inode: Inode,
    device: u64,
    can_write: bool,
    buffer: Vec<u8>,
    /// Whether the reader is inside a line whose beginning is missing or too long, and drops the rest of it.
    drops: bool,
    /// The position at which `drops` applies.
    position: u64,
    /// The end of the last hole.
    after_hole: u64,
}

impl Source {
    /// Opens the file. It is never created.
    ///
    /// # Errors
    /// Fails if the file is missing, is not a regular file (symbolic links are refused), or may not be read by this user.
    pub fn open(path: &Path) -> io::Result<Self> {
        // Without O_NONBLOCK, opening a pipe would wait for a writer.
        let flags = nix::libc::O_NONBLOCK | nix::libc::O_NOFOLLOW | nix::libc::O_NOCTTY;
        let open = |options: &mut OpenOptions| options.custom_flags(flags).open(path);
        let (file, can_write) = match open(OpenOptions::new().read(true).write(true)) {
            Ok(file) => (file, true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(error),
            Err(_) => (open(OpenOptions::new().read(true))?, false),
        };
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        Ok(Self {
            path: path.to_owned(),
            inode: Inode::of(&metadata),
            device: metadata.dev(),
            file,
            can_write,
            buffer: vec![0; BUFFER],
            drops: false,
            position: 0,
            after_hole: u64::MAX,
        })
    }

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

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn inode(&self) -> Inode {
        self.inode
    }

    pub fn device(&self) -> u64 {
        self.device
    }

    /// Reopens the file for writing if that was not permitted when it was opened. nginx creates a journal that only its own
    /// user can write, and root changes the mode later.
    ///
    /// # Errors
    /// Fails with `PermissionDenied` if this user may still not write the file, and with `NotFound` if its path leads to
    /// another file by now.
    pub fn make_writable(&mut self) -> io::Result<()> {
        if self.can_write {
            return Ok(());
        }
        let again = Self::open(&self.path)?;
        if (again.inode, again.device) != (self.inode, self.device) {
            return Err(io::ErrorKind::NotFound.into());
        }
        if !again.can_write {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        self.file = again.file;
        self.can_write = true;
        Ok(())
    }

    /// The size of the file.
    ///
    /// # Errors
    /// Fails if the file system does.
    pub fn size(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// Whether `path` leads to another file by now.
    pub fn is_replaced(&self, path: &Path) -> bool {
        // While nothing is at the path, nginx still writes to this file.
        fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_file() && Inode::of(&metadata) != self.inode)
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

    /// Whether a line ends at `position`, or the byte before it was released.
    ///
    /// # Errors
    /// Fails if the file system does.
    pub fn ends_line(&self, position: u64) -> io::Result<bool> {
        if position == 0 || self.size()? < position {
            return Ok(position == 0);
        }
        let mut last = [0];
        self.file.read_exact_at(&mut last, position - 1)?;
        Ok(matches!(last, [b'\n' | 0]))
    }

    /// The position of the first line after `from` that is not older than `since` (milliseconds since 1970). Without `since`,
    /// the end of the last complete line.
    ///
    /// # Errors
    /// Fails if the file system does.
    pub fn boundary(&mut self, from: u64, since: Option<u64>) -> io::Result<u64> {
        let mut boundary = from;
        let reached = self.read(from, |line, after| {
            let line = line::parse(line).or_else(|| line::parse_torn(line));
            let is_own = since.is_some_and(|since| line.is_some_and(|line| line.at >= since));
            if !is_own {
                boundary = after;
            }
            !is_own
        })?;
        Ok(match reached.end {
            End::Enough => boundary,
            End::CaughtUp | End::Limit => reached.position,
        })
    }

    /// The offset of the first byte that is not NUL, or the size if there is none.
    ///
    /// # Errors
    /// Fails if the file system does.
    pub fn first_data(&mut self) -> io::Result<u64> {
        let mut position = 0;
        loop {
            let length = self.file.read_at(&mut self.buffer, position)?;
            let bytes = &self.buffer[..length];
            if let Some(found) = bytes.iter().position(|byte| *byte != 0) {
                return Ok(position + found as u64);
            }
            if length == 0 {
                return Ok(position);
            }
            position = self.data_after(position + length as u64)?;
        }
    }

    fn tail(&self, position: u64) -> io::Result<Vec<u8>> {
        let mut tail = vec![0; TAIL.min(usize::try_from(position).unwrap_or(TAIL))];
        let start = position - tail.len() as u64;
        self.file.read_exact_at(&mut tail, start)?;
        Ok(tail)
    }

    /// Calls `take` for each complete line from `from` on, until it returns false. `take` gets the line without its line feed,
    /// and the position after it. A line that is too long is passed as an empty one, so that it is still counted as a line.
    ///
    /// # Errors
    /// Fails if the file system does.
    pub fn read(&mut self, from: u64, take: impl FnMut(&[u8], u64) -> bool) -> io::Result<Reached> {
        self.read_until(from, u64::MAX, take)
    }

    /// Like [`Self::read`], but only for lines that begin before `limit`.
    ///
    /// # Errors
    /// Fails if the file system does.
    pub fn read_until(
        &mut self,
        from: u64,
        limit: u64,
        mut take: impl FnMut(&[u8], u64) -> bool,
    ) -> io::Result<Reached> {
        if self.position != from {
            self.drops = false;
        }
        let mut position = from;
        loop {
            if position >= limit {
                self.position = position;
                return Ok(Reached {
                    position: limit.max(from),
                    end: End::Limit,
                });
            }
            let length = self.file.read_at(&mut self.buffer, position)?;
            let bytes = &self.buffer[..length];
            if bytes.is_empty() {
                break;
            }
            if bytes[0] == 0 {
                // Released, or never written because of a power failure.
                let zeros = bytes.iter().take_while(|byte| **byte == 0).count() as u64;
                let after = match zeros == length as u64 {
                    true => self.data_after(position + zeros)?,
                    false => position + zeros,
                };
                // A hole that ends with a block is one of version 0.1.0's, which may end within a line.
                self.drops = after.is_multiple_of(BLOCK);
                self.after_hole = after;
                position = after;
                continue;
            }
            let mut start = 0;
            let mut enough = false;
            for end in memchr::memchr_iter(b'\n', bytes) {
                if position + start as u64 >= limit {
                    break;
                }
                let line = &bytes[start..end];
                start = end + 1;
                if std::mem::take(&mut self.drops) {
                    continue;
                }
                // A hole may end just before a line feed; see `release`.
                if line.is_empty() && start == 1 && self.after_hole == position {
                    continue;
                }
                let written = line.iter().position(|byte| *byte != 0);
                let line = &line[written.unwrap_or(0)..];
                if !take(line, position + start as u64) {
                    enough = true;
                    break;
                }
            }
            position += start as u64;
            if enough {
                self.position = position;
                return Ok(Reached {
                    position,
                    end: End::Enough,
                });
            }
            if start > 0 {
                continue;
            }
            if length < self.buffer.len() {
                // The last line is incomplete; nginx has yet to write the rest.
                break;
            }
            // The line is too long to be nginx's.
            if !std::mem::replace(&mut self.drops, true) {
                take(&[], position + length as u64);
            }
            position += length as u64;
        }
        self.position = position;
        Ok(Reached {
            position,
            end: End::CaughtUp,
        })
    }

    /// The first position at or after `from` that is not in a hole.
    fn data_after(&self, from: u64) -> io::Result<u64> {
        let offset = i64::try_from(from).map_err(io::Error::other)?;
        match lseek(&self.file, offset, Whence::SeekData) {
            Ok(found) => u64::try_from(found).map_err(io::Error::other),
            // Only a hole is left, or nothing at all.
            Err(nix::errno::Errno::ENXIO) => Ok(self.size()?.max(from)),
            Err(nix::errno::Errno::EINVAL) => Ok(from),
            Err(error) => Err(error.into()),
        }
    }

    /// Releases what is before `position`: the bytes read as NULs, and the size stays the same. Returns the end of the hole.
    ///
    /// # Errors
    /// Fails with `Unsupported` if the file system cannot punch holes, and with `PermissionDenied` if the file is not open for
    /// writing; see [`Self::make_writable`].
    pub fn release(&self, position: u64) -> io::Result<u64> {
        // A reader drops the first line after a hole that ends with a block, because 0.1.0 releases whole blocks. If this hole
        // would end there, the line feed before `position` stays.
        let length = match position.is_multiple_of(BLOCK) {
            true => position.saturating_sub(1),
            false => position,
        };
        if length > 0 {
            let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            self.allocate(flags, length)?;
        }
        Ok(length)
    }

    /// How many bytes before `position` can be removed: whole blocks of the file system, but never the last block of the file.
    ///
    /// # Errors
    /// Fails if the file system does.
    pub fn removable(&self, position: u64) -> io::Result<u64> {
        let block = u64::try_from(fstatfs(&self.file)?.block_size())
            .unwrap_or(BLOCK)
            .max(BLOCK);
        let length = position / block * block;
        Ok(match length < self.size()? {
            true => length,
            false => length.saturating_sub(block),
        })
    }

    /// Removes this many bytes, whole blocks, from the front of the file; the rest moves up. nginx may append at the same time,
    /// because it always writes to the end of the file and the kernel serializes both operations.
    ///
    /// # Errors
    /// Fails for the same reasons as [`Self::release`].
    pub fn remove(&self, length: u64) -> io::Result<()> {
        self.allocate(FallocateFlags::FALLOC_FL_COLLAPSE_RANGE, length)
    }

    fn allocate(&self, flags: FallocateFlags, length: u64) -> io::Result<()> {
        if !self.can_write {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let length = i64::try_from(length).map_err(io::Error::other)?;
        fallocate(&self.file, flags, 0, length).map_err(|error| match error {
            // An ext4 with clusters fails with EINVAL, because its unit of allocation is larger than its block.
            nix::errno::Errno::EOPNOTSUPP | nix::errno::Errno::ENOSYS | nix::errno::Errno::EINVAL => {
                io::ErrorKind::Unsupported.into()
            }
            error => error.into(),
        })
    }

    /// Writes the contents of the file to the disk.
    ///
    /// # Errors
    /// Fails if the disk does.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Empties the file if it ends at `position`, and returns whether it did. What nginx writes between the check and the
    /// truncation is lost, so this is only for file systems without holes.
    ///
    /// # Errors
    /// Fails if the file system does, or if this user may not write the file.
    pub fn truncate(&self, position: u64) -> io::Result<bool> {
        if self.size()? != position {
            return Ok(false);
        }
        self.file.set_len(0)?;
        Ok(true)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use std::io::Write as _;

    use super::*;

    struct Journal {
        directory: tempfile::TempDir,
    }

    impl Journal {
        fn new(contents: &[u8]) -> Self {
            let journal = Self {
                directory: tempfile::tempdir().unwrap(),
            };
            journal.append(contents);
            journal
        }

        fn path(&self) -> PathBuf {
            self.directory.path().join("clicks.log")
        }

        fn append(&self, contents: &[u8]) {
            let mut options = OpenOptions::new();
            let mut file = options.append(true).create(true).open(self.path()).unwrap();
            file.write_all(contents).unwrap();
        }

        fn source(&self) -> Source {
            Source::open(&self.path()).unwrap()
        }
    }

    fn lines(source: &mut Source, from: u64) -> (Vec<String>, u64) {
        let mut lines = vec![];
        let reached = source.read(from, |line, _| {
            lines.push(String::from_utf8_lossy(line).into_owned());
            true
        });
        let reached = reached.unwrap();
        assert_eq!(reached.end, End::CaughtUp);
        (lines, reached.position)
    }

    #[test]
    fn an_incomplete_line_waits_for_its_end() {
        let journal = Journal::new(b"one\ntwo\nthr");
        let mut source = journal.source();
        assert_eq!(lines(&mut source, 0), (vec!["one".into(), "two".into()], 8));
        assert_eq!(lines(&mut source, 8), (vec![], 8));
        journal.append(b"ee\nfour\n");
        assert_eq!(lines(&mut source, 8), (vec!["three".into(), "four".into()], 19));
    }

    #[test]
    fn the_callback_can_stop_the_reading() {
        let journal = Journal::new(b"one\ntwo\nthree\n");
        let mut taken = 0;
        let reached = journal.source().read(0, |_, _| {
            taken += 1;
            taken < 2
        });
        let wanted = Reached {
            position: 8,
            end: End::Enough,
        };
        assert_eq!((reached.unwrap(), taken), (wanted, 2));
    }

    #[test]
    fn a_line_longer_than_the_buffer_is_one_empty_line() {
        let long = vec![b'x'; 3 * BUFFER + 5];
        let journal = Journal::new(&long);
        journal.append(b"\nafter\n");
        let mut source = journal.source();
        let (found, position) = lines(&mut source, 0);
        assert_eq!(found, ["", "after"]);
        assert_eq!(position, source.size().unwrap());
        // The same if the line arrives in parts.
        let journal = Journal::new(&long[..BUFFER]);
        let mut source = journal.source();
        let (found, position) = lines(&mut source, 0);
        assert_eq!((found, position), (vec![String::new()], BUFFER as u64));
        journal.append(b"xxx\nafter\n");
        assert_eq!(lines(&mut source, position).0, ["after"]);
    }

    #[test]
    fn released_lines_are_skipped() {
        let text: String = (0..5000).map(|number| format!("line {number:06}\n")).collect();
        let journal = Journal::new(text.as_bytes());
        let mut source = journal.source();
        let position = 12 * 2000;
        assert_eq!(source.release(position).unwrap(), position);
        assert_eq!(source.size().unwrap(), text.len() as u64);
        assert_eq!(source.first_data().unwrap(), position);
        let (found, end) = lines(&mut source, 0);
        assert_eq!(end, text.len() as u64);
        let first = position / 12;
        assert_eq!(found.first(), Some(&format!("line {first:06}")));
        assert_eq!(found.len() as u64, 5000 - first);
        assert_eq!(lines(&mut source, position).0.len(), 3000);
        // The released blocks are gone; the others are not.
        let blocks = fs::metadata(journal.path()).unwrap().blocks();
        assert!(blocks * 512 < text.len() as u64 - 2 * BLOCK, "{blocks}");
        assert!(
            source
                .continues(
                    position,
                    &mark(&text.as_bytes()[position as usize - TAIL..position as usize])
                )
                .unwrap()
        );
        assert!(source.continues(BLOCK, &mark(b"whatever it was")).unwrap());
    }

    /// Version 0.1.0 releases whole blocks. The line in which such a hole ends is lost.
    #[test]
    fn a_hole_of_0_1_0_ends_within_a_line() {
        let text: String = (0..1000).map(|number| format!("line {number:06}\n")).collect();
        let journal = Journal::new(text.as_bytes());
        let mut source = journal.source();
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        source.allocate(flags, BLOCK).unwrap();
        let first = BLOCK.div_ceil(12);
        assert_eq!(lines(&mut source, 0).0.first(), Some(&format!("line {first:06}")));
    }

    #[test]
    fn a_hole_that_ends_with_a_block_loses_no_line() {
        let journal = Journal::new(&[b'x'; BLOCK as usize - 1]);
        journal.append(b"\nnext\n");
        let mut source = journal.source();
        assert_eq!(source.release(BLOCK).unwrap(), BLOCK - 1);
        assert_eq!(lines(&mut source, 0).0, ["next"]);
    }

    /// Runs only if the temporary directory supports it, as on ext4 and xfs.
    #[test]
    fn released_blocks_can_be_removed_while_nginx_appends() {
        let line = |number: u32| format!("line {number:06}\n");
        let text: String = (0..5000).map(line).collect();
        let journal = Journal::new(text.as_bytes());
        let mut source = journal.source();
        let position = 12 * 3000;
        source.release(position).unwrap();
        let length = source.removable(position).unwrap();
        assert_eq!(length, position / BLOCK * BLOCK);
        match source.remove(length) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => return,
            removed => removed.unwrap(),
        }
        assert_eq!(source.size().unwrap(), text.len() as u64 - length);
        assert_eq!(source.first_data().unwrap(), position - length);
        journal.append(line(5000).as_bytes());
        let (found, _) = lines(&mut source, 0);
        assert_eq!(
            (found.first(), found.last()),
            (Some(&line(3000).trim().to_owned()), Some(&line(5000).trim().to_owned()))
        );
        assert_eq!(found.len(), 2001);
        // Never the last block of the file.
        let all = Journal::new(&[0; 2 * BLOCK as usize]);
        assert_eq!(all.source().removable(2 * BLOCK).unwrap(), BLOCK);
    }

    #[test]
    fn only_lines_that_begin_before_the_limit_are_read() {
        let journal = Journal::new(b"one\ntwo\nthree\n");
        let mut source = journal.source();
        let mut until = |from, limit| {
            let mut found = 0;
            let reached = source.read_until(from, limit, |_, _| {
                found += 1;
                true
            });
            (found, reached.unwrap())
        };
        let reached = |position, end| Reached { position, end };
        assert_eq!(until(0, 8), (2, reached(8, End::Limit)));
        assert_eq!(until(8, 8), (0, reached(8, End::Limit)));
        assert_eq!(until(0, 14), (3, reached(14, End::Limit)));
        assert_eq!(until(0, 100), (3, reached(14, End::CaughtUp)));
        // A limit inside a hole.
        let journal = Journal::new(b"one\n");
        journal.append(&[0; 100]);
        journal.append(b"two\n");
        let reached = journal.source().read_until(0, 50, |_, _| true).unwrap();
        assert_eq!((reached.position, reached.end), (50, End::Limit));
    }

    #[test]
    fn a_line_can_end_after_a_line_feed_or_a_hole() {
        let journal = Journal::new(b"one\ntwo\n\0\0thr");
        let source = journal.source();
        let ends: Vec<_> = (0..15).filter(|at| source.ends_line(*at).unwrap()).collect();
        assert_eq!(ends, [0, 4, 8, 9, 10]);
    }

    #[test]
    fn bytes_that_were_never_written_are_skipped() {
        let journal = Journal::new(b"one\n");
        journal.append(&[0; 100]);
        journal.append(b"two\n");
        journal.append(&[0; 2 * BUFFER]);
        journal.append(b"three\n");
        assert_eq!(lines(&mut journal.source(), 0).0, ["one", "two", "three"]);
    }

    #[test]
    fn a_truncated_or_rewritten_file_does_not_continue() {
        let text = "0123456789".repeat(20);
        let journal = Journal::new(text.as_bytes());
        let source = journal.source();
        let known = source.mark(150).unwrap();
        journal.append(b"more");
        assert!(source.continues(150, &known).unwrap());
        fs::write(journal.path(), b"short").unwrap();
        assert!(!source.continues(150, &known).unwrap());
        journal.append("another".repeat(50).as_bytes());
        assert!(!source.continues(150, &known).unwrap());
        assert!(source.continues(0, &mark(b"")).unwrap());
    }

    #[test]
    fn a_renamed_file_is_found_again() {
        let journal = Journal::new(b"old\n");
        let mut source = journal.source();
        assert!(!source.is_replaced(&journal.path()));
        let renamed = journal.directory.path().join("clicks.log.1");
        fs::rename(journal.path(), &renamed).unwrap();
        assert!(!source.is_replaced(&journal.path()), "there is no new file yet");
        journal.append(b"new\n");
        assert!(source.is_replaced(&journal.path()));
        assert_eq!(lines(&mut source, 0).0, ["old"]);
        let found = Source::find(journal.directory.path(), source.inode()).unwrap();
        assert_eq!(found.path(), renamed);
        fs::remove_file(renamed).unwrap();
        assert!(Source::find(journal.directory.path(), source.inode()).is_none());
    }

    #[test]
    fn a_file_is_emptied_only_if_all_of_it_was_read() {
        let journal = Journal::new(b"one\ntwo\n");
        let source = journal.source();
        assert!(!source.truncate(4).unwrap());
        assert!(source.truncate(8).unwrap());
        assert_eq!(source.size().unwrap(), 0);
    }

    #[test]
    fn only_regular_files_are_opened() {
        let directory = tempfile::tempdir().unwrap();
        assert!(Source::open(directory.path()).is_err());
        let missing = Source::open(&directory.path().join("missing"));
        assert_eq!(missing.unwrap_err().kind(), io::ErrorKind::NotFound);
        let pipe = directory.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(Source::open(&pipe).is_err());
        fs::write(directory.path().join("file"), b"one\n").unwrap();
        let link = directory.path().join("clicks.log");
        std::os::unix::fs::symlink("file", &link).unwrap();
        assert!(Source::open(&link).is_err());
        let source = Source::open(&directory.path().join("file")).unwrap();
        assert!(!source.is_replaced(&link), "a symbolic link is not nginx's journal");
    }
}
