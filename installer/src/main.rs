//! linksctl: the command that packs, installs, runs and looks after the appliance.

mod agent;
mod beneath;
mod cli;
mod click_journal;
mod config;
mod connections;
mod copy;
mod countries;
mod database;
mod database_work;
mod delivery;
mod digest;
mod edge;
mod endpoint;
mod exec;
mod files;
mod health;
mod install;
mod layout;
mod libsql;
mod log;
mod network;
mod nginx;
mod notify;
mod online;
mod package;
mod peers;
mod privileges;
mod process;
mod release;
mod remote;
mod rollout;
mod rotation;
mod runtime;
mod sandbox;
mod secrets;
mod services;
mod sockets;
mod sqlite;
mod stats;
mod status;
mod supervise;
#[cfg(test)]
mod testing;
mod token;
mod up;

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;

use cli::{Cli, Command};
use config::load::Invalid;
use layout::Layout;
use nix::sys::signal::{SigHandler, Signal, signal};
use peers::Stage;
use privileges::NeedsRoot;
use rollout::Failure;
use services::OnBehalfOf;

/// EX_NOPERM of sysexits.h.
const NEEDS_ROOT: u8 = 77;
/// As a shell has it for a program that SIGINT ended.
const INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            log::error!("linksctl: {error:#}");
            exit_code(&error)
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let layout = Layout::new(std::path::absolute(cli.root)?);
    if cli.command.only_prints() {
        end_with_the_reader()?;
    }
    match cli.command {
        Command::Pack(args) => package::pack(&args)?,
        Command::Run(args) => supervise::run(&layout, args.instance)?,
        Command::Agent => agent::run(&layout)?,
        Command::Up(args) => up::run(&layout, &args)?,
        Command::Check(args) => return Ok(config::command::check_command(&layout, args.json, args.online)?.into()),
        Command::Status(args) => return status::show(&layout, args.json),
        Command::Stats(args) => stats::show(&layout, &args)?,
        Command::Version(args) => status::version(&layout, args.json)?,
        Command::Db(args) => copy::run(&layout, &args.command)?,
        Command::Token(args) => token::show(&layout, args.rotate)?,
        Command::Install(args) => install::payload::install(&layout, args.no_start, args.dry_run)?,
        Command::Uninstall(args) => install::payload::uninstall(&layout, args.purge, args.dry_run)?,
        Command::Rollout(args) => rollout::rollout(&layout, &args)?,
        Command::Rollback(args) => rollout::rollback(&layout, &args)?,
        Command::Releases(args) => rollout::list(&layout, args.json)?,
        Command::Restart(args) => rollout::restart(&layout, &args)?,
        Command::Scale(args) => rollout::scale(&layout, &args)?,
        Command::Recover => rollout::recover(&layout)?,
        Command::DatabaseWork { work } => database_work::run(&layout, &work)?,
        Command::DeliverCredentials(args) => delivery::deliver(&layout, args.instance)?,
        Command::Prepare => install::prepare(&layout)?,
        Command::Configure(args) => install::configure(&layout, OnBehalfOf::caller(), args.into())?,
        Command::Deconfigure(args) => install::deconfigure(&layout, OnBehalfOf::caller(), args.dry_run)?,
        Command::PrepareDowngrade => rollout::change_stage(&layout, Stage::Transition)?,
        Command::AbortDowngrade => rollout::change_stage(&layout, Stage::Final)?,
        Command::StopInstances => services::stop_instances()?,
        Command::Man => std::io::stdout().write_all(&package::man_page()?)?,
        Command::Completions { shell } => std::io::stdout().write_all(&package::completions(shell)?)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// `linksctl status | head -1` ends in silence, as other programs do, where Rust's default is a panic.
fn end_with_the_reader() -> anyhow::Result<()> {
    // SAFETY: the default action runs no code of ours.
    unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) }?;
    Ok(())
}

/// 77 and 78 as in sysexits.h, so that a script and systemd (`RestartPreventExitStatus=`) can tell them apart.
fn exit_code(error: &anyhow::Error) -> ExitCode {
    if error.is::<NeedsRoot>() {
        ExitCode::from(NEEDS_ROOT)
    } else if error.is::<Invalid>() {
        ExitCode::from(config::command::WRONG)
    } else if matches!(error.downcast_ref(), Some(Failure::Interrupted(_))) {
        ExitCode::from(INTERRUPTED)
    } else {
        ExitCode::FAILURE
    }
}
