//! Atomic writes: a file is written under another name, synced and then renamed, so it is complete or absent.

use std::fs;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::Serialize;

use links_base::digest::Counting;
use links_base::files;

/// A file that was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Published {
    pub path: PathBuf,
    /// The size in bytes.
    pub size: u64,
    /// The digest in lower-case hexadecimal.
    pub sha256: String,
}

/// Calls `write` with a writer and puts the result at `path` with mode 0644. The directory of `path` must exist.
///
/// # Errors
/// Fails if `write` or the disk fails. `path` is then unchanged.
pub fn publish(path: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> anyhow::Result<Published> {
    let writing = || format!("Writing {}", path.display());
    let directory = path
        .parent()
        .filter(|dir| !dir.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let temporary = tempfile::NamedTempFile::new_in(directory).with_context(writing)?;
    let mut out = Counting::new(BufWriter::new(temporary.as_file()));
    write(&mut out).with_context(writing)?;
    out.flush().with_context(writing)?;
    let (size, sha256) = out.sum();
    let file = temporary.as_file();
    file.set_permissions(fs::Permissions::from_mode(0o644))
        .and_then(|()| file.sync_all())
        .with_context(writing)?;
    temporary
        .persist(path)
        .map_err(|error| error.error)
        .with_context(writing)?;
    files::sync_directory(directory).with_context(writing)?;
    Ok(Published {
        path: path.to_owned(),
        size,
        sha256,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use super::*;
    use data_encoding::HEXLOWER;
    use sha2::{Digest as _, Sha256};

    #[test]
    fn a_published_file_is_world_readable_and_described() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.deb");
        let published = publish(&path, |out| out.write_all(b"binary")).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"binary");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
        assert_eq!(
            (published.size, published.sha256),
            (6, HEXLOWER.encode(&Sha256::digest(b"binary")))
        );
    }

    #[test]
    fn a_failure_leaves_the_old_file_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.deb");
        fs::write(&path, "before").unwrap();
        let error = publish(&path, |out| {
            out.write_all(b"half")?;
            Err(io::Error::other("no more"))
        });
        assert!(format!("{:#}", error.unwrap_err()).contains("no more"));
        assert_eq!(fs::read(&path).unwrap(), b"before");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
