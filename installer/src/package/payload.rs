//! The tree that both packages install, as one table: what goes where, with which mode, and where it is from.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use data_encoding::HEXLOWER;
use md5::Md5;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::archive::{Content, Member};
use super::bundle;
use super::identity::Identity;
use crate::layout::{self, Layout};

/// Name of the tarball's own table of contents, in its top directory.
pub const LIST_NAME: &str = "payload.json";
/// The format written and understood here.
pub const LIST_FORMAT: u32 = 1;

/// One file of the payload. Directories follow from the paths.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Below `/`, without a slash at its start.
    pub path: String,
    /// Permission bits.
    pub mode: u32,
    pub source: Source,
    /// A person edits it: dpkg and `install` keep what is there.
    pub conffile: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A file of the repository, compiled into linksctl: its path there, its text.
    Repository(&'static str, &'static str),
    /// Written by linksctl itself.
    Made(Document),
    /// A file of the machine that packs.
    File(PathBuf),
    /// The file of this name in the bundle; what it is made from, in words.
    Bundle(String, String),
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Repository(path, _) => f.write_str(path),
            Self::Made(document) => write!(f, "{document}, made by linksctl"),
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Bundle(_, origin) => f.write_str(origin),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Document {
    ManPage,
    BashCompletion,
    ZshCompletion,
    Changelog,
}

impl std::fmt::Display for Document {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::ManPage => "manual page",
            Self::BashCompletion => "completions for bash",
            Self::ZshCompletion => "completions for zsh",
            Self::Changelog => "CHANGELOG.md in Debian's form",
        })
    }
}

macro_rules! repository {
    ($path:literal) => {
        Source::Repository($path, include_str!(concat!("../../../", $path)))
    };
}

/// The whole payload, sorted by path.
pub fn table(bundle: &[bundle::Planned], linksctl: &Path, runtime_config: &Path) -> Vec<Entry> {
    let layout = Layout::new("");
    let at = |path: PathBuf| path.to_string_lossy().into_owned();
    let file = |path: &str, mode, source| Entry {
        path: path.to_owned(),
        mode,
        source,
        conffile: false,
    };
    let conffile = |path: PathBuf, source| Entry {
        path: at(path),
        mode: 0o644,
        source,
        conffile: true,
    };
    let doc = format!("usr/share/doc/{}", layout::PACKAGE);
    let mut entries = vec![
        conffile(layout.links_toml(), repository!("packaging/links.toml")),
        conffile(layout.runtime_toml(), Source::File(runtime_config.to_owned())),
        conffile(layout.needrestart(), repository!("packaging/needrestart/links.conf")),
        file("usr/bin/linksctl", 0o755, Source::File(linksctl.to_owned())),
        file(
            "usr/lib/systemd/system/links.service",
            0o644,
            repository!("systemd/links.service"),
        ),
        file(
            "usr/lib/systemd/system/links@.service",
            0o644,
            repository!("systemd/links@.service"),
        ),
        file(
            "usr/lib/systemd/system/links-recover.service",
            0o644,
            repository!("systemd/links-recover.service"),
        ),
        file(
            "usr/lib/systemd/system/nginx.service.d/10-links.conf",
            0o644,
            repository!("systemd/nginx.service.d/10-links.conf"),
        ),
        file(
            &at(layout.sysusers()),
            0o644,
            repository!("packaging/sysusers.d/links.conf"),
        ),
        file(
            &at(layout.tmpfiles()),
            0o644,
            repository!("packaging/tmpfiles.d/links.conf"),
        ),
        file(
            "usr/share/man/man1/linksctl.1.gz",
            0o644,
            Source::Made(Document::ManPage),
        ),
        file(
            "usr/share/bash-completion/completions/linksctl",
            0o644,
            Source::Made(Document::BashCompletion),
        ),
        file(
            "usr/share/zsh/vendor-completions/_linksctl",
            0o644,
            Source::Made(Document::ZshCompletion),
        ),
        file(&format!("{doc}/changelog.gz"), 0o644, Source::Made(Document::Changelog)),
        file(
            &format!("{doc}/copyright"),
            0o644,
            repository!("packaging/deb/copyright"),
        ),
        file(
            &format!("{doc}/grafana-dashboard.json"),
            0o644,
            repository!("packaging/observability/grafana-dashboard.json"),
        ),
        file(
            &format!("{doc}/links.rules.yml"),
            0o644,
            repository!("packaging/observability/links.rules.yml"),
        ),
        file(
            &format!("usr/share/lintian/overrides/{}", layout::PACKAGE),
            0o644,
            repository!("packaging/deb/lintian-overrides"),
        ),
    ];
    entries.extend(bundle.iter().map(|planned| {
        let path = at(layout.bundle().join(&planned.path));
        let mode = if planned.executable { 0o755 } else { 0o644 };
        file(
            &path,
            mode,
            Source::Bundle(planned.path.clone(), planned.origin.clone()),
        )
    }));
    entries.sort_by(|a, b| a.path.cmp(&b.path));
    entries
}

