//! linksctl: the command that packs, installs and runs the appliance.

mod cli;
mod config;
mod layout;
mod package;
mod runtime;

fn main() {}
