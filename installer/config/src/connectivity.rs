//! The results of `linksctl check --online`: links-db connects to the servers, and linksctl prints the results.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::finding::Finding;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connectivity {
    pub tried: Vec<Tried>,
    pub findings: Vec<Finding>,
}

/// The result for one provider.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tried {
    pub provider: String,
    pub file: String,
    pub line: usize,
    pub column: usize,
    pub outcome: Outcome,
    pub milliseconds: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Answers,
    Fails,
    /// links-db does not speak the protocol of the provider.
    NotTried,
}

impl Tried {
    pub fn answers(&self) -> bool {
        self.outcome == Outcome::Answers
    }
}

/// A line for a provider that answers.
impl fmt::Display for Tried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            provider,
            file,
            line,
            column,
            milliseconds,
            ..
        } = self;
        write!(
            f,
            "{file}:{line}:{column}: `{provider}` answers, after {milliseconds} ms"
        )
    }
}
