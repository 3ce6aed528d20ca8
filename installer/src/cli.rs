//! What `linksctl` accepts. Declarations only: the doc comments are the help and the man page.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};

use crate::copy::place::{DatabaseArg, TokenArg};

/// Packs, installs, runs and looks after the links URL shortener.
///
/// The appliance is configured by /etc/links/links.toml (instances, ports, public URL, nginx) and
/// /etc/links/runtime.toml (the Spin runtime's own configuration: databases, key-value stores, variables).
/// Secrets are files in /etc/links/credentials.
#[derive(Debug, Parser)]
#[command(name = "linksctl", version, propagate_version = true, max_term_width = 100)]
#[command(
    after_help = "Exit status: 0 done; 1 failed; 2 wrong usage; 77 root is needed; 78 the configuration is wrong; 130 interrupted."
)]
pub struct Cli {
    /// Work on the tree under DIR instead of /
    #[arg(long, global = true, value_name = "DIR", default_value = "/", value_hint = ValueHint::DirPath)]
    pub root: PathBuf,

    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Build the bundle and write the .deb and the tarball
    Pack(Box<PackArgs>),

    /// Supervise one instance: start its runtime, wait for /health, tell systemd, drain on SIGTERM
    ///
    /// This is what links@N.service runs.
    Run(RunArgs),

    /// Watch the instances, keep the status line of links.service true, serve metrics, and count clicks
    ///
    /// This is what links.service runs.
    Agent,

    /// Start the whole appliance in the foreground, without systemd: nginx and the instances under --root
    Up(UpArgs),

    /// Read links.toml, runtime.toml and the credentials and list everything that is wrong
    ///
    /// With --online it also asks the servers that runtime.toml names (libSQL, Redis, Vault), as the runtime will.
    Check(CheckArgs),

    /// Show what runs: instances, release, runtime, database, addresses
    Status(StatusArgs),

    /// Show how often a link was followed, or all of them, and from where
    ///
    /// Clicks are counted a few seconds after they happened; those of bots apart. Days and hours are of UTC.
    Stats(StatsArgs),

    /// Show the versions of linksctl, of the release and of its runtime
    Version(VersionArgs),

    /// Look after the database of the links
    Db(DbArgs),

    /// Print the admin token, which `POST /shorten` asks for
    Token(TokenArgs),

    /// Install from the unpacked tarball on a host with systemd but without apt
    Install(InstallArgs),

    /// Remove what `install` put there; the data stays unless --purge is given
    Uninstall(UninstallArgs),

    /// Put links.toml, runtime.toml, the credentials and a release into effect, without a failed request
    ///
    /// Instances that run another release or another configuration are moved one after the other: each is drained,
    /// restarted, and has to stay healthy for rollout.min_healthy before it is the next one's turn. If one fails, all go
    /// back to what they ran, and the command fails. `systemctl reload links` runs this.
    Rollout(RolloutArgs),

    /// Roll out the release that ran before the current one
    Rollback(RollbackArgs),

    /// List the releases that are here: which instance runs which, which one `rollback` goes to
    Releases(ReleasesArgs),

    /// Restart every instance, one after the other
    Restart(RestartArgs),

    /// Set how many instances serve, in links.toml, and add or remove them
    Scale(ScaleArgs),

    /// Bring the host in line with links.toml, runtime.toml and the installed release
    ///
    /// Imports the release, rolls it out, and writes the nginx site. The package's postinst runs this; doing it again is
    /// harmless.
    Configure(ConfigureArgs),

    /// Work on the local database as user links (run by root's other commands)
    #[command(hide = true)]
    DatabaseWork {
        #[command(subcommand)]
        work: DatabaseWork,
    },

    /// Copy the credentials of one instance to where it finds them, unless systemd has delivered them (run before it starts)
    #[command(hide = true)]
    DeliverCredentials(RunArgs),

    /// Take over directories that earlier versions left to user links (run before systemd-tmpfiles, which fails on what
    /// that user may have put there)
    #[command(hide = true)]
    Prepare,

