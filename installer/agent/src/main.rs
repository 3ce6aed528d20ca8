//! links-agent: watches the instances, reports their state to systemd, serves metrics, and counts clicks. `linksctl agent`
//! executes it.

mod agent;
mod checkpoint;
mod clicks;
mod counters;
mod database;
mod exposition;
mod families;
mod forward;
mod instances;
mod limits;
#[cfg(test)]
mod observability;
mod otlp;
mod scrape;
mod server;
mod service;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use links_base::layout::Layout;
use links_base::log;
use links_config::load;

/// Watch the instances, keep the status line of links.service up to date, serve metrics, and count clicks
#[derive(Debug, Parser)]
#[command(name = "links-agent", version)]
struct Cli {
    /// Use the directory tree under DIR instead of /
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let run = || agent::run(&Layout::new(std::path::absolute(&cli.root)?));
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::error!("links-agent: {error:#}");
            load::exit_code(&error).into()
        }
    }
}
