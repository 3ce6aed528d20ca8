//! The record that links keeps of its site: what it wrote last, and how to undo a change that is not finished.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use links_base::files;

/// The version of the record's format that this code writes and reads.
const FORMAT: u32 = 1;

/// The current or planned contents of one path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    Absent,
    File(String),
    Link(PathBuf),
}

impl State {
    /// Reads the current state of a path.
    ///
    /// # Errors
    /// The path cannot be read, or is neither a text file nor a symbolic link.
    pub fn of(path: &Path) -> anyhow::Result<Self> {
        let read = || -> io::Result<Self> {
            Ok(match fs::symlink_metadata(path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Self::Absent,
                Err(error) => return Err(error),
                Ok(metadata) if metadata.is_symlink() => Self::Link(fs::read_link(path)?),
                Ok(_) => Self::File(fs::read_to_string(path)?),
            })
        };
        read().with_context(|| format!("Reading {}", path.display()))
    }

    /// Brings a path into this state.
    ///
    /// # Errors
    /// The directory is missing, full or not writable.
    pub fn put(&self, path: &Path) -> anyhow::Result<()> {
        match self {
            Self::Absent => files::remove_if_present(path).with_context(|| format!("Removing {}", path.display())),
            Self::File(text) => files::replace(path, text.as_bytes(), 0o644),
            Self::Link(target) => files::replace_link(path, target),
        }
    }
}

/// A change of one path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    pub path: PathBuf,
    pub before: State,
    pub after: State,
}

impl Change {
    /// Restores the state before the change, unless somebody else has changed the path since. Returns whether it did.
    fn undo(&self) -> anyhow::Result<bool> {
        let is_ours = State::of(&self.path)? == self.after;
        if is_ours {
            self.before.put(&self.path)?;
        }
        Ok(is_ours)
    }
}

/// How to undo a change of the site.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Undo {
    /// The changes, in the order in which they are made.
    changes: Vec<Change>,
    /// The value of [`Record::written`] before the change.
    written: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The file of the record (`Layout::site_state`).
    #[serde(skip)]
    path: PathBuf,
    format: u32,
    /// The SHA-256 of the site that links wrote last. A site with another digest was edited by somebody else.
    pub written: Option<String>,
    /// How to undo a change that nginx is not yet known to run.
    unfinished: Option<Undo>,
    /// How to undo what the current rollout has changed.
    rollout: Option<Undo>,
    /// The group of nginx's workers when root last asked nginx. At boot it gets the directory of the instances' sockets.
    #[serde(default)]
    worker_group: Option<String>,
}

