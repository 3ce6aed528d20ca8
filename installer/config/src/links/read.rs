//! Reads `links.toml` into a [`Config`].

use std::net::{SocketAddr, SocketAddrV4};
use std::path::PathBuf;
use std::time::Duration;

use toml::de::DeValue;

use super::backup::backup;
use super::settings::{
    Access, Cache, Clicks, Config, Drain, Enabled, Health, Listen, Metrics, Nginx, Protocol, Rollout, Sampling,
    Secrets, Shorten, Telemetry,
};
use crate::document::{Document, Problem, Value, kind};
use crate::finding::Finding;
use crate::runtime::Reference;
use crate::section::Section;
use crate::value::{boolean, duration, one_of, one_or_more, origin, small, string, url};
use links_base::layout::MAX_INSTANCES;

/// The maximum timeout of a probe. Two probes in a row must end before the watchdog fires (`WatchdogSec=30` in links@.service).
const LONGEST_PROBE: Duration = Duration::from_secs(10);
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

#[cfg(any(test, feature = "testing"))]
impl Config {
    /// The configuration, or all findings.
    pub fn parse(text: &str, file: &str) -> Result<Self, Vec<Finding>> {
        let (config, findings) = read(text, file);
        config.ok_or(findings)
    }
}

/// Reads `links.toml`. Returns the configuration if there are no errors, and all findings, which may be only warnings.
pub fn read(text: &str, file: &str) -> (Option<Config>, Vec<Finding>) {
    let document = Document::new(text, file);
    let config = document.parse().map(|table| config(&document, table.get_ref()));
    let findings = document.into_findings();
    (config.filter(|_| !findings.iter().any(Finding::is_error)), findings)
}

/// Reads all keys. One that is absent or wrong gets its default.
fn config(document: &Document<'_>, table: &toml::de::DeTable<'_>) -> Config {
    let default = Config::default();
    let mut top = Section::top(document, table);
    let config = Config {
        instances: top
            .optional("instances", small(1..=MAX_INSTANCES))
            .unwrap_or(default.instances),
        // The port of the first instance is unprivileged, and exists.
        base_port: top
            .optional("base_port", small(1023..=u16::MAX - 1))
            .unwrap_or(default.base_port),
        public_url: top.optional("public_url", origin),
        shorten: top.section("shorten", shorten).unwrap_or(default.shorten),
        health: top.section("health", health).unwrap_or(default.health),
        drain: top.section("drain", drain).unwrap_or(default.drain),
        rollout: top.section("rollout", rollout).unwrap_or(default.rollout),
        cache: top.section("cache", cache).unwrap_or(default.cache),
        secrets: top.section("secrets", secrets).unwrap_or(default.secrets),
        telemetry: top.section("telemetry", telemetry).unwrap_or(default.telemetry),
        metrics: top.section("metrics", metrics).unwrap_or(default.metrics),
        clicks: top.section("clicks", clicks).unwrap_or(default.clicks),
        nginx: top.section("nginx", nginx).unwrap_or(default.nginx),
        backup: top.section("backup", backup).unwrap_or(default.backup),
    };
    ports(&top, &config);
    top.refuse_unknown();
    config
}

fn shorten(section: &mut Section<'_, '_>) -> Shorten {
    let default = Config::default().shorten;
    let access = section
        .optional("access", one_of(&["token", "open"]))
        .map_or(default.access, |word| match word {
            "open" => Access::Open,
            _ => Access::Token,
        });
    if access == Access::Open {
        section.document().warning(
            section.place_of(&["access"]),
            "`shorten.access` is \"open\": anyone who can reach nginx can create links",
            Some("write \"token\" to ask for the admin token".to_owned()),
        );
    }
    Shorten {
        access,
        allowed_origin: section.optional("allowed_origin", origin),
    }
}

fn health(section: &mut Section<'_, '_>) -> Health {
    let default = Config::default().health;
    Health {
        start_timeout: section
            .optional("start_timeout", duration(SECOND..=10 * MINUTE))
            .unwrap_or(default.start_timeout),
        interval: section
            .optional("interval", duration(Duration::from_millis(100)..=MINUTE))
            .unwrap_or(default.interval),
        timeout: section
            .optional("timeout", duration(Duration::from_millis(100)..=LONGEST_PROBE))
            .unwrap_or(default.timeout),
    }
}

fn drain(section: &mut Section<'_, '_>) -> Drain {
    Drain {
        timeout: section
            .optional("timeout", duration(Duration::ZERO..=HOUR))
            .unwrap_or(Config::default().drain.timeout),
    }
}

fn rollout(section: &mut Section<'_, '_>) -> Rollout {
    Rollout {
        min_healthy: section
            .optional("min_healthy", duration(Duration::ZERO..=10 * MINUTE))
            .unwrap_or(Config::default().rollout.min_healthy),
    }
}

