//! The command line of links-host: the flags of `spin up` that an appliance needs. The doc comments are the help text.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueHint};

use crate::serve::endpoint::Endpoint;
use crate::serve::instances::Reuse;
use crate::serve::range::Range;
use crate::serve::server::Timeouts;

/// A small runtime for Spin components: HTTP, SQLite, key-value stores and variables.
///
/// It reads the same spin.toml and the same runtime configuration as Spin 4, and names each unsupported feature that they use.
#[derive(Debug, Parser)]
#[command(name = "links-host", version, max_term_width = 100)]
#[command(after_help = "Logs go to standard error; RUST_LOG sets the level (default: info).")]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve an application
    Up(Box<Up>),
    /// Compile the components of an application, for `up --precompiled`
    Compile(Compile),
}

#[derive(clap::Args, Debug)]
pub struct Compile {
    /// The application: a spin.toml, or the directory that contains it
    #[arg(short = 'f', long = "from", value_name = "PATH", default_value = "spin.toml", value_hint = ValueHint::AnyPath)]
    pub from: PathBuf,

    /// Directory for the compiled components; older compiled components in it are removed
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub out: PathBuf,

    /// Compile for use with `up --disable-pooling`
    #[arg(long)]
    pub disable_pooling: bool,
}

#[derive(clap::Args, Debug)]
pub struct Up {
    /// The application: a spin.toml, or the directory that contains it
    #[arg(short = 'f', long = "from", value_name = "PATH", default_value = "spin.toml", value_hint = ValueHint::AnyPath)]
    pub from: PathBuf,

    /// Address and port to listen on, or unix:/PATH for a Unix socket; may be repeated (both are additions to Spin)
    ///
    /// A Unix socket has mode 0660 and is removed on exit. Trace context (traceparent, tracestate) is accepted only on Unix
    /// sockets.
    #[arg(
        long,
        env = "SPIN_HTTP_LISTEN_ADDR",
        value_name = "ADDRESS:PORT",
        default_value = "127.0.0.1:3000"
    )]
    pub listen: Vec<Endpoint>,

    /// Runtime configuration file: databases, key-value stores and variable providers
    #[arg(long, env = "RUNTIME_CONFIG_FILE", value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub runtime_config_file: Option<PathBuf>,

    /// Directory for databases that have no path of their own; if empty, such databases are kept in memory
    ///
    /// The default is `.spin` next to spin.toml.
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub state_dir: Option<String>,

    /// Must be empty: links-host writes no log files, it passes component output through
    #[arg(short = 'L', long, env = "SPIN_LOG_DIR", value_name = "DIR")]
    pub log_dir: Option<String>,

    /// Discard component output
    #[arg(short = 'q', long)]
    pub quiet: bool,

    /// Compile at every start and cache no compiled code
    #[arg(long, env = "DISABLE_WASMTIME_CACHE", conflicts_with = "cache")]
    pub disable_cache: bool,

    /// Configuration file of the compilation cache; by default, the cache is $XDG_CACHE_HOME/wasmtime
    #[arg(long, env = "WASMTIME_CACHE_FILE", value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub cache: Option<PathBuf>,

    /// Directory of components compiled by `links-host compile` (not a flag of Spin)
    ///
    /// A component is compiled at startup if its compiled code is missing, does not match, or is writable by anyone other
    /// than root and the owner of this program.
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub precompiled: Option<PathBuf>,

    /// Allocate memory for each instance on demand instead of from a pool (slower; for machines with little address space)
    #[arg(long)]
    pub disable_pooling: bool,

    /// How many requests one instance may serve; a range such as 64..128 draws a number for each instance
    #[arg(long, value_name = "COUNT", default_value = "128", value_parser = parse_count)]
    pub max_instance_reuse_count: Range<usize>,

    /// How many requests one instance may serve concurrently; a number or a range
    #[arg(long, value_name = "COUNT", default_value = "16", value_parser = parse_count)]
    pub max_instance_concurrent_reuse_count: Range<usize>,

    /// How long an idle instance is kept, in seconds or with a suffix s, ms, us or ns; a time or a range
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = parse_time)]
    pub idle_instance_timeout: Range<Duration>,

    /// How long a request may take; no limit by default
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub request_timeout: Option<Range<Duration>>,

    /// How long requests in progress may still take after SIGTERM or SIGINT (not a flag of Spin)
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = parse_duration)]
    pub shutdown_timeout: Duration,

    /// How long to wait for a client that sends no request, stalls in a request body, or stops reading (not a flag of Spin)
    ///
    /// A client that is steady but slower than 1 KiB/s is disconnected as well. The default exceeds nginx's keep-alive
    /// timeout, so that nginx never picks a connection that is about to close.
    #[arg(long, value_name = "TIME", default_value = "75s", value_parser = parse_duration)]
    pub client_timeout: Duration,

    /// Set an environment variable in every component
    #[arg(short = 'e', long = "env", value_name = "KEY=VALUE", value_parser = parse_env)]
    pub env: Vec<(String, String)>,
}

impl Up {
    pub fn timeouts(&self) -> Timeouts {
        Timeouts {
            client: self.client_timeout,
            shutdown: self.shutdown_timeout,
        }
    }

