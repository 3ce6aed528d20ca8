//! The settings of `links.toml` as types.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize, Serializer};

use super::tls::Tls;
use crate::backup;
use crate::runtime::Reference;

/// The settings in `links.toml` and the files that extend it, with the defaults of [`super::keys`]. All ranges, formats and ports
/// have been checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Config {
    /// The number of instances, from 1 to [`links_base::layout::MAX_INSTANCES`].
    pub instances: u16,
    /// The port below those of the instances: instance N has port `base_port` + N on 127.0.0.1. Instance ports are from 1024 to
    /// 65535. nginx may listen on `base_port` itself, see [`Config::edge_port`].
    pub base_port: u16,
    /// The origin of short URLs, without a slash at the end, such as `https://s.example.org`.
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
    pub limits: Limits,
    pub nginx: Nginx,
    pub tls: Tls,
    pub backup: backup::Settings,
}

/// `[shorten]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Shorten {
    pub access: Access,
    /// The one origin whose pages may call `POST /shorten` from a browser (CORS), such as `https://app.example.org`.
    pub allowed_origin: Option<String>,
}

/// Who may create links.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Access {
    /// Clients that have the admin token.
    Token,
    /// Everyone.
    Open,
}

/// `[health]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Health {
    /// The maximum time from the start of the runtime to its first healthy response. After that, the start has failed.
    pub start_timeout: Duration,
    /// The time between two probes of a running instance.
    pub interval: Duration,
    /// The maximum duration of one probe.
    pub timeout: Duration,
}

/// `[drain]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Drain {
    /// How long a stopping instance waits for its requests in flight. The rest are aborted.
    pub timeout: Duration,
}

/// `[rollout]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Rollout {
    /// How long an instance must stay healthy before the next one is changed.
    pub min_healthy: Duration,
}

/// `[cache]`: the cache of redirects, which are then answered without the database.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Cache {
    pub enabled: Enabled,
    /// How long an entry is valid while the database answers.
    pub ttl: Duration,
    /// How long an entry is valid while the database does not answer.
    pub stale: Duration,
}

/// Whether the cache is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Enabled {
    /// Only if the database is remote.
    Auto,
    Yes,
    No,
}

/// `[secrets]`: the cache of secrets from another machine, such as Vault.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Secrets {
    /// How long a secret is valid before it is looked up again.
    pub ttl: Duration,
    /// How long a secret is valid while the other machine does not answer.
    pub stale: Duration,
}

/// `[telemetry]`: what is sent to the user's collector by OTLP.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Telemetry {
    /// The URL of the collector: `http://` or `https://`, a host, and for [`Protocol::Http`] an optional path, without a slash
    /// at the end. `None` if nothing is sent.
    pub endpoint: Option<String>,
    pub protocol: Protocol,
    /// The credential with headers for the collector, in the format of `OTEL_EXPORTER_OTLP_HEADERS`.
    pub headers: Option<Reference>,
    pub traces: bool,
    pub metrics: bool,
    pub logs: bool,
    pub sampling: Sampling,
}

/// The transport of OTLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Protocol {
    #[serde(rename = "http/protobuf")]
    Http,
    #[serde(rename = "grpc")]
    Grpc,
}

/// The sampling ratio, in millionths, of traces that start here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Sampling(u32);

impl Sampling {
    /// `None` unless the ratio is from 0 to 1.
    pub fn new(ratio: f64) -> Option<Self> {
        // The value is in range, so the cast cannot truncate.
        (0.0..=1.0).contains(&ratio).then(|| Self((ratio * 1e6).round() as u32))
    }
}

/// The form of `OTEL_TRACES_SAMPLER_ARG`.
impl fmt::Display for Sampling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (f64::from(self.0) / 1e6).fmt(f)
    }
}

/// `[metrics]`: the metrics for Prometheus.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Metrics {
    /// The address of `GET /metrics`. `None` if metrics are off.
    pub listen: Option<SocketAddr>,
    /// The loopback address where the agent receives the metrics of the instances by OTLP.
    pub otlp_listen: SocketAddr,
}

/// `[clicks]`: how redirects are counted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Clicks {
    /// A file in MaxMind's format with the countries of IP addresses. `None` if countries are not recorded.
    pub countries: Option<PathBuf>,
}

/// `[limits]`: how many requests of a kind one address may send per minute. 0 means any number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Limits {
    /// Created links, if [`Access::Open`] lets everyone create them.
    pub create: u16,
    /// API requests with a wrong token, or without one.
    pub wrong_tokens: u16,
    /// Requests for links and other paths that do not exist, except those that nginx answers from its cache.
    pub unknown_links: u16,
    /// Requests for links and other paths that an instance answers.
    pub cache_misses: u16,
}

