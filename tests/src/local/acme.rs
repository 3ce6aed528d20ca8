//! links-acme, without the rest of links.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::pebble::Pebble;
use crate::artifacts::test_program;

/// links-acme on a directory of its own.
#[derive(Clone, Debug)]
pub struct Acme {
    root: PathBuf,
    options: Vec<String>,
}

/// A run of links-acme that has ended.
#[derive(Clone, Debug)]
pub struct Run {
    /// `None` if it was killed.
    pub status: Option<i32>,
    /// The lines that it has printed.
    pub events: Vec<Value>,
    pub errors: String,
}

impl Run {
    /// The events of one kind.
    pub fn of(&self, kind: &str) -> Vec<&Value> {
        self.events.iter().filter(|event| event["event"] == kind).collect()
    }

    /// The result for a name.
    ///
    /// # Errors
    /// Fails unless there is exactly one.
    pub fn result(&self, name: &str) -> Result<&Value> {
        let results = self.of("result");
        let mut found = results.into_iter().filter(|result| result["name"] == name);
        match (found.next(), found.next()) {
            (Some(result), None) => Ok(result),
            _ => anyhow::bail!("not one result for {name}: {self:?}"),
        }
    }

    /// The outcome for a name, and the kind of its error, or `""`.
    ///
    /// # Errors
    /// Those of [`Self::result`].
    pub fn outcome(&self, name: &str) -> Result<(String, String)> {
        let result = self.result(name)?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Ok((text(&result["outcome"]), text(&result["error"]["kind"])))
    }
}

impl Acme {
    /// links-acme that works below `root`, and asks pebble.
    pub fn new(root: &Path, pebble: &Pebble) -> Self {
        let options = [
            "--directory".to_owned(),
            pebble.url(),
            "--ca-file".to_owned(),
            pebble.root_file().display().to_string(),
        ];
        Self {
            root: root.to_owned(),
            options: options.into(),
        }
    }

    /// The same with other options instead of pebble's.
    #[must_use]
    pub fn with_options(&self, options: &[&str]) -> Self {
        Self {
            root: self.root.clone(),
            options: options.iter().map(|option| (*option).to_owned()).collect(),
        }
    }

    /// The same with more options.
    #[must_use]
    pub fn and(&self, options: &[&str]) -> Self {
        let mut more = self.clone();
        more.options.extend(options.iter().map(|option| (*option).to_owned()));
        more
    }

    /// The directory where the answers to challenges are.
    pub fn challenges(root: &Path) -> PathBuf {
        root.join("var/lib/links/tls/challenges")
    }

    /// A file of links-acme.
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join("var/lib/links/tls").join(name)
    }

    /// Runs a subcommand with arguments and the options.
    ///
    /// # Errors
    /// Fails if links-acme cannot be started, or prints what is not JSON.
    pub fn run(&self, arguments: &[&str]) -> Result<Run> {
        self.run_until(arguments, |_| false)
    }

    /// Like [`Self::run`], but the command is that of a wrapper, which gets it as its further arguments.
    ///
    /// # Errors
    /// Those of [`Self::run`].
    pub fn run_with(&self, wrapper: &[&str], arguments: &[&str]) -> Result<Run> {
        self.spawn(wrapper, arguments, |_| false)
    }

    /// Like [`Self::run`], but kills the process, as `kill -9` does, at the first event for which `kills` is true.
    ///
    /// # Errors
    /// Those of [`Self::run`].
    pub fn run_until(&self, arguments: &[&str], mut kills: impl FnMut(&Value) -> bool) -> Result<Run> {
        self.spawn(&[], arguments, &mut kills)
    }

    fn spawn(&self, wrapper: &[&str], arguments: &[&str], mut kills: impl FnMut(&Value) -> bool) -> Result<Run> {
        let program = test_program("links-acme")?;
        let mut command = match wrapper {
            [] => Command::new(program),
            [first, more @ ..] => {
                let mut command = Command::new(first);
                command.args(more).arg(program);
                command
            }
        };
        command
            .arg("--root")
            .arg(&self.root)
            .args(arguments)
            .args(&self.options);
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("Starting links-acme")?;
        let stdout = child.stdout.take().context("links-acme has no output")?;
        let mut events = vec![];
        for line in BufReader::new(stdout).lines() {
            let line = line?;
            let event: Value = serde_json::from_str(&line).with_context(|| line.clone())?;
            let ends = kills(&event);
            events.push(event);
            if ends {
                child.kill()?;
                break;
            }
        }
        let output = child.wait_with_output()?;
        Ok(Run {
            status: output.status.code(),
            events,
            errors: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// What `status` prints for a name.
    ///
    /// # Errors
    /// Fails if it does not print one line.
    pub fn status(&self, name: &str) -> Result<Value> {
        let run = self.with_options(&[]).run(&["status", name])?;
        ensure!(run.status == Some(0) && run.events.len() == 1, "{run:?}");
        Ok(run.events.into_iter().next().unwrap_or_default())
    }
}
