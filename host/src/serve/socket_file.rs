//! The files of Unix sockets.

use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use super::endpoint::UNIX;

/// The permissions of a socket: only its owner and its group may connect.
const SOCKET_MODE: u32 = 0o660;

/// Removes the socket that a killed process left behind. Anything else at this path is left alone.
///
/// # Errors
/// Something else is at this path, or the socket is in use or belongs to another user.
pub fn remove_stale(path: &Path) -> Result<()> {
    let shown = path.display();
    let metadata = match path.symlink_metadata() {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("Checking for a stale socket at {shown}")),
    };
    if !metadata.file_type().is_socket() {
        bail!("{shown} exists and is not a socket: remove it, or choose another path with --listen");
    }
    let user = nix::unistd::geteuid().as_raw();
    if metadata.uid() != user {
        bail!(
            "the socket {shown} belongs to user {}, not to {user}: remove it, or choose another path with --listen",
            metadata.uid()
        );
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        // A full backlog is reported as WouldBlock: such a socket is in use, too.
        _ => bail!("{UNIX}{shown} is already in use: stop what listens there, or choose another path with --listen"),
    }
    std::fs::remove_file(path).with_context(|| format!("Removing the stale socket {shown}"))
}

/// The file of a Unix socket. Dropping this value removes the file, unless another socket has replaced it.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    /// The device and inode of the file.
    id: (u64, u64),
}

impl SocketFile {
    /// Opens the socket to its group. Nobody can connect before it listens, so it is never open to anybody else.
    ///
    /// # Errors
    /// The file is missing, or belongs to another user.
    pub fn open_to_group(path: &Path) -> io::Result<Self> {
        let metadata = path.symlink_metadata()?;
        let file = Self {
            path: path.to_owned(),
            id: (metadata.dev(), metadata.ino()),
        };
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(SOCKET_MODE))?;
        Ok(file)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes the file, unless another socket has replaced it.
    pub fn remove(&self) {
        let metadata = self.path.symlink_metadata();
        if metadata.is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == self.id)
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::warn!("the socket {} could not be removed: {error}", self.path.display());
        }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        self.remove();
    }
}
