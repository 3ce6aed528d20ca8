//! The command line of `linksctl`. Declarations only: their doc comments are the help and the man page.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};

use crate::setup;
use links_archive as archive;
use links_config::arguments::CopyArgs;
use links_config::backup::{Location, Recipient};
use links_config::links::{self, PlainHttp};
use links_rollout::{self as rollout, Force, Mode, Style};

/// Install, run and manage the links URL shortener
///
/// The configuration is in /etc/links/links.toml and /etc/links/links.toml.d (instances, ports, public URL, nginx), which
/// links.toml(5) describes, and in /etc/links/runtime.toml (databases, key-value stores and variables of the runtime). Secrets
/// are files in /etc/links/credentials.
#[derive(Debug, Parser)]
#[command(name = "linksctl", version, propagate_version = true, max_term_width = 100)]
#[command(
    after_help = "Exit status: 0 success; 1 failure; 2 wrong usage; 75 try again later; 77 root required; 78 wrong configuration; 130 interrupted."
)]
pub struct Cli {
    /// Use the directory tree under DIR instead of /
    #[arg(long, global = true, value_name = "DIR", default_value = "/", value_hint = ValueHint::DirPath)]
    pub root: PathBuf,

    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run one instance: start its runtime, report readiness to systemd, drain on SIGTERM
    ///
    /// links@N.service runs this command.
    Run(RunArgs),

    /// Run the agent: watch the instances, serve metrics, count clicks
    ///
    /// links.service runs this command.
    Agent,

    /// Run nginx and the instances under --root in the foreground, without systemd
    Up(UpArgs),

    /// Check links.toml, runtime.toml, the credentials and the nginx sites, and list every error
    ///
    /// If a file in links.toml.d replaces a value of another file, both positions are reported.
    ///
    /// Run as root, it also explains which of nginx's other sites are in the way of links, with file and line: another default
    /// server, the same host name, an address or a directory that nginx does not read. With --online it also connects to the
    /// servers that runtime.toml names (libSQL, Redis, Vault), as the runtime does.
    Check(CheckArgs),

    /// Show the instances, the release, the database, the addresses and the last backup
    Status(StatusArgs),

    /// Show click statistics for one link, or for all links
    ///
    /// A click is counted a few seconds after it happens. Clicks of bots are counted separately. Days and hours are in UTC.
    Stats(StatsArgs),

    /// Show the versions of linksctl, the release and the runtime
    Version(VersionArgs),

    /// Work on the database
    Db(DbArgs),

    /// Make a backup while links serves: the links, the clicks, the configuration and, if it is encrypted, the secrets
    ///
    /// [backup] in links.toml sets where backups go and how often they are made. A backup is a tar archive, compressed with zstd
    /// and encrypted with age: `age -d -i KEY FILE | zstd -d | tar -t` lists it without links.
    Backup(BackupArgs),

    /// Restore the links and the configuration from a backup
    ///
    /// Stops links, replaces the database and the configuration, and starts links. What is replaced stays on this host, with the
    /// time in its name. If links does not serve afterwards, everything is put back.
    Restore(RestoreArgs),

    /// Print the admin token, which the API requires
    Token(TokenArgs),

    /// Install from the unpacked tarball on a host with systemd but without apt
    Install(InstallArgs),

    /// Remove what `install` installed; the data stays unless --purge is given
    Uninstall(UninstallArgs),

    /// Apply links.toml, runtime.toml, the credentials and a release without a failed request
    ///
    /// Instances that run another release or another configuration are updated one at a time: each is drained and restarted,
    /// and must stay healthy for rollout.min_healthy before the next one follows. If an instance fails, all instances return
    /// to what they ran before, and the command fails. `systemctl reload links` runs this command.
    Rollout(RolloutArgs),

    /// Roll out the release that ran before the current one
    Rollback(RollbackArgs),

    /// List the releases on this host, which instances run them, and the target of `rollback`
    Releases(ReleasesArgs),

    /// Restart every instance, one at a time
    Restart(RestartArgs),

    /// Change the number of instances
    ///
    /// The number is kept in links.toml.d/instances.toml, and replaces the one in links.toml.
    Scale(ScaleArgs),

    /// Set up HTTPS, show its certificates, and renew them
    Tls(TlsArgs),

    /// Print an nginx site for a host on which links does not write it
    ///
    /// The site fits links.toml and this host as if links wrote it. With `[nginx] manage = false`, put it where nginx reads it,
    /// change it as you like, and reload nginx. Run as root, the command also considers nginx's other sites.
    SampleSite,

