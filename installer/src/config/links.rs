//! `links.toml`: how the appliance runs. Every key has a default, so the file may be empty.

mod read;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::runtime::Reference;
pub use read::read;

/// What `links.toml` says, with the defaults filled in. Everything in it has been checked: ranges, forms, ports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Config {
    /// How many instances run, 1 to [`crate::layout::MAX_INSTANCES`].
    pub instances: u16,
    /// Instance N listens on 127.0.0.1, port `base_port` + N; none of these is below 1024 or above 65535. On `base_port`
    /// itself nginx listens, see [`Config::edge_port`].
    pub base_port: u16,
    /// Scheme and host (and port) of short URLs, without a slash at the end, e.g. `https://s.example.org`.
    pub public_url: Option<String>,
    pub shorten: Shorten,
    pub health: Health,
    pub drain: Drain,
    pub rollout: Rollout,
    pub cache: Cache,
    pub secrets: Secrets,
    pub telemetry: Telemetry,
    pub metrics: Metrics,
    pub clicks: Clicks,
    pub nginx: Nginx,
}

/// `[shorten]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Shorten {
    pub access: Access,
    /// The one origin whose pages may call `POST /shorten` from a browser (CORS), e.g. `https://app.example.org`.
    pub allowed_origin: Option<String>,
}

/// Who may shorten.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Access {
    /// Who has the admin token.
    Token,
    /// Everyone.
    Open,
}

/// `[health]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Health {
    /// From the start of the runtime to its first healthy answer, at most; then the start has failed.
    pub start_timeout: Duration,
    /// Between two probes of an instance that runs.
    pub interval: Duration,
    /// For one probe, at most.
    pub timeout: Duration,
}

/// `[drain]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Drain {
    /// For the requests in flight when an instance stops, at most; what is left then is cut.
    pub timeout: Duration,
}

/// `[rollout]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Rollout {
    /// An instance is healthy this long before the next one is touched.
    pub min_healthy: Duration,
}

/// `[cache]`: redirects that are answered without the database.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Cache {
    pub enabled: Enabled,
    /// How long an entry counts while the database answers.
    pub ttl: Duration,
    /// How long it counts while the database does not.
    pub stale: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Enabled {
    /// Where the database is a remote one.
    Auto,
    Yes,
    No,
}

/// `[secrets]`: what another machine (Vault) is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Secrets {
    /// How long a value counts before it is asked for again.
    pub ttl: Duration,
    /// How long it counts while nobody answers.
    pub stale: Duration,
}

/// `[telemetry]`: what is sent to a collector of the user, by OTLP.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Telemetry {
    /// `http://` or `https://`, a host, and for [`Protocol::Http`] maybe a path, without a slash at the end. None: nothing
    /// is sent.
    pub endpoint: Option<String>,
    pub protocol: Protocol,
    /// The credential that holds headers for the collector, as `OTEL_EXPORTER_OTLP_HEADERS` has them.
    pub headers: Option<Reference>,
    pub traces: bool,
    pub metrics: bool,
    pub logs: bool,
    pub sampling: Sampling,
}

/// How OTLP travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Protocol {
    #[serde(rename = "http/protobuf")]
    Http,
    #[serde(rename = "grpc")]
    Grpc,
}

/// The share of traces that is kept, of those that begin here; in millionths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Sampling(u32);

impl Sampling {
    /// None unless it is from 0 to 1.
    pub fn new(ratio: f64) -> Option<Self> {
        // In range, so the cast rounds and loses nothing else.
        (0.0..=1.0).contains(&ratio).then(|| Self((ratio * 1e6).round() as u32))
    }
}

/// As `OTEL_TRACES_SAMPLER_ARG` takes it.
impl fmt::Display for Sampling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (f64::from(self.0) / 1e6).fmt(f)
    }
}

/// `[metrics]`: what Prometheus asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Metrics {
    /// Where `GET /metrics` is answered; none: nowhere.
    pub listen: Option<SocketAddr>,
    /// Where the instances send theirs, by OTLP; loopback.
    pub otlp_listen: SocketAddr,
}

/// `[clicks]`: how redirects are counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Clicks {
    /// A file in MaxMind's format that knows the countries of addresses. None: countries are not told.
    pub countries: Option<PathBuf>,
}

