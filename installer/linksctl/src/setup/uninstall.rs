//! `linksctl uninstall`: stops links and removes what `install` installed.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use nix::unistd::User;

use super::output::{print, print_notices};
use super::payload::{Payload, listed_files, unit};
use super::{deconfigure, session};
use links_base::files::Left;
use links_base::layout::{self, Layout};
use links_base::privileges::require_root;
use links_base::services::{OnBehalfOf, Services};
use links_base::{exec, files};
use links_release::payload::List;
use links_rollout::Appliance;

/// The environment variable that makes a purge keep the accounts at certificate authorities if it is 1, as in postrm.
const KEEP_ACCOUNTS: &str = "LINKS_KEEP_ACME_ACCOUNT";

/// The state of the host on which `uninstall` decides.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Observed {
    /// What there is to deconfigure. `None` if an installation was interrupted before it wrote its units: it has started
    /// nothing.
    configured: Option<deconfigure::Observed>,
    /// Whether systemd runs.
    has_systemd: bool,
    /// Those of our users that exist.
    users: Vec<&'static str>,
    /// Whether a purge keeps the accounts at certificate authorities.
    keeps_accounts: bool,
}

/// A step of `uninstall`.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Deconfigure(deconfigure::Step),
    RemoveFile(PathBuf),
    /// Removes a directory with everything in it.
    RemoveTree(PathBuf),
    /// Removes everything in a directory except one directory below it.
    Empty {
        directory: PathBuf,
        kept: PathBuf,
    },
    /// Removes a directory of the payload, unless something else is in it.
    RemoveEmpty(PathBuf),
    ReloadUnits,
    /// Also removes the group of the same name (userdel(8), USERGROUPS_ENAB).
    RemoveUser(&'static str),
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Deconfigure(step) => write!(f, "{step}"),
            Self::RemoveFile(path) | Self::RemoveTree(path) => write!(f, "remove {}", path.display()),
            Self::Empty { directory, kept } => {
                write!(
                    f,
                    "remove everything in {} except {}",
                    directory.display(),
                    kept.display()
                )
            }
            Self::RemoveEmpty(path) => write!(f, "remove {} if it is empty", path.display()),
            Self::ReloadUnits => write!(f, "make systemd reload the unit files"),
            Self::RemoveUser(user) => write!(f, "remove user {user}"),
        }
    }
}

/// The paths that `uninstall` removes.
struct Paths {
    /// The directory to which the listed paths are relative.
    root: PathBuf,
    /// The list of what is installed.
    record: PathBuf,
    /// The directories that contain only our data and configuration.
    ours: [PathBuf; 4],
    state: PathBuf,
    accounts: PathBuf,
}

impl Paths {
    fn new(layout: &Layout) -> Self {
        Self {
            root: layout.root().to_owned(),
            record: layout.install_record(),
            ours: [
                layout.state_dir(),
                layout.cache_dir(),
                layout.run_dir(),
                layout.config_dir(),
            ],
            state: layout.state_dir(),
            accounts: layout.tls_accounts_dir(),
        }
    }
}

/// The steps of `uninstall`, in order. With `purge`, the data and the configuration are removed too.
fn plan(list: &List, paths: &Paths, observed: &Observed, purge: bool) -> Vec<Step> {
    let mut steps = vec![];
    if let Some(configured) = &observed.configured {
        steps.extend(deconfigure::plan(configured).into_iter().map(Step::Deconfigure));
    }
    let removed = listed_files(list).filter(|(_, file)| purge || !file.conffile);
    steps.extend(removed.map(|(entry, _)| Step::RemoveFile(paths.root.join(&entry.path))));
    steps.push(Step::RemoveFile(paths.record.clone()));
    if purge {
        steps.extend(paths.ours.iter().map(|directory| match observed.keeps_accounts {
            true if *directory == paths.state => Step::Empty {
                directory: directory.clone(),
                kept: paths.accounts.clone(),
            },
            _ => Step::RemoveTree(directory.clone()),
        }));
    }
    // The deepest directory first.
    for entry in list.entries.iter().rev().filter(|entry| entry.file.is_none()) {
        let is_for_us = entry.path.contains(layout::USER) || entry.path.ends_with(".service.d");
        if is_for_us || entry.path.starts_with("etc/") {
            steps.push(Step::RemoveEmpty(paths.root.join(&entry.path)));
        }
    }
    if observed.has_systemd {
        steps.push(Step::ReloadUnits);
    }
    if purge {
        steps.extend(observed.users.iter().copied().map(Step::RemoveUser));
    }
    steps
}