    /// Bring the host in line with links.toml, runtime.toml and the installed release
    ///
    /// Imports the release, rolls it out, and writes the nginx site. The package's postinst runs this command. Running it
    /// again is harmless.
    Configure(ConfigureArgs),

    /// Give an instance its credentials if systemd has not delivered them (run before the instance starts)
    #[command(hide = true)]
    DeliverCredentials(RunArgs),

    /// Take over directories that earlier versions gave to user links (run before systemd-tmpfiles, which fails on files
    /// that the user may have put there)
    #[command(hide = true)]
    Prepare,

    /// Undo a rollout that was interrupted (run at boot, before the first instance)
    #[command(hide = true)]
    Recover,

    /// Stop links and remove it from systemd and nginx (run by the package's prerm)
    #[command(hide = true)]
    Deconfigure(DeconfigureArgs),

    /// Make nginx look for the instances on their ports too, and let links.toml contain all settings that 0.1.0 knows (run by
    /// the package's prerm before a downgrade to 0.1.0)
    #[command(hide = true)]
    PrepareDowngrade,

    /// Make nginx look for the instances only where they listen (run by the package's postinst if the downgrade failed)
    #[command(hide = true)]
    AbortDowngrade,

    /// Stop the instances if links.service is being stopped (run by links.service when it ends)
    #[command(hide = true)]
    StopInstances,

    /// Write the man page to standard output
    #[command(hide = true)]
    Man {
        /// The date in the page's footer
        date: String,
    },

    /// Write the completions for a shell to standard output
    #[command(hide = true)]
    Completions { shell: CompletionShell },
}

