//! What a command that changes the running release reports with `--json`.

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::machine::commands::Output;

/// The events of a rollout, in order.
#[derive(Clone, Debug)]
pub struct Events(Vec<Value>);

impl Events {
    /// Parses the output of `linksctl rollout --json` or the like: one event per line.
    ///
    /// # Errors
    /// Fails if a line is not JSON.
    pub fn of(output: &Output) -> Result<Self> {
        let lines = output.stdout.lines().map(serde_json::from_str);
        let events: Result<_, _> = lines.collect();
        Ok(Self(events.with_context(|| output.to_string())?))
    }

    /// The position of the first event of this kind, such as `step`.
    pub fn position(&self, kind: &str) -> Option<usize> {
        self.0.iter().position(|event| event["event"] == kind)
    }

    /// The position of the first step of this kind for an instance.
    pub fn step(&self, step: &str, instance: u16) -> Option<usize> {
        let is_it = |event: &Value| event["event"] == "step" && event["step"] == step && event["instance"] == instance;
        self.0.iter().position(is_it)
    }

    /// Whether there is a step of this kind, for the host or for any instance.
    pub fn has_step(&self, step: &str) -> bool {
        self.all("step").iter().any(|event| event["step"] == step)
    }

    /// The first event of this kind.
    ///
    /// # Errors
    /// Fails if there is none.
    pub fn first(&self, kind: &str) -> Result<&Value> {
        let position = self.position(kind);
        position
            .map(|position| &self.0[position])
            .with_context(|| format!("no event `{kind}` in {self:?}"))
    }

    /// The events of this kind.
    pub fn all(&self, kind: &str) -> Vec<&Value> {
        self.0.iter().filter(|event| event["event"] == kind).collect()
    }
}