/// `[nginx]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Nginx {
    /// Whether the nginx site is ours to write.
    pub manage: bool,
    /// At least one; no two of them are the same address.
    pub listen: Vec<Listen>,
    /// Names for nginx's `server_name`, at least one; only characters that mean nothing else to nginx.
    pub server_name: Vec<String>,
    /// Whether Debian's untouched default site makes way.
    pub replace_default_site: bool,
    /// How long nginx answers a redirect by itself; less than a second: it does not. `None`: see [`Config::edge_ttl`].
    pub cache_ttl: Option<Duration>,
    /// How much longer while no instance answers.
    pub cache_stale: Duration,
}

impl Config {
    /// The port of 127.0.0.1 where the instances ask nginx about its cache; none: it has none, or the site is not ours.
    pub fn edge_port(&self) -> Option<u16> {
        (self.nginx.manage && self.longest_edge_ttl().as_secs() > 0).then_some(self.base_port)
    }

    /// How long nginx answers a redirect by itself. A change that is made through this host is seen at once. Others can only
    /// be made to a database on another machine, so those of a file may be kept for longer.
    pub fn edge_ttl(&self, database_is_remote: bool) -> Duration {
        match database_is_remote {
            true => self.nginx.cache_ttl.unwrap_or(Duration::from_secs(5)),
            false => self.longest_edge_ttl(),
        }
    }

    /// The same, whatever the database.
    pub fn longest_edge_ttl(&self) -> Duration {
        self.nginx.cache_ttl.unwrap_or(Duration::from_secs(300))
    }
}

/// One `listen` of nginx.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Listen {
    /// On every IPv4 address, as nginx reads a lone port.
    Port(u16),
    Address(SocketAddr),
}

impl Listen {
    /// Where it binds.
    pub fn address(self) -> SocketAddr {
        match self {
            Self::Port(port) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)),
            Self::Address(address) => address,
        }
    }

    /// Whether it takes `port` of 127.0.0.1. An IPv6 wildcard does not: nginx binds it with `ipv6only=on`.
    pub fn takes_loopback(self, port: u16) -> bool {
        let address = self.address();
        let ip = address.ip();
        address.port() == port && (ip == IpAddr::V4(Ipv4Addr::UNSPECIFIED) || ip == IpAddr::V4(Ipv4Addr::LOCALHOST))
    }
}

/// As nginx's `listen` takes it.
impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port(port) => port.fmt(f),
            Self::Address(address) => address.fmt(f),
        }
    }
}

impl fmt::Display for Protocol {
    /// As `OTEL_EXPORTER_OTLP_PROTOCOL` takes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Http => "http/protobuf",
            Self::Grpc => "grpc",
        })
    }
}

impl fmt::Display for Access {
    /// As the component's variable `shorten_access` takes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Token => "token",
            Self::Open => "open",
        })
    }
}

impl Default for Config {
    /// What an empty `links.toml` means.
    fn default() -> Self {
        Self {
            instances: 2,
            base_port: 7000,
            public_url: None,
            shorten: Shorten {
                access: Access::Token,
                allowed_origin: None,
            },
            health: Health {
                start_timeout: Duration::from_secs(30),
                interval: Duration::from_secs(1),
                timeout: Duration::from_secs(2),
            },
            drain: Drain {
                timeout: Duration::from_secs(30),
            },
            rollout: Rollout {
                min_healthy: Duration::from_secs(2),
            },
            cache: Cache {
                enabled: Enabled::Auto,
                ttl: Duration::from_secs(60),
                stale: Duration::from_secs(24 * 3600),
            },
            secrets: Secrets {
                ttl: Duration::from_secs(30),
                stale: Duration::from_secs(15 * 60),
            },
            telemetry: Telemetry {
                endpoint: None,
                protocol: Protocol::Http,
                headers: None,
                traces: true,
                metrics: true,
                logs: false,
                sampling: Sampling(1_000_000),
            },
            metrics: Metrics {
                listen: Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 9464))),
                otlp_listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 9465)),
            },
            clicks: Clicks::default(),
            nginx: Nginx {
                manage: true,
                listen: vec![Listen::Port(80)],
                server_name: vec!["_".to_owned()],
                replace_default_site: true,
                cache_ttl: None,
                cache_stale: Duration::from_secs(600),
            },
        }
    }
}

#[cfg(test)]
mod tests;