    pub fn reuse(&self) -> Reuse {
        Reuse {
            requests: self.max_instance_reuse_count,
            at_a_time: self.max_instance_concurrent_reuse_count,
            idle: self.idle_instance_timeout,
            request_timeout: self.request_timeout,
        }
    }
}

/// Parses a number or a range of numbers, all at least 1.
fn parse_count(text: &str) -> Result<Range<usize>, String> {
    let parse = |text: &str| match usize::from_str(text) {
        Ok(0) => Err("must be at least 1".to_owned()),
        Ok(number) => Ok(number),
        Err(_) => Err(format!("expected a number or a range such as 64..128, got {text:?}")),
    };
    Range::parse(text, parse)
}

fn parse_time(text: &str) -> Result<Range<Duration>, String> {
    Range::parse(text, parse_duration)
}

/// Parses whole seconds, or a whole number with the suffix s, ms, us (or μs) or ns.
fn parse_duration(text: &str) -> Result<Duration, String> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    let number = u64::from_str(digits).ok();
    match (number, unit) {
        (Some(number), "" | "s") => Ok(Duration::from_secs(number)),
        (Some(number), "ms") => Ok(Duration::from_millis(number)),
        (Some(number), "us" | "μs") => Ok(Duration::from_micros(number)),
        (Some(number), "ns") => Ok(Duration::from_nanos(number)),
        _ => Err(format!(
            "expected a whole number with s, ms, us, ns or no suffix (seconds), got {text:?}"
        )),
    }
}

fn parse_env(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("expected KEY=VALUE".to_owned()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that cannot parse its input has failed")]
mod tests {
    use super::*;

    fn up(args: &[&str]) -> Result<Up, clap::Error> {
        let cli = Cli::try_parse_from(["links-host", "up"].iter().chain(args))?;
        match cli.command {
            Command::Up(up) => Ok(*up),
            Command::Compile(compile) => unreachable!("{compile:?}"),
        }
    }

    #[test]
    fn the_supervisors_command_line_is_accepted() {
        let up = up(&[
            "--from",
            "/bundle/spin.toml",
            "--listen",
            "127.0.0.1:7001",
            "--runtime-config-file",
            "/run/links/1/runtime.toml",
            "--state-dir",
            "/var/lib/links/data",
        ])
        .unwrap();
        assert_eq!(up.listen, [Endpoint::Tcp("127.0.0.1:7001".parse().unwrap())]);
        assert_eq!(up.from, PathBuf::from("/bundle/spin.toml"));
        assert_eq!(up.state_dir.as_deref(), Some("/var/lib/links/data"));
    }

    #[test]
    fn unix_sockets_and_addresses_can_be_mixed() {
        let listen = up(&["--listen", "unix:/run/1.sock", "--listen", "127.0.0.1:7001"])
            .unwrap()
            .listen;
        let socket = Endpoint::Unix(PathBuf::from("/run/1.sock"));
        assert_eq!(listen, [socket, Endpoint::Tcp("127.0.0.1:7001".parse().unwrap())]);
        assert_eq!(listen[0].to_string(), "unix:/run/1.sock");
        assert!(up(&["--listen", "unix:1.sock"]).is_err());
        assert_eq!(
            up(&[]).unwrap().listen,
            [Endpoint::Tcp("127.0.0.1:3000".parse().unwrap())]
        );
    }

    #[test]
    fn instance_reuse_defaults_to_spins_values() {
        let reuse = up(&[]).unwrap().reuse();
        assert_eq!(reuse.requests, Range::One(128));
        assert_eq!(reuse.at_a_time, Range::One(16));
        assert_eq!(reuse.idle, Range::One(Duration::from_secs(1)));
        assert_eq!(reuse.request_timeout, None);
    }

    #[test]
    fn durations_take_units() {
        assert_eq!(parse_duration("2"), Ok(Duration::from_secs(2)));
        assert_eq!(parse_duration("2s"), Ok(Duration::from_secs(2)));
        assert_eq!(parse_duration("30ms"), Ok(Duration::from_millis(30)));
        assert_eq!(parse_duration("7us"), Ok(Duration::from_micros(7)));
        assert!(parse_duration("1h").is_err());
        assert!(parse_duration("").is_err());
        assert_eq!(
            parse_time("1..8s"),
            Ok(Range::Between(Duration::from_secs(1), Duration::from_secs(8)))
        );
    }

    #[test]
    fn an_instance_serves_at_least_one_request() {
        assert!(up(&["--max-instance-reuse-count", "0"]).is_err());
        assert!(up(&["--max-instance-reuse-count", "0..4"]).is_err());
        assert!(up(&["--max-instance-reuse-count", "4..4"]).is_err());
    }

    #[test]
    fn an_unknown_flag_is_refused_by_name() {
        let error = up(&["--find-free-port"]).unwrap_err().to_string();
        assert!(error.contains("--find-free-port"), "{error}");
    }

    #[test]
    fn host_names_are_resolved_and_malformed_values_refused() {
        assert!("localhost:3000".parse::<Endpoint>().is_ok());
        assert!("3000".parse::<Endpoint>().is_err());
        assert!(up(&["--env", "NO_EQUALS_SIGN"]).is_err());
    }
}
