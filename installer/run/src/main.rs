//! links-run: the supervisor of one instance. `linksctl run N` executes it.

mod flag;
mod instance;
mod machine;
mod supervisor;
mod traffic;
mod watch;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use links_base::layout::{Layout, MAX_INSTANCES};
use links_base::log;
use links_config::load;

/// Supervise one instance: start its runtime, wait for /health, notify systemd, drain on SIGTERM
#[derive(Debug, Parser)]
#[command(name = "links-run", version)]
struct Cli {
    /// Work on the tree under DIR instead of /
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,

    /// The number of the instance, from 1
    #[arg(value_parser = clap::value_parser!(u16).range(1..=i64::from(MAX_INSTANCES)))]
    instance: u16,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let run = || supervisor::run(&Layout::new(std::path::absolute(&cli.root)?), cli.instance);
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::error!("links-run: {error:#}");
            load::exit_code(&error).into()
        }
    }
}
