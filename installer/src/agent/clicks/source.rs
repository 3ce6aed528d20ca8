//! The journal as a file: reading it line by line from a position, telling whether it is still the same, and giving back
//! what was counted.

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

/// Longer than any line of nginx: it takes heads of requests of 32 KB, each byte of which may need four.
const BUFFER: usize = 256 * 1024;

/// The last bytes before a position: by them a file is known again. Long enough to hold what no other line has.
pub const TAIL: usize = 64;

/// Milliseconds by which the time of a line may seem to be before its file was made: clocks have ticks.
const BORN_LATE: u64 = 1000;

/// What is given back is given back in whole blocks.
const BLOCK: u64 = 4096;

/// One file, as opposed to another of the same name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inode {
    pub number: u64,
    /// Nanoseconds since 1970 when it was made; 0 where the file system does not say. A number is given away again.
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

fn files(directory: &Path) -> impl Iterator<Item = (Inode, PathBuf)> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| {
        let metadata = entry.metadata().ok().filter(fs::Metadata::is_file)?;
        Some((Inode::of(&metadata), entry.path()))
    })
}

/// A digest in hexadecimal.
pub type Mark = String;

fn mark(tail: &[u8]) -> Mark {
    let digest = Sha256::digest(tail);
    digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// How far a reading has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reached {
    /// After the last line that was taken.
    pub position: u64,
    pub end: End,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The taker had enough.
    Enough,
    /// No whole line is left.
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
    /// In the middle of a line whose beginning is not there, or too long.
    drops: bool,
    /// Where `drops` counts.
    position: u64,
    /// Where bytes that were given back end.
    after_hole: u64,
}

