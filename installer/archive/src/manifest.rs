//! The manifest: the first entry of a backup, which lists all others with their digests.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use serde::{Deserialize, Serialize};

use crate::items::{is_inner_link, item_of};
use links_config::backup::{JournalPosition, Problem};

/// The format that this version writes and understands.
const FORMAT: u32 = 1;
/// The name of the manifest in the archive.
pub const NAME: &str = "manifest.json";
/// The name of the database in the archive.
pub const DATABASE: &str = "database/links.db";
/// The maximum size of a manifest, in bytes.
pub const LIMIT: u64 = 16 << 20;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    format: u32,
    /// The version of links that made the backup.
    pub links: String,
    /// When it was begun, in seconds since 1970.
    pub begun: u64,
    /// The version of the tables that this version of links knows.
    pub schema: u32,
    /// `None` if there was no database.
    pub database: Option<Database>,
    /// Whether the backup contains the secrets.
    pub secrets: bool,
    /// All other entries, in their order.
    pub entries: Vec<Entry>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Database {
    pub kind: Kind,
    /// The version of its tables.
    pub schema: u32,
    pub links: u64,
    /// The clicks on all links. `None` if the backup has none.
    pub clicks: Option<u64>,
    /// How far each click journal was counted, the latest first.
    pub journals: Vec<JournalPosition>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The whole database.
    Whole,
    /// The links of a database on a libSQL server, without their clicks.
    Links,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The path below the root directory, or [`DATABASE`].
    pub path: PathBuf,
    /// The permission bits.
    pub mode: u32,
    #[serde(flatten)]
    pub content: Content,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Content {
    File { bytes: u64, sha256: String },
    Directory,
    Link { target: PathBuf },
}

impl Entry {
    /// The size of the file, in bytes. 0 for anything else.
    pub fn bytes(&self) -> u64 {
        match self.content {
            Content::File { bytes, .. } => bytes,
            Content::Directory | Content::Link { .. } => 0,
        }
    }
}

/// The fields that every format has.
#[derive(Deserialize)]
struct Origin {
    format: u32,
    links: String,
}

impl Manifest {
    /// The manifest of a backup by this version.
    pub fn new(begun: u64, schema: u32, database: Option<Database>, secrets: bool, entries: Vec<Entry>) -> Self {
        Self {
            format: FORMAT,
            links: env!("CARGO_PKG_VERSION").to_owned(),
            begun,
            schema,
            database,
            secrets,
            entries,
        }
    }

    /// Parses a manifest, and checks that this version of links can use the backup.
    ///
    /// # Errors
    /// A later version has made it ([`Problem::Newer`]), or it is none ([`Problem::Damaged`]).
    pub fn parse(bytes: &[u8]) -> anyhow::Result<Self> {
        Self::parse_for(bytes, env!("CARGO_PKG_VERSION"))
    }

    fn parse_for(bytes: &[u8], own: &str) -> anyhow::Result<Self> {
        let damaged =
            |error: serde_json::Error| Problem::Damaged.error(format!("its manifest cannot be parsed: {error}"));
        let origin: Origin = serde_json::from_slice(bytes).map_err(damaged)?;
        if origin.format > FORMAT || is_later(&origin.links, own) {
            let links = &origin.links;
            return Err(Problem::Newer.error(format!(
                "it was made by links {}, and this is links {own}: install links {} or later first",
                shown(links),
                shown(links)
            )));
        }
        let manifest: Self = serde_json::from_slice(bytes).map_err(damaged)?;
        let checked = manifest.check();
        checked.map_err(|error| Problem::Damaged.error(format!("its manifest is wrong: {error:#}")))?;
        Ok(manifest)
    }

    fn check(&self) -> anyhow::Result<()> {
        let mut paths = BTreeSet::new();
        let mut links = BTreeSet::new();
        for entry in &self.entries {
            let path = &entry.path;
            ensure!(paths.insert(path), "{path:?} is in it twice");
            ensure!(entry.mode <= 0o777, "the mode of {path:?}");
            if path == Path::new(DATABASE) {
                ensure!(self.database.is_some(), "it does not describe the database");
                ensure!(matches!(entry.content, Content::File { .. }), "the database is no file");
                continue;
            }
            let item = item_of(path).with_context(|| format!("{path:?} may not be in a backup"))?;
            ensure!(!item.is_secret || self.secrets, "{path:?} is a secret");
            if let Content::Link { target } = &entry.content {
                ensure!(is_inner_link(path, target), "{path:?} leads elsewhere");
                links.insert(path.as_path());
            }
        }
        // Root would write such an entry to where the link leads.
        for path in &paths {
            let is_below_link = path.ancestors().skip(1).any(|ancestor| links.contains(ancestor));
            ensure!(!is_below_link, "{path:?} is below a symbolic link");
        }
        let has_database = paths.contains(&PathBuf::from(DATABASE));
        ensure!(has_database == self.database.is_some(), "the database is missing");
        Ok(())
    }

    /// The size of all files, in bytes.
    pub fn bytes(&self) -> u64 {
        self.entries.iter().map(Entry::bytes).fold(0, u64::saturating_add)
    }
}

/// A version from a file, as it may be shown on a terminal.
pub fn shown(version: &str) -> String {
    version.chars().filter(|c| !c.is_control()).take(40).collect()
}

/// Whether a version is later than another one, by its first three numbers.
fn is_later(version: &str, than: &str) -> bool {
    let numbers = |version: &str| -> Vec<u64> {
        let plain = version.split(['-', '+', '~']).next().unwrap_or_default();
        let mut numbers: Vec<_> = plain.split('.').take(3).map(|part| part.parse().unwrap_or(0)).collect();
        numbers.resize(3, 0);
        numbers
    };
    numbers(version) > numbers(than)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
pub mod tests {
    use super::*;

    pub fn file(path: &str, bytes: u64) -> Entry {
        Entry {
            path: path.into(),
            mode: 0o644,
            content: Content::File {
                bytes,
                sha256: "00".to_owned(),
            },
        }
    }

    pub fn database(links: u64) -> Database {
        Database {
            kind: Kind::Whole,
            schema: 5,
            links,
            clicks: Some(7),
            journals: vec![],
        }
    }

    fn manifest(entries: Vec<Entry>) -> Manifest {
        let database = entries
            .iter()
            .any(|entry| entry.path == Path::new(DATABASE))
            .then(|| database(3));
        Manifest::new(1000, 5, database, false, entries)
    }

    fn problem(manifest: &Manifest) -> Option<Problem> {
        let bytes = serde_json::to_vec(manifest).unwrap();
        Manifest::parse(&bytes).err().map(|error| Problem::of(&error))
    }

    #[test]
    fn a_manifest_is_read_back() {
        let directory = Entry {
            path: "etc/links/nginx.d".into(),
            mode: 0o755,
            content: Content::Directory,
        };
        let manifest = manifest(vec![file("etc/links/links.toml", 3), directory, file(DATABASE, 4096)]);
        let bytes = serde_json::to_vec_pretty(&manifest).unwrap();
        assert_eq!(Manifest::parse(&bytes).unwrap(), manifest);
        assert_eq!(manifest.bytes(), 4099);
    }

    #[test]
    fn a_backup_of_a_later_version_is_refused_by_its_version_whatever_else_it_has() {
        for text in [
            r#"{"format": 2, "links": "0.2.0"}"#,
            r#"{"format": 1, "links": "99.0.0", "unknown": true}"#,
        ] {
            let error = Manifest::parse(text.as_bytes()).unwrap_err();
            assert_eq!(Problem::of(&error), Problem::Newer, "{text}");
        }
        assert!(is_later("0.10.0", "0.9.9") && is_later("1.0", "0.99.99"));
        for version in ["0.9.9", "0.9.9-rc1", "0.9.8+x", "0.9", "x"] {
            assert!(!is_later(version, "0.9.9"), "{version}");
        }
    }

    #[test]
    fn an_entry_that_could_write_elsewhere_is_refused() {
        let link = |path: &str, target: &str| Entry {
            path: path.into(),
            mode: 0o777,
            content: Content::Link { target: target.into() },
        };
        let set_user_id = Entry {
            mode: 0o4755,
            ..file("etc/links/links.toml", 1)
        };
        for entries in [
            vec![file("etc/passwd", 1)],
            vec![file("etc/links/../passwd", 1)],
            vec![file("/etc/links/links.toml", 1)],
            vec![link("etc/links/nginx.d", "/etc")],
            vec![set_user_id],
            vec![file("etc/links/links.toml", 1), file("etc/links/links.toml", 1)],
            // Without secrets, a backup has none.
            vec![file("etc/links/credentials/admin_token", 1)],
        ] {
            let manifest = manifest(entries);
            assert_eq!(problem(&manifest), Some(Problem::Damaged), "{manifest:?}");
        }
        let mut with_secrets = manifest(vec![
            link("var/lib/links/tls/live/a", "../certificates/a/1"),
            file("etc/links/credentials/admin_token", 1),
        ]);
        with_secrets.secrets = true;
        assert_eq!(problem(&with_secrets), None);
        with_secrets.entries = vec![link("var/lib/links/tls/live/a", "../../data")];
        assert_eq!(problem(&with_secrets), Some(Problem::Damaged));
        // A link to a directory does not lead another entry elsewhere, whichever comes first.
        let below = [
            link("var/lib/links/tls/live", "."),
            link("var/lib/links/tls/live/a", "../certificates/a/1"),
        ];
        for entries in [below.to_vec(), below.iter().rev().cloned().collect()] {
            with_secrets.entries = entries;
            assert_eq!(problem(&with_secrets), Some(Problem::Damaged));
        }
    }

    #[test]
    fn the_database_is_described_exactly_if_it_is_there() {
        let mut manifest = manifest(vec![file(DATABASE, 1)]);
        assert_eq!(problem(&manifest), None);
        manifest.database = None;
        assert_eq!(problem(&manifest), Some(Problem::Damaged));
        manifest.entries.clear();
        assert_eq!(problem(&manifest), None);
        manifest.database = Some(database(1));
        assert_eq!(problem(&manifest), Some(Problem::Damaged));
    }
}
