//! The releases and configurations on the host, and which of them each instance runs.

pub mod backups;
pub mod journal;
pub mod manifest;
pub mod outcome;
pub mod payload;
pub mod runtime;
pub mod snapshot;
pub mod sqlite;
pub mod state;
pub mod store;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod version;

pub use backups::Backups;
pub use journal::Journal;
pub use outcome::{Outcome, Verdict};
pub use snapshot::Snapshots;
pub use state::State;
pub use store::{Release, Store};
pub use version::Version;