    /// Take back what a rollout that was cut off has changed (run at boot, before the first instance)
    #[command(hide = true)]
    Recover,

    /// Take the host's integration away (run by the package's prerm)
    #[command(hide = true)]
    Deconfigure(DeconfigureArgs),

    /// Make nginx look for the instances on their ports too (run by the package's prerm before version 0.1.0 comes)
    #[command(hide = true)]
    PrepareDowngrade,

    /// Make nginx look for the instances only where they are (run by the package's postinst when 0.1.0 did not come)
    #[command(hide = true)]
    AbortDowngrade,

    /// Stop the instances where links.service is being stopped (run by it when it ends)
    #[command(hide = true)]
    StopInstances,

    /// Write the man page to standard output
    #[command(hide = true)]
    Man,

    /// Write the completions for a shell to standard output
    #[command(hide = true)]
    Completions { shell: CompletionShell },
}

impl Command {
    /// Whether it does nothing that would be left half done where nobody reads its output.
    pub fn only_prints(&self) -> bool {
        match self {
            Self::Check(_)
            | Self::Stats(_)
            | Self::Status(_)
            | Self::Version(_)
            | Self::Releases(_)
            | Self::Man
            | Self::Completions { .. } => true,
            Self::Token(args) => !args.rotate,
            _ => false,
        }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum CompletionShell {
    Bash,
    Zsh,
}

#[derive(Args, Debug)]
pub struct PackArgs {
    /// The application manifest; its components are taken from the paths it names
    #[arg(long, value_name = "FILE", default_value = "component/spin.toml", value_hint = ValueHint::FilePath)]
    pub from: PathBuf,

    /// The default runtime configuration to ship
    #[arg(long, value_name = "FILE", default_value = "runtime.toml", value_hint = ValueHint::FilePath)]
    pub runtime_config: PathBuf,

    /// The runtime: a path to a binary of Spin 4 or of links-host, or `links-host` for the one beside linksctl
    ///
    /// Without it: $SPIN, then `spin` on PATH, then the pinned Spin release by download (kept in the user's cache
    /// directory, checked by SHA-256), then, with a notice, the links-host beside linksctl.
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub runtime: Option<PathBuf>,

    /// Download nothing
    #[arg(long)]
    pub offline: bool,

    /// Where the two packages go
    #[arg(long, value_name = "DIR", default_value = "target/packages", value_hint = ValueHint::DirPath)]
    pub out: PathBuf,

    /// Version of the release; the version of linksctl by default
    #[arg(long, value_name = "VERSION")]
    pub release_version: Option<String>,

    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,

    /// Show what would be packed, and write nothing
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Args, Debug)]
pub struct RunArgs {
    /// Number of the instance, from 1
    #[arg(value_parser = clap::value_parser!(u16).range(1..=16))]
    pub instance: u16,
}

#[derive(Args, Debug)]
pub struct UpArgs {
    /// The bundle or unpacked tarball to run; what is installed under --root by default
    #[arg(long, value_name = "PATH", value_hint = ValueHint::AnyPath)]
    pub bundle: Option<PathBuf>,

    /// Where nginx listens; a free port of 127.0.0.1 by default
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub listen: Option<SocketAddr>,

    /// Show what would be started, and start nothing
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Args, Debug)]
pub struct CheckArgs {
    /// Also ask every server that runtime.toml names, for five seconds at most
    #[arg(long)]
    pub online: bool,

