//! The lab's cache directory, `${XDG_CACHE_HOME:-~/.cache}/links/lab`. It may be deleted at any time.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use nix::fcntl::{Flock, FlockArg};

/// The lab's directory in the user's cache. It is created if it is missing.
///
/// # Errors
/// Fails if the caller is not root, or if no home directory is known.
pub fn directory() -> Result<PathBuf> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "the lab needs root, for namespaces and mounts: run the tests as root (sudo -E make test)"
    );
    let cache = match (std::env::var_os("XDG_CACHE_HOME"), std::env::home_dir()) {
        (Some(cache), _) if !cache.is_empty() => PathBuf::from(cache),
        (_, Some(home)) => home.join(".cache"),
        _ => {
            anyhow::bail!("neither XDG_CACHE_HOME nor HOME is set, so there is no directory for the lab's Debian tree")
        }
    };
    let directory = cache.join("links/lab");
    fs::create_dir_all(&directory).with_context(|| format!("Creating {}", directory.display()))?;
    Ok(directory)
}

/// An exclusive lock on a file, held until it is dropped or its process ends.
pub type Lock = Flock<File>;

/// Waits for the lock on this file.
pub fn lock(path: &Path) -> Result<Lock> {
    Flock::lock(lock_file(path)?, FlockArg::LockExclusive)
        .map_err(|(_, error)| error)
        .with_context(|| format!("Locking {}", path.display()))
}

/// Takes the lock, unless another process or another open file of this one holds it.
pub fn try_lock(path: &Path) -> Result<Option<Lock>> {
    match Flock::lock(lock_file(path)?, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, error)) => Err(error).with_context(|| format!("Locking {}", path.display())),
    }
}

fn lock_file(path: &Path) -> Result<File> {
    File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .with_context(|| format!("Opening {}", path.display()))
}
