//! links-backup: compresses, encrypts and transfers backups for linksctl, which contains no code for that. It reads what only
//! root may read, and then works as user links.

mod s3;
mod seal;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use rusty_s3::Credentials;

use links_base::layout::Layout;
use links_base::process::Parent;
use links_base::{log, privileges};
use links_config::backup::{Problem, Recipient, S3_ACCESS_KEY_ID, S3_SECRET_ACCESS_KEY, S3Location, Settings};
use links_config::credentials;
use links_config::files::ConfigFiles;
use links_config::load::load_links;
use s3::server::Server;

#[derive(Debug, Parser)]
#[command(
    name = "links-backup",
    version,
    about = "Compress, encrypt and transfer backups of links, for linksctl"
)]
struct Cli {
    /// Work on the tree under DIR instead of /
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Check public keys
    Recipients {
        #[arg(required = true)]
        keys: Vec<Recipient>,
    },
    /// Compress standard input to standard output, and encrypt it for these public keys
    Seal { keys: Vec<Recipient> },
    /// Decrypt and decompress standard input to standard output
    Open {
        /// A file with secret keys of age
        #[arg(long)]
        identity: Option<PathBuf>,
    },
    /// Upload standard input, and print events as JSON
    Put {
        object: S3Location,
        /// The size of standard input
        bytes: u64,
    },
    /// Download to standard output
    Get { object: S3Location },
    /// List the objects right below a prefix as JSON, one per line
    List { location: S3Location },
    /// Remove objects below a prefix
    Remove { location: S3Location, names: Vec<String> },
    /// End an upload that was interrupted
    Abort { object: S3Location, upload: String },
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::error!("linksctl: {error:#}");
            Problem::of(&error).exit_code().into()
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    let layout = Layout::new(std::path::absolute(cli.root)?);
    let parent = Parent::of_this_process();
    let (input, output) = (io::stdin().lock(), io::stdout().lock());
    match cli.command {
        Command::Recipients { keys } => {
            give_up_root(&layout, parent)?;
            seal::recipients(&keys).map(drop)
        }
        Command::Seal { keys } => {
            give_up_root(&layout, parent)?;
            seal::seal(input, output, &seal::recipients(&keys)?)
        }
        Command::Open { identity } => {
            let identities = identity.as_deref().map(read_identities).transpose()?;
            give_up_root(&layout, parent)?;
            seal::open(input, output, identities.as_deref())
        }
        Command::Put { object, bytes } => {
            let server = server(&layout, &object, parent)?;
            s3::upload::upload(&server, &object.key, bytes, &mut { input }, &mut { output })
        }
        Command::Get { object } => {
            let server = server(&layout, &object, parent)?;
            s3::download::download(&server, &object.key, &mut { output })
        }
        Command::List { location } => {
            let server = server(&layout, &location, parent)?;
            for object in server.list(&location)? {
                println!("{}", serde_json::to_string(&object)?);
            }
            Ok(())
        }
        Command::Remove { location, names } => {
            let server = server(&layout, &location, parent)?;
            names
                .iter()
                .try_for_each(|name| server.remove(&location.join(name).key))
        }
        Command::Abort { object, upload } => {
            let server = server(&layout, &object, parent)?;
            server.abort(&object.key, &upload)
        }
    }
}

fn read_identities(path: &Path) -> anyhow::Result<Vec<Box<dyn age::Identity + Send + Sync>>> {
    let read = || seal::identities(File::open(path)?);
    read().with_context(|| format!("Reading the key in {}", path.display()))
}

/// Reads the settings and the credentials, becomes user links, and returns the server.
fn server(layout: &Layout, location: &S3Location, parent: Parent) -> anyhow::Result<Server> {
    let settings: Settings = load_links(&ConfigFiles::new(layout))?.backup;
    let credentials = Credentials::new(
        credential(layout, S3_ACCESS_KEY_ID)?,
        credential(layout, S3_SECRET_ACCESS_KEY)?,
    );
    give_up_root(layout, parent)?;
    Server::new(&settings, &location.bucket, credentials)
}

fn credential(layout: &Layout, name: &str) -> anyhow::Result<String> {
    let path = layout.credential(name);
    let read = || -> anyhow::Result<String> {
        let bytes = fs::read(&path)?;
        credentials::secret(&bytes).map_err(|why| anyhow::anyhow!("it {why}"))
    };
    read().with_context(|| format!("Reading the credential for S3 in {}", path.display()))
}

/// Becomes user links, which also keeps a process of that user from seeing what was read. Dies with linksctl, because nobody
/// would record what this process goes on to write.
fn give_up_root(layout: &Layout, parent: Parent) -> anyhow::Result<()> {
    if privileges::are_roots(layout) {
        privileges::give_up()?;
    }
    parent.end_with()
}
