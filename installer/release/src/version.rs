//! What an instance runs.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A release in the store and a snapshot of the configuration, each by its name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    pub release: String,
    pub config: String,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Enough of the digest to distinguish two configurations.
        let config = self.config.get(..8).unwrap_or(&self.config);
        write!(f, "release {} with configuration {config}", self.release)
    }
}
