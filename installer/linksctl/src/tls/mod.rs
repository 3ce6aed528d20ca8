//! `linksctl tls`: HTTPS for host names. links-acme gets the certificates, and nginx serves them.

mod authority;
mod check;
mod disable;
mod enable;
mod renew;
mod report;
mod request;
mod status;

use std::process::ExitCode;

pub use authority::Busy;
pub use check::findings;

use crate::cli::TlsCommand;
use links_base::layout::Layout;
use links_rollout::Appliance;

/// # Errors
/// The configuration is wrong, or the change cannot be made.
pub fn run(layout: &Layout, appliance: &Appliance, command: TlsCommand) -> anyhow::Result<ExitCode> {
    match command {
        TlsCommand::Enable(args) => enable::run(layout, appliance, args),
        TlsCommand::Status(args) => status::show(layout, appliance, args.json),
        TlsCommand::Renew(args) => renew::run(layout, appliance, &args),
        TlsCommand::Disable(args) => disable::run(appliance, &args),
    }
}
