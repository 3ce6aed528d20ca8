//! links-pack makes a bundle from files, and a .deb and a tarball from the bundle. The packages do not contain links-pack.

mod app;
mod archive;
mod bundle;
mod changelog;
mod choice;
mod cli;
mod control;
mod download;
mod identity;
mod interface;
mod item;
mod libraries;
mod links_toml;
mod pack;
mod payload;
mod program;
mod publish;
mod release;
mod sections;
mod source;

use std::process::ExitCode;

use clap::Parser as _;
use cli::Args;
use links_base::log;
use links_config::load;

fn main() -> ExitCode {
    match pack::pack(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::error!("links-pack: {error:#}");
            load::exit_code(&error).into()
        }
    }
}
