//! What links-pack accepts. The doc comments are the help.

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueHint};

use crate::identity::Arch;

/// Build the bundle and write the .deb and the tarball
#[derive(Debug, Parser)]
#[command(name = "links-pack", version, args_conflicts_with_subcommands = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Option<Command>,

    #[command(flatten)]
    pub pack: Args,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    Repo(RepositoryArgs),
}

/// Write a signed apt repository of the packages, for any server of static files
///
/// Packages that are in the repository already stay there. The key and the URL are required; without the key, the command says
/// how to make one. Needs the Debian packages apt-utils, gpg, gpg-agent and gpgv.
#[derive(Debug, clap::Args)]
pub struct RepositoryArgs {
    /// The directory of the .debs to add; give the option again for another directory
    #[arg(long, value_name = "DIR", default_value = "target/packages", value_hint = ValueHint::DirPath)]
    pub packages: Vec<PathBuf>,

    /// The directory of the repository; an existing repository is extended
    #[arg(long, value_name = "DIR", default_value = "target/repo", value_hint = ValueHint::DirPath)]
    pub out: PathBuf,

    /// The key that signs the repository: the fingerprint of a key in gpg's keyring, or a file with a secret key
    #[arg(long, value_name = "KEY", env = "REPO_KEY")]
    pub key: Option<String>,

    /// The URL under which hosts will find the repository, such as https://apt.example.org
    #[arg(long, value_name = "URL", env = "REPO_URL", value_hint = ValueHint::Url)]
    pub url: Option<String>,

    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,

    /// Show what the repository would contain, and write nothing
    #[arg(long)]
    pub dry_run: bool,
}

// Without a doc comment, which clap would print as the description of links-pack.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The application manifest; its components are taken from the paths it names
    #[arg(long, value_name = "FILE", default_value = "component/spin.toml", value_hint = ValueHint::FilePath)]
    pub from: PathBuf,

    /// The default runtime configuration to ship
    #[arg(long, value_name = "FILE", default_value = "runtime.toml", value_hint = ValueHint::FilePath)]
    pub runtime_config: PathBuf,

    /// The runtime: the path of a Spin 4 or links-host binary, or `links-host` for the one beside links-pack
    ///
    /// Without this option the runtime is the first of: $SPIN; `spin` on PATH; the pinned Spin release, downloaded, checked by
    /// SHA-256 and kept in the user's cache directory; and, with a notice, the links-host beside links-pack.
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub runtime: Option<PathBuf>,

    /// The architecture of the packages, if it is not that of this machine
    #[arg(long, value_enum, value_name = "ARCH", requires_all = ["programs", "emulator"])]
    pub arch: Option<Arch>,

    /// The directory of the programs to pack; by default that of links-pack
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub programs: Option<PathBuf>,

    /// Runs the programs of another architecture: it is given the path of one and its arguments, as qemu-aarch64 is
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath, requires = "arch")]
    pub emulator: Option<PathBuf>,

    /// Download nothing
    #[arg(long)]
    pub offline: bool,

    /// The directory for the two packages
    #[arg(long, value_name = "DIR", default_value = "target/packages", value_hint = ValueHint::DirPath)]
    pub out: PathBuf,

    /// The version of the release; by default the version of links-pack
    #[arg(long, value_name = "VERSION")]
    pub release_version: Option<String>,

    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,

    /// Show what would be packed, and write nothing
    #[arg(long)]
    pub dry_run: bool,
}