/// Stops links and removes what `install` installed.
///
/// # Errors
/// Nothing was installed from a tarball, a unit cannot be stopped, or a file cannot be removed.
pub fn uninstall(layout: &Layout, purge: bool, dry_run: bool) -> anyhow::Result<()> {
    let paths = Paths::new(layout);
    if !paths.record.exists() {
        bail!(
            "nothing was installed from a tarball here ({} is missing); use apt to remove a package",
            paths.record.display()
        );
    }
    let list = Payload::read(&paths.root, &paths.record)?.list;
    let appliance = Appliance::new(layout, Services::of_host(OnBehalfOf::Person));
    let steps = || anyhow::Ok(plan(&list, &paths, &observe(&paths.root, &list, &appliance)?, purge));
    if dry_run {
        print(&steps()?);
        return Ok(());
    }
    require_root()?;
    remove(&appliance, is_configured(&paths.root, &list), steps)?;
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

fn remove(
    appliance: &Appliance,
    is_configured: bool,
    steps: impl FnOnce() -> anyhow::Result<Vec<Step>>,
) -> anyhow::Result<()> {
    // Never in the middle of a rollout, which may also change what is enabled. So the steps are planned under the lock.
    let _session = match is_configured {
        true => Some(session::begin_removal(appliance)?),
        false => None,
    };
    for step in steps()? {
        print_notices(&apply(&step, appliance)?);
    }
    Ok(())
}

/// Whether the installation got as far as the service's unit.
fn is_configured(root: &Path, list: &List) -> bool {
    listed_files(list).any(|(entry, _)| unit(&entry.path) == Some(layout::SERVICE) && root.join(&entry.path).exists())
}

fn observe(root: &Path, list: &List, appliance: &Appliance) -> anyhow::Result<Observed> {
    Ok(Observed {
        configured: match is_configured(root, list) {
            true => Some(deconfigure::observe(appliance)?),
            false => None,
        },
        has_systemd: appliance.services.running(),
        users: existing_users()?,
        keeps_accounts: std::env::var_os(KEEP_ACCOUNTS).is_some_and(|value| value == "1"),
    })
}

fn existing_users() -> anyhow::Result<Vec<&'static str>> {
    let mut users = vec![];
    for user in [layout::USER, layout::ACME_USER] {
        if User::from_name(user)?.is_some() {
            users.push(user);
        }
    }
    Ok(users)
}

/// Applies one step, and returns messages for the administrator.
fn apply(step: &Step, appliance: &Appliance) -> anyhow::Result<Vec<String>> {
    match step {
        Step::Deconfigure(step) => return deconfigure::apply(step, appliance),
        Step::RemoveFile(path) => {
            files::remove_if_present(path).with_context(|| format!("Removing {}", path.display()))?;
        }
        Step::RemoveTree(path) => return remove_tree(path),
        Step::Empty { directory, kept } => return empty(directory, kept),
        // An error means that the directory is missing or not empty, so there is nothing to remove.
        Step::RemoveEmpty(path) => drop(fs::remove_dir(path)),
        Step::ReloadUnits => appliance.services.reload_units()?,
        Step::RemoveUser(user) => drop(exec::run("userdel", [user])?),
    }
    Ok(vec![])
}

