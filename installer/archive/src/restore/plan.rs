//! Decides the steps of a restore. It does no I/O.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::items::REPLACED;
use crate::manifest::{self, Kind, Manifest};
use crate::names;
use crate::report::count;
use links_base::layout;
use links_config::backup::Problem;

/// What a file or directory of the administrator is, here and in the backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ItemState {
    /// The full path.
    pub path: PathBuf,
    pub is_here: bool,
    pub is_in_backup: bool,
}

/// What a restore finds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// Whether systemd runs here.
    pub has_systemd: bool,
    /// Whether links.service runs.
    pub is_active: bool,
    /// The items that the restore is about.
    pub items: Vec<ItemState>,
    /// The database of the restored configuration. `None` if it is on a server.
    pub database: Option<DatabaseState>,
    /// Where links go that cannot become the database.
    pub data: PathBuf,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatabaseState {
    pub path: PathBuf,
    /// What is there now. `None` if there is no file.
    pub now: Option<Present>,
}

/// A database that would be replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Present {
    Links(u64),
    /// It cannot be read.
    Damaged,
}

/// One step of a restore.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Records how to undo the restore. From then on, no click is counted.
    Begin,
    /// Stops the agent and all instances.
    Stop,
    SwapDatabase {
        path: PathBuf,
        aside: String,
        replaces: bool,
    },
    SwapItem {
        path: PathBuf,
        aside: PathBuf,
        is_here: bool,
        is_in_backup: bool,
    },
    /// Makes the agent give the click journal another name.
    RenewJournal,
    /// Points the instances to the restored configuration.
    RollOut,
    /// Checks that the database has the links of the backup.
    CountLinks {
        path: PathBuf,
        links: u64,
    },
    Start,
    /// Waits until the instances stay healthy.
    Soak,
    EmptyCache,
    /// Brings the nginx site in line, and asks every address for /health.
    Site,
    /// Counts clicks again. The restore is not undone any more.
    Commit,
}

impl Step {
    /// The name of the step for scripts.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Begin => "begin",
            Self::Stop => "stop",
            Self::SwapDatabase { .. } => "swap_database",
            Self::SwapItem { .. } => "swap",
            Self::RenewJournal => "renew_journal",
            Self::RollOut => "roll_out",
            Self::Start => "start",
            Self::Soak => "soak",
            Self::EmptyCache => "empty_cache",
            Self::Site => "site",
            Self::CountLinks { .. } => "count_links",
            Self::Commit => "commit",
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Begin => write!(f, "note how to undo this; count no click until it has succeeded"),
            Self::Stop => write!(f, "stop {}", layout::SERVICE),
            Self::SwapDatabase {
                path,
                aside,
                replaces: true,
            } => write!(f, "replace {}, and keep it with {aside} after its name", path.display()),
            Self::SwapDatabase { path, .. } => write!(f, "write {}", path.display()),
            Self::SwapItem {
                path,
                aside,
                is_here: true,
                is_in_backup: true,
            } => write!(f, "replace {}, and keep it in {}", path.display(), aside.display()),
            Self::SwapItem {
                path,
                aside,
                is_here: true,
                ..
            } => write!(f, "move {} to {}", path.display(), aside.display()),
            Self::SwapItem { path, .. } => write!(f, "write {}", path.display()),
            Self::RenewJournal => write!(f, "give the click journal a new name, so that no click counts twice"),
            Self::RollOut => write!(f, "point the instances to the restored configuration"),
            Self::Start => write!(f, "start {}", layout::SERVICE),
            Self::Soak => write!(
                f,
                "wait until every instance has stayed healthy for rollout.min_healthy"
            ),
            Self::EmptyCache => write!(f, "empty nginx's cache of redirects"),
            Self::Site => write!(f, "{}", links_edge::INSTALL),
            Self::CountLinks { links, .. } => write!(f, "check that the database has {}", count(*links, "link")),
            Self::Commit => write!(f, "count clicks again"),
        }
    }
}

/// A restore that was decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    pub steps: Vec<Step>,
    /// The file that gets links which cannot become the database.
    pub links_file: Option<PathBuf>,
}

/// The suffix of the database that a restore at this time replaces.
pub fn aside(now: u64) -> String {
    format!(".{REPLACED}{}", names::stamp(now))
}

/// The suffix of a restored database that was used before its restore was undone.
pub fn undone(stamp: &str) -> String {
    format!(".undone-{stamp}")
}

