//! links-pack makes a bundle from files, a .deb and a tarball from the bundle, and an apt repository from .debs. The packages
//! do not contain links-pack.

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
mod repository;
mod sections;
mod source;

use std::process::ExitCode;

use clap::Parser as _;
use cli::{Cli, Command};
use links_base::log;
use links_config::load;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match &cli.command {
        None => pack::pack(&cli.pack),
        Some(Command::Repo(args)) => repository::write(args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::error!("links-pack: {error:#}");
            load::exit_code(&error).into()
        }
    }
}
