//! Reads `links.toml` and the files in `links.toml.d` into a [`Config`].

use std::net::{SocketAddr, SocketAddrV4};
use std::time::Duration;

use toml::de::DeValue;

use super::backup::backup;
use super::input::Input;
use super::keys::{self, Key};
use super::settings::{
    Access, Cache, Clicks, Config, Drain, Enabled, Health, Limits, Listen, Metrics, Nginx, Protocol, Rollout, Sampling,
    Secrets, Shorten, Telemetry, TrustedProxy, network,
};
use super::tls::{PlainHttp, TLS_PORT, plain_public_url, tls};
use crate::document::{Document, Problem, Value, kind};
use crate::finding::{Finding, Override};
use crate::runtime::Reference;
use crate::section::Section;
use crate::value::{absolute, boolean, duration, integer, one_of, one_or_more, origin, small, string, url};

#[cfg(any(test, feature = "testing"))]
impl Config {
    /// The configuration, or all findings.
    pub fn parse(text: &str, file: &str) -> Result<Self, Vec<Finding>> {
        let (config, findings) = read(text, file);
        config.ok_or(findings)
    }
}

/// What [`read_all`] has found.
#[derive(Clone, Debug)]
pub struct Reading {
    /// The configuration. `None` if there are errors.
    pub config: Option<Config>,
    /// All findings, which may be only warnings.
    pub findings: Vec<Finding>,
    /// The values that replace one of an earlier file.
    pub overrides: Vec<Override>,
}

/// Reads `links.toml` alone. Returns the configuration if there are no errors, and all findings, which may be only warnings.
pub fn read(text: &str, file: &str) -> (Option<Config>, Vec<Finding>) {
    let Reading { config, findings, .. } = read_document(Document::new(text, file));
    (config, findings)
}

/// Reads `links.toml` and the files that extend it.
pub fn read_all(inputs: &[Input]) -> Reading {
    let files = inputs.iter().map(|input| (input.text.as_str(), input.file.as_str()));
    read_document(Document::of_files(files))
}

fn read_document(document: Document<'_>) -> Reading {
    let config = document
        .parse()
        .map(|table| config(Section::top(&document, table.get_ref())));
    let overrides = document.overrides();
    let findings = document.into_findings();
    Reading {
        config: config.filter(|_| !findings.iter().any(Finding::is_error)),
        findings,
        overrides,
    }
}

impl Default for Config {
    /// The settings of an empty `links.toml`.
    fn default() -> Self {
        let document = Document::new("", "");
        config(Section::top(&document, document.empty()))
    }
}

/// The keys that are declared in [`keys`].
impl<'d, 't> Section<'d, 't> {
    /// The value of a key. If it is absent or wrong, its default.
    pub(super) fn get<T>(&mut self, key: &'static Key, read: impl Fn(&Value<'_>) -> Result<T, Problem>) -> T {
        self.optional(key.name, &read).unwrap_or_else(|| key.default(read))
    }

    /// The value of a key without a default. `None` if it is absent or wrong.
    pub(super) fn given<T>(&mut self, key: &'static Key, read: impl Fn(&Value<'_>) -> Result<T, Problem>) -> Option<T> {
        self.optional(key.name, read)
    }

    pub(super) fn boolean(&mut self, key: &'static Key) -> bool {
        self.get(key, boolean)
    }

    pub(super) fn duration(&mut self, key: &'static Key) -> Duration {
        self.get(key, duration(key.durations()))
    }

    /// An integer whose declared range is one of `u16`.
    pub(super) fn small(&mut self, key: &'static Key) -> u16 {
        let read = integer(key.integers());
        // Every integer in the range fits, so the other value is never used.
        self.get(key, |value| {
            read(value).map(|integer| u16::try_from(integer).unwrap_or(u16::MAX))
        })
    }

    pub(super) fn word(&mut self, key: &'static Key) -> &'static str {
        self.get(key, |value| one_of(key.words())(value))
    }
}

