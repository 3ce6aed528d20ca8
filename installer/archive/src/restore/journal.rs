//! The journal of a restore: how to undo it, also after a crash in the middle of it. It exists from before the first change until
//! after the last, and while it exists the agent counts no click.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use serde::{Deserialize, Serialize};

use super::plan::{Plan, Step};
use links_base::files;

/// The format that this version writes and understands.
const FORMAT: u32 = 1;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Journal {
    format: u32,
    /// The time of the restore, as a part of names.
    pub stamp: String,
    /// Whether links.service ran before.
    pub was_active: bool,
    /// Whether links has been started with what was restored, so that somebody may have written to it.
    pub is_started: bool,
    pub database: Option<SwappedDatabase>,
    /// In the order in which they are swapped.
    pub items: Vec<SwappedItem>,
    /// The contents of `Layout::restored_marker` before.
    pub marker: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwappedDatabase {
    pub path: PathBuf,
    pub aside: String,
    /// Whether there was a database before.
    pub replaces: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwappedItem {
    pub path: PathBuf,
    /// The directory that gets it.
    pub aside: PathBuf,
    /// Whether there was one before.
    pub was_here: bool,
}

impl Journal {
    /// The journal of a plan.
    pub fn new(plan: &Plan, stamp: &str, was_active: bool, marker: Option<String>) -> Self {
        let mut journal = Self {
            format: FORMAT,
            stamp: stamp.to_owned(),
            was_active,
            is_started: false,
            database: None,
            items: vec![],
            marker,
        };
        for step in &plan.steps {
            match step {
                Step::SwapDatabase { path, aside, replaces } => {
                    journal.database = Some(SwappedDatabase {
                        path: path.clone(),
                        aside: aside.clone(),
                        replaces: *replaces,
                    });
                }
                Step::SwapItem {
                    path, aside, is_here, ..
                } => journal.items.push(SwappedItem {
                    path: path.clone(),
                    aside: aside.clone(),
                    was_here: *is_here,
                }),
                _ => {}
            }
        }
        journal
    }

    /// Writes the journal (`Layout::restore_journal`) and syncs it.
    ///
    /// # Errors
    /// The file cannot be written or synced.
    pub fn write(&self, path: &Path) -> anyhow::Result<()> {
        files::replace(path, &serde_json::to_vec_pretty(self)?, 0o644)
    }

    /// Reads the journal. `None` if no restore is unfinished.
    ///
    /// # Errors
    /// The file cannot be read or parsed.
    pub fn read(path: &Path) -> anyhow::Result<Option<Self>> {
        let bytes = match fs::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            bytes => bytes.with_context(|| format!("Reading {}", path.display()))?,
        };
        let journal: Self = serde_json::from_slice(&bytes).with_context(|| format!("Reading {}", path.display()))?;
        ensure!(
            journal.format == FORMAT,
            "{} has the format {}, which this version does not know: use the version of links that wrote it",
            path.display(),
            journal.format
        );
        Ok(Some(journal))
    }

    /// Removes the journal, which ends the restore.
    ///
    /// # Errors
    /// The file cannot be removed.
    pub fn remove(path: &Path) -> anyhow::Result<()> {
        let remove = || -> io::Result<()> {
            files::remove_if_present(path)?;
            files::sync_directory(path.parent().unwrap_or(Path::new("/")))
        };
        remove().with_context(|| format!("Removing {}", path.display()))
    }
}

/// Swaps an item: the former one goes to `aside`, and the one in `staged` takes its place, if there is one.
///
/// # Errors
/// The file system refuses a change. What was done can be undone by [`unswap`].
pub fn swap(item: &Path, aside: &Path, staged: &Path) -> anyhow::Result<()> {
    let swapped = || -> io::Result<()> {
        if fs::symlink_metadata(item).is_ok() {
            let kept = aside.join(item.file_name().unwrap_or_default());
            fs::rename(item, kept)?;
        }
        match fs::rename(staged, item) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => files::sync_directory(item.parent().unwrap_or(Path::new("/"))),
        }
    };
    swapped().with_context(|| format!("Replacing {}", item.display()))
}

/// Undoes [`swap`], also one that was cut off or never begun.
///
/// # Errors
/// The file system refuses a change.
pub fn unswap(item: &SwappedItem) -> anyhow::Result<()> {
    let SwappedItem { path, aside, was_here } = item;
    let kept = aside.join(path.file_name().unwrap_or_default());
    let unswapped = || -> io::Result<()> {
        let is_kept = fs::symlink_metadata(&kept).is_ok();
        if is_kept || !was_here {
            remove(path)?;
        }
        if is_kept {
            fs::rename(&kept, path)?;
        }
        files::sync_directory(path.parent().unwrap_or(Path::new("/")))
    };
    unswapped().with_context(|| format!("Putting {} back", path.display()))
}

