//! links-db: does the database work for linksctl, which opens no database itself.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use links_base::layout::Layout;
use links_base::process::Parent;
use links_base::{log, privileges};
use links_config::arguments::CopyArgs;
use links_config::backup::DatabaseFacts;
use links_config::files::ConfigFiles;
use links_config::load::{self, load_as_kept};
use links_db::{connectivity, copy, database, swap};

#[derive(Debug, Parser)]
#[command(name = "links-db", version, about = "Work on the databases of links, for linksctl")]
struct Cli {
    /// Work on the tree under DIR instead of /
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Copy the links from one database to another, and compare them
    Copy(CopyArgs),
    /// Ask every server that runtime.toml names, and print the results as JSON
    AskServers,
    /// Print the version of the tables, or nothing if there are none
    SchemaVersion { database: PathBuf },
    /// Print the number of links, or nothing if there is no database
    CountLinks { database: PathBuf },
    /// Write a copy of the database
    BackUp { database: PathBuf, target: PathBuf },
    /// Write a copy of the database, and print what it holds as JSON
    Snapshot { database: PathBuf, target: PathBuf },
    /// Check the database on standard input, in a temporary file in DIRECTORY, and print what it holds as JSON
    Inspect { directory: PathBuf },
    /// Write standard input beside the database, check it, and print what it holds as JSON
    Stage { database: PathBuf },
    /// Remove what `stage` has written
    Unstage { database: PathBuf },
    /// Replace the database by what `stage` has written; the former one gets the suffix ASIDE
    Swap { database: PathBuf, aside: String },
    /// Undo `swap`
    Unswap {
        database: PathBuf,
        aside: String,
        /// Whether there was a database before
        #[arg(long)]
        replaced: bool,
        /// The suffix under which the restored database is kept (default: it is removed)
        #[arg(long)]
        undone: Option<String>,
    },
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::error!("linksctl: {error:#}");
            load::exit_code(&error).into()
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    let parent = Parent::of_this_process();
    let layout = Layout::new(std::path::absolute(cli.root)?);
    match cli.command {
        Command::Copy(args) => copy::run(&layout, &args)?,
        Command::AskServers => {
            let asked = connectivity::ask_all(&load_as_kept(&ConfigFiles::new(&layout))?, &layout);
            println!("{}", serde_json::to_string(&asked)?);
        }
        Command::SchemaVersion { database } => {
            give_up_root(&layout, parent)?;
            if let Some(version) = database::schema_version(&database)? {
                println!("{version}");
            }
        }
        Command::CountLinks { database } => {
            give_up_root(&layout, parent)?;
            if let Some(links) = database::count_links(&database)? {
                println!("{links}");
            }
        }
        Command::BackUp { database, target } => {
            give_up_root(&layout, parent)?;
            database::back_up(&database, &target)?;
        }
        Command::Snapshot { database, target } => {
            give_up_root(&layout, parent)?;
            print(&database::snapshot(&database, &target)?)?;
        }
        Command::Inspect { directory } => {
            give_up_root(&layout, parent)?;
            print(&database::inspect_stream(&mut io::stdin().lock(), &directory)?)?;
        }
        Command::Stage { database } => {
            give_up_root(&layout, parent)?;
            print(&swap::stage(&database, &mut io::stdin().lock())?)?;
        }
        Command::Unstage { database } => {
            give_up_root(&layout, parent)?;
            swap::unstage(&database)?;
        }
        Command::Swap { database, aside } => {
            give_up_root(&layout, parent)?;
            swap::swap(&database, &aside)?;
        }
        Command::Unswap {
            database,
            aside,
            replaced,
            undone,
        } => {
            give_up_root(&layout, parent)?;
            match replaced {
                true => swap::unswap(&database, &aside, undone.as_deref())?,
                false => swap::take_away(&database, undone.as_deref())?,
            }
        }
    }
    Ok(())
}

fn print(facts: &DatabaseFacts) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string(facts)?);
    Ok(())
}

/// Becomes user links, who owns the directory of the database and could replace the file with anything. Dies with linksctl, so
/// that nothing changes a database while the next command undoes what linksctl has left.
fn give_up_root(layout: &Layout, parent: Parent) -> anyhow::Result<()> {
    if privileges::are_roots(layout) {
        privileges::give_up()?;
    }
    parent.end_with()
}