/// Reads all keys. One that is absent or wrong gets its default.
fn config(mut top: Section<'_, '_>) -> Config {
    let config = Config {
        instances: top.small(&keys::INSTANCES),
        base_port: top.small(&keys::BASE_PORT),
        public_url: top.given(&keys::PUBLIC_URL, origin),
        shorten: top.table("shorten", shorten),
        health: top.table("health", health),
        drain: top.table("drain", drain),
        rollout: top.table("rollout", rollout),
        cache: top.table("cache", cache),
        secrets: top.table("secrets", secrets),
        telemetry: top.table("telemetry", telemetry),
        metrics: top.table("metrics", metrics),
        clicks: top.table("clicks", clicks),
        limits: top.table("limits", limits),
        nginx: top.table("nginx", nginx),
        tls: top.table("tls", tls),
        backup: top.table("backup", backup),
    };
    ports(&top, &config);
    plain_public_url(&top, config.public_url.as_deref(), &config.tls);
    redirected_proxies(&top, &config);
    top.refuse_unknown();
    config
}

fn shorten(section: &mut Section<'_, '_>) -> Shorten {
    let access = match section.word(&keys::SHORTEN_ACCESS) {
        "open" => Access::Open,
        _ => Access::Token,
    };
    if access == Access::Open {
        section.document().warning(
            section.place_of(&["access"]),
            "`shorten.access` is \"open\": anyone who can reach nginx can create links",
            Some("write \"token\" to ask for the admin token".to_owned()),
        );
    }
    Shorten {
        access,
        allowed_origin: section.given(&keys::SHORTEN_ALLOWED_ORIGIN, origin),
    }
}

fn health(section: &mut Section<'_, '_>) -> Health {
    Health {
        start_timeout: section.duration(&keys::HEALTH_START_TIMEOUT),
        interval: section.duration(&keys::HEALTH_INTERVAL),
        timeout: section.duration(&keys::HEALTH_TIMEOUT),
    }
}

fn drain(section: &mut Section<'_, '_>) -> Drain {
    Drain {
        timeout: section.duration(&keys::DRAIN_TIMEOUT),
    }
}

fn rollout(section: &mut Section<'_, '_>) -> Rollout {
    Rollout {
        min_healthy: section.duration(&keys::ROLLOUT_MIN_HEALTHY),
    }
}

