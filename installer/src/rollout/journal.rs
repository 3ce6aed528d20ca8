//! What an unfinished rollout has to take back: written before its first change, gone after its last.

use std::collections::BTreeMap;
use std::fs;
use std::io;

use anyhow::{Context as _, ensure};
use serde::{Deserialize, Serialize};

use super::plan::{Observed, Version};
use super::state::State;
use crate::files;
use crate::layout::Layout;

/// The format written and understood here.
const FORMAT: u32 = 1;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Journal {
    format: u32,
    pub wanted: Version,
    /// What each instance that may change had to run before; none for one that is new.
    pub before: BTreeMap<u16, Option<Version>>,
    pub current: Option<String>,
    pub previous: Option<String>,
}

impl Journal {
    pub fn new(observed: &Observed, moving: &[u16], wanted: Version, previous: Option<String>) -> Self {
        let points = |instance: &u16| observed.instances.get(instance).and_then(|is| is.points.clone());
        Self {
            format: FORMAT,
            wanted,
            before: moving.iter().map(|instance| (*instance, points(instance))).collect(),
            current: observed.current.clone(),
            previous,
        }
    }

    /// # Errors
    /// It cannot be written and synced.
    pub fn write(&self, layout: &Layout) -> anyhow::Result<()> {
        files::replace(&layout.rollout_journal(), &serde_json::to_vec_pretty(self)?, 0o644)
    }

    /// None: no rollout is unfinished.
    ///
    /// # Errors
    /// It cannot be understood.
    pub fn read(layout: &Layout) -> anyhow::Result<Option<Self>> {
        let path = layout.rollout_journal();
        let bytes = match fs::read(&path) {
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

    /// # Errors
    /// It cannot be removed for good.
    pub fn remove(layout: &Layout) -> anyhow::Result<()> {
        let path = layout.rollout_journal();
        let removed = || -> io::Result<()> {
            files::remove_if_present(&path)?;
            files::sync_directory(&layout.state_dir())
        };
        removed().with_context(|| format!("Removing {}", path.display()))
    }

    /// Points everything back. What is up goes on with what it runs. Returns the instances that were never to run
    /// anything before, which now have nothing to run again.
    ///
    /// # Errors
    /// A link cannot be moved; the journal stays then.
    pub fn take_back(&self, layout: &Layout) -> anyhow::Result<Vec<u16>> {
        let state = State::new(layout);
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
        Self::remove(layout)?;
        Ok(new)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use super::super::plan::tests::{Host, version};
    use super::*;
    use crate::layout::temporary;

    fn layout() -> (tempfile::TempDir, Layout) {
        temporary(&[Layout::instances_dir, Layout::releases_dir, Layout::applied_dir])
    }

    #[test]
    fn an_interrupted_rollout_is_taken_back() {
        let (_root, layout) = layout();
        let state = State::new(&layout);
        let before = Host::running(2, "old/a").0;
        for instance in [1, 2] {
            state.point(instance, &version("old/a")).unwrap();
        }
        state.set_current("older").unwrap();
        state.set_current("old").unwrap();

        Journal::new(&before, &[1, 2, 3], version("new/b"), state.previous())
            .write(&layout)
            .unwrap();
        // The power fails after the second instance, or after all of it but the end.
        state.point(1, &version("new/b")).unwrap();
        state.point(3, &version("new/b")).unwrap();
        state.set_current("new").unwrap();

        let journal = Journal::read(&layout).unwrap().unwrap();
        assert_eq!(journal.take_back(&layout).unwrap(), [3]);
        for instance in [1, 2] {
            assert_eq!(state.points(instance), Some(version("old/a")));
        }
        assert_eq!(state.points(3), None);
        assert_eq!(
            (state.current().as_deref(), state.previous().as_deref()),
            (Some("old"), Some("older"))
        );
        assert_eq!(Journal::read(&layout).unwrap(), None);
    }

    #[test]
    fn a_first_rollout_leaves_no_current() {
        let (_root, layout) = layout();
        let state = State::new(&layout);
        Journal::new(&Observed::default(), &[1], version("new"), None)
            .write(&layout)
            .unwrap();
        state.point(1, &version("new")).unwrap();
        state.set_current("new").unwrap();
        Journal::read(&layout).unwrap().unwrap().take_back(&layout).unwrap();
        assert_eq!((state.points(1), state.current()), (None, None));
    }

    #[test]
    fn a_journal_of_another_format_is_not_guessed_at() {
        let (_root, layout) = layout();
        let mut journal = Journal::new(&Observed::default(), &[1], version("new"), None);
        journal.format = 2;
        journal.write(&layout).unwrap();
        let error = Journal::read(&layout).unwrap_err();
        assert!(error.to_string().contains("format 2 is not understood"), "{error}");
    }
}
