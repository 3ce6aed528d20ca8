//! Checks that a copy of a database fits on a disk.

use std::path::Path;

use anyhow::Context as _;
use nix::sys::statvfs::statvfs;

use crate::report::size;
use links_config::backup::Problem;

/// How much more than the database a copy of it may take on the disk, as one part in this many.
const ROOM: u64 = 20;

/// Fails unless a copy of a database with so many bytes fits into the directory. `who` is what makes the copy.
///
/// # Errors
/// It does not fit ([`Problem::Full`]), or there is no such directory.
pub fn require_space(directory: &Path, bytes: u64, who: &str) -> anyhow::Result<()> {
    let needed = bytes.saturating_add(bytes / ROOM);
    let disk = statvfs(directory).with_context(|| format!("Reading the free space of {}", directory.display()))?;
    let free = disk.blocks_available() * disk.fragment_size();
    if free < needed {
        return Err(Problem::Full.error(format!(
            "{who} copies the database to {} first, which needs {}; {} are free",
            directory.display(),
            size(needed),
            size(free)
        )));
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use super::*;

    #[test]
    fn a_disk_without_room_is_named_before_the_database_is_copied() {
        let root = tempfile::tempdir().unwrap();
        require_space(root.path(), 4096, "a backup").unwrap();
        // Larger than any disk of a test machine. The size may be one that somebody made up.
        for bytes in [1 << 50, u64::MAX] {
            let error = require_space(root.path(), bytes, "a backup").unwrap_err();
            assert_eq!(Problem::of(&error), Problem::Full);
        }
    }
}
