//! Processes on this computer, without systemd and nginx: the runtime alone, `linksctl up`, and the services that they talk to.
//! Each ends when it is dropped.

mod directory;
mod process;
mod runtime;
mod services;
mod up;

pub use directory::TestDir;
pub use process::Process;
pub use runtime::{Runtime, spin_toml};
pub use services::free_port;
pub use up::Up;
