//! The contents of the payload: every file with its digests, and the directories above them.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::Context as _;
use data_encoding::HEXLOWER;
use md5::Md5;
use sha2::{Digest, Sha256};

use super::archive::{Content, Member};
use super::identity::Identity;
use super::payload::{Document, Entry, Source};
use links_release::payload::{LIST_FORMAT, List, Listed, ListedFile};

/// An entry with its content, or a directory above an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    pub path: String,
    pub mode: u32,
    pub conffile: bool,
    pub content: Content,
    /// `None` for a directory.
    pub digests: Option<Digests>,
}

impl Item {
    /// The item as a member of an archive.
    pub fn member(&self) -> Member {
        Member {
            path: self.path.clone(),
            mode: self.mode,
            content: self.content.clone(),
        }
    }
}

/// The digests of a file in lower-case hexadecimal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Digests {
    pub sha256: String,
    pub md5: String,
}

impl Digests {
    pub fn of_bytes(bytes: &[u8]) -> Self {
        Self {
            sha256: HEXLOWER.encode(&Sha256::digest(bytes)),
            md5: HEXLOWER.encode(&Md5::digest(bytes)),
        }
    }

    fn of_file(path: &Path) -> std::io::Result<(Self, u64)> {
        let mut file = File::open(path)?;
        let (mut sha256, mut md5, mut size) = (Sha256::new(), Md5::new(), 0);
        let mut buffer = vec![0; 1 << 16];
        loop {
            let read = file.read(&mut buffer)?;
            if read == 0 {
                break;
            }
            sha256.update(&buffer[..read]);
            md5.update(&buffer[..read]);
            size += read as u64;
        }
        let digests = Self {
            sha256: HEXLOWER.encode(&sha256.finalize()),
            md5: HEXLOWER.encode(&md5.finalize()),
        };
        Ok((digests, size))
    }
}

/// Loads the content of every entry and adds the directories above them with mode 0755.
///
/// # Errors
/// Fails if a file cannot be read or a document cannot be generated.
pub fn load(
    entries: &[Entry],
    bundle: &Path,
    make: impl Fn(Document) -> anyhow::Result<Vec<u8>>,
) -> anyhow::Result<Vec<Item>> {
    let mut items: Vec<Item> = directories(entries).into_iter().map(directory).collect();
    for entry in entries {
        let (content, digests) = match &entry.source {
            Source::Repository(_, text) => in_memory(Cow::Borrowed(text.as_bytes())),
            Source::Made(document) => in_memory(Cow::Owned(make(*document)?)),
            Source::File(path) => on_disk(path)?,
            Source::Bundle(path, _) => on_disk(&bundle.join(path))?,
        };
        items.push(Item {
            path: entry.path.clone(),
            mode: entry.mode,
            conffile: entry.conffile,
            content,
            digests: Some(digests),
        });
    }
    items.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(items)
}

fn in_memory(bytes: Cow<'static, [u8]>) -> (Content, Digests) {
    let digests = Digests::of_bytes(&bytes);
    (Content::Bytes(bytes), digests)
}

fn on_disk(path: &Path) -> anyhow::Result<(Content, Digests)> {
    let (digests, size) = Digests::of_file(path).with_context(|| format!("Reading {}", path.display()))?;
    let path = path.to_owned();
    Ok((Content::File { path, size }, digests))
}

/// Every directory above an entry. The first is the top directory, with an empty path.
fn directories(entries: &[Entry]) -> BTreeSet<String> {
    entries
        .iter()
        .flat_map(|entry| Path::new(&entry.path).ancestors().skip(1))
        .map(|path| path.to_string_lossy().into_owned())
        .collect()
}

fn directory(path: String) -> Item {
    Item {
        path,
        mode: 0o755,
        conffile: false,
        content: Content::Directory,
        digests: None,
    }
}

/// The table of contents in the tarball.
pub fn list(identity: &Identity, items: &[Item]) -> List {
    let entries = items
        .iter()
        .filter(|item| !item.path.is_empty())
        .map(|item| Listed {
            path: item.path.clone(),
            mode: format!("{:04o}", item.mode),
            file: item.digests.as_ref().map(|digests| ListedFile {
                size: item.content.size(),
                sha256: digests.sha256.clone(),
                conffile: item.conffile,
            }),
        })
        .collect();
    List {
        format: LIST_FORMAT,
        version: identity.version.clone(),
        arch: identity.arch.debian().to_owned(),
        entries,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use super::super::bundle::Planned;
    use super::super::identity::Arch;
    use super::super::payload::table;
    use super::*;

    fn planned(path: &str, executable: bool) -> Planned {
        Planned {
            path: path.to_owned(),
            executable,
            origin: "somewhere".to_owned(),
        }
    }

    fn load_all(dir: &Path) -> Vec<Item> {
        std::fs::create_dir_all(dir.join("runtime")).unwrap();
        for (path, text) in [
            ("spin.toml", "app"),
            ("runtime/spin", "binary"),
            ("linksctl", "ctl"),
            ("links-acme", "acme"),
            ("links-agent", "agent"),
            ("links-backup", "backup"),
            ("links-db", "db"),
            ("links-run", "run"),
            ("r", "rt"),
        ] {
            std::fs::write(dir.join(path), text).unwrap();
        }
        let entries = table(
            &[planned("spin.toml", false), planned("runtime/spin", true)],
            dir,
            &dir.join("r"),
        );
        load(&entries, dir, |document| Ok(document.to_string().into_bytes())).unwrap()
    }

    #[test]
    fn loading_adds_the_directories_and_the_digests() {
        let dir = tempfile::tempdir().unwrap();
        let items = load_all(dir.path());
        let find = |path: &str| items.iter().find(|item| item.path == path).unwrap();
        assert_eq!(items[0].path, "");
        assert_eq!(find("usr/lib/links/bundle/runtime").content, Content::Directory);
        assert_eq!(find("etc/links").mode, 0o755);
        // printf binary | sha256sum; printf binary | md5sum
        let spin = find("usr/lib/links/bundle/runtime/spin");
        let digests = spin.digests.as_ref().unwrap();
        assert_eq!(digests, &Digests::of_bytes(b"binary"));
        assert_eq!(digests.md5, "9d7183f16acce70658f686ae7f1a4d20");
        assert_eq!(spin.content.size(), 6);
    }

    #[test]
    fn the_list_has_everything_that_install_needs() {
        let dir = tempfile::tempdir().unwrap();
        let items = load_all(dir.path());
        let list = list(&Identity::new("1.0.0", Arch::Amd64).unwrap(), &items);
        let back: List = serde_json::from_slice(&serde_json::to_vec(&list).unwrap()).unwrap();
        assert_eq!(back, list);
        let find = |path: &str| list.entries.iter().find(|entry| entry.path == path).unwrap();
        assert_eq!(find("usr/bin/linksctl").mode, "0755");
        assert!(find("etc/links/runtime.toml").file.as_ref().unwrap().conffile);
        assert!(find("usr/bin").file.is_none());
        let made: BTreeSet<_> = items
            .iter()
            .filter(|item| !item.path.is_empty())
            .map(|item| &item.path)
            .collect();
        assert_eq!(made, list.entries.iter().map(|entry| &entry.path).collect());
    }
}
