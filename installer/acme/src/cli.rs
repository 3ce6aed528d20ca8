//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::name::Name;
use links_config::acme::DEFAULT_DIRECTORY;

#[derive(Debug, Parser)]
#[command(
    name = "links-acme",
    version,
    about = "Get and renew certificates, for linksctl",
    after_help = "Prints JSON, one object per line. linksctl runs it; `linksctl tls` is the command for people."
)]
pub struct Cli {
    /// Work on the tree under DIR instead of /
    #[arg(long, value_name = "DIR", default_value = "/")]
    pub root: PathBuf,

    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Get a certificate for each name that has none that is valid, whatever happened before
    Issue(Renew),
    /// Get and renew what is due, and keep the pauses after failures
    Renew(Renew),
    /// Print what is known about the names, from the disk alone
    Status(Status),
    /// Record that nginx has loaded these certificates
    Loaded {
        /// As printed by `issue` and `renew` in `reload`
        #[arg(value_name = "NAME=ID", required = true, value_parser = loaded)]
        loaded: Vec<(Name, String)>,
    },
    /// Remove the certificates and keys of these names
    Forget {
        #[arg(value_name = "NAME", required = true)]
        names: Vec<Name>,
        /// Revoke the certificates first
        #[arg(long)]
        revoke: bool,
        #[command(flatten)]
        trust: Trust,
    },
    /// Deactivate the account at the authority, and remove it from this machine
    Deactivate {
        #[command(flatten)]
        directory: Directory,
        #[command(flatten)]
        trust: Trust,
    },
    /// Check that a certificate and a key from elsewhere can be served
    CheckFiles {
        /// The certificate, followed by those of its issuers
        #[arg(long, value_name = "FILE")]
        certificate: PathBuf,
        /// The private key
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
        /// The names that it must be for
        #[arg(value_name = "NAME")]
        names: Vec<Name>,
    },
    /// Show what TLS servers serve. The requests are a JSON array on standard input
    Probe,
    /// The process that speaks to the authority
    #[command(hide = true)]
    Network {
        /// Become user links-acme first
        #[arg(long)]
        as_user: bool,
    },
}

#[derive(Debug, Args)]
pub struct Renew {
    /// A DNS name or an IP address. Each gets a certificate of its own
    #[arg(value_name = "NAME", required = true)]
    pub names: Vec<Name>,

    #[command(flatten)]
    pub directory: Directory,

    #[command(flatten)]
    pub trust: Trust,

    /// The authority's profile for the certificates
    #[arg(long, value_name = "NAME")]
    pub profile: Option<String>,

    /// Where the authority may write to the account's holder; repeatable
    #[arg(long = "email", value_name = "ADDRESS")]
    pub emails: Vec<String>,

    /// The key ID of an external account
    #[arg(long, value_name = "KID", requires = "eab_key_file")]
    pub eab_kid: Option<String>,

    /// The file with the HMAC key of the external account, in base64url
    #[arg(long, value_name = "FILE", requires = "eab_kid")]
    pub eab_key_file: Option<PathBuf>,

    /// Before the authority is asked to look at an answer, fetch it from this address
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub self_check: Option<SocketAddr>,

    /// The address of --self-check expects the PROXY protocol
    #[arg(long, requires = "self_check")]
    pub proxy_protocol: bool,

    /// Renew certificates that are not due, and ignore pauses
    #[arg(long)]
    pub force: bool,

    /// Print what would be done
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Debug, Args)]
pub struct Directory {
    /// The URL of the authority's directory
    #[arg(long = "directory", value_name = "URL", default_value = DEFAULT_DIRECTORY, value_parser = https)]
    pub url: String,
}

#[derive(Debug, Args)]
pub struct Trust {
    /// Trust the authority's server by the certificates in this file, instead of those of this machine
    #[arg(long, value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct Status {
    /// The names [default: all]
    #[arg(value_name = "NAME")]
    pub names: Vec<Name>,

    /// Report certificates of another authority as due
    #[arg(long, value_name = "URL", value_parser = https)]
    pub directory: Option<String>,

    /// Report certificates of another profile as due
    #[arg(long, value_name = "NAME", requires = "directory")]
    pub profile: Option<String>,
}

fn https(text: &str) -> Result<String, String> {
    let url: url::Url = text.parse().map_err(|error| format!("{error}"))?;
    match url.scheme() {
        "https" if url.has_host() => Ok(text.to_owned()),
        _ => Err("an authority is asked over https".to_owned()),
    }
}

fn loaded(text: &str) -> Result<(Name, String), String> {
    let (name, id) = text.split_once('=').ok_or("write it as NAME=ID")?;
    let name = name.parse().map_err(|error| format!("{name}: {error}"))?;
    Ok((name, id.to_owned()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split(' '))
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn mistakes_are_found_before_anything_is_done() {
        for line in [
            "links-acme renew",
            "links-acme renew *.example.org",
            "links-acme renew a.example --directory http://ca.example/dir",
            "links-acme renew a.example --eab-kid kid",
            "links-acme loaded a.example",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
        let line = "links-acme --root /x issue A.example 192.0.2.1 --email a@b.example --email c@d.example --force";
        let Command::Issue(issue) = parse(line).unwrap().command else {
            unreachable!("another command");
        };
        assert_eq!(issue.names[0].to_string(), "a.example");
        assert_eq!((issue.names.len(), issue.emails.len(), issue.force), (2, 2, true));
        assert_eq!(issue.directory.url, DEFAULT_DIRECTORY);
    }
}
