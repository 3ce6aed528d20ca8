//! links-host: a server for Spin components that takes Spin's command line and configuration files.

mod bindings;
mod cli;
mod config;
mod guest;
mod http_client;
mod outbound;
mod output;
mod serve;
mod storage;
mod telemetry;
#[cfg(test)]
mod testing;
mod up;
mod variables;

use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::Parser as _;
use tracing_subscriber::Layer as _;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::cli::{Cli, Command};
use crate::serve::precompiled;
use crate::storage::sqlite;

/// A request makes a few hundred small allocations and a few large ones. With glibc's allocator they take a sixth of the
/// request's CPU time, and a process that was busy holds nearly twice the memory.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    log_to_stderr();
    sqlite::configure();
    let result = match &cli.command {
        Command::Up(up) => up::up(up),
        Command::Compile(compile) => precompiled::compile(&compile.from, &compile.out, !compile.disable_pooling),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("links-host: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Logs have no timestamps, because the journal adds its own. RUST_LOG sets levels, also per module:
/// `info,links_host::serve=debug`.
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
        tracing::warn!("ignoring RUST_LOG: {error}");
    }
}