impl Source {
    /// Opens what is there; it never creates a file.
    ///
    /// # Errors
    /// It is not there, it is no regular file but perhaps a link to one, or this user may not read it.
    pub fn open(path: &Path) -> io::Result<Self> {
        // A pipe of that name would wait for a writer.
        let flags = nix::libc::O_NONBLOCK | nix::libc::O_NOFOLLOW | nix::libc::O_NOCTTY;
        let open = |options: &mut OpenOptions| options.custom_flags(flags).open(path);
        let (file, can_write) = match open(OpenOptions::new().read(true).write(true)) {
            Ok(file) => (file, true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(error),
            Err(_) => (open(OpenOptions::new().read(true))?, false),
        };
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file"));
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

    /// The file of this inode in a directory, under whatever name.
    pub fn find(directory: &Path, inode: Inode) -> Option<Self> {
        let (_, path) = files(directory).find(|(found, _)| *found == inode)?;
        Self::open(&path).ok()
    }

    /// The journal that took the place of the one with this inode, under whatever name it is in the directory by now. None
    /// where the file system does not say when files were made.
    pub fn following(directory: &Path, inode: Inode) -> Option<Self> {
        let mut later: Vec<_> = files(directory).filter(|(found, _)| found.born > inode.born).collect();
        later.sort_unstable_by_key(|(found, _)| found.born);
        let mut sources = later.into_iter().filter_map(|(_, path)| Self::open(&path).ok());
        sources.find_map(|mut source| match source.is_copy() {
            Ok(false) => Some(source),
            Ok(true) | Err(_) => None,
        })
    }

    /// Another file of the directory with these bytes before the position.
    pub fn copy_of(directory: &Path, position: u64, known: &Mark) -> Option<Self> {
        let mut sources = files(directory).filter_map(|(_, path)| Self::open(&path).ok());
        sources.find(|source| position > 0 && source.continues(position, known).unwrap_or(false))
    }

    /// Whether somebody made it of another file: what it tells first happened before it was made. Something that tells
    /// nothing of the kind is no journal, and taken for a copy, too.
    pub fn is_copy(&mut self) -> io::Result<bool> {
        let mut first = None;
        self.read(0, |line, _| {
            first = Some(line::parse(line).map(|line| line.at));
            false
        })?;
        Ok(match first {
            // nginx has just made it.
            None => false,
            Some(Some(at)) => (at + BORN_LATE) * 1_000_000 < self.inode.born,
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

    /// Opens the file for writing, too, where that was not allowed when it was opened: nginx makes a journal that only its
    /// own user can write, and root changes the mode later.
    ///
    /// # Errors
    /// `PermissionDenied`: this user may not write it. `NotFound`: its path leads to another file by now.
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

    /// # Errors
    /// The file system fails.
    pub fn size(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// Whether `path` leads to another file by now.
    pub fn is_replaced(&self, path: &Path) -> bool {
        // While it leads nowhere, nginx still writes to this one.
        fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_file() && Inode::of(&metadata) != self.inode)
    }

    /// By what the file is known again: a digest of the last bytes before `position`. Not the bytes, which may hold an
    /// address.
    ///
    /// # Errors
    /// The file system fails, or the file ends before.
    pub fn mark(&self, position: u64) -> io::Result<Mark> {
        Ok(mark(&self.tail(position)?))
    }

    /// Whether the bytes before `position` are those of the mark, or were given back.
    ///
    /// # Errors
    /// The file system fails.
    pub fn continues(&self, position: u64, known: &Mark) -> io::Result<bool> {
        if self.size()? < position {
            return Ok(false);
        }
        let found = self.tail(position)?;
        // See `release`.
        let given_back = found.strip_suffix(b"\n").unwrap_or(&found);
        Ok(mark(&found) == *known || given_back.iter().all(|byte| *byte == 0))
    }

    /// Whether a line ends before `position`, or what was there was given back.
    ///
    /// # Errors
    /// The file system fails.
    pub fn ends_line(&self, position: u64) -> io::Result<bool> {
        if position == 0 || self.size()? < position {
            return Ok(position == 0);
        }
        let mut last = [0];
        self.file.read_exact_at(&mut last, position - 1)?;
        Ok(matches!(last, [b'\n' | 0]))
    }

    /// Where the first line from `from` on begins that is not older than `since` (milliseconds since 1970); without it,
    /// after the last whole line.
    ///
    /// # Errors
    /// The file system fails.
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

    /// The offset of the first byte that is not NUL; the size where there is none.
    ///
    /// # Errors
    /// The file system fails.
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

    /// Gives each whole line from `from` on, without its end, and the position after it to `take`, until that returns false. Lines of which nothing
    /// is left to count but their number are given as empty ones.
    ///
    /// # Errors
    /// The file system fails.
    pub fn read(&mut self, from: u64, take: impl FnMut(&[u8], u64) -> bool) -> io::Result<Reached> {
        self.read_until(from, u64::MAX, take)
    }

    /// The same, for lines that begin before `limit`.
    ///
    /// # Errors
    /// The file system fails.
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
                // Given back, or never written because the power failed.
                let zeros = bytes.iter().take_while(|byte| **byte == 0).count() as u64;
                let after = match zeros == length as u64 {
                    true => self.data_after(position + zeros)?,
                    false => position + zeros,
                };
                // What was given back ends somewhere in a line.
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
                // What was given back may end before the end of a line.
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
                // Half a line: the rest is on its way.
                break;
            }
            // No line of nginx.
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

    /// The first position from `from` on that is in no hole.
    fn data_after(&self, from: u64) -> io::Result<u64> {
        let offset = i64::try_from(from).map_err(io::Error::other)?;
        match lseek(&self.file, offset, Whence::SeekData) {
            Ok(found) => u64::try_from(found).map_err(io::Error::other),
            // Nothing but a hole is left, or nothing at all.
            Err(nix::errno::Errno::ENXIO) => Ok(self.size()?.max(from)),
            Err(nix::errno::Errno::EINVAL) => Ok(from),
            Err(error) => Err(error.into()),
        }
    }

    /// Gives what is before `position` back to the file system: it reads as NULs, and the size stays. Returns where the first
    /// byte is that can be another one.
    ///
    /// # Errors
    /// `Unsupported`: the file system cannot. `PermissionDenied`: see [`Self::make_writable`].
    pub fn release(&self, position: u64) -> io::Result<u64> {
        // A reader drops the first line after a hole that ends with a block (0.1.0 gives back whole blocks): there, the end
        // of the last line stays.
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

    /// How many bytes before `position` can be removed: whole blocks of the file system, and not the last one of the file.
    ///
    /// # Errors
    /// The file system fails.
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

    /// Removes that many bytes at the front, whole blocks: what is behind them moves up. nginx appends to the end, wherever
    /// that is, and the kernel does one after the other.
    ///
    /// # Errors
    /// As [`Self::release`].
    pub fn remove(&self, length: u64) -> io::Result<()> {
        self.allocate(FallocateFlags::FALLOC_FL_COLLAPSE_RANGE, length)
    }

    fn allocate(&self, flags: FallocateFlags, length: u64) -> io::Result<()> {
        if !self.can_write {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let length = i64::try_from(length).map_err(io::Error::other)?;
        fallocate(&self.file, flags, 0, length).map_err(|error| match error {
            // EINVAL: an ext4 with clusters, whose unit is larger than its block.
            nix::errno::Errno::EOPNOTSUPP | nix::errno::Errno::ENOSYS | nix::errno::Errno::EINVAL => {
                io::ErrorKind::Unsupported.into()
            }
            error => error.into(),
        })
    }

    /// # Errors
    /// The disk fails.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Empties the file if it ends at `position`; returns whether it did. What nginx writes in the moment between the look
    /// and the deed is lost, which is why this is for file systems without holes only.
    ///
    /// # Errors
    /// The file system fails, or this user may not.
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
    fn half_a_line_waits_for_its_end() {
        let journal = Journal::new(b"one\ntwo\nthr");
        let mut source = journal.source();
        assert_eq!(lines(&mut source, 0), (vec!["one".into(), "two".into()], 8));
        assert_eq!(lines(&mut source, 8), (vec![], 8));
        journal.append(b"ee\nfour\n");
        assert_eq!(lines(&mut source, 8), (vec!["three".into(), "four".into()], 19));
    }

    #[test]
    fn the_taker_may_have_enough() {
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
    fn lines_longer_than_the_buffer_are_one_line_that_is_none() {
        let long = vec![b'x'; 3 * BUFFER + 5];
        let journal = Journal::new(&long);
        journal.append(b"\nafter\n");
        let mut source = journal.source();
        let (found, position) = lines(&mut source, 0);
        assert_eq!(found, ["", "after"]);
        assert_eq!(position, source.size().unwrap());
        // Also where it comes in parts.
        let journal = Journal::new(&long[..BUFFER]);
        let mut source = journal.source();
        let (found, position) = lines(&mut source, 0);
        assert_eq!((found, position), (vec![String::new()], BUFFER as u64));
        journal.append(b"xxx\nafter\n");
        assert_eq!(lines(&mut source, position).0, ["after"]);
    }

    #[test]
    fn what_was_given_back_is_passed_over_with_the_line_that_it_ends_in() {
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
        // Blocks that are gone, and that are not.
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

    /// 0.1.0 released whole blocks, and the line that a hole ends in is lost with it.
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

    /// Where the temporary directory can: ext4 and xfs can.
    #[test]
    fn what_was_given_back_can_be_removed_while_nginx_appends() {
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
    fn a_limit_is_where_a_line_begins() {
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
        // In a hole.
        let journal = Journal::new(b"one\n");
        journal.append(&[0; 100]);
        journal.append(b"two\n");
        let reached = journal.source().read_until(0, 50, |_, _| true).unwrap();
        assert_eq!((reached.position, reached.end), (50, End::Limit));
    }

    #[test]
    fn lines_end_where_a_boundary_can_be() {
        let journal = Journal::new(b"one\ntwo\n\0\0thr");
        let source = journal.source();
        let ends: Vec<_> = (0..15).filter(|at| source.ends_line(*at).unwrap()).collect();
        assert_eq!(ends, [0, 4, 8, 9, 10]);
    }

    #[test]
    fn bytes_that_were_never_written_are_passed_over() {
        let journal = Journal::new(b"one\n");
        journal.append(&[0; 100]);
        journal.append(b"two\n");
        journal.append(&[0; 2 * BUFFER]);
        journal.append(b"three\n");
        assert_eq!(lines(&mut journal.source(), 0).0, ["one", "two", "three"]);
    }

    #[test]
    fn a_file_that_was_truncated_or_filled_anew_does_not_continue() {
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
    fn a_file_that_was_renamed_is_found_again() {
        let journal = Journal::new(b"old\n");
        let mut source = journal.source();
        assert!(!source.is_replaced(&journal.path()));
        let renamed = journal.directory.path().join("clicks.log.1");
        fs::rename(journal.path(), &renamed).unwrap();
        assert!(!source.is_replaced(&journal.path()), "nobody has made a new one");
        journal.append(b"new\n");
        assert!(source.is_replaced(&journal.path()));
        assert_eq!(lines(&mut source, 0).0, ["old"]);
        let found = Source::find(journal.directory.path(), source.inode()).unwrap();
        assert_eq!(found.path(), renamed);
        fs::remove_file(renamed).unwrap();
        assert!(Source::find(journal.directory.path(), source.inode()).is_none());
    }

    #[test]
    fn it_is_emptied_only_where_all_of_it_was_read() {
        let journal = Journal::new(b"one\ntwo\n");
        let source = journal.source();
        assert!(!source.truncate(4).unwrap());
        assert!(source.truncate(8).unwrap());
        assert_eq!(source.size().unwrap(), 0);
    }

    #[test]
    fn what_is_no_file_is_not_read() {
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
        assert!(!source.is_replaced(&link), "a link is no journal of nginx");
    }
}