fn cache(section: &mut Section<'_, '_>) -> Cache {
    Cache {
        enabled: section.get(&keys::CACHE_ENABLED, enabled),
        ttl: section.duration(&keys::CACHE_TTL),
        stale: section.duration(&keys::CACHE_STALE),
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
    Secrets {
        ttl: section.duration(&keys::SECRETS_TTL),
        stale: section.duration(&keys::SECRETS_STALE),
    }
}

fn telemetry(section: &mut Section<'_, '_>) -> Telemetry {
    let protocol = match section.word(&keys::TELEMETRY_PROTOCOL) {
        "grpc" => Protocol::Grpc,
        _ => Protocol::Http,
    };
    let document = section.document();
    Telemetry {
        endpoint: section.given(&keys::TELEMETRY_ENDPOINT, endpoint(protocol)),
        protocol,
        headers: section.given(&keys::TELEMETRY_HEADERS, |value| Reference::read(document, value)),
        traces: section.boolean(&keys::TELEMETRY_TRACES),
        metrics: section.boolean(&keys::TELEMETRY_METRICS),
        logs: section.boolean(&keys::TELEMETRY_LOGS),
        sampling: section.get(&keys::TELEMETRY_SAMPLING, sampling),
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
    let metrics = Metrics {
        listen: section.get(&keys::METRICS_LISTEN, metrics_listen),
        otlp_listen: section.get(&keys::METRICS_OTLP_LISTEN, loopback),
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
        countries: section.given(&keys::CLICKS_COUNTRIES, |value| {
            absolute(value).map_err(|problem| problem.help("write \"/var/lib/GeoIP/GeoLite2-Country.mmdb\""))
        }),
    }
}

fn limits(section: &mut Section<'_, '_>) -> Limits {
    Limits {
        create: section.small(&keys::LIMITS_CREATE),
        wrong_tokens: section.small(&keys::LIMITS_WRONG_TOKENS),
        unknown_links: section.small(&keys::LIMITS_UNKNOWN_LINKS),
        cache_misses: section.small(&keys::LIMITS_CACHE_MISSES),
    }
}

fn nginx(section: &mut Section<'_, '_>) -> Nginx {
    let trusted_proxies = section
        .given(&keys::NGINX_TRUSTED_PROXIES, trusted_proxies)
        .unwrap_or_default();
    let trusts_everyone =
        |proxy: &TrustedProxy| matches!(proxy, TrustedProxy::Network(network) if network.prefix_len() == 0);
    if trusted_proxies.iter().any(trusts_everyone) {
        section.document().warning(
            section.place_of(&["trusted_proxies"]),
            "`nginx.trusted_proxies` contains every address: anyone who can reach nginx can claim any address, scheme and host",
            Some("name only the networks of the proxies".to_owned()),
        );
    }
    let proxy_protocol = section.boolean(&keys::NGINX_PROXY_PROTOCOL);
    if proxy_protocol && trusted_proxies.is_empty() {
        section.document().error(
            section.place_of(&["proxy_protocol"]),
            "`nginx.proxy_protocol` needs `trusted_proxies`: nginx accepts addresses only from proxies that it trusts",
            Some("write their networks, such as trusted_proxies = [\"10.0.0.0/8\"]".to_owned()),
        );
    }
    Nginx {
        manage: section.boolean(&keys::NGINX_MANAGE),
        listen: section.get(&keys::NGINX_LISTEN, listens),
        server_name: section.get(&keys::NGINX_SERVER_NAME, server_names),
        replace_default_site: section.boolean(&keys::NGINX_REPLACE_DEFAULT_SITE),
        trusted_proxies,
        proxy_protocol,
        cache_ttl: section.given(&keys::NGINX_CACHE_TTL, duration(keys::NGINX_CACHE_TTL.durations())),
        cache_stale: section.duration(&keys::NGINX_CACHE_STALE),
    }
}

fn trusted_proxies(value: &Value<'_>) -> Result<Vec<TrustedProxy>, Problem> {
    one_or_more(trusted_proxy)(value)
}

fn trusted_proxy(value: &Value<'_>) -> Result<TrustedProxy, Problem> {
    let text = string(value)?;
    if text == "cloudflare" {
        return Ok(TrustedProxy::Cloudflare);
    }
    let network = network(text).map(TrustedProxy::Network);
    network.ok_or_else(|| {
        Problem::new(format!(
            "must be a network, an address or \"cloudflare\", found \"{}\"",
            text.escape_debug()
        ))
        .help("write \"10.0.0.0/8\", \"2001:db8::/32\" or \"192.0.2.1\"")
    })
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

fn server_names(value: &Value<'_>) -> Result<Vec<String>, Problem> {
    one_or_more(server_name)(value)
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

/// Warns about proxies that may be redirected without end, because they pass requests on without TLS that they got with it.
fn redirected_proxies(top: &Section<'_, '_>, config: &Config) {
    if config.tls.is_on() && config.tls.http == PlainHttp::Redirect && !config.nginx.trusted_proxies.is_empty() {
        top.document().warning(
            top.place_of(&["nginx", "trusted_proxies"]),
            "a proxy that passes HTTPS requests on over HTTP is redirected to HTTPS again and again",
            Some("write http = \"serve\" in [tls] if there is one".to_owned()),
        );
    }
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
        if config.tls.is_on() && port == TLS_PORT {
            top.document().error(
                top.place_of(&["nginx", "listen"]),
                format!("`nginx.listen` {listen} is for requests without HTTPS, but HTTPS has port {TLS_PORT}"),
                Some("leave it out: the [tls] table opens it on the same addresses".to_owned()),
            );
        }
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