    /// Print the findings as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
pub struct DbArgs {
    #[command(subcommand)]
    pub command: DbCommand,
}

#[derive(Debug, Subcommand)]
pub enum DatabaseWork {
    /// Print the version of the tables, or nothing where there are none
    SchemaVersion { database: PathBuf },
    /// Write a copy
    BackUp { database: PathBuf, target: PathBuf },
}

#[derive(Debug, Subcommand)]
pub enum DbCommand {
    /// Copy the links from one database to another, while links serves, and compare them
    ///
    /// A database is sqlite:PATH or libsql:URL. Without --from or --to, it is the one of runtime.toml. A link that is there
    /// already is never changed. The counted clicks stay where they are. To move: copy, put the other database into runtime.toml, `systemctl reload links`, then
    /// copy again with --resume and --from the old one, for what was shortened meanwhile.
    Copy(CopyArgs),
}

#[derive(Args, Debug)]
pub struct CopyArgs {
    /// The database to copy from; the one of runtime.toml by default
    #[arg(long, value_name = "DATABASE", required_unless_present = "to")]
    pub from: Option<DatabaseArg>,

    /// The database to copy to; the one of runtime.toml by default
    #[arg(long, value_name = "DATABASE")]
    pub to: Option<DatabaseArg>,

    /// The token of the libSQL database given here, as credential:NAME; that of runtime.toml is known
    #[arg(long, value_name = "credential:NAME")]
    pub token: Option<TokenArg>,

    /// Go on with a database that holds links already: add what is missing
    #[arg(long)]
    pub resume: bool,

    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
pub struct StatusArgs {
    /// Print as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
pub struct StatsArgs {
    /// The link; all of them by default
    pub slug: Option<String>,

    /// First day, like 2030-01-31, or time, like 2030-01-31T18:00:00Z; 30 days or 48 hours ago by default
    #[arg(long, value_name = "TIME")]
    pub from: Option<String>,

    /// Last day or time; now by default
    #[arg(long, value_name = "TIME")]
    pub to: Option<String>,

    /// What a bar stands for
    #[arg(long, value_name = "PERIOD")]
    pub by: Option<StatsBy>,

    /// Print as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum StatsBy {
    /// Kept for 90 days
    Hour,
    Day,
}

#[derive(Args, Debug)]
pub struct VersionArgs {
    /// Print as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
pub struct TokenArgs {
    /// Replace the token by a new one first; it counts from the next `linksctl rollout`
    #[arg(long)]
    pub rotate: bool,
}

#[derive(Args, Debug)]
pub struct RolloutArgs {
    /// A release: its name in `linksctl releases`, or a bundle, an unpacked tarball or a tarball; the current one by
    /// default
    #[arg(long, value_name = "ID|PATH", value_hint = ValueHint::AnyPath)]
    pub release: Option<String>,

    /// Also restart the instances that have nothing to change, and replace an nginx site that somebody else has edited
    #[arg(long)]
    pub force: bool,

    /// Print events as JSON, one per line
    #[arg(long)]
    pub json: bool,

    /// Show what would be done, and do nothing
    #[arg(long)]
    pub dry_run: bool,

    /// Leave it to a rollout that is under way
    #[arg(long, hide = true)]
    pub from_systemd: bool,
}

#[derive(Args, Debug)]
pub struct RollbackArgs {
    /// Print events as JSON, one per line
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
pub struct RestartArgs {
    /// Print events as JSON, one per line
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
pub struct ReleasesArgs {
    /// Print as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
pub struct ScaleArgs {
    /// How many instances, from 1 to 16
    #[arg(value_name = "N", value_parser = clap::value_parser!(u16).range(1..=16))]
    pub instances: u16,

    /// Print events as JSON, one per line
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
pub struct InstallArgs {
    /// Do not start the service
    #[arg(long)]
    pub no_start: bool,

    /// Show what would be done, and do nothing
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Args, Debug)]
pub struct UninstallArgs {
    /// Remove the links, the configuration and the credentials too
    #[arg(long)]
    pub purge: bool,

    /// Show what would be done, and do nothing
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Args, Debug)]
pub struct ConfigureArgs {
    /// Also replace an nginx site that somebody else has edited
    #[arg(long)]
    pub force: bool,

    /// Show what would be done, and do nothing
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Args, Debug)]
pub struct DeconfigureArgs {
    /// Show what would be done, and do nothing
    #[arg(long)]
    pub dry_run: bool,
}
