//! Reads the items of a backup. Root owns their directories, so a symbolic link in them is the administrator's.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use links_base::{digest, files};
use nix::libc;

use crate::items::{CONFIG, TLS, items};
use crate::manifest::{Content, Entry};

/// The maximum size of a file, in bytes. It is held in memory.
const LIMIT: u64 = 16 << 20;
/// How deep directories may be.
const DEPTH: usize = 16;

/// An entry with its contents.
#[derive(Debug)]
pub struct Collected {
    pub entry: Entry,
    pub contents: Contents,
}

#[derive(Debug)]
pub enum Contents {
    None,
    Bytes(Vec<u8>),
    File(File),
}

/// Reads the items of the host below `root`, with the secret ones only if `secrets`.
///
/// # Errors
/// A file cannot be read, or is too large.
pub fn collect(root: &Path, secrets: bool) -> anyhow::Result<Vec<Collected>> {
    let config = root.join(CONFIG);
    let others = files::list(&config).with_context(|| format!("Reading {}", config.display()))?;
    let mut collected = vec![];
    for item in items(others.iter().map(String::as_str)) {
        if secrets || !item.is_secret {
            add(root, &item.path, 0, &mut collected)?;
        }
    }
    Ok(collected)
}

fn add(root: &Path, path: &Path, depth: usize, collected: &mut Vec<Collected>) -> anyhow::Result<()> {
    ensure!(depth < DEPTH, "{} is too deep", path.display());
    let full = root.join(path);
    let found = match fs::symlink_metadata(&full) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        found => found.with_context(|| format!("Reading {}", full.display()))?,
    };
    if found.is_symlink() && path.starts_with(TLS) {
        let target = fs::read_link(&full).with_context(|| format!("Reading {}", full.display()))?;
        collected.push(Collected {
            entry: Entry {
                path: path.to_owned(),
                mode: 0o777,
                content: Content::Link { target },
            },
            contents: Contents::None,
        });
        return Ok(());
    }
    // A link of the administrator stands for what it leads to. One to a file that is missing cannot be kept.
    let Ok(found) = fs::metadata(&full) else { return Ok(()) };
    let mode = found.permissions().mode() & 0o777;
    if found.is_dir() {
        collected.push(Collected {
            entry: Entry {
                path: path.to_owned(),
                mode,
                content: Content::Directory,
            },
            contents: Contents::None,
        });
        for name in files::list(&full).with_context(|| format!("Reading {}", full.display()))? {
            if !name.starts_with('.') {
                add(root, &path.join(name), depth + 1, collected)?;
            }
        }
    } else if found.is_file() {
        let bytes = read(&full)?;
        let (size, sha256) = digest::of(&mut &bytes[..])?;
        collected.push(Collected {
            entry: Entry {
                path: path.to_owned(),
                mode,
                content: Content::File { bytes: size, sha256 },
            },
            contents: Contents::Bytes(bytes),
        });
    }
    Ok(())
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    let read = || -> anyhow::Result<Vec<u8>> {
        // Opening a FIFO would wait for a writer.
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(path)?;
        let mut bytes = vec![];
        file.take(LIMIT + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > LIMIT {
            bail!("it is longer than {LIMIT} bytes");
        }
        Ok(bytes)
    };
    read().with_context(|| format!("Reading {}", path.display()))
}

/// The database as an entry, from a copy that nobody changes any more.
///
/// # Errors
/// The copy cannot be read.
pub fn database(copy: &Path) -> anyhow::Result<Collected> {
    let open = || File::open(copy).with_context(|| format!("Opening {}", copy.display()));
    let (bytes, sha256) = digest::of(&mut open()?).with_context(|| format!("Reading {}", copy.display()))?;
    Ok(Collected {
        entry: Entry {
            path: PathBuf::from(crate::manifest::DATABASE),
            mode: 0o600,
            content: Content::File { bytes, sha256 },
        },
        contents: Contents::File(open()?),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn paths(collected: &[Collected]) -> Vec<&str> {
        collected
            .iter()
            .map(|found| found.entry.path.to_str().unwrap())
            .collect()
    }

    #[test]
    fn the_administrators_files_are_collected_and_secrets_only_if_asked_for() {
        let root = tempfile::tempdir().unwrap();
        let at = |path: &str| root.path().join(path);
        for directory in [
            "etc/links/credentials",
            "etc/links/nginx.d",
            "etc/links/replaced-1",
            "var/lib/links/tls/live",
        ] {
            fs::create_dir_all(at(directory)).unwrap();
        }
        for (path, text) in [
            ("etc/links/links.toml", "instances = 3\n"),
            ("etc/links/nginx.d/a.conf", "# a\n"),
            ("etc/links/nginx.d/.a.conf.swp", "x"),
            ("etc/links/replaced-1/links.toml", "x"),
            ("etc/links/credentials/admin_token", "secret\n"),
            ("etc/links/variables.env", "A=1\n"),
            ("sink", "elsewhere\n"),
        ] {
            fs::write(at(path), text).unwrap();
        }
        fs::set_permissions(
            at("etc/links/credentials/admin_token"),
            fs::Permissions::from_mode(0o600),
        )
        .unwrap();
        symlink(at("sink"), at("etc/links/credentials/vault_token")).unwrap();
        symlink(at("nowhere"), at("etc/links/credentials/dangling")).unwrap();
        symlink("../certificates/a/1", at("var/lib/links/tls/live/a")).unwrap();

        let public = collect(root.path(), false).unwrap();
        assert_eq!(
            paths(&public),
            ["etc/links/links.toml", "etc/links/nginx.d", "etc/links/nginx.d/a.conf"]
        );
        let all = collect(root.path(), true).unwrap();
        assert_eq!(
            paths(&all),
            [
                "etc/links/links.toml",
                "etc/links/nginx.d",
                "etc/links/nginx.d/a.conf",
                "etc/links/credentials",
                "etc/links/credentials/admin_token",
                "etc/links/credentials/vault_token",
                "var/lib/links/tls/live",
                "var/lib/links/tls/live/a",
                "etc/links/variables.env",
            ]
        );
        assert_eq!(all[4].entry.mode, 0o600);
        assert!(matches!(&all[5].contents, Contents::Bytes(bytes) if bytes == b"elsewhere\n"));
        let link = Content::Link {
            target: "../certificates/a/1".into(),
        };
        assert_eq!(all[7].entry.content, link);
    }

    #[test]
    fn a_fifo_holds_up_nothing() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join(CONFIG)).unwrap();
        nix::unistd::mkfifo(&root.path().join("etc/links/fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(collect(root.path(), true).unwrap().is_empty());
    }
}
