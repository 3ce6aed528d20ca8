//! The journal as a file. [`lines`] reads it line by line from a position, [`mark`] recognizes it among other files, and
//! [`space`] gives back the disk space of what was counted.

pub mod lines;
pub mod mark;
mod space;

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::inode::Inode;

/// The size of the buffer, which exceeds any line of nginx. Request heads have at most 32 KB, each byte of which may need four
/// when escaped.
const BUFFER: usize = 256 * 1024;

/// The block size of file systems, in bytes. Holes of version 0.1.0 end at multiples of it.
const BLOCK: u64 = 4096;

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

    /// Writes the contents of the file to the disk.
    ///
    /// # Errors
    /// Fails if the disk does.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

#[cfg(test)]
mod tests;
