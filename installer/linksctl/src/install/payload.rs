//! `linksctl install` and `uninstall`: copy the unpacked tarball's files to a host without apt, and remove them again.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use nix::sys::statvfs::statvfs;

use super::{How, configure, deconfigure, prepare};
use links_base::digest;
use links_base::files::{Left, make_directory};
use links_base::layout::{self, Layout};
use links_base::privileges::require_root;
use links_base::services::{OnBehalfOf, Services};
use links_base::{exec, files};
use links_release::payload::{LIST_FORMAT, LIST_NAME, List, Listed, ListedFile};

/// How many bytes must stay free on the disk after the installation, for the database and the compiled components.
const HEADROOM: u64 = 64 * 1024 * 1024;

/// An unpacked tarball, or the files that one has installed on a host.
struct Payload {
    /// The directory to which the listed paths are relative.
    directory: PathBuf,
    list: List,
}

impl Payload {
    /// The unpacked tarball that this program is part of.
    fn of_this_program() -> anyhow::Result<Self> {
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

    fn read(directory: &Path, list: &Path) -> anyhow::Result<Self> {
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

    fn files(&self) -> impl DoubleEndedIterator<Item = (&Listed, &ListedFile)> {
        self.list
            .entries
            .iter()
            .filter_map(|entry| Some((entry, entry.file.as_ref()?)))
    }

    /// Fails unless every file is there and is the one that was packed. Must run before anything is written.
    fn verify(&self) -> anyhow::Result<()> {
        for (entry, file) in self.files() {
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

    fn size(&self) -> u64 {
        self.files().map(|(_, file)| file.size).sum()
    }
}

/// Installs the files and configures the host.
///
/// # Errors
/// The package is installed by apt, a file of the tarball is damaged, the disk is too full, or [`configure`] fails.
pub fn install(layout: &Layout, no_start: bool, dry_run: bool) -> anyhow::Result<()> {
    let payload = Payload::of_this_program()?;
    if dry_run {
        for (entry, file) in payload.files() {
            let kept = file.conffile && layout.root().join(&entry.path).exists();
            println!("{} /{}", if kept { "keep " } else { "write" }, entry.path);
        }
        println!("create the user and the directories, then configure the host (see `linksctl configure --dry-run`)");
        return Ok(());
    }
    require_root()?;
    refuse_beside_apt()?;
    payload.verify()?;
    // The files are stored twice: below /usr and in the release store.
    require_space(layout, 2 * payload.size() + HEADROOM)?;

    let record = layout.install_record();
    let earlier = match record.exists() {
        true => Some(Payload::read(layout.root(), &record)?.list),
        false => None,
    };
    // Written first, with the files of an earlier version, so that an interrupted installation can be uninstalled.
    let both = earlier
        .as_ref()
        .map_or_else(|| payload.list.clone(), |earlier| payload.list.and(earlier));
    make_directory(record.parent().unwrap_or(Path::new("/")), 0o755)?;
    write_record(&record, &both)?;
    for entry in &payload.list.entries {
        let target = layout.root().join(&entry.path);
        match &entry.file {
            None if target.is_dir() => {}
            None => make_directory(&target, mode(entry)?)?,
            Some(file) if file.conffile && target.exists() => {}
            Some(_) => {
                let source = payload.directory.join(&entry.path);
                let mut open = File::open(&source).with_context(|| format!("Opening {}", source.display()))?;
                files::replace_from(&target, &mut open, mode(entry)?)?;
            }
        }
    }
    let obsolete = earlier.map_or_else(Vec::new, |earlier| payload.list.obsolete(&earlier));
    remove_obsolete(layout, &obsolete, Services::of_host(OnBehalfOf::Person))?;
    write_record(&record, &both.without(&obsolete))?;
    exec::run("systemd-sysusers", [layout.sysusers()])?;
    prepare(layout)?;
    exec::run("systemd-tmpfiles", ["--create".into(), layout.tmpfiles()])?;
    let how = How {
        start: !no_start,
        force: false,
        dry_run: false,
    };
    configure(layout, OnBehalfOf::Person, how)?;
    println!(
        "links {} is installed; `linksctl status` shows how it runs",
        payload.list.version
    );
    Ok(())
}

fn write_record(path: &Path, list: &List) -> anyhow::Result<()> {
    files::replace(path, &serde_json::to_vec_pretty(list)?, 0o644)
}

/// Removes files that only an earlier version had. Units among them are stopped and disabled first, while systemd knows them.
fn remove_obsolete(layout: &Layout, obsolete: &[String], services: Services) -> anyhow::Result<()> {
    let units: Vec<_> = obsolete.iter().filter_map(|path| unit(path)).collect();
    if services.running() && !units.is_empty() {
        exec::run("systemctl", ["stop"].into_iter().chain(units.iter().copied()))?;
    }
    services.disable(&units.iter().map(|unit| (*unit).to_owned()).collect::<Vec<_>>())?;
    for path in obsolete {
        let path = layout.root().join(path);
        files::remove_if_present(&path).with_context(|| format!("Removing {}", path.display()))?;
    }
    Ok(())
}

/// The service whose unit file the path is. Templates are left out, because they cannot be stopped or disabled themselves.
fn unit(path: &str) -> Option<&str> {
    let name = path
        .strip_prefix("usr/lib/systemd/system/")
        .or(path.strip_prefix("lib/systemd/system/"))?;
    (name.ends_with(".service") && !name.contains(['/', '@'])).then_some(name)
}

/// Stops links and removes what [`install`] installed.
///
/// # Errors
/// Nothing was installed from a tarball, a unit cannot be stopped, or a file cannot be removed.
pub fn uninstall(layout: &Layout, purge: bool, dry_run: bool) -> anyhow::Result<()> {
    let record = layout.install_record();
    if !record.exists() {
        bail!(
            "nothing was installed from a tarball here ({} is missing); use apt to remove a package",
            record.display()
        );
    }
    let payload = Payload::read(layout.root(), &record)?;
    if dry_run {
        println!("stop and disable the service, remove the nginx site");
        for (entry, _) in payload.files().filter(|(_, file)| purge || !file.conffile) {
            println!("remove /{}", entry.path);
        }
        for directory in ours(layout).into_iter().filter(|_| purge) {
            println!("remove {}", directory.display());
        }
        return Ok(());
    }
    require_root()?;
    // An installation that was interrupted before it wrote its units has started nothing.
    let is_service = |entry: &Listed| unit(&entry.path) == Some(layout::SERVICE);
    if payload
        .files()
        .any(|(entry, _)| is_service(entry) && layout.root().join(&entry.path).exists())
    {
        deconfigure(layout, OnBehalfOf::Person, false)?;
    }
    for (entry, _) in payload.files().filter(|(_, file)| purge || !file.conffile) {
        let path = layout.root().join(&entry.path);
        files::remove_if_present(&path).with_context(|| format!("Removing {}", path.display()))?;
    }
    files::remove_if_present(&record).with_context(|| format!("Removing {}", record.display()))?;
    if purge {
        for directory in ours(layout) {
            if let Left::MountPoint(left) = files::remove_tree(&directory)? {
                eprintln!(
                    "linksctl: {} is a mount point, so it was emptied but not removed",
                    left.display()
                );
            }
        }
    }
    remove_empty_directories(layout, &payload.list);
    Services::of_host(OnBehalfOf::Person).reload_units()?;
    if purge && nix::unistd::User::from_name(layout::USER)?.is_some() {
        // Also removes the group of the same name (userdel(8), USERGROUPS_ENAB).
        exec::run("userdel", [layout::USER])?;
    }
    println!(
        "links is removed{}",
        if purge {
            ""
        } else {
            "; configuration, links and credentials stay"
        }
    );
    Ok(())
}

/// The directories that contain only our data and configuration.
fn ours(layout: &Layout) -> [PathBuf; 4] {
    [
        layout.state_dir(),
        layout.cache_dir(),
        layout.run_dir(),
        layout.config_dir(),
    ]
}

/// Removes the payload's directories that are empty now, the deepest first.
fn remove_empty_directories(layout: &Layout, list: &List) {
    for entry in list.entries.iter().rev().filter(|entry| entry.file.is_none()) {
        let is_for_us = entry.path.contains(layout::USER) || entry.path.ends_with(".service.d");
        if is_for_us || entry.path.starts_with("etc/") {
            // An error means that the directory is missing or not empty, so there is nothing to remove.
            let _ = fs::remove_dir(layout.root().join(&entry.path));
        }
    }
}

fn mode(entry: &Listed) -> anyhow::Result<u32> {
    u32::from_str_radix(&entry.mode, 8).with_context(|| format!("{LIST_NAME}: the mode of {}", entry.path))
}

fn refuse_beside_apt() -> anyhow::Result<()> {
    if exec::find("dpkg-query").is_none() {
        return Ok(());
    }
    let status = exec::finish(
        "dpkg-query",
        ["--show", "--showformat=${db:Status-Status}", layout::PACKAGE],
    )?;
    ensure!(
        status.stdout != "installed",
        "the package {} is installed: upgrade with `apt install ./{}_VERSION_ARCH.deb`, or remove it first",
        layout::PACKAGE,
        layout::PACKAGE
    );
    Ok(())
}

fn require_space(layout: &Layout, bytes: u64) -> anyhow::Result<()> {
    let free =
        statvfs(layout.root()).with_context(|| format!("Reading the free space of {}", layout.root().display()))?;
    let free = free.blocks_available() * free.fragment_size();
    let mebibytes = |bytes: u64| bytes.div_ceil(1024 * 1024);
    ensure!(
        free >= bytes,
        "nothing was installed: {} MiB are needed below {}, but only {} MiB are free",
        mebibytes(bytes),
        layout.root().display(),
        mebibytes(free)
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(paths: &[&str]) -> List {
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
