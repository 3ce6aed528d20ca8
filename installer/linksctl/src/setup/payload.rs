//! The files of the unpacked tarball, or those that one has installed on a host.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};

use links_base::{digest, files};
use links_release::payload::{LIST_FORMAT, LIST_NAME, List, Listed, ListedFile};

/// An unpacked tarball, or the files that one has installed on a host.
pub struct Payload {
    /// The directory to which the listed paths are relative.
    pub directory: PathBuf,
    pub list: List,
}

impl Payload {
    /// The unpacked tarball that this program is part of.
    ///
    /// # Errors
    /// This program is not in an unpacked tarball, or the list of files cannot be read.
    pub fn of_this_program() -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("Looking for this program's own path")?;
        let directory = program
            .ancestors()
            .find(|directory| directory.join(LIST_NAME).is_file())
            .with_context(|| {
                format!(
                    "{} is not in an unpacked tarball: unpack links-VERSION-ARCH.tar.gz and run \
                 links-VERSION-ARCH/usr/bin/linksctl install",
                    program.display()
                )
            })?;
        Self::read(directory, &directory.join(LIST_NAME))
    }

    /// The files below `directory` that are in the list.
    ///
    /// # Errors
    /// The list cannot be read, or has another format.
    pub fn read(directory: &Path, list: &Path) -> anyhow::Result<Self> {
        let bytes = fs::read(list).with_context(|| format!("Reading {}", list.display()))?;
        let parsed: List = serde_json::from_slice(&bytes).with_context(|| format!("Reading {}", list.display()))?;
        ensure!(
            parsed.format == LIST_FORMAT,
            "{}: unknown format {}",
            list.display(),
            parsed.format
        );
        Ok(Self {
            directory: directory.to_owned(),
            list: parsed,
        })
    }

    /// Fails unless every file is there and is the one that was packed. Must run before anything is written.
    ///
    /// # Errors
    /// A file is missing or differs. The error names it.
    pub fn verify(&self) -> anyhow::Result<()> {
        for (entry, file) in listed_files(&self.list) {
            let path = self.directory.join(&entry.path);
            let (_, sha256) = File::open(&path)
                .and_then(|mut open| digest::of(&mut open))
                .with_context(|| format!("Reading {}", path.display()))?;
            ensure!(
                sha256 == file.sha256,
                "{} differs from {LIST_NAME}: unpack the tarball again",
                path.display()
            );
        }
        Ok(())
    }

    /// The size of all files, in bytes.
    pub fn size(&self) -> u64 {
        listed_files(&self.list).map(|(_, file)| file.size).sum()
    }
}

/// The entries that are files.
pub fn listed_files(list: &List) -> impl DoubleEndedIterator<Item = (&Listed, &ListedFile)> {
    list.entries
        .iter()
        .filter_map(|entry| Some((entry, entry.file.as_ref()?)))
}

/// Writes the list of what is installed, so that `uninstall` knows it.
///
/// # Errors
/// The file cannot be written.
pub fn write_record(path: &Path, list: &List) -> anyhow::Result<()> {
    files::make_directory(path.parent().unwrap_or(Path::new("/")), 0o755)?;
    files::replace(path, &serde_json::to_vec_pretty(list)?, 0o644)
}

/// The service whose unit file the path is. Templates are left out, because they cannot be stopped or disabled themselves.
pub fn unit(path: &str) -> Option<&str> {
    let name = path
        .strip_prefix("usr/lib/systemd/system/")
        .or(path.strip_prefix("lib/systemd/system/"))?;
    (name.ends_with(".service") && !name.contains(['/', '@'])).then_some(name)
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A list of these paths. One that ends with `dir` is a directory, and one that starts with `!` a conffile.
    pub fn list(paths: &[&str]) -> List {
        let entries = paths.iter().map(|path| Listed {
            path: path.trim_start_matches('!').to_owned(),
            mode: "0644".to_owned(),
            file: (!path.ends_with("dir")).then(|| ListedFile {
                size: 1,
                sha256: String::new(),
                conffile: path.starts_with('!'),
            }),
        });
        List {
            format: LIST_FORMAT,
            version: "1.2.3".to_owned(),
            arch: "amd64".to_owned(),
            entries: entries.collect(),
        }
    }

    fn paths(list: &List) -> Vec<&str> {
        list.entries.iter().map(|entry| entry.path.as_str()).collect()
    }

    #[test]
    fn obsolete_files_are_removed_and_obsolete_conffiles_stay_listed() {
        let earlier = list(&["!etc/own", "!etc/renamed", "usr/dir", "usr/old", "usr/same"]);
        let new = list(&["!etc/own", "usr/dir", "usr/new", "usr/same"]);
        let both = new.and(&earlier);
        assert_eq!(
            paths(&both),
            ["etc/own", "etc/renamed", "usr/dir", "usr/new", "usr/old", "usr/same"]
        );
        let obsolete = new.obsolete(&earlier);
        assert_eq!(obsolete, ["usr/old"]);
        assert_eq!(
            paths(&both.without(&obsolete)),
            ["etc/own", "etc/renamed", "usr/dir", "usr/new", "usr/same"]
        );
    }

    #[test]
    fn units_are_known_by_their_paths() {
        assert_eq!(unit("usr/lib/systemd/system/links.service"), Some("links.service"));
        for path in [
            "usr/lib/systemd/system/links@.service",
            "usr/lib/systemd/system/nginx.service.d/10-links.conf",
            "usr/lib/tmpfiles.d/links.conf",
        ] {
            assert_eq!(unit(path), None, "{path}");
        }
    }
}
