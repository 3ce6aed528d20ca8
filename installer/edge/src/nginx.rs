//! Renders the nginx site from the templates in packaging/nginx/.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use data_encoding::HEXLOWER;
use ipnet::IpNet;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, Value};
use minijinja::{Environment, UndefinedBehavior};
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use crate::certificates::Certificate;
use links_base::endpoint::Endpoint;
use links_base::layout::{self, Layout};
use links_config::acme::State;
use links_config::links::{Config, Listen, PlainHttp, TLS_PORT};

/// The path at which each server of the site identifies itself, to this host only.
pub const WHICH_SITE: &str = "/internal/site";
/// The name of a server that answers where no other one does.
const ANY_NAME: &str = "_";
/// The start of the answer at [`WHICH_SITE`], before the site's fingerprint.
const IDENTITY: &str = "links-site ";

const SITE: &str = include_str!("../../../packaging/nginx/site.conf");
/// The name of the journal's format, by which a site of links is recognised wherever it is.
pub const LOG_FORMAT: &str = "links_l1";
/// The page for people who meet an error of nginx. nginx replaces the variables in it.
const ERROR_PAGE: &str = include_str!("../../../packaging/nginx/error.html");
const UP: &str = include_str!("../../../packaging/nginx/up.conf");

/// The values for the template packaging/nginx/site.conf.
#[derive(Serialize)]
struct Site {
    identity: String,
    which_site: &'static str,
    include_dir: PathBuf,
    /// Whether the site is a sample for an administrator who writes it.
    is_sample: bool,
    instances: Vec<Instance>,
    listen: Vec<String>,
    default_server: bool,
    /// Addresses of other sites that the site names as well.
    shared: Vec<SocketAddr>,
    server_name: Vec<String>,
    names_bucket: Option<usize>,
    /// The networks of the trusted proxies.
    proxies: Vec<String>,
    proxy_protocol: bool,
    limits: Limits,
    /// The origin whose pages may read nginx's errors.
    allowed_origin: Option<String>,
    error_page: &'static str,
    ready_dir: PathBuf,
    keepalive_flag: &'static str,
    unlimited_flag: &'static str,
    journal: PathBuf,
    /// A pattern for the files that set the header by which nginx proves itself to the instances. It is a pattern because nginx
    /// has to start without any such file, too.
    proxy_secret: PathBuf,
    edge: Option<Edge>,
    /// The directory of the answers to HTTP-01 challenges.
    challenges_dir: PathBuf,
    /// `None` while no name has a certificate.
    tls: Option<Tls>,
}

/// The values for the servers with TLS.
#[derive(Serialize)]
struct Tls {
    certificates: Vec<Certificate>,
    listen: Vec<String>,
    /// Addresses of other sites with TLS that the site names as well.
    shared: Vec<SocketAddr>,
    http2: Http2,
    hsts: bool,
    /// The names whose requests without TLS are redirected.
    redirected: Vec<String>,
}

/// How nginx is told to speak HTTP/2.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Http2 {
    /// nginx was built without it.
    #[default]
    Unsupported,
    /// By a parameter of `listen`.
    Parameter,
    /// By the directive `http2`, from nginx 1.25.1 on.
    Directive,
}

impl Http2 {
    /// Parses the output of `nginx -V`, which holds the version and the configure arguments.
    pub fn of(output: &str) -> Self {
        if !output.contains("--with-http_v2_module") {
            return Self::Unsupported;
        }
        let number = |text: &str| {
            let digits = text.split(|c: char| !c.is_ascii_digit()).next()?;
            digits.parse::<u32>().ok()
        };
        // Forks print their name before the slash, and have nginx's version after it.
        let version = output
            .lines()
            .find_map(|line| line.split_once("version: ")?.1.split_once('/'));
        let parts = version.map(|(_, version)| version.splitn(3, '.').map_while(number).collect::<Vec<_>>());
        match parts.as_deref() {
            Some([major, minor, patch]) if (*major, *minor, *patch) >= (1, 25, 1) => Self::Directive,
            _ => Self::Parameter,
        }
    }
}

/// What the site needs for HTTPS.
#[derive(Clone, Debug, Default)]
pub struct Https {
    pub certificates: Vec<Certificate>,
    pub http2: Http2,
}

/// The values for the limits per client.
#[derive(Serialize)]
struct Limits {
    /// The directory of the agent's flags.
    directory: PathBuf,
    /// How many links a client may create per minute. 0 means any number.
    create: u16,
    /// Whether the agent limits requests for unknown links, or those that are not in nginx's cache.
    links: bool,
    /// Whether the agent limits requests with wrong tokens.
    tokens: bool,
}

/// The values for the cache of redirects.
#[derive(Serialize)]
struct Edge {
    /// The address at which the instances look up (HEAD) and renew (GET) cached answers.
    listen: SocketAddr,
    directory: PathBuf,
    /// How long an answer can be of use, including the time it may be served stale.
    seconds: u64,
    cache_size: CacheSize,
}

#[derive(Serialize)]
struct Instance {
    number: u16,
    endpoints: Vec<Server>,
}

/// An endpoint of an instance.
#[derive(Serialize)]
struct Server {
    address: String,
    /// Whether the endpoint is a TCP port, on which any program can listen while the instance does not.
    is_port: bool,
}

impl Server {
    fn new(endpoint: &Endpoint) -> Self {
        Self {
            address: endpoint.to_string(),
            is_port: matches!(endpoint, Endpoint::Tcp(_)),
        }
    }
}

/// The values for the template packaging/nginx/up.conf.
#[derive(Serialize)]
struct Standalone<'a> {
    directory: &'a Path,
    site: &'a Path,
    user: Option<&'a str>,
}

/// What the site has to consider because nginx has other sites.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terms {
    /// Whether the site answers for host names that no other site has. Only one site per address may.
    pub default_server: bool,
    /// Addresses of other sites that the site names as well, because nginx passes requests there only to sites that name them.
    pub shared: Vec<SocketAddr>,
    /// The same for the addresses on which the site listens for clients with TLS.
    pub tls_shared: Vec<SocketAddr>,
    /// The value for `server_names_hash_bucket_size`, if the site has to set it.
    pub names_bucket: Option<usize>,
}

/// The facts about the host that the site depends on.
#[derive(Clone, Debug)]
pub struct HostFacts {
    /// Whether the kernel has IPv6. If so, a port without an address is listened on over IPv6 too.
    pub ipv6: bool,
    pub terms: Terms,
    /// The networks of the trusted proxies.
    pub proxies: Vec<IpNet>,
    pub cache_size: CacheSize,
}