impl Record {
    /// The record before links has written a site. `path` is its file.
    pub fn empty(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            format: FORMAT,
            written: None,
            unfinished: None,
            rollout: None,
            worker_group: None,
        }
    }

    /// Reads the record. Without a file, it is empty.
    ///
    /// # Errors
    /// The file cannot be read or parsed, or has another format.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let bytes = match fs::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::empty(path)),
            bytes => bytes.with_context(|| format!("Reading {}", path.display()))?,
        };
        let record: Self = serde_json::from_slice(&bytes).with_context(|| format!("Reading {}", path.display()))?;
        ensure!(
            record.format == FORMAT,
            "{}: format {} is not understood",
            path.display(),
            record.format
        );
        Ok(Self {
            path: path.to_owned(),
            ..record
        })
    }

    pub fn worker_group(&self) -> Option<&str> {
        self.worker_group.as_deref()
    }

    /// # Errors
    /// The record cannot be written.
    pub fn set_worker_group(&mut self, group: &str) -> anyhow::Result<()> {
        if self.worker_group.as_deref() == Some(group) {
            return Ok(());
        }
        self.worker_group = Some(group.to_owned());
        self.write()
    }

    fn write(&self) -> anyhow::Result<()> {
        files::replace(&self.path, &serde_json::to_vec_pretty(self)?, 0o644)
    }

    /// Makes the changes, after writing to the disk how to undo them.
    ///
    /// # Errors
    /// A change cannot be made; [`Self::undo_unfinished`] undoes the others.
    pub fn change(&mut self, changes: &[Change], written: Option<String>) -> anyhow::Result<()> {
        self.unfinished = Some(Undo {
            changes: changes.to_vec(),
            written: std::mem::replace(&mut self.written, written),
        });
        self.write()?;
        changes.iter().try_for_each(|change| change.after.put(&change.path))
    }

    /// Keeps the unfinished change. With `in_rollout`, it can still be undone together with the rollout, until that is over.
    ///
    /// # Errors
    /// The record cannot be written.
    pub fn finish(&mut self, in_rollout: bool) -> anyhow::Result<()> {
        let Some(undo) = self.unfinished.take() else {
            return Ok(());
        };
        if in_rollout {
            self.rollout = Some(match self.rollout.take() {
                None => undo,
                Some(before) => Undo {
                    changes: [before.changes, undo.changes].concat(),
                    ..before
                },
            });
        }
        self.write()
    }

    pub fn is_unfinished(&self) -> bool {
        self.unfinished.is_some()
    }

    pub fn has_rollout(&self) -> bool {
        self.rollout.is_some()
    }

    /// Undoes a change that was not finished. Returns the paths that stay because somebody else has changed them since.
    ///
    /// # Errors
    /// A file cannot be written. The record is kept in that case.
    pub fn undo_unfinished(&mut self) -> anyhow::Result<Vec<PathBuf>> {
        self.undo(|record| &mut record.unfinished)
    }

    /// Undoes what the current rollout has changed. Returns the same as [`Self::undo_unfinished`].
    ///
    /// # Errors
    /// The same as [`Self::undo_unfinished`].
    pub fn undo_rollout(&mut self) -> anyhow::Result<Vec<PathBuf>> {
        self.undo(|record| &mut record.rollout)
    }

    /// Ends the rollout and keeps its site.
    ///
    /// # Errors
    /// The record cannot be written.
    pub fn end_rollout(&mut self) -> anyhow::Result<()> {
        match self.rollout.take() {
            Some(_) => self.write(),
            None => Ok(()),
        }
    }

    fn undo(&mut self, field: impl Fn(&mut Self) -> &mut Option<Undo>) -> anyhow::Result<Vec<PathBuf>> {
        let Some(undo) = field(self).clone() else {
            return Ok(vec![]);
        };
        let mut kept = vec![];
        for change in undo.changes.iter().rev() {
            if !change.undo()? && State::of(&change.path)? != change.before {
                kept.push(change.path.clone());
            }
        }
        self.written.clone_from(&undo.written);
        *field(self) = None;
        self.write()?;
        Ok(kept)
    }
}

