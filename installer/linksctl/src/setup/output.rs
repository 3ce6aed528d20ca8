//! What the commands print.

use std::fmt::Display;

/// Prints the steps of a dry run.
pub fn print(steps: &[impl Display]) {
    steps.iter().for_each(|step| println!("{step}"));
}

/// Prints messages for the administrator.
pub fn print_notices(notices: &[String]) {
    notices.iter().for_each(|notice| eprintln!("linksctl: {notice}"));
}