impl Command {
    /// Whether the command only prints, so that it can end at once when nobody reads its output.
    pub fn only_prints(&self) -> bool {
        match self {
            Self::Check(_)
            | Self::Stats(_)
            | Self::Status(_)
            | Self::Version(_)
            | Self::Releases(_)
            | Self::SampleSite
            | Self::Man { .. }
            | Self::Completions { .. } => true,
            Self::Backup(args) => matches!(args.command, Some(BackupCommand::List(_))),
            Self::Token(args) => !args.rotate,
            Self::Tls(args) => matches!(args.command, TlsCommand::Status(_)),
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
pub struct RunArgs {
    /// The number of the instance, from 1
    #[arg(value_parser = clap::value_parser!(u16).range(1..=16))]
    pub instance: u16,
}

#[derive(Args, Debug)]
pub struct UpArgs {
    /// The bundle, unpacked tarball or tarball to run (default: the release installed under --root)
    #[arg(long, value_name = "PATH", value_hint = ValueHint::AnyPath)]
    pub bundle: Option<PathBuf>,

    /// The address and port for nginx (default: 127.0.0.1 and a free port)
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub listen: Option<SocketAddr>,

    /// Show what would be started, without starting it
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Args, Debug)]
pub struct CheckArgs {
    /// Also connect to every server that runtime.toml names, for at most five seconds
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
pub enum DbCommand {
    /// Copy the links from one database to another while links serves, and compare them
    ///
    /// A database is sqlite:PATH or libsql:URL. The default of --from or --to is the database in runtime.toml. Existing links
    /// are never changed, and click counts are not copied. To move to another database: copy the links, put the new database
    /// into runtime.toml, run `systemctl reload links`, and copy again with --resume and --from the old database to add the
    /// links that were created in between.
    Copy(CopyArgs),
}

#[derive(Args, Debug)]
pub struct StatusArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
pub struct StatsArgs {
    /// The slug of a link (default: all links)
    pub slug: Option<String>,

    /// The first day (2030-01-31) or time (2030-01-31T18:00:00Z) (default: 30 days ago, with --by hour 48 hours)
    #[arg(long, value_name = "TIME")]
    pub from: Option<String>,

    /// The last day or time (default: now)
    #[arg(long, value_name = "TIME")]
    pub to: Option<String>,

    /// The size of a time bucket
    #[arg(long, value_name = "PERIOD")]
    pub by: Option<StatsBy>,

    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum StatsBy {
    /// One hour; these counts are kept for 90 days
    Hour,
    Day,
}

#[derive(Args, Debug)]
pub struct VersionArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub struct BackupArgs {
    #[command(subcommand)]
    pub command: Option<BackupCommand>,

    #[command(flatten)]
    pub make: MakeBackupArgs,
}

#[derive(Debug, Subcommand)]
pub enum BackupCommand {
    /// Check a backup: every digest in it, and that its database is sound
    Verify(VerifyBackupArgs),

    /// List the backups in a directory or in S3
    List(ListBackupsArgs),
}

#[derive(Args, Debug)]
pub struct MakeBackupArgs {
    /// A directory, a new file (its name contains .tar.zst), or a prefix in S3 (default: `to` in [backup] of links.toml)
    #[arg(long, value_name = "DIR|FILE|s3://BUCKET/PREFIX", value_hint = ValueHint::AnyPath)]
    pub to: Option<Location>,

    /// Encrypt the backup, secrets included, to this age public key; can be repeated (default: `encrypt_to` in links.toml)
    #[arg(long, value_name = "age1...")]
    pub encrypt_to: Vec<Recipient>,

    /// Put the secrets into a backup that is not encrypted: credentials, keys of certificates, the ACME account
    #[arg(long, conflicts_with = "encrypt_to")]
    pub plain_secrets: bool,

    /// Print JSON
    #[arg(long)]
    pub json: bool,

    /// Make a backup only if links.toml says that one is due (run by links-backup.timer)
    #[arg(long, hide = true)]
    pub scheduled: bool,
}

impl From<MakeBackupArgs> for archive::make::Request {
    fn from(args: MakeBackupArgs) -> Self {
        Self {
            to: args.to,
            encrypt_to: args.encrypt_to,
            plain_secrets: args.plain_secrets,
            is_scheduled: args.scheduled,
            style: archive_style(args.json),
        }
    }
}

#[derive(Args, Debug)]
pub struct VerifyBackupArgs {
    /// The file, or the object as s3://BUCKET/KEY
    #[arg(value_name = "FILE", value_hint = ValueHint::AnyPath)]
    pub backup: Location,

    /// A file with the secret key of age, if the backup is encrypted
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub identity: Option<PathBuf>,

    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
pub struct ListBackupsArgs {
    /// A directory, or a prefix in S3 (default: `to` in [backup] of links.toml)
    #[arg(long, value_name = "DIR|s3://BUCKET/PREFIX", value_hint = ValueHint::AnyPath)]
    pub to: Option<Location>,

    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
pub struct RestoreArgs {
    /// The file, or the object as s3://BUCKET/KEY
    #[arg(value_name = "FILE", value_hint = ValueHint::AnyPath, required_unless_present = "undo")]
    pub backup: Option<Location>,

    /// A file with the secret key of age, if the backup is encrypted
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub identity: Option<PathBuf>,

    /// Only check whether the backup can be restored here
    #[arg(long, conflicts_with = "dry_run")]
    pub check: bool,

    /// Show what would be done, without doing it
    #[arg(long)]
    pub dry_run: bool,

    /// Replace the links that this host has; they are kept beside the database
    #[arg(long)]
    pub force: bool,

    /// Put everything back after a restore that was interrupted
    #[arg(long, conflicts_with_all = ["backup", "identity", "check", "dry_run", "force"])]
    pub undo: bool,

    /// Print events as JSON, one per line
    #[arg(long)]
    pub json: bool,
}

/// How a backup or a restore reports what it does.
pub fn archive_style(json: bool) -> archive::Style {
    if json {
        archive::Style::Json
    } else {
        archive::Style::Text
    }
}

#[derive(Args, Debug)]
pub struct TokenArgs {
    /// Replace the token with a new one first; it takes effect with the next `linksctl rollout`
    #[arg(long)]
    pub rotate: bool,
}

#[derive(Args, Debug)]
pub struct RolloutArgs {
    /// An ID from `linksctl releases`, or the path of a bundle, an unpacked tarball or a tarball (default: the current
    /// release)
    #[arg(long, value_name = "ID|PATH", value_hint = ValueHint::AnyPath)]
    pub release: Option<String>,

    /// Restart all instances, even without a change, and replace an nginx site that somebody has edited
    #[arg(long)]
    pub force: bool,

    /// Print events as JSON, one per line
    #[arg(long)]
    pub json: bool,

    /// Show what would be done, without doing it
    #[arg(long)]
    pub dry_run: bool,

    /// Leave the work to a rollout that is already running (used by links.service)
    #[arg(long, hide = true)]
    pub from_systemd: bool,
}

impl From<RolloutArgs> for rollout::Request {
    fn from(args: RolloutArgs) -> Self {
        Self {
            release: args.release,
            force: Force {
                restart: args.force,
                site: args.force,
            },
            style: style(args.json),
            mode: match (args.dry_run, args.from_systemd) {
                (true, _) => Mode::DryRun,
                (false, true) => Mode::AtStart,
                (false, false) => Mode::Apply,
            },
        }
    }
}

/// How a rollout reports what it does.
pub fn style(json: bool) -> Style {
    if json { Style::Json } else { Style::Text }
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
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
pub struct ScaleArgs {
    /// The number of instances, from 1 to 16
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

    /// Show what would be done, without doing it
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Args, Debug)]
pub struct UninstallArgs {
    /// Also remove the links, the configuration and the credentials
    #[arg(long)]
    pub purge: bool,

    /// Show what would be done, without doing it
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Args, Debug)]
pub struct TlsArgs {
    #[command(subcommand)]
    pub command: TlsCommand,
}

#[derive(Debug, Subcommand)]
pub enum TlsCommand {
    /// Turn on HTTPS for host names
    ///
    /// Gets a certificate for each name from Let's Encrypt or another authority that speaks ACME, makes nginx serve it, and
    /// redirects requests without HTTPS. For that, each name must lead to this host, and the authority must reach port 80. The
    /// certificates are renewed by links-tls.timer. With --certificate and --key, nginx serves your own certificates instead.
    ///
    /// Names are added to those that already have HTTPS, and other settings stay as they are. Only the names are required. If a
    /// name gets no certificate, the others have HTTPS nevertheless, the timer tries again, and the exit status is 1.
    Enable(TlsEnableArgs),

    /// Show the certificates, what nginx serves, and when each is renewed
    ///
    /// The exit status is 1 if a name has no valid certificate, or if nginx does not serve it.
    Status(TlsStatusArgs),

    /// Renew the certificates that are due, or take changed files, and make nginx load them
    ///
    /// links-tls.timer runs this command. It is quick if there is nothing to do.
    Renew(TlsRenewArgs),

    /// Turn off HTTPS, or remove names from it
    ///
    /// The certificates and the account stay on this host until links is purged. Browsers that got --hsts continue to use only
    /// HTTPS.
    Disable(TlsDisableArgs),
}

#[derive(Args, Debug)]
pub struct TlsEnableArgs {
    /// The host names, the one for short URLs first (default: those that had HTTPS before)
    #[arg(value_name = "NAME", value_parser = host_name)]
    pub names: Vec<String>,

    /// The contact of the account at the authority
    #[arg(long, value_name = "ADDRESS", value_parser = email)]
    pub email: Option<String>,

    /// The directory of the authority (default: Let's Encrypt)
    #[arg(long, value_name = "URL", value_parser = directory)]
    pub directory: Option<String>,

    /// The authority's profile for the certificates, such as `shortlived`
    #[arg(long, value_name = "NAME", value_parser = profile)]
    pub profile: Option<String>,

    /// A file with the roots that the connection to the authority trusts (default: the system's)
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub ca_file: Option<PathBuf>,

    /// The identifier of your external account, if the authority asks for one
    #[arg(long, value_name = "ID", requires = "eab_key_file")]
    pub eab_kid: Option<String>,

    /// A file with the key of your external account
    #[arg(long, value_name = "FILE", requires = "eab_kid", value_hint = ValueHint::FilePath)]
    pub eab_key_file: Option<PathBuf>,

    /// A file with a certificate and its chain to use instead of an authority; can be repeated
    #[arg(long, value_name = "FILE", requires = "key", value_hint = ValueHint::FilePath)]
    #[arg(conflicts_with_all = ["email", "directory", "profile", "ca_file", "eab_kid"])]
    pub certificate: Vec<PathBuf>,

    /// The file with the key of each --certificate, in the same order
    #[arg(long, value_name = "FILE", requires = "certificate", value_hint = ValueHint::FilePath)]
    pub key: Vec<PathBuf>,

    /// The response to http:// (initially a redirect)
    #[arg(long, value_name = "ANSWER")]
    pub http: Option<TlsHttp>,

    /// Make browsers use only HTTPS for these names for a year, even after HTTPS is turned off
    #[arg(long, value_name = "BOOLEAN", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub hsts: Option<bool>,

    /// Print events as JSON, one per line
    #[arg(long)]
    pub json: bool,

    /// Show what would be done, without doing it
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TlsHttp {
    /// A redirect to HTTPS
    Redirect,
    /// The same as with HTTPS
    Serve,
}

impl From<TlsHttp> for PlainHttp {
    fn from(http: TlsHttp) -> Self {
        match http {
            TlsHttp::Redirect => Self::Redirect,
            TlsHttp::Serve => Self::Serve,
        }
    }
}

#[derive(Args, Debug)]
pub struct TlsStatusArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
pub struct TlsRenewArgs {
    /// The names to renew (default: all)
    #[arg(value_name = "NAME", value_parser = host_name)]
    pub names: Vec<String>,

    /// Renew certificates that are not due too
    #[arg(long)]
    pub force: bool,

    /// Print events as JSON, one per line
    #[arg(long)]
    pub json: bool,

    /// Show what would be done, without doing it
    #[arg(long)]
    pub dry_run: bool,

    /// Report only changes and failures (used by links-tls.service)
    #[arg(long, hide = true)]
    pub from_systemd: bool,
}

#[derive(Args, Debug)]
pub struct TlsDisableArgs {
    /// The names to remove (default: all)
    #[arg(value_name = "NAME", value_parser = host_name)]
    pub names: Vec<String>,

    /// Print events as JSON, one per line
    #[arg(long)]
    pub json: bool,

    /// Show what would be done, without doing it
    #[arg(long)]
    pub dry_run: bool,
}

fn host_name(text: &str) -> Result<String, String> {
    links::host_name(text)
        .ok_or_else(|| "not a host name; write it without https://, and each subdomain by itself".to_owned())
}

fn email(text: &str) -> Result<String, String> {
    match links::is_email(text) {
        true => Ok(text.to_owned()),
        false => Err("not an email address".to_owned()),
    }
}

fn directory(text: &str) -> Result<String, String> {
    match url::Url::parse(text) {
        Ok(url) if url.scheme() == "https" => Ok(url.into()),
        Ok(_) => Err("the URL must begin with https://".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

fn profile(text: &str) -> Result<String, String> {
    match links::is_profile(text) {
        true => Ok(text.to_owned()),
        false => Err("not the name of a profile".to_owned()),
    }
}

#[derive(Args, Debug)]
pub struct ConfigureArgs {
    /// Replace an nginx site that somebody has edited
    #[arg(long)]
    pub force: bool,

    /// Show what would be done, without doing it
    #[arg(long)]
    pub dry_run: bool,
}

impl From<ConfigureArgs> for setup::How {
    fn from(args: ConfigureArgs) -> Self {
        Self {
            start: true,
            force: args.force,
            dry_run: args.dry_run,
        }
    }
}

#[derive(Args, Debug)]
pub struct DeconfigureArgs {
    /// Show what would be done, without doing it
    #[arg(long)]
    pub dry_run: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCRIPTS: [&str; 2] = [
        include_str!("../../../packaging/deb/postinst"),
        include_str!("../../../packaging/deb/prerm"),
    ];

    #[test]
    fn backup_is_a_command_of_its_own_and_has_others() {
        const KEY: &str = "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p";
        for line in [
            "backup".to_owned(),
            format!("backup --to s3://backups/vm --encrypt-to {KEY} --encrypt-to {KEY} --json"),
            "backup --to /b --plain-secrets".to_owned(),
            "backup verify /b/x.tar.zst --identity key.txt".to_owned(),
            "backup list --to /b".to_owned(),
            "restore /b/x.tar.zst --check".to_owned(),
            "restore s3://backups/x.tar.zst --dry-run --force".to_owned(),
            "restore --undo".to_owned(),
        ] {
            let words = std::iter::once("linksctl").chain(line.split(' '));
            assert!(Cli::try_parse_from(words).is_ok(), "{line}");
        }
        for line in [
            "restore".to_owned(),
            "restore /b/x.tar.zst --undo".to_owned(),
            "backup --to /b verify /b/x".to_owned(),
            format!("backup --encrypt-to {KEY} --plain-secrets"),
            "backup --to s3://x".to_owned(),
            "backup --encrypt-to AGE-SECRET-KEY-1X".to_owned(),
        ] {
            let words = std::iter::once("linksctl").chain(line.split(' '));
            assert!(Cli::try_parse_from(words).is_err(), "{line}");
        }
    }

    #[test]
    fn the_timer_calls_linksctl_correctly() {
        let unit = include_str!("../../../systemd/links-backup.service");
        let calls: Vec<_> = unit
            .lines()
            .filter_map(|line| line.strip_prefix("ExecStart=/usr/bin/"))
            .collect();
        assert_eq!(calls.len(), 1);
        assert!(Cli::try_parse_from(calls[0].split(' ')).is_ok(), "{calls:?}");
    }

    #[test]
    fn the_package_scripts_call_linksctl_correctly() {
        let lines = SCRIPTS.iter().flat_map(|text| text.lines()).map(str::trim);
        let calls: Vec<_> = lines.filter(|line| line.starts_with("linksctl ")).collect();
        assert!(
            calls.contains(&"linksctl configure") && calls.contains(&"linksctl deconfigure"),
            "{calls:?}"
        );
        for call in calls {
            if let Err(error) = Cli::try_parse_from(call.split(' ')) {
                unreachable!("{call}: {error}");
            }
        }
    }
}
