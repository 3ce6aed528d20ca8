//! `linksctl backup` and `linksctl restore`.

use crate::cli::{BackupArgs, BackupCommand, RestoreArgs, archive_style};
use links_archive::restore::{self, Mode};
use links_archive::{check, list, make};
use links_base::layout::Layout;
use links_base::privileges::require_root;
use links_rollout::Appliance;

/// Makes, verifies or lists backups.
///
/// # Errors
/// The location cannot be reached, or the backup cannot be made or believed.
pub fn run(layout: &Layout, appliance: &Appliance, args: BackupArgs) -> anyhow::Result<()> {
    match args.command {
        None => make::run(layout, appliance, &args.make.into()),
        Some(BackupCommand::Verify(args)) => {
            if check::needs_root(layout, &args.backup) {
                require_root()?;
            }
            check::run(layout, &args.backup, args.identity.as_deref(), archive_style(args.json))
        }
        Some(BackupCommand::List(args)) => {
            if args
                .to
                .as_ref()
                .is_some_and(|location| check::needs_root(layout, location))
            {
                require_root()?;
            }
            list::run(layout, args.to.as_ref(), archive_style(args.json))
        }
    }
}

/// Restores a backup, or undoes a restore that was interrupted.
///
/// # Errors
/// The backup does not fit this host, or a step fails; everything is put back then.
pub fn restore(layout: &Layout, appliance: &Appliance, args: RestoreArgs) -> anyhow::Result<()> {
    let style = archive_style(args.json);
    // clap asks for a backup unless there is --undo.
    let Some(from) = args.backup else {
        return restore::undo(layout, appliance, style);
    };
    let request = restore::Request {
        from,
        identity: args.identity,
        mode: match (args.check, args.dry_run) {
            (true, _) => Mode::Check,
            (false, true) => Mode::DryRun,
            (false, false) => Mode::Restore,
        },
        force: args.force,
        style,
    };
    restore::run(layout, appliance, &request)
}