fn cache(section: &mut Section<'_, '_>) -> Cache {
    let default = Config::default().cache;
    Cache {
        enabled: section.optional("enabled", enabled).unwrap_or(default.enabled),
        ttl: section.optional("ttl", duration(SECOND..=HOUR)).unwrap_or(default.ttl),
        stale: section
            .optional("stale", duration(Duration::ZERO..=30 * 24 * HOUR))
            .unwrap_or(default.stale),
    }
}

fn enabled(value: &Value<'_>) -> Result<Enabled, Problem> {
    match value.get_ref() {
        DeValue::Boolean(true) => Ok(Enabled::Yes),
        DeValue::Boolean(false) => Ok(Enabled::No),
        DeValue::String(text) if text == "auto" => Ok(Enabled::Auto),
        _ => Err(Problem::new("must be `true`, `false` or \"auto\"")),
    }
}

fn secrets(section: &mut Section<'_, '_>) -> Secrets {
    let default = Config::default().secrets;
    Secrets {
        ttl: section.optional("ttl", duration(SECOND..=HOUR)).unwrap_or(default.ttl),
        stale: section
            .optional("stale", duration(Duration::ZERO..=24 * HOUR))
            .unwrap_or(default.stale),
    }
}

fn telemetry(section: &mut Section<'_, '_>) -> Telemetry {
    let default = Config::default().telemetry;
    let protocol = section
        .optional("protocol", one_of(&["http/protobuf", "grpc"]))
        .map_or(default.protocol, |word| match word {
            "grpc" => Protocol::Grpc,
            _ => Protocol::Http,
        });
    let document = section.document();
    Telemetry {
        endpoint: section.optional("endpoint", endpoint(protocol)),
        protocol,
        headers: section.optional("headers", |value| Reference::read(document, value)),
        traces: section.optional("traces", boolean).unwrap_or(default.traces),
        metrics: section.optional("metrics", boolean).unwrap_or(default.metrics),
        logs: section.optional("logs", boolean).unwrap_or(default.logs),
        sampling: section.optional("sampling", sampling).unwrap_or(default.sampling),
    }
}

/// The endpoint of a collector. For HTTP it is the base URL, below which are `/v1/traces` and the paths of the other signals
/// (OTLP specification, "OTLP/HTTP Request").
fn endpoint(protocol: Protocol) -> impl Fn(&Value<'_>) -> Result<String, Problem> {
    move |value| {
        let url = url(&["http", "https"])(value)?;
        if !url.username().is_empty() {
            return Err(Problem::new("must not name a user").help("put credentials for the collector into `headers`"));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(Problem::new("must end after the path"));
        }
        if protocol == Protocol::Grpc && url.path() != "/" {
            return Err(Problem::new(
                "must end after the host and the port: gRPC has paths of its own",
            ));
        }
        Ok(url.as_str().trim_end_matches('/').to_owned())
    }
}

fn sampling(value: &Value<'_>) -> Result<Sampling, Problem> {
    let ratio = match value.get_ref() {
        DeValue::Float(ratio) => ratio.as_str().parse::<f64>().ok(),
        DeValue::Integer(ratio) => ratio.as_str().parse::<f64>().ok(),
        _ => return Err(Problem::new(format!("must be a number, found {}", kind(value)))),
    };
    ratio
        .and_then(Sampling::new)
        .ok_or_else(|| Problem::new("must be from 0.0 to 1.0"))
}

fn metrics(section: &mut Section<'_, '_>) -> Metrics {
    let default = Config::default().metrics;
    let metrics = Metrics {
        listen: section.optional("listen", metrics_listen).unwrap_or(default.listen),
        otlp_listen: section.optional("otlp_listen", loopback).unwrap_or(default.otlp_listen),
    };
    if metrics.listen.is_some_and(|listen| !listen.ip().is_loopback()) {
        section.document().warning(
            section.place_of(&["listen"]),
            "`metrics.listen` is not a loopback address: anyone who can reach it can read the metrics, and links.service \
             blocks connections from other hosts",
            Some(
                "protect it by a password in nginx, or run `systemctl edit links` and set IPAddressAllow=".to_owned(),
            ),
        );
    }
    metrics
}

fn metrics_listen(value: &Value<'_>) -> Result<Option<SocketAddr>, Problem> {
    match string(value)? {
        "off" => Ok(None),
        _ => socket(value)
            .map(Some)
            .map_err(|problem| problem.help("write \"127.0.0.1:9464\" or \"off\"")),
    }
}

fn loopback(value: &Value<'_>) -> Result<SocketAddr, Problem> {
    let address = socket(value)?;
    if !address.ip().is_loopback() {
        return Err(Problem::new("must be a loopback address").help("write \"127.0.0.1:PORT\""));
    }
    Ok(address)
}

fn socket(value: &Value<'_>) -> Result<SocketAddr, Problem> {
    let text = string(value)?;
    let address = text.parse::<SocketAddr>().ok().filter(|address| address.port() != 0);
    address.ok_or_else(|| Problem::new(format!("must be ADDRESS:PORT, found \"{}\"", text.escape_debug())))
}

fn clicks(section: &mut Section<'_, '_>) -> Clicks {
    Clicks {
        countries: section.optional("countries", absolute),
    }
}