fn remove_tree(path: &Path) -> anyhow::Result<Vec<String>> {
    let notice = |left: PathBuf| format!("{} is a mount point, so it was emptied but not removed", left.display());
    Ok(match files::remove_tree(path)? {
        Left::Nothing => vec![],
        Left::MountPoint(left) => vec![notice(left)],
    })
}

/// Removes everything in `directory` except `kept`, which is below it, and the directories on the way there.
fn empty(directory: &Path, kept: &Path) -> anyhow::Result<Vec<String>> {
    let names = files::list(directory).with_context(|| format!("Reading {}", directory.display()))?;
    let mut notices = vec![];
    for path in names
        .iter()
        .map(|name| directory.join(name))
        .filter(|path| path != kept)
    {
        notices.extend(match kept.starts_with(&path) {
            true => empty(&path, kept)?,
            false => remove_tree(&path)?,
        });
    }
    Ok(notices)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use super::super::payload::tests::list;
    use super::*;

    fn shown(observed: &Observed, purge: bool) -> Vec<String> {
        let installed = list(&[
            "!etc/links/links.toml",
            "usr/lib/links/dir",
            "usr/lib/links/file",
            "usr/share/dir",
        ]);
        let steps = plan(&installed, &Paths::new(&Layout::new("/")), observed, purge);
        steps.iter().map(Step::to_string).collect()
    }

    #[test]
    fn conffiles_and_data_stay_unless_purged() {
        let observed = Observed {
            users: vec![layout::USER, layout::ACME_USER],
            ..Observed::default()
        };
        assert_eq!(
            shown(&observed, false),
            [
                "remove /usr/lib/links/file",
                "remove /usr/lib/links/installed.json",
                "remove /usr/lib/links/dir if it is empty",
            ]
        );
        assert_eq!(
            shown(&observed, true),
            [
                "remove /etc/links/links.toml",
                "remove /usr/lib/links/file",
                "remove /usr/lib/links/installed.json",
                "remove /var/lib/links",
                "remove /var/cache/links",
                "remove /run/links",
                "remove /etc/links",
                "remove /usr/lib/links/dir if it is empty",
                "remove user links",
                "remove user links-acme",
            ]
        );
    }

    #[test]
    fn a_purge_keeps_the_accounts_if_it_is_asked_to() {
        let observed = Observed {
            keeps_accounts: true,
            ..Observed::default()
        };
        let steps = shown(&observed, true);
        let kept = "remove everything in /var/lib/links except /var/lib/links/tls/accounts".to_owned();
        assert!(
            steps.contains(&kept) && !steps.contains(&"remove /var/lib/links".to_owned()),
            "{steps:?}"
        );
        assert!(include_str!("../../../../packaging/deb/postrm").contains(&format!("${{{KEEP_ACCOUNTS}-}}\" = 1")));

        let (root, layout) = layout::temporary(&[Layout::data_dir, Layout::tls_accounts_dir]);
        let account = layout.tls_accounts_dir().join("1");
        for file in [
            &account,
            &layout.tls_dir().join("lock"),
            &layout.data_dir().join("links.db"),
        ] {
            fs::write(file, "").unwrap();
        }
        empty(&layout.state_dir(), &layout.tls_accounts_dir()).unwrap();
        assert_eq!(files::list(&layout.state_dir()).unwrap(), ["tls"]);
        assert_eq!(files::list(&layout.tls_dir()).unwrap(), ["accounts"]);
        assert!(account.exists());
        drop(root);
    }

    #[test]
    fn what_runs_is_deconfigured_before_its_files_are_removed() {
        let configured = deconfigure::Observed {
            has_systemd: true,
            ..deconfigure::Observed::default()
        };
        let first: Vec<_> = deconfigure::plan(&configured).iter().map(ToString::to_string).collect();
        let observed = Observed {
            configured: Some(configured),
            has_systemd: true,
            ..Observed::default()
        };
        let steps = shown(&observed, true);
        assert_eq!(steps[..first.len()], first);
        assert_eq!(
            steps.last().map(String::as_str),
            Some("make systemd reload the unit files")
        );
    }
}
