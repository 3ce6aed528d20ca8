//! The paths in the repository (wiki.debian.org/DebianRepository/Format).

use std::path::{Path, PathBuf};

use links_base::layout::PACKAGE;

/// The only suite. Hosts follow it to every new version.
pub const SUITE: &str = "stable";
/// The only component.
pub const COMPONENT: &str = "main";
/// The file for the hosts that install from the repository.
pub const SOURCES: &str = "links.sources";

/// The directory under which all packages are.
pub const POOL: &str = "pool";

/// The directory of the packages.
pub fn pool() -> PathBuf {
    let initial = &PACKAGE[..1];
    [POOL, COMPONENT, initial, PACKAGE].iter().collect()
}

/// The directory of the indexes. The paths in its Release file are relative to it.
pub fn suite() -> PathBuf {
    Path::new("dists").join(SUITE)
}

/// The directory of an architecture's indexes, relative to [`suite`].
pub fn binary(architecture: &str) -> PathBuf {
    Path::new(COMPONENT).join(format!("binary-{architecture}"))
}

/// The second path of an index, under its digest. `path` is relative to [`suite`].
pub fn by_hash(path: &Path, sha256: &str) -> PathBuf {
    let directory = path.parent().unwrap_or(Path::new(""));
    suite().join(directory).join("by-hash/SHA256").join(sha256)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_those_of_a_debian_repository() {
        assert_eq!(pool(), Path::new("pool/main/l/links-shortener"));
        assert_eq!(
            by_hash(&binary("arm64").join("Packages.xz"), "abc"),
            Path::new("dists/stable/main/binary-arm64/by-hash/SHA256/abc")
        );
    }
}