impl HostFacts {
    /// The facts for a site that has nginx to itself.
    pub fn alone(cache_size: CacheSize, proxies: Vec<IpNet>) -> Self {
        Self {
            ipv6: false,
            terms: Terms {
                default_server: true,
                shared: vec![],
                tls_shared: vec![],
                names_bucket: None,
            },
            proxies,
            cache_size,
        }
    }

    /// Those of these addresses that this host can have.
    fn existing(&self, addresses: &[SocketAddr]) -> Vec<SocketAddr> {
        let exist = addresses.iter().filter(|address| self.ipv6 || address.is_ipv4());
        exist.copied().collect()
    }
}

/// The limits of nginx's cache of redirects.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct CacheSize {
    pub mebibytes: u64,
    /// The maximum number of cached files that each worker keeps open.
    pub open_files: u64,
}

impl CacheSize {
    /// Safe limits for a host of unknown size.
    pub const MODEST: Self = Self {
        mebibytes: 64,
        open_files: 100,
    };
}

/// The paths that the site names.
#[derive(Clone, Debug)]
pub struct Paths {
    pub include_dir: PathBuf,
    pub ready_dir: PathBuf,
    pub limits_dir: PathBuf,
    pub journal: PathBuf,
    pub secrets_dir: PathBuf,
    pub cache_dir: PathBuf,
    pub challenges_dir: PathBuf,
}

impl Paths {
    pub fn new(layout: &Layout) -> Self {
        Self {
            include_dir: layout.nginx_include_dir(),
            ready_dir: layout.ready_dir(),
            limits_dir: layout.limits_dir(),
            journal: layout.journal(),
            secrets_dir: layout.secrets_dir(),
            cache_dir: layout.edge_cache_dir(),
            challenges_dir: layout.tls_challenges_dir(),
        }
    }
}

/// The endpoints of each instance that the site lists.
pub type Peers = BTreeMap<u16, BTreeSet<Endpoint>>;

/// Renders the site's file. With `manage = false`, it is a sample for the administrator.
///
/// # Errors
/// The template is broken, which the tests rule out.
pub fn site(config: &Config, paths: &Paths, facts: &HostFacts, peers: &Peers, https: &Https) -> anyhow::Result<String> {
    let instances: Vec<_> = peers
        .iter()
        .map(|(number, endpoints)| Instance {
            number: *number,
            endpoints: endpoints.iter().map(Server::new).collect(),
        })
        .collect();
    let tls = (!https.certificates.is_empty()).then(|| Tls {
        certificates: https.certificates.clone(),
        listen: listens(&tls_listen(config), facts.ipv6),
        shared: facts.existing(&facts.terms.tls_shared),
        http2: https.http2,
        hsts: config.tls.hsts,
        redirected: redirected(config, &https.certificates),
    });
    let site = Site {
        identity: IDENTITY.to_owned(),
        which_site: WHICH_SITE,
        include_dir: paths.include_dir.clone(),
        is_sample: !config.nginx.manage,
        instances,
        listen: listens(&config.nginx.listen, facts.ipv6),
        default_server: facts.terms.default_server,
        shared: facts.existing(&facts.terms.shared),
        server_name: plain_names(config, tls.as_ref().map_or(&[], |tls| &tls.redirected)),
        names_bucket: facts.terms.names_bucket,
        proxies: facts.proxies.iter().map(ToString::to_string).collect(),
        proxy_protocol: config.nginx.proxy_protocol,
        limits: Limits {
            directory: paths.limits_dir.clone(),
            create: config.create_limit(),
            links: config.limits.unknown_links > 0 || config.limits.cache_misses > 0,
            tokens: config.limits.wrong_tokens > 0,
        },
        allowed_origin: config.shorten.allowed_origin.clone(),
        error_page: ERROR_PAGE.trim_end(),
        ready_dir: paths.ready_dir.clone(),
        keepalive_flag: layout::KEEPALIVE_FLAG,
        unlimited_flag: layout::UNLIMITED_FLAG,
        journal: paths.journal.clone(),
        proxy_secret: paths.secrets_dir.join("proxy*.conf"),
        edge: config.edge_port().map(|port| Edge {
            listen: layout::edge_address(port),
            directory: paths.cache_dir.clone(),
            seconds: (config.longest_edge_ttl() + config.nginx.cache_stale).as_secs(),
            cache_size: facts.cache_size,
        }),
        challenges_dir: paths.challenges_dir.clone(),
        tls,
    };
    let anonymous = render(SITE, &site).context("Rendering the nginx site")?;
    let identity = format!("{IDENTITY}{}", fingerprint(&anonymous));
    render(SITE, &Site { identity, ..site }).context("Rendering the nginx site")
}

/// The fingerprint of a site, computed from its text without the fingerprint.
fn fingerprint(anonymous: &str) -> String {
    HEXLOWER.encode(&Sha256::digest(anonymous)[..12])
}

/// The answer of this site's servers at [`WHICH_SITE`]. `None` for a site that 0.1.0 or somebody else wrote.
pub fn identity(site: &str) -> Option<&str> {
    let (_, rest) = site.split_once(&format!("\"{IDENTITY}"))?;
    let fingerprint = rest.split('\\').next()?;
    let start = site.len() - rest.len() - IDENTITY.len();
    site.get(start..start + IDENTITY.len() + fingerprint.len())
}

/// Whether linksctl wrote exactly this text.
pub fn is_authentic(site: &str) -> bool {
    identity(site).is_some_and(|identity| {
        let anonymous = site.replace(identity, IDENTITY);
        identity.strip_prefix(IDENTITY) == Some(fingerprint(&anonymous).as_str())
    })
}

/// The site without the `listen` directives for all IPv6 addresses, as linksctl writes it on a host without IPv6. `None` if it
/// has none, or if linksctl did not write it.
pub fn without_ipv6(site: &str) -> Option<String> {
    with_lines(site, |line| match line.trim_start().starts_with("listen [::]:") {
        true => String::new(),
        false => line.to_owned(),
    })
}

/// The site without `default_server`. `None` if it has none, or if linksctl did not write it.
pub fn without_default_server(site: &str) -> Option<String> {
    with_lines(site, |line| match line.trim_start().starts_with("listen ") {
        true => line.replace(" default_server", ""),
        false => line.to_owned(),
    })
}

/// The site with changed lines, as linksctl writes it. `None` if no line changes, or if linksctl did not write the site.
fn with_lines(site: &str, change: impl Fn(&str) -> String) -> Option<String> {
    let identity = identity(site).filter(|_| is_authentic(site))?;
    let anonymous = site.replace(identity, IDENTITY);
    let changed: String = anonymous.split_inclusive('\n').map(change).collect();
    let identity = format!("{IDENTITY}{}", fingerprint(&changed));
    (changed != anonymous).then(|| changed.replace(IDENTITY, &identity))
}

