//! What `linksctl check` reports with `--json`.

use anyhow::{Context as _, Result};
use serde::Deserialize;

use crate::machine::commands::Output;

/// The command that also asks the servers.
pub const CHECK_ONLINE: [&str; 4] = ["linksctl", "check", "--online", "--json"];

/// A report of `linksctl check`.
#[derive(Clone, Debug)]
pub struct Check {
    /// The exit status: 0, or EX_CONFIG of sysexits.h if there are errors.
    pub status: i32,
    pub findings: Vec<Finding>,
    /// None if the servers were not asked.
    tried: Option<Vec<Tried>>,
}

/// A problem in a file.
#[derive(Clone, Debug, Deserialize)]
pub struct Finding {
    /// `error` or `warning`.
    pub severity: String,
    pub file: String,
    pub line: Option<usize>,
    pub column: Option<usize>,
    pub message: String,
    pub help: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
struct Tried {
    outcome: String,
}

impl Check {
    /// Parses the output of `linksctl check --json`.
    ///
    /// # Errors
    /// Fails if it is not such a report.
    pub fn of(output: &Output) -> Result<Self> {
        #[derive(Deserialize)]
        struct Report {
            findings: Vec<Finding>,
            tried: Option<Vec<Tried>>,
        }
        let Report { findings, tried } = output.json()?;
        Ok(Self {
            status: output.status,
            findings,
            tried,
        })
    }

    /// The outcomes for the servers that runtime.toml names: `answers`, `fails` or `not_tried`.
    ///
    /// # Errors
    /// Fails if the servers were not asked: without `--online`, or because the configuration has errors.
    pub fn outcomes(&self) -> Result<Vec<&str>> {
        let tried = self.tried.as_ref();
        let tried = tried.with_context(|| format!("no server was asked: {self:?}"))?;
        Ok(tried.iter().map(|tried| tried.outcome.as_str()).collect())
    }

    /// Whether there are no errors, and every configured server (at least one) answers.
    ///
    /// # Errors
    /// Fails as [`Self::outcomes`] does.
    pub fn answers(&self) -> Result<bool> {
        let outcomes = self.outcomes()?;
        Ok(self.status == 0 && !outcomes.is_empty() && outcomes.iter().all(|outcome| *outcome == "answers"))
    }

    /// Whether there is a finding of this severity whose message and help contain all of `parts`.
    pub fn has_finding(&self, severity: &str, parts: &[&str]) -> bool {
        self.findings.iter().any(|finding| {
            let text = format!("{}; {}", finding.message, finding.help.as_deref().unwrap_or_default());
            finding.severity == severity && parts.iter().all(|part| text.contains(part))
        })
    }
}
