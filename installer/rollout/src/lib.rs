//! Rollouts: every change of what runs. One rollout runs at a time and moves one instance after the other. If it fails, it is
//! undone.
//!
//! Data flows one way: [`Goal`] says what is wanted, `observe` what there is, `plan` decides the steps, `apply` carries them
//! out on a `Host`, and `report` shows them. [`Session`] ties these together, and each command is a session.

mod appliance;
mod apply;
mod choice;
mod commands;
mod database_work;
mod downgrade;
mod endpoints;
mod executor;
mod goal;
mod health;
mod interruption;
mod lock;
mod network;
mod observe;
mod plan;
mod recovery;
mod releases;
mod report;
mod scale;
mod session;
mod settings_file;
mod timer;
mod tls;

pub use appliance::Appliance;
pub use apply::Failure;
pub use commands::{Mode, Request, change_stage, recover, restart, rollback, rollout, scale, unfinished};
pub use database_work::DatabaseWork;
pub use endpoints::Stage;
pub use executor::install_site;
pub use goal::{Force, Goal};
pub use lock::{Lock, LockWait, held_by};
pub use network::DropIns;
pub use observe::{applied_config, peers};
pub use plan::Wanted;
pub use releases::list;
pub use report::Style;
pub use session::{RestoreInterrupted, Session};
pub use timer::BackupTimer;
pub use tls::{TlsChange, apply_tls, write_site};
