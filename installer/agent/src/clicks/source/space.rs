//! Gives back the disk space of counted lines. To release a range is to return its space to the file system: the range becomes
//! a hole and reads as NULs. To remove a range makes the file shorter.

use std::io;
use std::os::unix::fs::FileExt as _;

use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::statfs::fstatfs;
use nix::unistd::{Whence, lseek};

use super::{BLOCK, Source};

impl Source {
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

    pub(super) fn allocate(&self, flags: FallocateFlags, length: u64) -> io::Result<()> {
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

    /// The first position at or after `from` that is not in a hole.
    pub(super) fn data_after(&self, from: u64) -> io::Result<u64> {
        let offset = i64::try_from(from).map_err(io::Error::other)?;
        match lseek(&self.file, offset, Whence::SeekData) {
            Ok(found) => u64::try_from(found).map_err(io::Error::other),
            // Only a hole is left, or nothing at all.
            Err(nix::errno::Errno::ENXIO) => Ok(self.size()?.max(from)),
            Err(nix::errno::Errno::EINVAL) => Ok(from),
            Err(error) => Err(error.into()),
        }
    }
}
