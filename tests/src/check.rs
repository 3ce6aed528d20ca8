//! What `linksctl check` reports with `--json`.

use anyhow::Result;
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
    tried: Vec<Tried>,
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
            #[serde(default)]
            tried: Vec<Tried>,
        }
        let Report { findings, tried } = output.json()?;
        Ok(Self {
            status: output.status,
            findings,
            tried,
        })
    }

    /// The outcomes for the servers that runtime.toml names: `answers`, `fails` or `not_tried`.
    pub fn outcomes(&self) -> Vec<&str> {
        self.tried.iter().map(|tried| tried.outcome.as_str()).collect()
    }

    /// Whether there are no errors, and at least one server, which answers, and no other.
    pub fn answers(&self) -> bool {
        let outcomes = self.outcomes();
        self.status == 0 && !outcomes.is_empty() && outcomes.iter().all(|outcome| *outcome == "answers")
    }

    /// Whether there is a finding of this severity whose message and help contain all of `parts`.
    pub fn has_finding(&self, severity: &str, parts: &[&str]) -> bool {
        self.findings.iter().any(|finding| {
            let text = format!("{}; {}", finding.message, finding.help.as_deref().unwrap_or_default());
            finding.severity == severity && parts.iter().all(|part| text.contains(part))
        })
    }
}
