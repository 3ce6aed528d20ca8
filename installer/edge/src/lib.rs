//! The nginx site of the appliance: renders it, installs it, and checks that links answers through it.

mod cache_size;
pub mod click_journal;
mod conf;
pub mod nginx;
pub mod peers;
mod plan;
mod ports;
mod record;
mod released;
mod reload;
mod site;
pub mod socket_group;
mod verify;

pub use conf::Conf;
pub use reload::{UNIT, keep_connections, master};
pub use site::{
    INSTALL, Mode, Notices, Status, check, end_rollout, install, recover, remove, require_serving, restore_sockets,
    status, undo_rollout,
};