/// Removes a file, a symbolic link or a directory, if it exists.
fn remove(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use super::super::plan::tests::{manifest, observed};
    use super::super::plan::{Present, plan};
    use super::*;
    use crate::manifest::Kind;

    #[test]
    fn a_journal_says_how_to_undo_its_plan() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("restore.json");
        assert_eq!(Journal::read(&path).unwrap(), None);
        let plan = plan(
            &manifest(Some(Kind::Whole)),
            &observed(Some(Present::Links(1))),
            1_900_000_000,
            true,
        )
        .unwrap();
        let journal = Journal::new(&plan, "20300317T174640Z", true, Some("old".to_owned()));
        assert!(journal.database.as_ref().unwrap().replaces);
        let was_here: Vec<_> = journal.items.iter().map(|item| item.was_here).collect();
        assert_eq!(was_here, [true, true, false]);
        journal.write(&path).unwrap();
        assert_eq!(Journal::read(&path).unwrap(), Some(journal));
        Journal::remove(&path).unwrap();
        assert_eq!(Journal::read(&path).unwrap(), None);
    }

    struct Setting {
        root: tempfile::TempDir,
    }

    impl Setting {
        fn new() -> Self {
            let setting = Self {
                root: tempfile::tempdir().unwrap(),
            };
            for name in ["replaced", "staged"] {
                fs::create_dir(setting.at(name)).unwrap();
            }
            setting
        }

        fn at(&self, name: &str) -> PathBuf {
            self.root.path().join(name)
        }

        fn item(&self, was_here: bool) -> SwappedItem {
            SwappedItem {
                path: self.at("nginx.d"),
                aside: self.at("replaced"),
                was_here,
            }
        }

        fn make(&self, name: &str, text: &str) {
            fs::create_dir_all(self.at(name)).unwrap();
            fs::write(self.at(name).join("a.conf"), text).unwrap();
        }

        fn text(&self, name: &str) -> Option<String> {
            fs::read_to_string(self.at(name).join("a.conf")).ok()
        }
    }

    #[test]
    fn a_swap_keeps_what_it_replaces_and_can_be_undone() {
        let setting = Setting::new();
        setting.make("nginx.d", "old");
        setting.make("staged/nginx.d", "new");
        swap(
            &setting.at("nginx.d"),
            &setting.at("replaced"),
            &setting.at("staged/nginx.d"),
        )
        .unwrap();
        assert_eq!(setting.text("nginx.d").as_deref(), Some("new"));
        assert_eq!(setting.text("replaced/nginx.d").as_deref(), Some("old"));
        let item = setting.item(true);
        unswap(&item).unwrap();
        unswap(&item).unwrap();
        assert_eq!(setting.text("nginx.d").as_deref(), Some("old"));
        assert_eq!(setting.text("replaced/nginx.d"), None);
    }

    #[test]
    fn a_swap_that_never_began_or_was_cut_off_is_undone() {
        let setting = Setting::new();
        setting.make("nginx.d", "old");
        unswap(&setting.item(true)).unwrap();
        assert_eq!(setting.text("nginx.d").as_deref(), Some("old"));
        // After the first of the two renames.
        fs::rename(setting.at("nginx.d"), setting.at("replaced/nginx.d")).unwrap();
        unswap(&setting.item(true)).unwrap();
        assert_eq!(setting.text("nginx.d").as_deref(), Some("old"));
    }

    #[test]
    fn what_was_not_here_goes_again_and_what_the_backup_lacks_comes_back() {
        let setting = Setting::new();
        setting.make("staged/nginx.d", "new");
        swap(
            &setting.at("nginx.d"),
            &setting.at("replaced"),
            &setting.at("staged/nginx.d"),
        )
        .unwrap();
        assert_eq!(setting.text("nginx.d").as_deref(), Some("new"));
        unswap(&setting.item(false)).unwrap();
        assert!(!setting.at("nginx.d").exists());

        setting.make("nginx.d", "old");
        swap(
            &setting.at("nginx.d"),
            &setting.at("replaced"),
            &setting.at("staged/none"),
        )
        .unwrap();
        assert!(!setting.at("nginx.d").exists());
        unswap(&setting.item(true)).unwrap();
        assert_eq!(setting.text("nginx.d").as_deref(), Some("old"));
    }
}
