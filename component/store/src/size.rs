//! The size of the database.

use serde::{Deserialize, Serialize};

/// The answer to `GET /internal/database`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatabaseSize {
    pub links: u64,
    /// The size of the whole database; `None` if the server does not report it.
    pub bytes: Option<u64>,
}