/// The main file of an nginx that runs only this site, with its files in `directory`. `user` is for one that root starts.
///
/// # Errors
/// As [`site`].
pub fn standalone(directory: &Path, site: &Path, user: Option<&str>) -> anyhow::Result<String> {
    render(UP, &Standalone { directory, site, user }).context("Rendering the configuration of nginx")
}

/// The host names of the site: the public URL's host, unless links.toml sets others, and the names with HTTPS.
pub fn server_names(config: &Config) -> Vec<String> {
    let host = || {
        Some(
            url::Url::parse(config.public_url.as_ref()?)
                .ok()?
                .host_str()?
                .to_owned(),
        )
    };
    let mut names = match config.nginx.server_name.as_slice() {
        [any] if any == ANY_NAME => Vec::from_iter(host()),
        named => named.to_vec(),
    };
    for name in config.tls.served() {
        if !names.contains(name) {
            names.push(name.clone());
        }
    }
    if names.is_empty() {
        names.push(ANY_NAME.to_owned());
    }
    names
}

/// The host names of the server without TLS that answers requests itself.
fn plain_names(config: &Config, redirected: &[String]) -> Vec<String> {
    let mut names = server_names(config);
    names.retain(|name| !redirected.contains(name));
    if names.is_empty() {
        names.push(ANY_NAME.to_owned());
    }
    names
}

/// The names whose requests without TLS are redirected. After a certificate has expired, that would lead to an error page.
fn redirected(config: &Config, certificates: &[Certificate]) -> Vec<String> {
    match config.tls.http {
        PlainHttp::Redirect => {
            let valid = certificates
                .iter()
                .filter(|certificate| certificate.state != State::Expired);
            valid.map(|certificate| certificate.name.clone()).collect()
        }
        PlainHttp::Serve => vec![],
    }
}

/// The addresses on which the site listens for clients without TLS.
pub fn addresses(config: &Config, ipv6: bool) -> Vec<SocketAddr> {
    bound(&config.nginx.listen, ipv6)
}

/// The addresses on which the site listens for clients with TLS.
pub fn tls_addresses(config: &Config, ipv6: bool) -> Vec<SocketAddr> {
    bound(&tls_listen(config), ipv6)
}

/// The IP addresses of `[nginx] listen`, with the port of HTTPS.
fn tls_listen(config: &Config) -> Vec<Listen> {
    let mut listen: Vec<_> = config
        .nginx
        .listen
        .iter()
        .map(|listen| match listen {
            Listen::Port(_) => Listen::Port(TLS_PORT),
            Listen::Address(address) => Listen::Address(SocketAddr::new(address.ip(), TLS_PORT)),
        })
        .collect();
    let mut seen = BTreeSet::new();
    listen.retain(|listen| seen.insert(listen.address()));
    listen
}

