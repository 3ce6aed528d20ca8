//! What the database holds: what `GET /internal/database` tells the agent.

use serde::{Deserialize, Serialize};

use crate::reply::Reply;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    pub links: u64,
    /// Of the whole database; none where a server does not tell.
    pub bytes: Option<u64>,
}

impl Held {
    pub fn reply(self) -> Reply {
        // Two numbers always have a JSON form.
        Reply::new(200, "application/json", serde_json::to_vec(&self).unwrap_or_default())
    }
}
