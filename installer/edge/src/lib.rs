//! The nginx site of the appliance: renders it, installs it, and checks that links answers through it.

mod cache_size;
mod candidate;
mod certificates;
mod click_journal;
mod conf;
mod conflicts;
mod found;
mod handshake;
mod neighbours;
pub mod nginx;
mod plan;
mod ports;
mod record;
mod released;
mod reload;
mod site;
mod socket_group;
mod status;
mod verify;

pub use certificates::{Certificate, Certificates, Pair};
pub use click_journal::ClickJournal;
pub use nginx::Peers;
pub use site::{Edge, INSTALL, Mode, Notices};
pub use status::{Status, TlsName};
