//! Which instance runs what, as recorded on disk: symbolic links below /var/lib/links, each replaced atomically.

use std::cmp::Reverse;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::store::Store;
use super::version::Version;
use links_base::layout::{self, Layout};
use links_base::{beneath, files};
use links_config::credentials::is_name;

/// The links and directories that record it.
#[derive(Clone, Debug)]
pub struct State {
    store: Store,
    instances: PathBuf,
    applied: PathBuf,
    current: PathBuf,
    previous: PathBuf,
    backups: PathBuf,
    /// The parent of the directories in which the instances report what they run.
    run: PathBuf,
}

impl State {
    pub fn new(layout: &Layout) -> Self {
        Self {
            store: Store::new(layout),
            instances: layout.instances_dir(),
            applied: layout.applied_dir(),
            current: layout.current_release(),
            previous: layout.previous_release(),
            backups: layout.backups_dir(),
            run: layout.run_dir(),
        }
    }

    fn config_link_of(&self, instance: u16) -> PathBuf {
        self.instances.join(layout::config_link_name(instance))
    }

    /// Makes `instance` run `version` from its next start on.
    ///
    /// # Errors
    /// A link cannot be written. Call this again then, because only one of the two links may be in place.
    pub fn point(&self, instance: u16, version: &Version) -> anyhow::Result<()> {
        self.store.point(instance, &version.release)?;
        files::replace_link(
            &self.config_link_of(instance),
            &Path::new("../applied").join(&version.config),
        )
    }

    /// Assigns this configuration to the instances that have a release but no configuration. An older linksctl, which took no
    /// snapshots, started them with the files in /etc/links. Returns whether there were any.
    ///
    /// # Errors
    /// A link cannot be written.
    pub fn adopt(&self, config: &str) -> anyhow::Result<bool> {
        let mut has_adopted = false;
        for instance in self.instances()? {
            let link = self.config_link_of(instance);
            if target_name(&link).is_none() {
                files::replace_link(&link, &Path::new("../applied").join(config))?;
                has_adopted = true;
            }
            if let (None, Some(points)) = (self.current(), self.points(instance)) {
                self.set_current(&points.release)?;
                has_adopted = true;
            }
        }
        Ok(has_adopted)
    }

    /// What `instance` runs from its next start on.
    pub fn points(&self, instance: u16) -> Option<Version> {
        Some(Version {
            release: target_name(&self.store.link_of(instance))?,
            config: target_name(&self.config_link_of(instance))?,
        })
    }

    /// What `instance` runs now, as its supervisor reported. `None` once the supervisor has ended.
    pub fn runs(&self, instance: u16) -> Option<Version> {
        let path = layout::runs_name(instance);
        // The instance may replace this file, and root reads it.
        let text = beneath::read(&self.run, &path, RUNS_LIMIT).ok()?;
        let runs: Version = serde_json::from_slice(&text).ok()?;
        // The names are used as paths and printed on root's terminal.
        (is_name(&runs.release) && is_name(&runs.config)).then_some(runs)
    }

    /// Removes the links of `instance`, which then has nothing to run.
    ///
    /// # Errors
    /// A link cannot be removed.
    pub fn forget(&self, instance: u16) -> anyhow::Result<()> {
        for link in [self.store.link_of(instance), self.config_link_of(instance)] {
            files::remove_if_present(&link).with_context(|| format!("Removing {}", link.display()))?;
        }
        Ok(())
    }

