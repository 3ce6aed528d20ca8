//! The journal of a rollout: what to roll back if it is interrupted. It exists from before the first change until after the
//! last.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use anyhow::{Context as _, ensure};
use serde::{Deserialize, Serialize};

use super::state::State;
use super::version::Version;
use links_base::files;

/// The format that this version writes and understands.
const FORMAT: u32 = 1;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Journal {
    format: u32,
    /// The version that is rolled out.
    pub wanted: Version,
    /// What each affected instance was set to run before the rollout. `None` for a new instance.
    pub before: BTreeMap<u16, Option<Version>>,
    /// The current release before the rollout.
    pub current: Option<String>,
    /// The previous release before the rollout.
    pub previous: Option<String>,
}

impl Journal {
    /// A journal of the present state. `before` is what each affected instance is set to run now.
    pub fn new(state: &State, wanted: Version, before: BTreeMap<u16, Option<Version>>) -> Self {
        Self {
            format: FORMAT,
            wanted,
            before,
            current: state.current(),
            previous: state.previous(),
        }
    }

    /// Writes the journal (`Layout::rollout_journal`) and syncs it.
    ///
    /// # Errors
    /// The file cannot be written or synced.
    pub fn write(&self, path: &Path) -> anyhow::Result<()> {
        files::replace(path, &serde_json::to_vec_pretty(self)?, 0o644)
    }

    /// Reads the journal. `None` if no rollout is unfinished.
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
            "{}: format {} is not understood",
            path.display(),
            journal.format
        );
        Ok(Some(journal))
    }

    /// Removes the journal durably.
    ///
    /// # Errors
    /// The file cannot be removed, or its directory cannot be synced.
    pub fn remove(path: &Path) -> anyhow::Result<()> {
        let removed = || -> io::Result<()> {
            files::remove_if_present(path)?;
            files::sync_directory(path.parent().unwrap_or(Path::new("/")))
        };
        removed().with_context(|| format!("Removing {}", path.display()))
    }

    /// Restores all links, and removes the journal at `path`. Running instances keep running what they run. Returns the new instances, which again have nothing
    /// to run.
    ///
    /// # Errors
    /// A link cannot be restored. The journal is then kept.
    pub fn take_back(&self, state: &State, path: &Path) -> anyhow::Result<Vec<u16>> {
        let mut new = vec![];
        for (instance, version) in self.before.iter().rev() {
            match version {
                Some(version) => state.point(*instance, version)?,
                None => {
                    state.forget(*instance)?;
                    new.push(*instance);
                }
            }
        }
        state.restore_current(self.current.as_deref(), self.previous.as_deref())?;
        Self::remove(path)?;
        Ok(new)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic fails the test")]
mod tests {
    use super::*;
    use crate::testing::version;
    use links_base::layout::{Layout, temporary};

    fn layout() -> (tempfile::TempDir, Layout) {
        temporary(&[Layout::instances_dir, Layout::releases_dir, Layout::applied_dir])
    }

    #[test]
    fn an_interrupted_rollout_is_rolled_back() {
        let (_root, layout) = layout();
        let state = State::new(&layout);
        let old = Some(version("old/a"));
        for instance in [1, 2] {
            state.point(instance, &version("old/a")).unwrap();
        }
        state.set_current("older").unwrap();
        state.set_current("old").unwrap();

        let before = BTreeMap::from([(1, old.clone()), (2, old.clone()), (3, None)]);
        Journal::new(&state, version("new/b"), before)
            .write(&layout.rollout_journal())
            .unwrap();
        // The power fails just before the end of the rollout.
        state.point(1, &version("new/b")).unwrap();
        state.point(3, &version("new/b")).unwrap();
        state.set_current("new").unwrap();

        let journal = Journal::read(&layout.rollout_journal()).unwrap().unwrap();
        assert_eq!(journal.take_back(&state, &layout.rollout_journal()).unwrap(), [3]);
        for instance in [1, 2] {
            assert_eq!(state.points(instance), old);
        }
        assert_eq!(state.points(3), None);
        assert_eq!(
            (state.current().as_deref(), state.previous().as_deref()),
            (Some("old"), Some("older"))
        );
        assert_eq!(Journal::read(&layout.rollout_journal()).unwrap(), None);
    }

    #[test]
    fn rolling_back_a_first_rollout_leaves_no_current_release() {
        let (_root, layout) = layout();
        let state = State::new(&layout);
        Journal::new(&state, version("new"), BTreeMap::from([(1, None)]))
            .write(&layout.rollout_journal())
            .unwrap();
        state.point(1, &version("new")).unwrap();
        state.set_current("new").unwrap();
        let journal = Journal::read(&layout.rollout_journal()).unwrap().unwrap();
        journal.take_back(&state, &layout.rollout_journal()).unwrap();
        assert_eq!((state.points(1), state.current()), (None, None));
    }

    #[test]
    fn a_journal_of_another_format_is_refused() {
        let (_root, layout) = layout();
        let mut journal = Journal::new(&State::new(&layout), version("new"), BTreeMap::new());
        journal.format = 2;
        journal.write(&layout.rollout_journal()).unwrap();
        let error = Journal::read(&layout.rollout_journal()).unwrap_err();
        assert!(error.to_string().contains("format 2 is not understood"), "{error}");
    }
}
