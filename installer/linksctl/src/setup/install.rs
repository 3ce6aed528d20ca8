//! `linksctl install`: copies the unpacked tarball's files to a host without apt, and configures it.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use nix::sys::statvfs::statvfs;

use super::configure::{How, configure, prepare};
use super::output::print;
use super::payload::{Payload, unit, write_record};
use links_base::files::make_directory;
use links_base::layout::{self, Layout};
use links_base::privileges::require_root;
use links_base::services::{OnBehalfOf, Services};
use links_base::{exec, files};
use links_release::payload::{LIST_NAME, List, Listed};
use links_rollout::Appliance;

/// How many bytes must stay free on the disk after the installation, for the database and the compiled components.
const HEADROOM: u64 = 64 * 1024 * 1024;

/// The state of the host on which `install` decides.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Observed {
    /// What an earlier version has installed.
    earlier: Option<List>,
    /// The conffiles and directories of the payload that are on the host, by their listed paths.
    present: BTreeSet<String>,
    /// Whether systemd runs.
    has_systemd: bool,
}

/// A step of `install`.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    /// Writes what is installed into a file, so that `uninstall` knows it.
    Record(PathBuf, List),
    MakeDirectory {
        path: PathBuf,
        mode: u32,
    },
    Write {
        source: PathBuf,
        target: PathBuf,
        mode: u32,
    },
    /// Leaves a conffile as it is.
    Keep(PathBuf),
    /// Stops units, by name.
    Stop(Vec<String>),
    Disable(Vec<String>),
    Remove(PathBuf),
    MakeUser,
    TakeOver,
    MakeDirectories,
    Configure {
        start: bool,
    },
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Record(path, _) => write!(f, "list what is installed in {}", path.display()),
            Self::MakeDirectory { path, .. } => write!(f, "create {}", path.display()),
            Self::Write { target, .. } => write!(f, "write {}", target.display()),
            Self::Keep(target) => write!(f, "keep  {}", target.display()),
            Self::Stop(units) => write!(f, "stop {}", units.join(", ")),
            Self::Disable(units) => write!(f, "disable {}", units.join(", ")),
            Self::Remove(path) => write!(f, "remove {}", path.display()),
            Self::MakeUser => write!(f, "create the user"),
            Self::TakeOver => write!(
                f,
                "take over the directories that earlier versions gave to user {}",
                layout::USER
            ),
            Self::MakeDirectories => write!(f, "create the directories of the data and of the cache"),
            Self::Configure { start: true } => {
                write!(f, "configure the host (see `linksctl configure --dry-run`)")
            }
            Self::Configure { start: false } => write!(f, "configure the host, without starting the service"),
        }
    }
}

/// The steps of `install`, in order. `root` is the directory that the payload goes to, and `record` the list of what is
/// installed there.
///
/// # Errors
/// The payload has an invalid mode.
fn plan(payload: &Payload, root: &Path, record: &Path, observed: &Observed, start: bool) -> anyhow::Result<Vec<Step>> {
    let list = &payload.list;
    // Recorded first, with the files of an earlier version, so that an interrupted installation can be uninstalled.
    let both = observed
        .earlier
        .as_ref()
        .map_or_else(|| list.clone(), |earlier| list.and(earlier));
    let mut steps = vec![Step::Record(record.to_owned(), both.clone())];
    for entry in &list.entries {
        let target = root.join(&entry.path);
        match &entry.file {
            None if observed.present.contains(&entry.path) => {}
            None => steps.push(Step::MakeDirectory {
                path: target,
                mode: mode(entry)?,
            }),
            Some(_) if observed.present.contains(&entry.path) => steps.push(Step::Keep(target)),
            Some(_) => steps.push(Step::Write {
                source: payload.directory.join(&entry.path),
                target,
                mode: mode(entry)?,
            }),
        }
    }
    // Units that only an earlier version had are stopped and disabled while systemd knows them.
    let obsolete = observed
        .earlier
        .as_ref()
        .map_or_else(Vec::new, |earlier| list.obsolete(earlier));
    let units: Vec<_> = obsolete
        .iter()
        .filter_map(|path| unit(path))
        .map(str::to_owned)
        .collect();
    if !units.is_empty() {
        if observed.has_systemd {
            steps.push(Step::Stop(units.clone()));
        }
        steps.push(Step::Disable(units));
    }
    if !obsolete.is_empty() {
        steps.extend(obsolete.iter().map(|path| Step::Remove(root.join(path))));
        steps.push(Step::Record(record.to_owned(), both.without(&obsolete)));
    }
    steps.extend([
        Step::MakeUser,
        Step::TakeOver,
        Step::MakeDirectories,
        Step::Configure { start },
    ]);
    Ok(steps)
}

fn mode(entry: &Listed) -> anyhow::Result<u32> {
    u32::from_str_radix(&entry.mode, 8).with_context(|| format!("{LIST_NAME}: the mode of {}", entry.path))
}

/// Installs the files and configures the host.
///
/// # Errors
/// The package is installed by apt, a file of the tarball is damaged, the disk is too full, or [`configure`] fails.
pub fn install(layout: &Layout, no_start: bool, dry_run: bool) -> anyhow::Result<()> {
    let payload = Payload::of_this_program()?;
    let appliance = Appliance::new(layout, Services::of_host(OnBehalfOf::Person));
    let (root, record) = (layout.root(), layout.install_record());
    let steps = || {
        let observed = observe(root, &record, &payload.list, appliance.services)?;
        plan(&payload, root, &record, &observed, !no_start)
    };
    if dry_run {
        print(&steps()?);
        return Ok(());
    }
    require_root()?;
    refuse_beside_apt()?;
    payload.verify()?;
    // The files are stored twice: below /usr and in the release store.
    require_space(root, 2 * payload.size() + HEADROOM)?;
    steps()?.iter().try_for_each(|step| apply(step, layout, &appliance))?;
    println!(
        "links {} is installed; `linksctl status` shows how it runs",
        payload.list.version
    );
    Ok(())
}

