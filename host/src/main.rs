//! links-host: serves the components of links, with Spin's command line and Spin's configuration files.

mod bindings;
mod cli;
mod config;
mod context;
mod engine;
mod key_value;
mod manifest;
mod range;
mod respond;
mod route;
mod server;
mod sqlite;
mod toml_error;
mod up;
mod variables;

use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::Parser as _;
use tracing_subscriber::EnvFilter;

use crate::cli::{Cli, Command};

fn main() -> ExitCode {
    let cli = Cli::parse();
    log_to_stderr();
    let result = match &cli.command {
        Command::Up(up) => up::up(up),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("links-host: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Without times: the journal has its own.
fn log_to_stderr() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .without_time()
        .with_target(false)
        .init();
}
