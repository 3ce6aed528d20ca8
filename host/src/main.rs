//! links-host: serves the components of links, with Spin's command line and Spin's configuration files.

mod bindings;
mod cli;
mod config;
mod context;
mod database;
mod engine;
mod http_client;
mod key_value;
mod libsql;
mod listen;
mod manifest;
mod outbound;
mod output;
mod pace;
mod precompiled;
mod range;
mod respond;
mod route;
mod server;
mod sqlite;
mod stop;
mod telemetry;
mod toml_error;
mod up;
mod usage;
mod variables;

use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::Parser as _;
use tracing_subscriber::Layer as _;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::cli::{Cli, Command};

/// A request is some hundred small pieces of memory and a few large ones. With glibc's allocator they are a sixth of its
/// price, and a process that was busy keeps nearly twice the memory.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    log_to_stderr();
    sqlite::configure();
    let result = match &cli.command {
        Command::Up(up) => up::up(up),
        Command::Compile(compile) => precompiled::compile(compile),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("links-host: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Without times: the journal has its own. RUST_LOG holds levels, also per module: `info,links_host::server=debug`.
fn log_to_stderr() {
    let wanted = std::env::var("RUST_LOG").ok().filter(|wanted| !wanted.is_empty());
    let parsed = wanted.as_deref().map(str::parse::<Targets>);
    let filter = match &parsed {
        Some(Ok(filter)) => filter.clone(),
        _ => Targets::new().with_default(LevelFilter::INFO),
    };
    let output = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .without_time()
        .with_target(false);
    tracing_subscriber::registry().with(output.with_filter(filter)).init();
    if let Some(Err(error)) = parsed {
        tracing::warn!("RUST_LOG is ignored: {error}");
    }
}