fn bound(listens: &[Listen], ipv6: bool) -> Vec<SocketAddr> {
    let mut addresses = vec![];
    for listen in listens {
        let both = match listen {
            Listen::Port(port) if ipv6 => Some(SocketAddr::from((Ipv6Addr::UNSPECIFIED, *port))),
            _ => None,
        };
        for address in [Some(listen.address()), both].into_iter().flatten() {
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
    }
    addresses
}

/// The arguments of `listen`. nginx reads a lone port as IPv4 only.
fn listens(listens: &[Listen], ipv6: bool) -> Vec<String> {
    let mut arguments = vec![];
    for listen in listens {
        arguments.push(listen.to_string());
        if let Listen::Port(port) = listen
            && ipv6
        {
            arguments.push(format!("[::]:{port}"));
        }
    }
    // With IPv6, `[80, "[::]:80"]` names the same address twice.
    let mut seen = BTreeSet::new();
    arguments.retain(|argument| seen.insert(argument.clone()));
    arguments
}

pub fn render(template: &str, values: &impl Serialize) -> Result<String, minijinja::Error> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_syntax(SyntaxConfig::builder().keep_trailing_newline(true).build()?);
    environment.render_str(template, Value::from(Serde(values)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use super::*;
    use crate::certificates::example;

    fn paths() -> Paths {
        Paths::new(&Layout::new("/"))
    }

    fn site_of(instances: u16, facts: HostFacts) -> String {
        let config = Config {
            instances,
            ..Config::default()
        };
        site(&config, &paths(), &facts, &on_ports(instances), &Https::default()).unwrap()
    }

    fn on_ports(instances: u16) -> Peers {
        let tcp = |instance| (instance, BTreeSet::from([Endpoint::tcp(7000, instance)]));
        (1..=instances).map(tcp).collect()
    }

    fn on_sockets(instances: u16) -> Peers {
        let layout = Layout::new("/");
        let socket = |instance| {
            (
                instance,
                BTreeSet::from([Endpoint::socket(&layout.sockets_dir(), instance)]),
            )
        };
        (1..=instances).map(socket).collect()
    }

    const LOOKUP: &str = "location @links_lookup {";

    const PLAIN: HostFacts = HostFacts {
        ipv6: false,
        terms: Terms {
            default_server: false,
            shared: Vec::new(),
            tls_shared: Vec::new(),
            names_bucket: None,
        },
        proxies: Vec::new(),
        cache_size: CacheSize::MODEST,
    };

    /// The site for this links.toml.
    fn site_for(links: &str, facts: &HostFacts) -> String {
        let config = Config::parse(links, "links.toml").unwrap();
        site(&config, &paths(), facts, &on_ports(config.instances), &Https::default()).unwrap()
    }

    /// The lines between the one that starts with `opening` and the next `}`.
    fn block<'a>(site: &'a str, opening: &str) -> Vec<&'a str> {
        let lines = site.lines().skip_while(|line| !line.starts_with(opening));
        lines.skip(1).take_while(|line| *line != "}").map(str::trim).collect()
    }

    #[test]
    fn each_missing_flag_has_a_pool_and_each_pool_tries_the_instances_twice() {
        let site = site_of(2, PLAIN);
        assert_eq!(
            block(&site, "upstream links_all"),
            [
                "server 127.0.0.1:7001 max_fails=0;",
                "server 127.0.0.1:7002 max_fails=0;",
                "server 127.0.0.1:7001 max_fails=0 backup;",
                "server 127.0.0.1:7002 max_fails=0 backup;",
                "keepalive 64;",
                "keepalive_timeout 1s;"
            ]
        );
        assert_eq!(
            block(&site, "upstream links_without_1")[..3],
            [
                "server 127.0.0.1:7002 max_fails=0;",
                "server 127.0.0.1:7002 max_fails=0 backup;",
                "keepalive 64;",
            ]
        );
        assert_eq!(
            block(&site, "map $links_missing "),
            [
                "default links_all;",
                "\"~^/1(/[a-z]+)*$\" links_without_1;",
                "\"~^/2(/[a-z]+)*$\" links_without_2;"
            ]
        );
        assert!(site.contains("    if (-e /run/links/ready/1/2/../limits/none) { break; }\n"));
        assert!(site.contains(r#"if (!-e /run/links/ready/2) { set $links_missing "${links_missing}/2"; }"#));
        assert!(site.contains(
            r#"if (!-e /run/links/ready/../keepalive) { set $links_missing "${links_missing}/keepalive"; }"#
        ));
    }

    #[test]
    fn without_its_flag_an_instance_is_retried_on_its_socket_but_not_on_its_port() {
        let pool = |peers: &Peers| {
            let site = site(&Config::default(), &paths(), &PLAIN, peers, &Https::default()).unwrap();
            let servers = block(&site, "upstream links_without_1").into_iter();
            let servers = servers.filter_map(|line| line.strip_prefix("server ")?.split(" max_fails=0").next());
            servers.map(str::to_owned).collect::<Vec<_>>()
        };
        let [one, two] = [1, 2].map(|instance| format!("unix:/run/links/sockets/{instance}.sock"));
        assert_eq!(pool(&on_sockets(2)), [two.clone(), one.clone(), two.clone()]);
        assert_eq!(pool(&on_ports(2)), ["127.0.0.1:7002", "127.0.0.1:7002"]);
        let mut both = on_sockets(2);
        for (instance, endpoints) in on_ports(2) {
            both.entry(instance).or_default().extend(endpoints);
        }
        let port = "127.0.0.1:7002".to_owned();
        assert_eq!(pool(&both), [two.clone(), port.clone(), one, two, port]);
    }

    /// The directives of the location that starts with `opening`, and those at the server level around it.
    fn location<'a>(site: &'a str, opening: &str) -> (Vec<&'a str>, Vec<&'a str>) {
        let around = site.lines().skip_while(|line| *line != "server {").skip(1);
        let around = around.filter(|line| line.starts_with("    ") && !line.starts_with("     "));
        let inside = site
            .lines()
            .map(str::trim)
            .skip_while(|line| !line.starts_with(opening));
        let inside = inside.skip(1).take_while(|line| *line != "}");
        (inside.collect(), around.map(str::trim).collect())
    }

    #[test]
    fn only_creating_a_link_is_retried_after_the_request_was_sent() {
        let site = site_of(2, PLAIN);
        let (create, all) = location(&site, "location = /shorten {");
        let retried = "proxy_next_upstream error timeout non_idempotent;";
        assert!(create.contains(&retried), "{create:?}");
        let (other, _) = location(&site, "location / {");
        assert!(!other.contains(&retried), "{other:?}");
        assert!(all.contains(&"proxy_next_upstream error timeout;"), "{site}");
        // During a keep-alive drain, the create route's twin takes its place.
        let (announcing, _) = location(&site, "location @links_create_and_close {");
        assert!(announcing.contains(&retried), "{announcing:?}");
        assert_eq!(site.matches("non_idempotent").count(), 2);
    }

    #[test]
    fn during_a_keep_alive_drain_every_route_closes_its_connections() {
        let site = site_of(2, PLAIN);
        for (route, twin) in [
            ("location = /shorten {", "@links_create_and_close"),
            ("location @links_api {", "@links_api_and_close"),
            ("location @links_by_flags {", "@links_and_close"),
        ] {
            let (inside, _) = location(&site, route);
            assert_eq!(inside[0], format!("error_page 418 = {twin};"));
            assert_eq!(inside[1], "if ($links_closing) { return 418; }");
            let (twin, _) = location(&site, &format!("location {twin} {{"));
            assert_eq!(twin[0], "keepalive_timeout 0;");
            // Apart from that, the twin proxies exactly like its route.
            assert_eq!(twin[1..], inside[2..]);
        }
        // Every other location leads to one of these.
        for (route, first, second) in [
            ("location /api/ {", "@links_api", "return 418;"),
            ("location = /health {", "@links_api", "return 418;"),
            ("location / {", "@links_by_flags", "if ($links_missing) { return 418; }"),
        ] {
            let (inside, _) = location(&site, route);
            assert_eq!(inside[..2], [&format!("error_page 418 = {first};"), second], "{route}");
        }
    }

    /// The path sent to an instance has to be the cache key, or the answer would be cached for another path.
    #[test]
    fn the_path_sent_to_an_instance_is_the_cache_key() {
        let site = site_of(2, PLAIN);
        let mut caching = 0;
        for block in site.split("    location ").skip(1) {
            let block = block.split("\n    }").next().unwrap();
            if block.contains("proxy_cache links_edge;") && !block.starts_with("@links_limited ") {
                caching += 1;
                let sends_the_key = block.contains("proxy_pass http://links_all/;")
                    || block.contains("rewrite ^ $uri break;\n        proxy_pass http://$links_pool;");
                assert!(sends_the_key, "{block}");
            }
        }
        assert_eq!(caching, 3, "{site}");
        // A client that has reached its limit is served from the same entries, without an instance.
        let (limited, _) = location(&site, "location @links_limited {");
        assert!(limited.ends_with(&["rewrite ^ $uri break;", "proxy_pass http://links_nothing;"]));
        let edge = server(&site, "127.0.0.1:7000");
        assert!(edge.contains("    proxy_cache links_edge;\n"), "{edge}");
        assert!(
            edge.contains("        rewrite ^ $uri break;\n        proxy_pass http://$links_pool;\n"),
            "{edge}"
        );
    }

    /// A `proxy_set_header` inside a location would drop all inherited ones, among them the request id.
    #[test]
    fn every_location_that_leads_to_an_instance_sends_the_request_id() {
        let site = site_of(2, PLAIN);
        let headers = |line: &&str| line.trim().starts_with("proxy_set_header ");
        let (_, all) = location(&site, "location /");
        assert!(all.contains(&"proxy_set_header X-Request-Id $request_id;"), "{site}");
        // These two lead back to nginx.
        let (lookup, _) = location(&site, LOOKUP);
        let (limited, _) = location(&site, "location @links_limited {");
        assert_eq!(
            site.lines().filter(headers).count(),
            all.into_iter().chain(lookup).chain(limited).filter(headers).count()
        );
    }

    #[test]
    fn a_lookup_in_the_cache_reaches_no_instance_and_carries_no_proof() {
        let site = site_of(2, PLAIN);
        let edge = server(&site, "127.0.0.1:7000");
        let (links, _) = location(edge, "location / {");
        assert_eq!(
            links[1..3],
            [
                "error_page 418 = @links_lookup;",
                "if ($request_method = HEAD) { return 418; }"
            ]
        );
        let (lookup, _) = location(edge, LOOKUP);
        let directives: Vec<_> = lookup.into_iter().filter(|line| !line.starts_with('#')).collect();
        // Headers of its own make nginx drop those of the server, and with them the proof.
        assert_eq!(
            directives,
            [
                r#"proxy_set_header Connection "";"#,
                "proxy_set_header Links-Peek 1;",
                "proxy_pass http://links_nothing;"
            ]
        );
        let nothing = "upstream links_nothing {\n    server 127.0.0.1:7000 max_fails=0;\n";
        assert!(site.contains(nothing), "{site}");
        assert!(edge.contains("    if ($http_links_peek) { return 204; }\n"), "{edge}");
    }

    #[test]
    fn both_servers_prove_themselves_and_drop_trace_headers() {
        let site = site_of(2, PLAIN);
        for listen in ["80", "127.0.0.1:7000"] {
            let server = server(&site, listen);
            for line in [
                "include /run/links/secrets/proxy*.conf;",
                r#"proxy_set_header traceparent "";"#,
                r#"proxy_set_header tracestate "";"#,
                r#"proxy_set_header baggage "";"#,
            ] {
                assert_eq!(
                    server.matches(&format!("\n    {line}\n")).count(),
                    1,
                    "{line}: {server}"
                );
            }
        }
    }

    #[test]
    fn the_journal_has_the_fields_that_the_agent_reads() {
        let site = site_of(2, PLAIN);
        let format = site
            .split("log_format links_l1 ")
            .nth(1)
            .unwrap()
            .split(';')
            .next()
            .unwrap();
        let fields = format.replace("'\n    '", "");
        assert_eq!(
            fields.trim_matches('\'').split("\\t").collect::<Vec<_>>(),
            [
                "l1",
                "$msec",
                "$status",
                "$request_time",
                "$upstream_response_time",
                "$upstream_cache_status",
                "$request_method",
                "$uri",
                "$remote_addr",
                "$http_referer",
                "$links_user_agent"
            ]
        );
        let (_, all) = location(&site, "location /");
        assert_eq!(LOG_FORMAT, "links_l1");
        let log = "access_log /var/lib/links/journal/clicks.log links_l1 buffer=512k flush=1s;";
        assert!(all.contains(&log), "{site}");
    }

    /// The server that listens on `listen`.
    fn server<'a>(site: &'a str, listen: &str) -> &'a str {
        let line = format!("    listen {listen};\n");
        let servers = site.split("\nserver {\n").skip(1);
        servers.filter(|server| server.starts_with(&line)).last().unwrap()
    }

    #[test]
    fn redirects_are_cached_in_memory_and_only_the_instances_can_renew_them() {
        let site = site_of(2, PLAIN);
        let path =
            "\nproxy_cache_path /run/links/edge levels=2 keys_zone=links_edge:2048k max_size=64m\n    inactive=900s ";
        assert!(site.contains(path), "{site}");
        let (public, edge) = (server(&site, "80"), server(&site, "127.0.0.1:7000"));
        let bypass = "    proxy_cache_bypass $links_renew;\n";
        assert!(
            !public.contains("proxy_cache_bypass") && edge.contains(bypass),
            "{site}"
        );
        for server in [public, edge] {
            assert!(server.contains("    proxy_cache links_edge;\n"), "{server}");
            assert!(server.contains("    proxy_cache_key $uri;\n"), "{server}");
            // Both servers have the same retries and pools.
            assert!(server.contains("    proxy_next_upstream error timeout;\n"), "{server}");
            assert!(server.contains(r#"if (!-e /run/links/ready/2) {"#), "{server}");
        }
        assert!(edge.contains("    access_log off;\n"), "{edge}");
        // If nginx cannot cache an answer, it fetches one without the cache, even during a keep-alive drain.
        for opening in [
            "location / {",
            "location @links_by_flags {",
            "location @links_and_close {",
        ] {
            let (inside, all) = location(&site, opening);
            assert!(inside.contains(&"error_page 500 = @links_not_kept;"), "{inside:?}");
            assert!(all.contains(&"recursive_error_pages on;"), "{all:?}");
        }
        let (inside, _) = location(&site, "location @links_not_kept {");
        assert_eq!(inside[1..], ["rewrite ^ $uri break;", "proxy_pass http://$links_pool;"]);
    }

    #[test]
    fn with_a_ttl_of_zero_there_is_no_cache() {
        let mut config = Config::default();
        config.nginx.cache_ttl = Some(std::time::Duration::ZERO);
        let site = site(
            &config,
            &paths(),
            &PLAIN,
            &on_ports(config.instances),
            &Https::default(),
        )
        .unwrap();
        assert!(!site.contains("cache ") && !site.contains("127.0.0.1:7000"), "{site}");
        let (limited, _) = location(&site, "location @links_limited {");
        assert_eq!(limited.last(), Some(&"return 429;"));
        assert!(site.contains("access_log "), "{site}");
    }

    #[test]
    fn one_instance_has_one_pool() {
        let site = site_of(1, PLAIN);
        // The other is nginx itself.
        assert_eq!(site.matches("\nupstream ").count(), 1 + 1);
        assert_eq!(site.matches("\nupstream links_all ").count(), 1);
        assert_eq!(block(&site, "map $links_missing "), ["default links_all;"]);
    }

    #[test]
    fn sixteen_instances_have_seventeen_pools() {
        let site = site_of(16, PLAIN);
        // One more is nginx itself.
        assert_eq!(site.matches("\nupstream ").count(), 17 + 1);
        assert_eq!(site.matches("\nupstream links_without_").count(), 16);
        // "/1/6" is two missing flags, "/16" is one: they must not be mistaken for each other.
        assert!(site.contains("    \"~^/16(/[a-z]+)*$\" links_without_16;\n"), "{site}");
    }

    #[test]
    fn a_lone_port_is_listened_on_over_ipv6_if_the_host_has_it() {
        let mut with = HostFacts { ipv6: true, ..PLAIN };
        with.terms.default_server = true;
        let site = site_of(2, with);
        assert!(
            site.contains("    listen 80 default_server;\n    listen [::]:80 default_server;\n"),
            "{site}"
        );
        assert!(site_of(2, PLAIN).contains("    listen 80;\n    server_name _;\n"));
    }

    #[test]
    fn the_site_answers_to_the_public_host_unless_names_are_given() {
        let mut config = Config {
            public_url: Some("https://s.example.org".into()),
            ..Config::default()
        };
        assert_eq!(server_names(&config), ["s.example.org"]);
        config.nginx.server_name = vec!["a.example".into(), "b.example".into()];
        assert_eq!(server_names(&config), ["a.example", "b.example"]);
        assert_eq!(server_names(&Config::default()), ["_"]);
        config.tls = with_tls("").tls;
        config.nginx.server_name = vec!["b.example".into(), "c.example".into()];
        assert_eq!(server_names(&config), ["b.example", "c.example", "a.example"]);
    }

    #[test]
    fn a_site_is_recognised_by_its_text() {
        let site = site_of(2, PLAIN);
        let identity = identity(&site).unwrap();
        assert_eq!(identity.len(), "links-site ".len() + 24);
        assert!(site.contains(&format!("return 200 \"{identity}\\n\";")), "{site}");
        assert!(is_authentic(&site));
        let other = site_of(3, PLAIN);
        assert_ne!(super::identity(&other), Some(identity));
        let edited = [
            site.replace("1m", "2m"),
            site.clone() + "\n",
            site.replace("links-site ", "links-site 0"),
        ];
        assert!(!edited.iter().any(|edited| is_authentic(edited)));
        assert!(!is_authentic("") && !is_authentic("server { listen 80; }"));
    }

    #[test]
    fn the_public_server_includes_the_administrator_s_directives() {
        let site = site_of(2, PLAIN);
        let include = "    include /etc/links/nginx.d/*.conf;\n";
        let public = server(&site, "80");
        // After the `break` of the flags, nginx would ignore an `if` or a `return` in an included file.
        let include_at = public.find(include).unwrap();
        assert!(
            public.find("set $links_missing \"\";").unwrap() < include_at,
            "{public}"
        );
        assert!(include_at < public.find("{ break; }").unwrap(), "{public}");
        assert_eq!(site.matches(include).count(), 1);
        // Each server sets what its flags add to.
        assert_eq!(
            site.matches("set $links_missing \"\";").count(),
            site.matches("{ break; }").count()
        );
    }

    const PROXIES: &str = "nginx.trusted_proxies = \"10.0.0.0/8\"";

    #[test]
    fn only_trusted_proxies_can_report_the_address_the_scheme_and_the_host() {
        let mut facts = PLAIN;
        let plain = site_for("", &facts);
        let public = server(&plain, "80");
        for line in [
            "proxy_set_header X-Forwarded-Host $http_host;",
            "proxy_set_header X-Forwarded-Proto $scheme;",
        ] {
            assert!(public.contains(line), "{public}");
        }
        assert!(!plain.contains("real_ip") && !plain.contains("geo "), "{plain}");

        facts.proxies = vec!["10.0.0.0/8".parse().unwrap(), "2001:db8::/32".parse().unwrap()];
        let behind = site_for(PROXIES, &facts);
        let public = server(&behind, "80");
        let lines = "    set_real_ip_from 10.0.0.0/8;\n    set_real_ip_from 2001:db8::/32;\n    \
                     real_ip_header X-Forwarded-For;\n    real_ip_recursive on;\n";
        assert!(public.contains(lines), "{public}");
        assert!(public.contains("X-Forwarded-Host $links_host;"), "{public}");
        assert!(public.contains("X-Forwarded-Proto $links_scheme;"), "{public}");
        assert_eq!(
            block(&behind, "geo $realip_remote_addr"),
            ["default 0;", "10.0.0.0/8 1;", "2001:db8::/32 1;"]
        );
        // The server for the instances has no proxies in front.
        assert!(!server(&behind, "127.0.0.1:7000").contains("real_ip"), "{behind}");
    }

    #[test]
    fn with_the_proxy_protocol_the_address_is_the_one_in_it() {
        let mut facts = PLAIN;
        facts.proxies = vec!["10.0.0.0/8".parse().unwrap()];
        facts.terms.shared = vec!["192.0.2.1:80".parse().unwrap(), "[2001:db8::1]:80".parse().unwrap()];
        let site = site_for(&format!("{PROXIES}\nnginx.proxy_protocol = true"), &facts);
        assert!(site.contains("    listen 80 proxy_protocol;\n"), "{site}");
        assert!(site.contains("    listen 192.0.2.1:80 proxy_protocol;\n"), "{site}");
        // This host has no IPv6.
        assert!(!site.contains("listen [2001:db8::1]:80"), "{site}");
        assert!(site.contains("    real_ip_header proxy_protocol;\n"), "{site}");
        // Such a proxy cannot remove the headers of clients.
        assert!(
            !site.contains("$http_x_forwarded_") && !site.contains("$links_scheme"),
            "{site}"
        );
        let public = server(&site, "80 proxy_protocol");
        assert!(public.contains("X-Forwarded-Host $http_host;"), "{public}");
    }

    #[test]
    fn limits_cost_nothing_while_they_are_off() {
        let off =
            "limits = { create = 0, wrong_tokens = 0, unknown_links = 0, cache_misses = 0 }\nshorten.access = \"open\"";
        let site = site_for(off, &PLAIN);
        for part in ["limit_req", "/limits/", "$links_client", "$http_links_limited"] {
            assert!(!site.contains(part), "{part}: {site}");
        }
        assert!(
            site.contains("    if (-e /run/links/ready/1/2/../keepalive) { break; }\n"),
            "{site}"
        );
    }

    #[test]
    fn two_limits_share_the_flag_for_links() {
        for off in ["limits.unknown_links = 0", "limits.cache_misses = 0"] {
            let site = site_for(off, &PLAIN);
            assert!(
                site.contains("if (-e /run/links/limits/links-$links_client) {"),
                "{off}: {site}"
            );
            assert!(site.contains("    location @links_limited {"), "{off}: {site}");
        }
    }

    #[test]
    fn creating_links_is_limited_only_while_it_is_open() {
        let limit = |links: &str| {
            let site = site_for(links, &PLAIN);
            let (create, _) = location(&site, "location = /shorten {");
            let zone = site.lines().find_map(|line| line.strip_prefix("limit_req_zone "));
            let line = create.into_iter().find(|line| line.starts_with("limit_req "));
            (zone.map(str::to_owned), line.map(str::to_owned))
        };
        assert_eq!(limit(""), (None, None));
        let (zone, line) = limit("shorten.access = \"open\"\nlimits.create = 7");
        assert_eq!(zone.as_deref(), Some("$links_creator zone=links_create:1m rate=7r/m;"));
        assert_eq!(line.as_deref(), Some("limit_req zone=links_create burst=7 nodelay;"));
    }

    #[test]
    fn a_client_with_a_flag_gets_no_instance() {
        let site = site_of(2, PLAIN);
        for kind in ["links", "tokens"] {
            let flag = format!("if (-e /run/links/limits/{kind}-$links_client) {{");
            assert!(server(&site, "80").contains(&flag), "{site}");
        }
        for route in ["location = /shorten {", "location @links_api {"] {
            let (inside, _) = location(&site, route);
            assert!(inside.contains(&"if ($links_refused) { return 429; }"), "{inside:?}");
        }
        for route in ["location @links_by_flags {", "location @links_and_close {"] {
            let (inside, _) = location(&site, route);
            let to_limited = [
                "error_page 419 = @links_limited;",
                "if ($links_limited) { return 419; }",
            ];
            assert!(to_limited.iter().all(|line| inside.contains(line)), "{inside:?}");
        }
        let edge = server(&site, "127.0.0.1:7000");
        assert!(
            edge.contains("    if ($http_links_limited) { return 429; }\n"),
            "{edge}"
        );
    }

    #[test]
    fn nginx_s_own_errors_are_problems_for_programs_and_pages_for_people() {
        let links = "shorten = { access = \"open\", allowed_origin = \"https://app.example\" }";
        let site = site_for(links, &PLAIN);
        let problems = "error_page 413 429 500 502 503 504 @links_problem;";
        for route in [
            "location = /shorten {",
            "location @links_create_and_close {",
            "location /api/ {",
            "location @links_api {",
            "location @links_api_and_close {",
        ] {
            let (inside, _) = location(&site, route);
            assert!(inside.contains(&problems), "{route} {inside:?}");
        }
        for route in [
            "location / {",
            "location @links_by_flags {",
            "location @links_and_close {",
        ] {
            let (inside, _) = location(&site, route);
            let pages = "error_page 413 429 502 503 504 @links_page;";
            assert!(inside.contains(&pages), "{route} {inside:?}");
        }
        let (problem, all) = location(&site, "location @links_problem {");
        assert!(problem.contains(&"add_header Access-Control-Allow-Origin \"https://app.example\" always;"));
        for status in ["400", "414", "494"] {
            let early = |line: &&&str| line.starts_with("error_page ") && line.contains(status);
            assert!(all.iter().any(|line| early(&line)), "{all:?}");
        }
        // Without a cache, nothing else takes nginx's 500.
        let without = site_for("nginx.cache_ttl = \"0s\"", &PLAIN);
        let (inside, _) = location(&without, "location / {");
        assert!(
            inside.contains(&"error_page 413 429 500 502 503 504 @links_page;"),
            "{inside:?}"
        );
    }

    #[test]
    fn the_error_page_is_one_short_argument_without_links_to_elsewhere() {
        // A longer one would exceed nginx's limit for an argument (NGX_CONF_BUFFER).
        assert!(ERROR_PAGE.len() < 4000);
        assert!(!ERROR_PAGE.contains(['\'', '\\']));
        assert!(!ERROR_PAGE.contains("://") && !ERROR_PAGE.contains("src=") && !ERROR_PAGE.contains("href="));
        assert!(site_of(1, PLAIN).contains(&format!("default '{}';", ERROR_PAGE.trim_end())));
    }

    #[test]
    fn a_sample_says_so_and_whether_it_caches() {
        let sample = site_for("nginx.manage = false", &PLAIN);
        assert!(sample.contains("# This is a sample for `manage = false`"), "{sample}");
        assert!(
            sample.contains("# It caches nothing") && !sample.contains("proxy_cache_path"),
            "{sample}"
        );
        let caching = site_for("nginx = { manage = false, cache_ttl = \"5m\" }", &PLAIN);
        assert!(
            !caching.contains("# It caches nothing") && caching.contains("\nproxy_cache_path"),
            "{caching}"
        );
        assert!(!site_of(2, PLAIN).contains("sample"));
    }

    #[test]
    fn a_long_host_name_gets_room() {
        let mut facts = PLAIN;
        facts.terms.names_bucket = Some(128);
        let site = site_for("", &facts);
        assert!(site.contains("\nserver_names_hash_bucket_size 128;\n"), "{site}");
        assert!(!site_of(2, PLAIN).contains("bucket_size"));
    }

    /// A configuration with HTTPS for a.example and b.example.
    fn with_tls(more: &str) -> Config {
        let text = format!("[tls]\nmode = \"acme\"\nnames = [\"a.example\", \"b.example\"]\n{more}");
        Config::parse(&text, "links.toml").unwrap()
    }

    /// The site with these certificates.
    fn tls_site(config: &Config, facts: &HostFacts, http2: Http2, certificates: &[Certificate]) -> String {
        let https = Https {
            certificates: certificates.to_vec(),
            http2,
        };
        site(config, &paths(), facts, &on_ports(2), &https).unwrap()
    }

    /// The `server_name` of each server that listens on `listen`, in order.
    fn names_on<'a>(site: &'a str, listen: &str) -> Vec<&'a str> {
        let servers = site.split("\nserver {\n").skip(1);
        let servers = servers.filter(|server| server.starts_with(&format!("    listen {listen};\n")));
        servers
            .map(|server| {
                server
                    .split("    server_name ")
                    .nth(1)
                    .unwrap()
                    .split(';')
                    .next()
                    .unwrap()
            })
            .collect()
    }

    #[test]
    fn without_a_certificate_the_names_are_served_without_tls() {
        let site = tls_site(&with_tls(""), &PLAIN, Http2::Parameter, &[]);
        assert_eq!(names_on(&site, "80"), ["a.example b.example"]);
        assert!(!site.contains("443") && !site.contains("ssl_"), "{site}");
    }

    #[test]
    fn each_certificate_has_a_server_that_serves_what_the_plain_one_does() {
        let both = [example("a.example"), example("b.example")];
        let ipv6 = HostFacts { ipv6: true, ..PLAIN };
        let site = tls_site(&with_tls("http = \"serve\"\n"), &ipv6, Http2::Parameter, &both);
        assert_eq!(names_on(&site, "80"), ["a.example b.example"]);
        assert_eq!(names_on(&site, "443 ssl http2"), ["a.example", "b.example"]);
        assert_eq!(site.matches("    listen [::]:443 ssl http2;\n").count(), 2);
        let (plain, tls) = (server(&site, "80"), server(&site, "443 ssl http2"));
        for line in [
            "ssl_certificate /var/lib/links/tls/live/b.example/fullchain.pem;",
            "ssl_certificate_key /var/lib/links/tls/live/b.example/privkey.pem;",
            "ssl_protocols TLSv1.2 TLSv1.3;",
            "ssl_session_tickets off;",
        ] {
            assert!(tls.contains(&format!("    {line}\n")), "{line}: {tls}");
        }
        let body = |server: &str| {
            server
                .split_once("    server_tokens off;\n")
                .unwrap()
                .1
                .split("\n}")
                .next()
                .unwrap()
                .to_owned()
        };
        assert_eq!(body(plain), body(tls));
        assert!(
            !site.contains("ssl_stapling") && !site.contains("Strict-Transport-Security"),
            "{site}"
        );
    }

    #[test]
    fn only_a_certificate_that_asks_for_it_is_stapled() {
        let mut staple = example("a.example");
        staple.described.must_staple = true;
        let site = tls_site(&with_tls(""), &PLAIN, Http2::Directive, &[staple, example("b.example")]);
        assert_eq!(site.matches("    ssl_stapling on;\n").count(), 1);
        assert_eq!(site.matches("    listen 443 ssl;\n    http2 on;\n").count(), 2);
    }

    #[test]
    fn names_with_a_valid_certificate_are_redirected() {
        let expired = Certificate {
            state: State::Expired,
            ..example("b.example")
        };
        let config = with_tls("hsts = true\n");
        let site = tls_site(&config, &PLAIN, Http2::Unsupported, &[example("a.example"), expired]);
        assert_eq!(names_on(&site, "80"), ["b.example", "a.example"]);
        assert_eq!(names_on(&site, "443 ssl"), ["a.example", "b.example"]);
        let redirecting = site
            .split("    server_name a.example;\n")
            .nth(1)
            .unwrap()
            .split("\n}")
            .next()
            .unwrap();
        for line in [
            "return 301 https://$host$request_uri;",
            "location ^~ /internal/ { return 404; }",
            "location ^~ /.well-known/acme-challenge/ {",
            "location = /internal/site {",
            "error_page 413 429 500 502 503 504 @links_problem;\n        proxy_pass http://$links_pool;",
            "access_log off;",
            "keepalive_timeout 0;",
        ] {
            assert!(redirecting.contains(line), "{line}: {redirecting}");
        }
        // Its own errors are those of the other servers.
        let errors = |server: &str| {
            let (_, rest) = server.split_once("    error_page 400 405 ").unwrap();
            rest.split_once("    location @links_problem {").unwrap().0.to_owned()
        };
        assert_eq!(errors(redirecting), errors(server(&site, "443 ssl")));
        assert!(redirecting.contains("    location @links_problem {\n"), "{redirecting}");
        let hsts = "    add_header Strict-Transport-Security \"max-age=31536000\" always;\n";
        assert_eq!(site.matches(hsts).count(), 2);
        assert!(!server(&site, "80").contains("Strict-Transport-Security"));
        // If every name is redirected, the other server answers to no name.
        let site = tls_site(
            &config,
            &PLAIN,
            Http2::Unsupported,
            &[example("a.example"), example("b.example")],
        );
        assert_eq!(names_on(&site, "80"), ["_", "a.example b.example"]);
    }

    #[test]
    fn every_public_server_answers_challenges() {
        let site = tls_site(&with_tls(""), &PLAIN, Http2::Parameter, &[example("a.example")]);
        let alias = "        alias /var/lib/links/tls/challenges/;\n";
        // Without TLS, with the redirects, and with TLS.
        assert_eq!(site.matches(alias).count(), 3, "{site}");
        assert!(server(&site_of(2, PLAIN), "80").contains(alias));
    }

    #[test]
    fn tls_listens_where_the_plain_site_does() {
        let mut config = Config::default();
        config.nginx.listen = vec![
            Listen::Port(80),
            Listen::Port(8080),
            Listen::Address("192.0.2.1:80".parse().unwrap()),
            Listen::Address("[2001:db8::1]:80".parse().unwrap()),
        ];
        let addresses = tls_addresses(&config, true);
        let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
        assert_eq!(
            addresses,
            ["0.0.0.0:443", "[::]:443", "192.0.2.1:443", "[2001:db8::1]:443"]
        );
    }

    #[test]
    fn an_address_of_another_site_with_tls_is_shared_like_one_without() {
        let mut facts = PLAIN;
        facts.terms.tls_shared = vec!["192.0.2.1:443".parse().unwrap(), "[2001:db8::1]:443".parse().unwrap()];
        facts.proxies = vec!["10.0.0.0/8".parse().unwrap()];
        let mut config = with_tls("");
        config.nginx.proxy_protocol = true;
        let site = tls_site(&config, &facts, Http2::Parameter, &[example("a.example")]);
        let tls = server(&site, "443 ssl http2 proxy_protocol");
        assert!(
            tls.contains("    listen 192.0.2.1:443 ssl http2 proxy_protocol;\n"),
            "{tls}"
        );
        // This host has no IPv6.
        assert!(
            !tls.contains("2001:db8") && tls.contains("    set_real_ip_from 10.0.0.0/8;\n"),
            "{tls}"
        );
    }

    #[test]
    fn nginx_s_version_decides_how_it_is_told_to_speak_http2() {
        let of = |version: &str| {
            Http2::of(&format!(
                "nginx version: {version}\nconfigure arguments: --with-http_v2_module\n"
            ))
        };
        for (version, expected) in [
            ("nginx/1.22.1", Http2::Parameter),
            ("nginx/1.25.0", Http2::Parameter),
            ("nginx/1.25.1", Http2::Directive),
            ("nginx/1.26.3 (Debian)", Http2::Directive),
            ("nginx/2.0.0", Http2::Directive),
            ("openresty/1.27.1.2", Http2::Directive),
            ("unknown", Http2::Parameter),
        ] {
            assert_eq!(of(version), expected, "{version}");
        }
        assert_eq!(Http2::of("nginx version: nginx/1.26.3\n"), Http2::Unsupported);
    }

    #[test]
    fn only_this_host_can_ask_which_site_a_server_is() {
        let site = site_of(2, PLAIN);
        for listen in ["80", "127.0.0.1:7000"] {
            let server = server(&site, listen);
            let location = server.split("location = /internal/site {").nth(1).unwrap();
            let location = location.split("\n    }").next().unwrap();
            assert!(
                location.contains("if ($links_local = \"\") { return 404; }"),
                "{location}"
            );
        }
    }

    #[test]
    fn an_address_that_is_named_twice_is_listened_on_once() {
        let mut config = Config::default();
        let of = |config: &Config, ipv6| {
            let addresses = addresses(config, ipv6);
            addresses.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(of(&config, true), ["0.0.0.0:80", "[::]:80"]);
        assert_eq!(of(&config, false), ["0.0.0.0:80"]);
        config.nginx.listen = vec![Listen::Port(80), Listen::Address("[::]:80".parse().unwrap())];
        assert_eq!(of(&config, true), ["0.0.0.0:80", "[::]:80"]);
    }

    #[test]
    fn standalone_names_its_user_only_for_root() {
        let text = standalone(Path::new("/d"), Path::new("/d/site"), None).unwrap();
        assert!(!text.contains("user ") && text.contains("include /d/site;"), "{text}");
        assert!(
            standalone(Path::new("/d"), Path::new("/d/site"), Some("root"))
                .unwrap()
                .contains("\nuser root;\n")
        );
    }
}
