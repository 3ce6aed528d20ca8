//! Processes on this computer, without systemd and nginx: the runtime alone, `linksctl up`, and the services that they talk to.
//! Each ends when it is dropped.

mod acme;
mod directory;
mod pebble;
mod process;
mod runtime;
mod services;
mod up;

pub use acme::{Acme, Run};
pub use directory::TestDir;
pub use pebble::{Pebble, Settings};
pub use process::Process;
pub use runtime::{Runtime, spin_toml};
pub use services::free_port;
pub use up::Up;
