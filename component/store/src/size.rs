//! The size of the database.

use serde::{Deserialize, Serialize};

/// What `GET /internal/database` answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatabaseSize {
    pub links: u64,
    /// Of the whole database; `None` where a server does not say.
    pub bytes: Option<u64>,
}