/// Plans a restore at `now`, in seconds since 1970.
///
/// # Errors
/// The host has links, and `force` does not say that the backup may replace them ([`Problem::Refusal`]).
pub fn plan(manifest: &Manifest, observed: &Observed, now: u64, force: bool) -> anyhow::Result<Plan> {
    let links_file = links_file(manifest, observed.database.is_some(), &observed.data, now);
    let swap = match (&manifest.database, &observed.database, &links_file) {
        (Some(_), _, Some(path)) => Some(Step::SwapDatabase {
            path: path.clone(),
            aside: aside(now),
            replaces: false,
        }),
        (Some(_), Some(database), None) => {
            refuse(database, force)?;
            Some(Step::SwapDatabase {
                path: database.path.clone(),
                aside: aside(now),
                replaces: database.now.is_some(),
            })
        }
        _ => None,
    };
    let replaces_database = swap.is_some() && links_file.is_none();
    let mut steps = vec![Step::Begin];
    if observed.has_systemd {
        steps.push(Step::Stop);
    }
    steps.extend(swap);
    for item in observed.items.iter().filter(|item| item.is_here || item.is_in_backup) {
        steps.push(Step::SwapItem {
            path: item.path.clone(),
            aside: replaced_directory(&item.path, now),
            is_here: item.is_here,
            is_in_backup: item.is_in_backup,
        });
    }
    if replaces_database {
        steps.push(Step::RenewJournal);
    }
    steps.push(Step::RollOut);
    // Before anybody can change a link.
    if let (Some(said), Some(database), true) = (&manifest.database, &observed.database, replaces_database) {
        steps.push(Step::CountLinks {
            path: database.path.clone(),
            links: said.links,
        });
    }
    if observed.has_systemd {
        steps.extend([Step::Start, Step::Soak]);
        if replaces_database {
            steps.push(Step::EmptyCache);
        }
    }
    steps.extend([Step::Site, Step::Commit]);
    Ok(Plan { steps, links_file })
}

/// The file for links that cannot become the database, because that is on a server, or because the backup lacks their clicks.
fn links_file(manifest: &Manifest, is_local: bool, data: &Path, now: u64) -> Option<PathBuf> {
    let database = manifest.database.as_ref()?;
    let fits = database.kind == Kind::Whole && is_local;
    let name = format!("links-of-{}.db", names::stamp(now));
    (!fits).then(|| data.join(name))
}

/// The file beside which the database of a backup is staged: `local`, the database of the restored configuration, or a file for
/// its links.
pub fn target(manifest: &Manifest, local: Option<PathBuf>, data: &Path, now: u64) -> Option<PathBuf> {
    links_file(manifest, local.is_some(), data, now).or(local)
}

fn refuse(database: &DatabaseState, force: bool) -> anyhow::Result<()> {
    let what = match database.now {
        None | Some(Present::Links(0)) => return Ok(()),
        Some(Present::Links(links)) => count(links, "link"),
        Some(Present::Damaged) => "a database that cannot be read".to_owned(),
    };
    if force {
        return Ok(());
    }
    Err(Problem::Refusal.error(format!(
        "{} has {what}, which the backup would replace: --force does that, and keeps the former database beside it",
        database.path.display()
    )))
}

/// The directory that gets what a restore replaces in a directory.
pub fn replaced_directory(path: &Path, now: u64) -> PathBuf {
    let name = format!("{REPLACED}{}", names::stamp(now));
    path.with_file_name(name)
}

/// The items that a restore is about: the public ones, whether the backup has them or not, and what else the backup has. Secrets
/// that it does not have stay.
pub fn items(manifest: &Manifest) -> Vec<crate::items::Item> {
    let mut found = crate::items::items([]);
    let of_entries = manifest
        .entries
        .iter()
        .filter(|entry| entry.path != Path::new(manifest::DATABASE))
        .filter_map(|entry| crate::items::item_of(&entry.path));
    for item in of_entries {
        if !found.contains(&item) {
            found.push(item);
        }
    }
    found.retain(|item| !item.is_secret || is_in(manifest, &item.path));
    found
}

