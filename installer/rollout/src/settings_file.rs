//! A file in links.toml.d that a command of linksctl writes, and the rollout of a change of it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};

use crate::apply::Failure;
use crate::goal::Force;
use crate::session::Session;
use links_base::files::{self, make_directory};
use links_base::log;
use links_config::links::Input;
use links_release::Release;

/// A change of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SettingsFile {
    path: PathBuf,
    /// The text before. `None` if there is no such file yet.
    before: Option<String>,
    after: String,
}

impl SettingsFile {
    /// Plans a change. `inputs` are the files with the settings. `edit` makes the new text from the present one, or from `new` if
    /// there is no such file yet.
    ///
    /// # Errors
    /// `edit` fails.
    pub fn plan(
        path: PathBuf,
        inputs: &[Input],
        new: &str,
        edit: impl FnOnce(&str) -> anyhow::Result<String>,
    ) -> anyhow::Result<Self> {
        let file = path.display().to_string();
        let before = inputs.iter().find(|input| input.file == file);
        let before = before.map(|input| input.text.clone());
        let after = edit(before.as_deref().unwrap_or(new)).with_context(|| format!("Reading {file}"))?;
        Ok(Self { path, before, after })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The name of the file in an [`Input`].
    pub fn name(&self) -> String {
        self.path.display().to_string()
    }

    /// The text after the change.
    pub fn text(&self) -> &str {
        &self.after
    }

    /// The files with the settings after the change, in the order in which they are read: links.toml, and the others in the byte
    /// order of their names.
    pub fn among(&self, inputs: &[Input]) -> Vec<Input> {
        let file = self.name();
        let (first, others) = inputs.split_at(inputs.len().min(1));
        let mut others: Vec<_> = others.iter().filter(|input| input.file != file).cloned().collect();
        others.push(Input {
            file,
            text: self.after.clone(),
        });
        others.sort_by(|a, b| a.file.cmp(&b.file));
        [first, &others].concat()
    }

    fn changes_nothing(&self) -> bool {
        self.before.as_ref() == Some(&self.after)
    }

    /// Writes the file.
    ///
    /// # Errors
    /// Somebody else has edited the file meanwhile, or the disk is full.
    pub fn apply(&self) -> anyhow::Result<()> {
        match &self.before {
            _ if self.changes_nothing() => Ok(()),
            Some(before) => files::edit(&self.path, before.as_bytes(), self.after.as_bytes()),
            None => {
                make_directory(self.path.parent().unwrap_or(Path::new("/")), 0o755)?;
                ensure!(
                    !self.path.exists(),
                    "{} was written by somebody else in the meantime, so it was left unchanged",
                    self.path.display()
                );
                files::replace(&self.path, self.after.as_bytes(), 0o644)
            }
        }
    }

    /// Brings the file back to what it was before.
    ///
    /// # Errors
    /// Somebody else has edited the file meanwhile, or the disk is full.
    pub fn undo(&self) -> anyhow::Result<()> {
        match &self.before {
            _ if self.changes_nothing() => Ok(()),
            Some(before) => files::edit(&self.path, self.after.as_bytes(), before.as_bytes()),
            None => {
                let removed = fs::read_to_string(&self.path).and_then(|text| match text == self.after {
                    true => fs::remove_file(&self.path),
                    false => Err(io::Error::other("somebody else has edited it")),
                });
                removed.with_context(|| format!("Removing {}", self.path.display()))
            }
        }
    }

    /// Writes the file and rolls the settings out. If that fails, the file is as before.
    ///
    /// # Errors
    /// The file cannot be written. For others see [`Session::bring_about`].
    pub fn roll_out(&self, session: &mut Session<'_>, release: &Release) -> anyhow::Result<()> {
        self.apply()?;
        let rolled = session.roll(release, Force::default());
        // After the commit, the settings are in effect.
        let is_in_effect = matches!(
            rolled.as_ref().map_err(|error| error.downcast_ref::<Failure>()),
            Ok(()) | Err(Some(Failure::Afterwards { .. }))
        );
        if !is_in_effect && let Err(error) = self.undo() {
            // The error to return is the rollout's own.
            log::error!("linksctl: {} could not be restored: {error:#}", self.path.display());
        }
        rolled
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use super::*;

    fn input(file: &Path, text: &str) -> Input {
        Input {
            file: file.display().to_string(),
            text: text.to_owned(),
        }
    }

    fn plan(path: &Path, inputs: &[Input]) -> SettingsFile {
        SettingsFile::plan(path.to_owned(), inputs, "new", |text| Ok(format!("{text}!"))).unwrap()
    }

    #[test]
    fn a_change_is_written_and_undone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("links.toml.d/m.toml");
        let text = || fs::read_to_string(&path).ok();
        let first = plan(&path, &[]);
        first.apply().unwrap();
        assert_eq!(text().as_deref(), Some("new!"));
        let second = plan(&path, &[input(&path, "new!")]);
        second.apply().unwrap();
        assert_eq!((text().as_deref(), second.text()), (Some("new!!"), "new!!"));
        second.undo().unwrap();
        first.undo().unwrap();
        assert_eq!(text(), None);
    }

    #[test]
    fn what_somebody_else_has_written_in_the_meantime_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("m.toml");
        let change = plan(&path, &[]);
        fs::write(&path, "theirs").unwrap();
        assert!(change.apply().is_err() && change.undo().is_err());
        assert!(plan(&path, &[input(&path, "ours")]).apply().is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "theirs");
    }

    #[test]
    fn the_file_is_read_in_its_place() {
        let at = |name: &str| Path::new("/etc/links/links.toml.d").join(name);
        let inputs = [
            input(Path::new("/etc/links/links.toml"), "0"),
            input(&at("a.toml"), "1"),
            input(&at("m.toml"), "2"),
            input(&at("z.toml"), "3"),
        ];
        for inputs in [&inputs[..], &[&inputs[..2], &inputs[3..]].concat()] {
            let after = plan(&at("m.toml"), inputs).among(inputs);
            let files: Vec<_> = after
                .iter()
                .map(|input| input.file.rsplit('/').next().unwrap())
                .collect();
            assert_eq!(files, ["links.toml", "a.toml", "m.toml", "z.toml"]);
            assert!(after[2].text.ends_with('!'));
        }
    }
}
