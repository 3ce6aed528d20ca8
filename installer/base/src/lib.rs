//! The code that all native programs of links share: paths, atomic file replacement, running other programs, systemd, and
//! the endpoints of the instances.

pub mod beneath;
pub mod clock;
pub mod connections;
pub mod digest;
pub mod duration;
pub mod emulator;
pub mod endpoint;
pub mod exec;
pub mod files;
pub mod health;
pub mod http;
pub mod instance_stats;
pub mod layout;
pub mod log;
pub mod notify;
pub mod own_addresses;
pub mod privileges;
pub mod process;
pub mod programs;
pub mod rotation;
pub mod sandbox;
pub mod secrets;
pub mod services;
pub mod sockets;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