/// `[nginx]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Nginx {
    /// Whether links writes the nginx site.
    pub manage: bool,
    /// The addresses where nginx listens: at least one, without duplicates.
    pub listen: Vec<Listen>,
    /// The names for nginx's `server_name`, at least one. They have no characters with a special meaning to nginx.
    pub server_name: Vec<String>,
    /// Whether links disables Debian's default site, if that is unmodified.
    pub replace_default_site: bool,
    /// The proxies in front of nginx. They report the address, the scheme and the host of each request.
    pub trusted_proxies: Vec<TrustedProxy>,
    /// Whether these proxies send the PROXY protocol, with the client's address in it.
    pub proxy_protocol: bool,
    /// How long nginx caches a redirect. Less than a second means not at all. See [`Config::edge_ttl`] and
    /// [`Config::edge_port`] for `None`.
    pub cache_ttl: Option<Duration>,
    /// How much longer nginx serves a cached redirect while no instance answers.
    pub cache_stale: Duration,
}

impl Config {
    /// How short URLs begin: `public_url`, or else HTTPS with the first of its names. `None` if each response uses the
    /// scheme and the host of its request.
    pub fn base_url(&self) -> Option<String> {
        let of_tls = || Some(format!("https://{}", self.tls.served().first()?));
        self.public_url.clone().or_else(of_tls)
    }

    /// The port on 127.0.0.1 where nginx answers the instances' questions about its cache. `None` if nginx has no cache.
    ///
    /// If links does not write the site, nobody knows whether that site has a cache. Only a cache that links.toml asks for is
    /// used then, because redirects in a cache that the instances cannot reach would outlive their links.
    pub fn edge_port(&self) -> Option<u16> {
        let has_cache = self.nginx.manage || self.nginx.cache_ttl.is_some();
        (has_cache && self.longest_edge_ttl().as_secs() > 0).then_some(self.base_port)
    }

    /// How many links one address may create per minute. 0 means any number: without a token nobody can create links, or there
    /// is no limit.
    pub fn create_limit(&self) -> u16 {
        match self.shorten.access {
            Access::Open => self.limits.create,
            Access::Token => 0,
        }
    }

    /// How long nginx caches a redirect. Changes that are made through this host purge the cache at once. Only a remote
    /// database can be changed from elsewhere, so its default is shorter.
    pub fn edge_ttl(&self, database_is_remote: bool) -> Duration {
        match database_is_remote {
            true => self.nginx.cache_ttl.unwrap_or(Duration::from_secs(5)),
            false => self.longest_edge_ttl(),
        }
    }

    /// How long nginx caches a redirect at most, with any database.
    pub fn longest_edge_ttl(&self) -> Duration {
        self.nginx.cache_ttl.unwrap_or(Duration::from_secs(300))
    }
}

/// Proxies that nginx trusts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrustedProxy {
    Network(IpNet),
    /// The networks of Cloudflare ([`crate::proxies`]).
    Cloudflare,
}

/// The form of links.toml.
impl fmt::Display for TrustedProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network(network) => network.fmt(f),
            Self::Cloudflare => f.write_str("cloudflare"),
        }
    }
}

impl Serialize for TrustedProxy {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Parses a network, or an address, which is a network of one. Bits of the address after the prefix are ignored.
pub fn network(text: &str) -> Option<IpNet> {
    let network = text.parse().ok();
    network
        .or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
        .map(|network: IpNet| network.trunc())
}

/// One `listen` directive of nginx.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Listen {
    /// A port on every IPv4 address, which is what nginx takes a lone port for.
    Port(u16),
    Address(SocketAddr),
}

impl Listen {
    /// The address to which nginx binds.
    pub fn address(self) -> SocketAddr {
        match self {
            Self::Port(port) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)),
            Self::Address(address) => address,
        }
    }

    /// Whether this occupies `port` on 127.0.0.1. An IPv6 wildcard does not, because nginx binds it with `ipv6only=on`.
    pub fn takes_loopback(self, port: u16) -> bool {
        let address = self.address();
        let ip = address.ip();
        address.port() == port && (ip == IpAddr::V4(Ipv4Addr::UNSPECIFIED) || ip == IpAddr::V4(Ipv4Addr::LOCALHOST))
    }
}

/// The form of nginx's `listen`.
impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port(port) => port.fmt(f),
            Self::Address(address) => address.fmt(f),
        }
    }
}

impl fmt::Display for Protocol {
    /// The form of `OTEL_EXPORTER_OTLP_PROTOCOL`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Http => "http/protobuf",
            Self::Grpc => "grpc",
        })
    }
}

impl fmt::Display for Access {
    /// The form of the component's variable `shorten_access`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Token => "token",
            Self::Open => "open",
        })
    }
}
