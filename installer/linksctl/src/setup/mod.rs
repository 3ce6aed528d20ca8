//! Setting up the host for links, and undoing that. Each command observes the host, plans its steps, and applies them; its dry
//! run prints the same steps.

mod configure;
mod deconfigure;
mod install;
mod output;
mod payload;
mod session;
mod uninstall;

pub use configure::{How, LINKS_TOML, configure, prepare};
pub use deconfigure::deconfigure;
pub use install::install;
pub use uninstall::uninstall;