    /// The instances that have a release, in ascending order.
    ///
    /// # Errors
    /// The links cannot be listed.
    pub fn instances(&self) -> anyhow::Result<Vec<u16>> {
        let mut numbers: Vec<u16> = list(&self.instances)?
            .into_iter()
            .filter_map(|name| name.parse().ok())
            .filter(|number| (1..=layout::MAX_INSTANCES).contains(number))
            .collect();
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// The release of the last rollout that succeeded.
    pub fn current(&self) -> Option<String> {
        target_name(&self.current)
    }

    /// The release before the current one.
    pub fn previous(&self) -> Option<String> {
        target_name(&self.previous)
    }

    /// Makes `release` the current release, and the current one the previous one.
    ///
    /// # Errors
    /// A link cannot be written.
    pub fn set_current(&self, release: &str) -> anyhow::Result<()> {
        let current = self.current();
        if current.as_deref() == Some(release) {
            return Ok(());
        }
        if let Some(current) = current {
            self.link(&self.previous, Some(&current))?;
        }
        self.link(&self.current, Some(release))
    }

    /// Sets the current and the previous release, or removes them.
    ///
    /// # Errors
    /// A link cannot be written.
    pub fn restore_current(&self, current: Option<&str>, previous: Option<&str>) -> anyhow::Result<()> {
        self.link(&self.current, current)?;
        self.link(&self.previous, previous)
    }

    fn link(&self, link: &Path, release: Option<&str>) -> anyhow::Result<()> {
        match release {
            Some(release) => files::replace_link(link, &Path::new("releases").join(release)),
            None => files::remove_if_present(link).with_context(|| format!("Removing {}", link.display())),
        }
    }

    /// The file for a backup from before a schema change: `schema` is its schema version, and `release` the one that changes
    /// it.
    pub fn backup(&self, schema: u32, release: &str) -> PathBuf {
        self.backups.join(backup_name(schema, release))
    }

    /// Removes all but the two newest backups from before a schema change. Other files are kept.
    ///
    /// # Errors
    /// A backup cannot be removed.
    pub fn prune_backups(&self) -> anyhow::Result<()> {
        let directory = &self.backups;
        let mut copies = list(directory)?;
        copies.retain(|name| is_backup(name));
        copies.sort_by_key(|name| {
            Reverse(
                fs::metadata(directory.join(name))
                    .and_then(|found| found.modified())
                    .ok(),
            )
        });
        for name in copies.iter().skip(BACKUPS_KEPT) {
            let path = directory.join(name);
            files::remove_if_present(&path).with_context(|| format!("Removing {}", path.display()))?;
        }
        Ok(())
    }

    /// Removes the releases and snapshots that are no longer in use, except for two old releases. Snapshots contain secrets,
    /// and are of no use once their rollout is over.
    ///
    /// # Errors
    /// A release or snapshot cannot be removed.
    pub fn prune(&self) -> anyhow::Result<()> {
        let instances = self.instances()?;
        let in_use: Vec<_> = instances
            .iter()
            .flat_map(|instance| [self.points(*instance), self.runs(*instance)])
            .flatten()
            .collect();
        let used = |name: &String| in_use.iter().any(|version| version.config == *name);
        for snapshot in list(&self.applied)?.iter().filter(|name| !used(name)) {
            remove(&self.applied.join(snapshot))?;
        }

        let releases = self.store.releases();
        let current = self.current();
        let mut old: Vec<_> = list(releases)?
            .into_iter()
            .filter(|name| !name.starts_with('.'))
            .filter(|name| current.as_ref() != Some(name) && in_use.iter().all(|version| version.release != *name))
            .filter_map(|name| Some((fs::metadata(releases.join(&name)).ok()?.modified().ok()?, name)))
            .collect();
        // Keep the release that `linksctl rollback` returns to, however old it is.
        let previous = self.previous();
        old.sort();
        old.sort_by_key(|(_, name)| previous.as_ref() == Some(name));
        for (_, name) in old.iter().rev().skip(OLD_RELEASES) {
            remove(&releases.join(name))?;
        }
        let kept = list(releases)?;
        let compiled = self.store.compiled_dir();
        for name in list(compiled)?.iter().filter(|name| !kept.contains(name)) {
            remove(&compiled.join(name))?;
        }
        Ok(())
    }
}

/// The maximum size of an instance's report, in bytes. Two names need far less.
const RUNS_LIMIT: u64 = 4096;
/// How many releases are kept besides those in use.
const OLD_RELEASES: usize = 2;
/// How many backups from before schema changes are kept.
const BACKUPS_KEPT: usize = 2;

fn backup_name(schema: u32, release: &str) -> String {
    format!("schema-{schema}-before-{release}.db")
}

fn is_backup(name: &str) -> bool {
    let middle = name.strip_prefix("schema-").and_then(|rest| rest.strip_suffix(".db"));
    middle
        .and_then(|middle| middle.split_once("-before-"))
        .is_some_and(|(schema, release)| schema.parse::<u32>().is_ok() && !release.is_empty())
}

/// The last part of a link's target, whether or not the target exists.
fn target_name(link: &Path) -> Option<String> {
    Some(fs::read_link(link).ok()?.file_name()?.to_str()?.to_owned())
}

fn list(directory: &Path) -> anyhow::Result<Vec<String>> {
    files::list(directory).with_context(|| format!("Reading {}", directory.display()))
}

fn remove(directory: &Path) -> anyhow::Result<()> {
    fs::remove_dir_all(directory).with_context(|| format!("Removing {}", directory.display()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic fails the test")]
mod tests {
    use super::*;
    use crate::testing::version;
    use links_base::layout::temporary;

    fn layout() -> (tempfile::TempDir, Layout) {
        temporary(&[Layout::instances_dir])
    }

    #[test]
    fn setting_the_current_release_sets_the_previous_one() {
        let (_root, layout) = layout();
        let state = State::new(&layout);
        assert_eq!((state.current(), state.previous()), (None, None));
        for release in ["a", "b", "b"] {
            state.set_current(release).unwrap();
        }
        assert_eq!(
            (state.current().as_deref(), state.previous().as_deref()),
            (Some("b"), Some("a"))
        );
    }

    #[test]
    fn the_instances_are_those_with_a_link() {
        let (_root, layout) = layout();
        let state = State::new(&layout);
        for instance in [10, 2] {
            state.point(instance, &version("r/c")).unwrap();
        }
        assert_eq!(state.instances().unwrap(), [2, 10]);
        assert_eq!(state.points(10), Some(version("r/c")));
        state.forget(2).unwrap();
        assert_eq!(state.instances().unwrap(), [10]);
    }

    #[test]
    fn an_instance_without_a_configuration_gets_one() {
        let (_root, layout) = layout();
        let state = State::new(&layout);
        Store::new(&layout).point(1, "r").unwrap();
        state.point(2, &version("r/b")).unwrap();
        assert!(state.adopt("a").unwrap());
        assert!(!state.adopt("a").unwrap());
        assert_eq!(state.points(1), Some(version("r/a")));
        assert_eq!(state.current().as_deref(), Some("r"));
        assert_eq!(state.points(2), Some(version("r/b")));
    }

    #[test]
    fn other_files_among_the_backups_are_kept() {
        let (_root, layout) = layout();
        let directory = layout.backups_dir();
        fs::create_dir_all(&directory).unwrap();
        let make = |age: u64, name: &str| {
            let time = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(age);
            let file = fs::File::create(directory.join(name)).unwrap();
            file.set_modified(time).unwrap();
        };
        let own = ["before-holidays.db", "links.db", "schema-.db", "schema-old-before-.db"];
        own.iter().for_each(|name| make(0, name));
        for version in 1..=3 {
            make(version.into(), &backup_name(version, "1.2.3-abc"));
        }
        State::new(&layout).prune_backups().unwrap();
        let kept = [2, 3].map(|version| backup_name(version, "1.2.3-abc"));
        let mut expected: Vec<_> = own.map(str::to_owned).into_iter().chain(kept).collect();
        expected.sort();
        assert_eq!(list(&directory).unwrap(), expected);
    }

    #[test]
    fn the_report_of_an_instance_is_not_trusted() {
        let (_root, layout) = layout();
        let state = State::new(&layout);
        let path = layout.instance_runs(1);
        fs::create_dir_all(layout.instance_run_dir(1)).unwrap();
        let report = |text: &str| fs::write(&path, text).unwrap();
        report(r#"{"release":"r","config":"c"}"#);
        assert_eq!(state.runs(1), Some(version("r/c")));
        for text in [
            r#"{"release":"../../etc","config":"c"}"#,
            r#"{"release":"r","config":"\u001b[2J"}"#,
        ] {
            report(text);
            assert_eq!(state.runs(1), None, "{text}");
        }
        report(&format!("{}{{\"release\":\"r\",\"config\":\"c\"}}", " ".repeat(5000)));
        assert_eq!(state.runs(1), None);
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/etc/hostname", &path).unwrap();
        assert_eq!(state.runs(1), None);
        fs::remove_file(&path).unwrap();
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(state.runs(1), None);
    }

    #[test]
    fn pruning_keeps_two_old_releases_and_everything_in_use() {
        let (_root, layout) = layout();
        let state = State::new(&layout);
        for (age, name) in ["1", "2", "3", "4", "5"].iter().enumerate() {
            let directory = layout.releases_dir().join(name);
            fs::create_dir_all(&directory).unwrap();
            let time = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(age as u64);
            fs::File::open(directory).unwrap().set_modified(time).unwrap();
            fs::create_dir_all(layout.compiled_dir().join(name)).unwrap();
        }
        for name in ["a", "b"] {
            fs::create_dir_all(layout.applied_dir().join(name)).unwrap();
        }
        state.set_current("1").unwrap();
        state.set_current("5").unwrap();
        state.point(1, &version("5/b")).unwrap();
        state.prune().unwrap();
        assert_eq!(
            list(&layout.releases_dir()).unwrap(),
            ["1", "4", "5"],
            "the previous release was removed"
        );
        assert_eq!(list(&layout.compiled_dir()).unwrap(), ["1", "4", "5"]);
        assert_eq!(list(&layout.applied_dir()).unwrap(), ["b"]);
    }
}