fn absolute(value: &Value<'_>) -> Result<PathBuf, Problem> {
    let path = PathBuf::from(string(value)?);
    if !path.is_absolute() {
        return Err(Problem::new("must be an absolute path").help("write \"/var/lib/GeoIP/GeoLite2-Country.mmdb\""));
    }
    Ok(path)
}

fn nginx(section: &mut Section<'_, '_>) -> Nginx {
    let default = Config::default().nginx;
    Nginx {
        manage: section.optional("manage", boolean).unwrap_or(default.manage),
        listen: section.optional("listen", listens).unwrap_or(default.listen),
        server_name: section
            .optional("server_name", one_or_more(server_name))
            .unwrap_or(default.server_name),
        replace_default_site: section
            .optional("replace_default_site", boolean)
            .unwrap_or(default.replace_default_site),
        cache_ttl: section
            .optional("cache_ttl", duration(Duration::ZERO..=HOUR))
            .or(default.cache_ttl),
        cache_stale: section
            .optional("cache_stale", duration(Duration::ZERO..=24 * HOUR))
            .unwrap_or(default.cache_stale),
    }
}

fn listens(value: &Value<'_>) -> Result<Vec<Listen>, Problem> {
    let listens = one_or_more(listen)(value)?;
    for (index, listen) in listens.iter().enumerate() {
        if listens[..index].iter().any(|other| other.address() == listen.address()) {
            return Err(Problem::new(format!("names {} twice", listen.address())));
        }
    }
    Ok(listens)
}

fn listen(value: &Value<'_>) -> Result<Listen, Problem> {
    match value.get_ref() {
        DeValue::Integer(_) => small(1..=u16::MAX)(value).map(Listen::Port),
        DeValue::String(text) => text
            .parse::<SocketAddr>()
            .map_err(|_| {
                Problem::new(format!(
                    "must be a port or ADDRESS:PORT, found \"{}\"",
                    text.escape_debug()
                ))
            })
            .and_then(|address| match address.port() {
                0 => Err(Problem::new("must name a port from 1 to 65535, found 0")),
                _ => Ok(Listen::Address(address)),
            })
            .map_err(|problem| problem.help("write 80, \"127.0.0.1:8080\" or \"[::]:80\"")),
        _ => Err(Problem::new(format!(
            "must be a port or ADDRESS:PORT, found {}",
            kind(value)
        ))),
    }
}

/// A host name, `*.example.org`, `.example.org` or `_`. Only characters without a special meaning to nginx are allowed, and no
/// regular expression.
fn server_name(value: &Value<'_>) -> Result<String, Problem> {
    let name = string(value)?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b'*');
    if (1..=253).contains(&name.len()) && name.bytes().all(plain) {
        return Ok(name.to_owned());
    }
    Err(
        Problem::new(format!("must be a host name, found \"{}\"", name.escape_debug()))
            .help("write several as an array, and an international name in its xn-- form"),
    )
}

/// Checks that the ports of the instances exist, and that nothing else listens on them or on `base_port`.
fn ports(top: &Section<'_, '_>, config: &Config) {
    let (base, count) = (config.base_port, config.instances);
    let Some(last) = base.checked_add(count) else {
        let message = format!("`base_port` {base} leaves no port for instance {count}: the last port is 65535");
        let help = format!("write {} or less", u16::MAX - count);
        return top.document().error(top.place_of(&["base_port"]), message, Some(help));
    };
    let owner = |port: u16| match port.checked_sub(base)? {
        0 => config
            .edge_port()
            .map(|_| "nginx's cache (base_port itself)".to_owned()),
        number => (port <= last).then(|| format!("instance {number}")),
    };
    let Metrics { listen, otlp_listen } = config.metrics;
    let metrics = listen.map(|listen| ("listen", listen)).into_iter();
    for (key, address) in metrics.chain([("otlp_listen", otlp_listen)]) {
        let port = address.port();
        if let Some(owner) = owner(port).filter(|_| Listen::Address(address).takes_loopback(port)) {
            top.document().error(
                top.place_of(&["metrics", key]),
                format!("`metrics.{key}` {address} takes the port of {owner}"),
                Some("choose another port".to_owned()),
            );
        }
    }
    if listen.is_some_and(|listen| listen.port() == otlp_listen.port()) {
        top.document().error(
            top.place_of(&["metrics"]),
            format!(
                "`metrics.listen` and `metrics.otlp_listen` share port {}",
                otlp_listen.port()
            ),
            Some("choose another port for one of them".to_owned()),
        );
    }
    if !config.nginx.manage {
        return;
    }
    for listen in &config.nginx.listen {
        let port = listen.address().port();
        if let Some(owner) = owner(port).filter(|_| listen.takes_loopback(port)) {
            let taken = SocketAddrV4::new(std::net::Ipv4Addr::LOCALHOST, port);
            top.document().error(
                top.place_of(&["nginx", "listen"]),
                format!("`nginx.listen` {listen} takes {taken} from {owner}"),
                Some("change `base_port` or the nginx port".to_owned()),
            );
        }
    }
}
