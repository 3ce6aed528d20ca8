//! Reads a journal line by line.

use std::io;
use std::os::unix::fs::FileExt as _;

use super::super::line;
use super::{BLOCK, Source};

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

impl Source {
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
}