/// Whether a backup has an item.
pub fn is_in(manifest: &Manifest, item: &Path) -> bool {
    manifest.entries.iter().any(|entry| entry.path.starts_with(item))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
pub mod tests {
    use super::*;
    use crate::manifest::DATABASE;
    use crate::manifest::tests::{database, file};

    const NOW: u64 = 1_900_000_000;

    pub fn manifest(kind: Option<Kind>) -> Manifest {
        let mut entries = vec![file("etc/links/links.toml", 1)];
        entries.extend(kind.map(|_| file(DATABASE, 4096)));
        let database = kind.map(|kind| manifest::Database { kind, ..database(3) });
        Manifest::new(NOW - 100, 5, database, false, entries)
    }

    pub fn observed(now: Option<Present>) -> Observed {
        let item = |name: &str, is_in_backup| ItemState {
            path: Path::new("/etc/links").join(name),
            is_here: true,
            is_in_backup,
        };
        Observed {
            has_systemd: true,
            is_active: true,
            items: vec![
                item("links.toml", true),
                item("nginx.d", false),
                ItemState {
                    is_here: false,
                    ..item("links.toml.d", true)
                },
            ],
            database: Some(DatabaseState {
                path: "/data/links.db".into(),
                now,
            }),
            data: "/data".into(),
        }
    }

    fn shown(manifest: &Manifest, observed: &Observed, force: bool) -> Vec<String> {
        let plan = plan(manifest, observed, NOW, force).unwrap();
        plan.steps.iter().map(Step::to_string).collect()
    }

    fn names(manifest: &Manifest, observed: &Observed) -> Vec<&'static str> {
        let plan = plan(manifest, observed, NOW, true).unwrap();
        plan.steps.iter().map(Step::name).collect()
    }

    #[test]
    fn a_restore_stops_swaps_starts_and_verifies() {
        assert_eq!(
            shown(&manifest(Some(Kind::Whole)), &observed(Some(Present::Links(9))), true),
            [
                "note how to undo this; count no click until it has succeeded",
                "stop links.service",
                "replace /data/links.db, and keep it with .replaced-20300317T174640Z after its name",
                "replace /etc/links/links.toml, and keep it in /etc/links/replaced-20300317T174640Z",
                "move /etc/links/nginx.d to /etc/links/replaced-20300317T174640Z",
                "write /etc/links/links.toml.d",
                "give the click journal a new name, so that no click counts twice",
                "point the instances to the restored configuration",
                "check that the database has 3 links",
                "start links.service",
                "wait until every instance has stayed healthy for rollout.min_healthy",
                "empty nginx's cache of redirects",
                links_edge::INSTALL,
                "count clicks again",
            ]
        );
    }

    #[test]
    fn links_that_are_here_are_replaced_only_by_force() {
        let whole = manifest(Some(Kind::Whole));
        for (now, is_refused) in [
            (None, false),
            (Some(Present::Links(0)), false),
            (Some(Present::Links(1)), true),
            (Some(Present::Damaged), true),
        ] {
            let observed = observed(now);
            let refused = plan(&whole, &observed, NOW, false).err();
            assert_eq!(
                refused.map(|error| Problem::of(&error)),
                is_refused.then_some(Problem::Refusal)
            );
            assert!(plan(&whole, &observed, NOW, true).is_ok());
        }
    }

    #[test]
    fn links_for_a_server_become_a_file() {
        let mut on_server = observed(None);
        on_server.database = None;
        for kind in [Kind::Links, Kind::Whole] {
            let plan = plan(&manifest(Some(kind)), &on_server, NOW, false).unwrap();
            let file = PathBuf::from("/data/links-of-20300317T174640Z.db");
            assert_eq!(plan.links_file, Some(file));
            let names: Vec<_> = plan.steps.iter().map(Step::name).collect();
            assert!(
                names.contains(&"swap_database") && !names.contains(&"renew_journal"),
                "{names:?}"
            );
            assert!(
                !names.contains(&"empty_cache") && !names.contains(&"count_links"),
                "{names:?}"
            );
        }
    }

    #[test]
    fn without_a_database_only_the_configuration_is_restored() {
        assert_eq!(
            names(&manifest(None), &observed(Some(Present::Links(9)))),
            [
                "begin", "stop", "swap", "swap", "swap", "roll_out", "start", "soak", "site", "commit"
            ]
        );
    }

    #[test]
    fn without_systemd_nothing_is_stopped_or_started() {
        let mut chroot = observed(None);
        chroot.has_systemd = false;
        let names = names(&manifest(Some(Kind::Whole)), &chroot);
        for name in ["stop", "start", "soak", "empty_cache"] {
            assert!(!names.contains(&name), "{name}");
        }
    }

    #[test]
    fn public_files_that_the_backup_lacks_go_and_secrets_that_it_lacks_stay() {
        let paths = |manifest: &Manifest| -> Vec<String> {
            items(manifest)
                .iter()
                .map(|item| item.path.display().to_string())
                .collect()
        };
        let public = [
            "links.toml",
            "links.toml.d",
            "runtime.toml",
            "nginx.d",
            "cloudflare.txt",
        ]
        .map(|name| format!("etc/links/{name}"));
        assert_eq!(paths(&manifest(None)), public);
        let mut with_secrets = manifest(None);
        with_secrets.entries.extend([
            file("etc/links/credentials/admin_token", 1),
            file("etc/links/variables.env", 1),
        ]);
        let more = ["etc/links/credentials", "etc/links/variables.env"].map(str::to_owned);
        assert_eq!(paths(&with_secrets), [&public[..], &more].concat());
    }
}
