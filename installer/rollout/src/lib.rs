//! Rollouts: every change of what runs. One rollout runs at a time and moves one instance after the other. If it fails, it is
//! undone.

mod apply;
mod commands;
pub mod database_work;
mod host;
mod lock;
pub mod network;
mod plan;
mod releases;
mod report;
mod scale;
mod session;

pub use apply::Failure;
pub use commands::{Mode, Request, change_stage, recover, restart, rollback, rollout, scale, unfinished};
pub use lock::{Lock, LockWait, held_by};
pub use plan::Wanted;
pub use releases::list;
pub use report::Style;
pub use session::{Force, Goal, Session};