pub fn digest(text: &str) -> String {
    HEXLOWER.encode(&Sha256::digest(text))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use super::*;
    use links_base::layout::{Layout, temporary};

    fn file(text: &str) -> State {
        State::File(text.to_owned())
    }

    /// A host with a site and a planned change of the site and its link.
    fn setting() -> (tempfile::TempDir, Layout, Vec<Change>) {
        let (root, layout) = temporary(&[Layout::state_dir]);
        let at = |name: &str| root.path().join(name);
        fs::write(at("site"), "old").unwrap();
        let changes = vec![
            Change {
                path: at("default"),
                before: State::Absent,
                after: State::Absent,
            },
            Change {
                path: at("site"),
                before: file("old"),
                after: file("new"),
            },
            Change {
                path: at("link"),
                before: State::Absent,
                after: State::Link("site".into()),
            },
        ];
        (root, layout, changes)
    }

    fn states(changes: &[Change]) -> Vec<State> {
        changes.iter().map(|change| State::of(&change.path).unwrap()).collect()
    }

    fn before(changes: &[Change]) -> Vec<State> {
        changes.iter().map(|change| change.before.clone()).collect()
    }

    #[test]
    fn an_interrupted_change_is_undone_wherever_it_stopped() {
        for done in 0..=3 {
            let (_root, layout, changes) = setting();
            let mut record = Record::empty(&layout.site_state());
            record.change(&[], Some("before".into())).unwrap();
            record.finish(false).unwrap();
            // The record is written first. Then the power fails after `done` of the changes.
            record.change(&changes, Some("after".into())).unwrap();
            for change in changes.iter().skip(done).rev() {
                change.before.put(&change.path).unwrap();
            }
            let mut found = Record::read(&layout.site_state()).unwrap();
            assert!(found.is_unfinished());
            assert_eq!(found.undo_unfinished().unwrap(), Vec::<PathBuf>::new());
            assert_eq!(states(&changes), before(&changes), "after {done}");
            let found = Record::read(&layout.site_state()).unwrap();
            assert_eq!(
                (found.written.as_deref(), found.is_unfinished()),
                (Some("before"), false)
            );
        }
    }

    #[test]
    fn a_finished_change_and_a_foreign_edit_are_not_undone() {
        let (_root, layout, changes) = setting();
        let mut record = Record::empty(&layout.site_state());
        record.change(&changes, Some("after".into())).unwrap();
        record.finish(false).unwrap();
        assert_eq!(
            Record::read(&layout.site_state()).unwrap().undo_unfinished().unwrap(),
            Vec::<PathBuf>::new()
        );
        assert_eq!(states(&changes)[1], file("new"));

        record.change(&changes[1..], Some("again".into())).unwrap();
        fs::write(&changes[1].path, "certbot's").unwrap();
        assert_eq!(record.undo_unfinished().unwrap(), [changes[1].path.clone()]);
        assert_eq!(states(&changes)[1], file("certbot's"));
    }

    #[test]
    fn a_rollout_is_undone_with_all_its_changes_until_it_ends() {
        let (_root, layout, changes) = setting();
        let mut record = Record::empty(&layout.site_state());
        record.change(&changes, Some("first".into())).unwrap();
        record.finish(true).unwrap();
        let second = Change {
            before: file("new"),
            after: file("newer"),
            ..changes[1].clone()
        };
        record
            .change(std::slice::from_ref(&second), Some("second".into()))
            .unwrap();
        record.finish(true).unwrap();
        let mut undone = record.clone();
        undone.undo_rollout().unwrap();
        assert_eq!((states(&changes), undone.written.clone()), (before(&changes), None));

        second.after.put(&second.path).unwrap();
        record.end_rollout().unwrap();
        assert_eq!(
            Record::read(&layout.site_state()).unwrap().undo_rollout().unwrap(),
            Vec::<PathBuf>::new()
        );
        assert_eq!(states(&changes)[1], file("newer"));
    }

    #[test]
    fn the_workers_group_survives_changes_and_is_optional_in_the_file() {
        let (_root, layout, changes) = setting();
        fs::write(
            layout.site_state(),
            r#"{"format": 1, "written": null, "unfinished": null, "rollout": null}"#,
        )
        .unwrap();
        let mut record = Record::read(&layout.site_state()).unwrap();
        assert_eq!(record.worker_group(), None);
        record.set_worker_group("nginx").unwrap();
        record.change(&changes, None).unwrap();
        record.undo_unfinished().unwrap();
        assert_eq!(
            Record::read(&layout.site_state()).unwrap().worker_group(),
            Some("nginx")
        );
    }

    #[test]
    fn an_unknown_format_is_refused() {
        let (_root, layout, _) = setting();
        let record = Record {
            format: 2,
            ..Record::empty(&layout.site_state())
        };
        record.write().unwrap();
        let error = Record::read(&layout.site_state()).unwrap_err();
        assert!(error.to_string().contains("format 2 is not understood"), "{error}");
    }
}
