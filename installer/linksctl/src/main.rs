//! linksctl: the command that installs, runs and manages the appliance.

mod backup;
mod check;
mod cli;
mod delivery;
mod manual;
mod sample_site;
mod setup;
mod stats;
mod status;
mod tls;
mod token;
mod up;

use std::ffi::OsString;
use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;

use cli::{Cli, Command, DbArgs, DbCommand, TlsArgs};
use links_base::layout::Layout;
use links_base::services::{self, OnBehalfOf, Services};
use links_base::{log, programs};
use links_config::acme::EX_TEMPFAIL;
use links_config::load;
use links_rollout::{self as rollout, Appliance, Failure, Stage};
use nix::sys::signal::{SigHandler, Signal, signal};

/// The exit status of a program that SIGINT ended, as shells report it.
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
    let appliance = |on_behalf_of| Appliance::new(&layout, Services::of_host(on_behalf_of));
    let of_person = || appliance(OnBehalfOf::Person);
    let of_caller = || appliance(OnBehalfOf::caller());
    if cli.command.only_prints() {
        end_on_broken_pipe()?;
    }
    match cli.command {
        Command::Run(args) => return Err(become_program(programs::RUN, &layout, [args.instance.to_string()])),
        Command::Agent => return Err(become_program(programs::AGENT, &layout, [])),
        Command::Up(args) => up::run(&layout, &args)?,
        Command::Check(args) => return Ok(check::run(&layout, args.json, args.online)?.into()),
        Command::Status(args) => return status::show(&layout, args.json),
        Command::Stats(args) => stats::show(&layout, &args)?,
        Command::Version(args) => status::version(&layout, args.json)?,
        Command::Db(DbArgs {
            command: DbCommand::Copy(args),
        }) => {
            let arguments = ["copy".to_owned()].into_iter().chain(args.to_arguments());
            return Err(become_program(programs::DATABASE, &layout, arguments));
        }
        Command::Backup(args) => backup::run(&layout, &of_person(), args)?,
        Command::Restore(args) => backup::restore(&layout, &of_person(), args)?,
        Command::Token(args) => token::show(&layout, args.rotate)?,
        Command::Tls(TlsArgs { command }) => return tls::run(&layout, &of_person(), command),
        Command::Install(args) => setup::install(&layout, args.no_start, args.dry_run)?,
        Command::Uninstall(args) => setup::uninstall(&layout, args.purge, args.dry_run)?,
        Command::Rollout(args) => rollout::rollout(&of_person(), &args.into())?,
        Command::Rollback(args) => rollout::rollback(&of_person(), cli::style(args.json))?,
        Command::Releases(args) => rollout::list(&of_person(), args.json)?,
        Command::Restart(args) => rollout::restart(&of_person(), cli::style(args.json))?,
        Command::Scale(args) => rollout::scale(&of_person(), args.instances, cli::style(args.json))?,
        Command::SampleSite => sample_site::print(&layout, &of_person())?,
        Command::Recover => rollout::recover(&of_person())?,
        Command::DeliverCredentials(args) => delivery::deliver(&layout, args.instance)?,
        Command::Prepare => setup::prepare(&of_person())?,
        Command::Configure(args) => setup::configure(&of_caller(), args.into())?,
        Command::Deconfigure(args) => setup::deconfigure(&of_caller(), args.dry_run)?,
        Command::PrepareDowngrade => rollout::change_stage(&of_caller(), Stage::Transition)?,
        Command::AbortDowngrade => rollout::change_stage(&of_caller(), Stage::Final)?,
        Command::StopInstances => services::stop_instances()?,
        Command::Man { date } => std::io::stdout().write_all(&manual::man_page(&date)?)?,
        Command::Completions { shell } => std::io::stdout().write_all(&manual::completions(shell)?)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Replaces this process with the program. Returns only if that fails.
fn become_program(name: &str, layout: &Layout, arguments: impl IntoIterator<Item = String>) -> anyhow::Error {
    let root = [OsString::from("--root"), layout.root().into()];
    programs::become_program(name, root.into_iter().chain(arguments.into_iter().map(OsString::from)))
}

/// Makes `linksctl status | head -1` end silently, as other programs do. Rust's default is to panic.
fn end_on_broken_pipe() -> anyhow::Result<()> {
    // SAFETY: the default action runs no code of ours.
    unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) }?;
    Ok(())
}

fn exit_code(error: &anyhow::Error) -> ExitCode {
    match error.downcast_ref() {
        Some(Failure::Interrupted(_)) => ExitCode::from(INTERRUPTED),
        _ if error.is::<tls::Busy>() => EX_TEMPFAIL.into(),
        _ => load::exit_code(error).into(),
    }
}