/// An entry, or a directory above one, with its content at hand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    pub path: String,
    pub mode: u32,
    pub conffile: bool,
    pub content: Content,
    /// None for a directory.
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

/// Lower-case hexadecimal.
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

/// Gets hold of the content of every entry and adds the directories above them (0755).
///
/// # Errors
/// A file cannot be read, or a document not be made.
pub fn load(
    entries: &[Entry],
    bundle: &Path,
    make: impl Fn(Document) -> anyhow::Result<Vec<u8>>,
) -> anyhow::Result<Vec<Item>> {
    let mut items: Vec<Item> = directories(entries).into_iter().map(directory).collect();
    for entry in entries {
        let (content, digests) = match &entry.source {
            Source::Repository(_, text) => held(Cow::Borrowed(text.as_bytes())),
            Source::Made(document) => held(Cow::Owned(make(*document)?)),
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

fn held(bytes: Cow<'static, [u8]>) -> (Content, Digests) {
    let digests = Digests::of_bytes(&bytes);
    (Content::Bytes(bytes), digests)
}

fn on_disk(path: &Path) -> anyhow::Result<(Content, Digests)> {
    let (digests, size) = Digests::of_file(path).with_context(|| format!("Reading {}", path.display()))?;
    let path = path.to_owned();
    Ok((Content::File { path, size }, digests))
}

/// Every directory above an entry; the first is the top, with an empty path.
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

/// The payload as `linksctl install` reads it from an unpacked tarball.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct List {
    pub format: u32,
    pub version: String,
    /// Debian's name of the architecture.
    pub arch: String,
    /// Sorted by path, a directory before what it holds.
    pub entries: Vec<Listed>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listed {
    /// Both below `/` on the host and below the tarball's top directory.
    pub path: String,
    /// Permission bits in octal, e.g. `0755`. The owner is root.
    pub mode: String,
    /// None for a directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<ListedFile>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListedFile {
    /// Bytes.
    pub size: u64,
    /// Lower-case hexadecimal.
    pub sha256: String,
    /// A person edits it: what is there already stays.
    pub conffile: bool,
}

impl List {
    pub fn new(identity: &Identity, items: &[Item]) -> Self {
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
        Self {
            format: LIST_FORMAT,
            version: identity.version.clone(),
            arch: identity.arch.debian().to_owned(),
            entries,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use super::super::identity::Arch;
    use super::*;

    fn planned(path: &str, executable: bool) -> bundle::Planned {
        bundle::Planned {
            path: path.to_owned(),
            executable,
            origin: "somewhere".to_owned(),
        }
    }

    fn entries() -> Vec<Entry> {
        table(
            &[planned("spin.toml", false), planned("runtime/spin", true)],
            Path::new("/build/linksctl"),
            Path::new("runtime.toml"),
        )
    }

    fn load_all(dir: &Path) -> Vec<Item> {
        std::fs::create_dir_all(dir.join("runtime")).unwrap();
        for (path, text) in [
            ("spin.toml", "app"),
            ("runtime/spin", "binary"),
            ("linksctl", "ctl"),
            ("r", "rt"),
        ] {
            std::fs::write(dir.join(path), text).unwrap();
        }
        let entries = table(
            &[planned("spin.toml", false), planned("runtime/spin", true)],
            &dir.join("linksctl"),
            &dir.join("r"),
        );
        load(&entries, dir, |document| Ok(document.to_string().into_bytes())).unwrap()
    }

    #[test]
    fn programs_are_executable_and_nothing_else_is() {
        let executable: Vec<_> = entries()
            .into_iter()
            .filter(|entry| entry.mode & 0o111 != 0)
            .map(|entry| entry.path)
            .collect();
        assert_eq!(executable, ["usr/bin/linksctl", "usr/lib/links/bundle/runtime/spin"]);
    }

    #[test]
    fn configuration_is_a_conffile_and_nothing_else_is() {
        let conffiles: Vec<_> = entries()
            .into_iter()
            .filter(|entry| entry.conffile)
            .map(|entry| entry.path)
            .collect();
        assert_eq!(
            conffiles,
            [
                "etc/links/links.toml",
                "etc/links/runtime.toml",
                "etc/needrestart/conf.d/links.conf"
            ]
        );
        assert!(
            entries()
                .iter()
                .all(|entry| entry.conffile == entry.path.starts_with("etc/"))
        );
    }

    #[test]
    fn the_table_is_sorted_and_names_each_path_once() {
        let paths: Vec<_> = entries().into_iter().map(|entry| entry.path).collect();
        assert!(paths.is_sorted_by(|a, b| a < b), "{paths:?}");
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
    fn the_list_tells_install_all_it_needs() {
        let dir = tempfile::tempdir().unwrap();
        let items = load_all(dir.path());
        let list = List::new(&Identity::new("1.0.0", Arch::Amd64).unwrap(), &items);
        let back: List = serde_json::from_slice(&serde_json::to_vec(&list).unwrap()).unwrap();
        assert_eq!(back, list);
        let find = |path: &str| list.entries.iter().find(|entry| entry.path == path).unwrap();
        assert_eq!(find("usr/bin/linksctl").mode, "0755");
        assert!(find("etc/links/links.toml").file.as_ref().unwrap().conffile);
        assert!(find("usr/bin").file.is_none());
        let made: BTreeSet<_> = items
            .iter()
            .filter(|item| !item.path.is_empty())
            .map(|item| &item.path)
            .collect();
        assert_eq!(made, list.entries.iter().map(|entry| &entry.path).collect());
    }

    /// Where the package's own conffile stays the same, dpkg asks nobody about an edited one. New keys get defaults, and are
    /// documented elsewhere.
    #[test]
    fn conffiles_are_those_of_version_0_1_0() {
        let of_0_1_0 = [
            (
                "etc/links/links.toml",
                "b7e4b8c2949cb2772049abd5100e46ee0ecccd2dba3ee144fc5af332854fdf07",
            ),
            (
                "etc/links/runtime.toml",
                "57467b4f25ae698958ebd2a815ebc2f33fd52e5f1a6af38c18b0592e7b728661",
            ),
            (
                "etc/needrestart/conf.d/links.conf",
                "ed67797ec732756468bdd34a75f3d03c07be1f7d6b35058e8b1b5c5cb1ebbf30",
            ),
        ];
        let conffiles: Vec<_> = table(&[], Path::new("linksctl"), Path::new("../runtime.toml"))
            .into_iter()
            .filter(|entry| entry.conffile)
            .map(|entry| {
                let bytes = match entry.source {
                    Source::Repository(_, text) => text.as_bytes().to_vec(),
                    Source::File(path) => std::fs::read(path).unwrap(),
                    Source::Made(_) | Source::Bundle(..) => vec![],
                };
                (entry.path, Digests::of_bytes(&bytes).sha256)
            })
            .collect();
        let conffiles: Vec<_> = conffiles
            .iter()
            .map(|(path, sha256)| (path.as_str(), sha256.as_str()))
            .collect();
        assert_eq!(conffiles, of_0_1_0);
    }

    /// tmpfiles.d, sysusers.d and the scripts spell paths out; layout.rs owns them.
    #[test]
    fn packaging_files_agree_with_the_layout() {
        let tmpfiles = include_str!("../../../packaging/tmpfiles.d/links.conf");
        let layout = Layout::new("/");
        for dir in [
            layout.credentials_dir(),
            layout.state_dir(),
            layout.data_dir(),
            layout.releases_dir(),
            layout.instances_dir(),
            layout.journal_dir(),
            layout.agent_dir(),
            layout.cache_dir(),
            layout.run_dir(),
            layout.ready_dir(),
            layout.metrics_dir(),
            layout.fallback_credentials_base(),
        ] {
            let line = format!("d {} ", dir.display());
            assert!(tmpfiles.lines().any(|found| found.starts_with(&line)), "{line}");
        }
        let journal = format!("f {} 0660 - {} -", layout.journal().display(), layout::USER);
        assert!(tmpfiles.lines().any(|line| line == journal), "{journal}");
        let keepalive = format!("f {} 0644 root root -", layout.keepalive_flag().display());
        assert!(tmpfiles.lines().any(|line| line == keepalive), "{keepalive}");
        let sysusers = include_str!("../../../packaging/sysusers.d/links.conf");
        assert!(
            sysusers
                .lines()
                .any(|line| line.starts_with(&format!("u {} - ", layout::USER)))
        );
        let postrm = include_str!("../../../packaging/deb/postrm");
        for path in [
            layout.config_dir(),
            layout.state_dir(),
            layout.cache_dir(),
            layout.run_dir(),
            layout.nginx_site_available(),
            layout.nginx_site_enabled(),
            layout.service_wants_dir(),
            layout.instances_network(),
            layout.agent_network(),
        ] {
            let path = path.display().to_string();
            assert!(postrm.split_whitespace().any(|word| word == path), "{path}");
        }
        assert!(postrm.contains(&format!(".target.wants/{}\n", layout::SERVICE)));
    }
}
