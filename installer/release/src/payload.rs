//! The table of contents of the tarball, which `linksctl pack` writes and `linksctl install` reads.

use serde::{Deserialize, Serialize};

/// The name of the table of contents, in the tarball's top directory.
pub const LIST_NAME: &str = "payload.json";
/// The format that this version writes and understands.
pub const LIST_FORMAT: u32 = 1;

/// The table of contents: every file and directory of the tarball that is installed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct List {
    pub format: u32,
    pub version: String,
    /// The architecture, by Debian's name for it.
    pub arch: String,
    /// Sorted by path, a directory before what it holds.
    pub entries: Vec<Listed>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listed {
    /// The path, relative to `/` on the host and to the tarball's top directory.
    pub path: String,
    /// The permission bits in octal, e.g. `0755`. The owner is root.
    pub mode: String,
    /// `None` for a directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<ListedFile>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListedFile {
    /// The size in bytes.
    pub size: u64,
    /// The digest in lower-case hexadecimal.
    pub sha256: String,
    /// Whether people edit the file, so that an existing one is kept.
    pub conffile: bool,
}

impl List {
    /// The entries of both lists, which is everything that may be on the disk.
    pub fn and(&self, other: &Self) -> Self {
        let mut all = self.clone();
        let has = |path: &str| self.entries.iter().any(|entry| entry.path == path);
        all.entries
            .extend(other.entries.iter().filter(|entry| !has(&entry.path)).cloned());
        // Sorted, so that a directory comes before its files.
        all.entries.sort_by(|a, b| a.path.cmp(&b.path));
        all
    }

    /// The files of an earlier version that are not in this one. Conffiles are left out: they stay on disk and in the list.
    pub fn obsolete(&self, earlier: &Self) -> Vec<String> {
        let has = |path: &str| self.entries.iter().any(|entry| entry.path == path);
        earlier
            .entries
            .iter()
            .filter(|entry| entry.file.as_ref().is_some_and(|file| !file.conffile) && !has(&entry.path))
            .map(|entry| entry.path.clone())
            .collect()
    }

    #[must_use]
    pub fn without(mut self, paths: &[String]) -> Self {
        self.entries.retain(|entry| !paths.contains(&entry.path));
        self
    }
}