fn observe(root: &Path, record: &Path, list: &List, services: Services) -> anyhow::Result<Observed> {
    let is_present = |entry: &&Listed| {
        let target = root.join(&entry.path);
        match &entry.file {
            None => target.is_dir(),
            Some(file) => file.conffile && target.exists(),
        }
    };
    let present = list.entries.iter().filter(is_present);
    Ok(Observed {
        earlier: match record.exists() {
            true => Some(Payload::read(root, record)?.list),
            false => None,
        },
        present: present.map(|entry| entry.path.clone()).collect(),
        has_systemd: services.running(),
    })
}

fn apply(step: &Step, layout: &Layout, appliance: &Appliance) -> anyhow::Result<()> {
    match step {
        Step::Record(path, list) => write_record(path, list),
        Step::MakeDirectory { path, mode } => make_directory(path, *mode),
        Step::Write { source, target, mode } => {
            let mut open = File::open(source).with_context(|| format!("Opening {}", source.display()))?;
            files::replace_from(target, &mut open, *mode)
        }
        Step::Keep(_) => Ok(()),
        Step::Stop(units) => {
            let arguments = ["stop"].into_iter().chain(units.iter().map(String::as_str));
            exec::run("systemctl", arguments).map(drop)
        }
        Step::Disable(units) => appliance.services.disable(units),
        Step::Remove(path) => files::remove_if_present(path).with_context(|| format!("Removing {}", path.display())),
        Step::MakeUser => exec::run("systemd-sysusers", [layout.sysusers()]).map(drop),
        Step::TakeOver => prepare(appliance),
        Step::MakeDirectories => exec::run("systemd-tmpfiles", ["--create".into(), layout.tmpfiles()]).map(drop),
        Step::Configure { start } => {
            let how = How {
                start: *start,
                force: false,
                dry_run: false,
            };
            configure(appliance, how)
        }
    }
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

fn require_space(root: &Path, bytes: u64) -> anyhow::Result<()> {
    let free = statvfs(root).with_context(|| format!("Reading the free space of {}", root.display()))?;
    let free = free.blocks_available() * free.fragment_size();
    let mebibytes = |bytes: u64| bytes.div_ceil(1024 * 1024);
    ensure!(
        free >= bytes,
        "nothing was installed: {} MiB are needed below {}, but only {} MiB are free",
        mebibytes(bytes),
        root.display(),
        mebibytes(free)
    );
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use super::super::payload::tests::list;
    use super::*;

    fn planned(paths: &[&str], observed: &Observed) -> Vec<Step> {
        let payload = Payload {
            directory: "/unpacked".into(),
            list: list(paths),
        };
        plan(&payload, Path::new("/"), Path::new("/record"), observed, true).unwrap()
    }

    fn shown(paths: &[&str], observed: &Observed) -> Vec<String> {
        planned(paths, observed).iter().map(Step::to_string).collect()
    }

    const END: [&str; 4] = [
        "create the user",
        "take over the directories that earlier versions gave to user links",
        "create the directories of the data and of the cache",
        "configure the host (see `linksctl configure --dry-run`)",
    ];

    #[test]
    fn a_first_installation_writes_every_file() {
        let steps = shown(&["!etc/own", "usr/dir", "usr/new"], &Observed::default());
        let files = [
            "list what is installed in /record",
            "write /etc/own",
            "create /usr/dir",
            "write /usr/new",
        ];
        assert_eq!(steps, [&files[..], &END].concat());
    }

    #[test]
    fn edited_conffiles_and_existing_directories_stay() {
        let observed = Observed {
            present: ["etc/own", "usr/dir"].map(str::to_owned).into(),
            ..Observed::default()
        };
        let steps = shown(&["!etc/own", "usr/dir", "usr/new"], &observed);
        assert_eq!(steps[1..3], ["keep  /etc/own", "write /usr/new"]);
    }

    #[test]
    fn an_obsolete_unit_is_stopped_before_its_file_is_removed() {
        let unit = "usr/lib/systemd/system/old.service";
        let observed = Observed {
            earlier: Some(list(&[unit, "usr/same"])),
            has_systemd: true,
            ..Observed::default()
        };
        let steps = shown(&["usr/same"], &observed);
        let removal = [
            "list what is installed in /record",
            "write /usr/same",
            "stop old.service",
            "disable old.service",
            "remove /usr/lib/systemd/system/old.service",
            "list what is installed in /record",
        ];
        assert_eq!(steps, [&removal[..], &END].concat());
        // Until the end, an interrupted installation knows the files of both versions.
        let steps = planned(&["usr/same"], &observed);
        let recorded = steps.iter().filter_map(|step| match step {
            Step::Record(_, list) => Some(list.entries.len()),
            _ => None,
        });
        assert_eq!(recorded.collect::<Vec<_>>(), [2, 1]);
    }

    #[test]
    fn an_invalid_mode_is_found_before_anything_is_written() {
        let mut list = list(&["usr/new"]);
        list.entries[0].mode = "rwx".to_owned();
        let payload = Payload {
            directory: "/unpacked".into(),
            list,
        };
        let error = plan(
            &payload,
            Path::new("/"),
            Path::new("/record"),
            &Observed::default(),
            true,
        )
        .unwrap_err();
        assert!(error.to_string().contains("the mode of usr/new"), "{error}");
    }
}
