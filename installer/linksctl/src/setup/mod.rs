//! Setting up the host for links, and undoing that. Each command observes the host, plans its steps, and applies them; its dry
//! run prints the same steps.

mod configure;
mod deconfigure;
mod install;
mod payload;
mod uninstall;

use std::fmt::Display;
use std::time::Duration;

pub use configure::{How, configure, prepare};
pub use deconfigure::deconfigure;
pub use install::install;
pub use uninstall::uninstall;

/// How long a package manager waits for a rollout that is running: longer than a rollout takes in the worst case.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10 * 60);

/// The dry run of a command.
fn print(steps: &[impl Display]) {
    steps.iter().for_each(|step| println!("{step}"));
}

/// Prints messages for the administrator when a command has done its work.
fn print_notices(notices: &[String]) {
    notices.iter().for_each(|notice| eprintln!("linksctl: {notice}"));
}
