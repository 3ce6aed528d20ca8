//! Checks that links answers through nginx on every address, by sending requests and not by reading files.

use std::fs;
use std::io::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use super::conf::{self, Conf};
use super::plan::Site;
use crate::certificates::Certificate;
use crate::handshake::{self, Question, Request as AfterHandshake};
use crate::nginx;
use links_base::http::{self, PROXY_UNKNOWN, Request, Response};
use links_base::layout;
use links_base::own_addresses;
use links_config::links::Config;

const HEALTH: &str = "/health";
/// How long one answer may take. It leaves nginx time for a second attempt when an instance is just leaving the rotation.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The time between two attempts. Nothing announces that nginx has an instance again.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// The maximum length of the body that is read, and so of what an error quotes.
const QUOTE_BYTES: usize = 512;

/// The kernel's table of IPv6 addresses (proc_net(5)). It is empty if IPv6 is switched off.
const IPV6_ADDRESSES: &str = "/proc/net/if_inet6";

/// What is expected to answer.
#[derive(Clone, Copy, Debug)]
pub struct Expected<'a> {
    /// The site that nginx has to run. `None` if another program's configuration leads to links.
    pub site: Option<&'a Site>,
    /// Whether an instance has to answer as well.
    pub health: bool,
    /// The certificates that nginx has to serve, if the site names them.
    pub certificates: &'a [Certificate],
}

impl<'a> Expected<'a> {
    /// The text by which the site identifies itself. `None` if somebody else has written it.
    fn identity(self) -> Option<&'a str> {
        self.site
            .filter(|site| !site.edited)
            .and_then(|site| nginx::identity(&site.text))
    }

    /// The certificates that the site names.
    fn served(self) -> Vec<&'a Certificate> {
        let is_named = |certificate: &&Certificate| {
            self.site
                .is_some_and(|site| site.text.contains(&*certificate.chain.to_string_lossy()))
        };
        self.certificates.iter().filter(is_named).collect()
    }
}

/// One address of the site.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Address {
    listen: SocketAddr,
    /// Whether the instances ask nginx about its cache on this address. Otherwise it is for clients.
    is_edge: bool,
    /// Whether nginx expects the PROXY protocol there.
    is_proxied: bool,
}

/// Checks every address of the site, and returns what is wrong with each.
pub fn ask(config: &Config, conf: Option<&Conf>, expected: Expected) -> Vec<(SocketAddr, Result<(), String>)> {
    let public = public_addresses(config, expected.site).into_iter();
    let public = public.map(|listen| Address {
        listen,
        is_edge: false,
        is_proxied: config.nginx.proxy_protocol,
    });
    let edge = config.edge_port().map(|port| Address {
        listen: layout::edge_address(port),
        is_edge: true,
        is_proxied: false,
    });
    let host = host(config);
    let reach = reach(conf, expected.site);
    let plain = public.chain(edge).filter_map(|address| {
        let to = reach(address.listen)?;
        Some((address.listen, ask_one(address, to, &host, expected)))
    });
    let mut answers: Vec<_> = plain.collect();
    for (listen, _, answer) in ask_with_tls(config, &reach, expected) {
        match answers.last_mut() {
            // The first thing that is wrong on an address is enough.
            Some((last, so_far)) if *last == listen => *so_far = std::mem::replace(so_far, Ok(())).and(answer),
            _ => answers.push((listen, answer)),
        }
    }
    answers
}

/// The first address that leads to the site without TLS.
pub fn plain_address(config: &Config, conf: Option<&Conf>, site: Option<&Site>) -> Option<SocketAddr> {
    nginx::addresses(config, has_ipv6())
        .into_iter()
        .find_map(reach(conf, site))
}

/// The answer on an address with TLS for a name.
pub type TlsAnswer<'a> = (SocketAddr, &'a str, Result<(), String>);

/// Checks every address with TLS for every certificate that is expected and that the site names.
pub fn ask_for_certificates<'a>(config: &Config, conf: Option<&Conf>, expected: Expected<'a>) -> Vec<TlsAnswer<'a>> {
    // Without it, the answers report addresses that do not answer.
    if let Err(error) = open_way(config, conf, expected) {
        links_base::log::error!("{error:#}");
    }
    ask_with_tls(config, reach(conf, expected.site), expected)
}

/// The answers are in the order of the addresses.
fn ask_with_tls<'a>(
    config: &Config,
    reach: impl Fn(SocketAddr) -> Option<SocketAddr>,
    expected: Expected<'a>,
) -> Vec<TlsAnswer<'a>> {
    let served = expected.served();
    if served.is_empty() {
        return vec![];
    }
    let addresses = tls_addresses(config, expected.site).into_iter();
    let reached = addresses.filter_map(|listen| Some((listen, reach(listen)?)));
    let questions: Vec<_> = reached
        .flat_map(|(listen, to)| {
            served.iter().map(move |certificate| Question {
                listen,
                to,
                is_proxied: config.nginx.proxy_protocol,
                certificate,
            })
        })
        .collect();
    if questions.is_empty() {
        return vec![];
    }
    // The certificate and, on the addresses without TLS, the identity prove that this is the site.
    let request = match (expected.health, expected.identity()) {
        (true, _) => AfterHandshake::Health(HEALTH),
        (false, Some(identity)) => AfterHandshake::Identity(nginx::WHICH_SITE, identity),
        (false, None) => AfterHandshake::None,
    };
    let answers = match handshake::ask(&questions, request, TIMEOUT) {
        Ok(answers) => answers,
        Err(error) => vec![Err(format!("{error:#}")); questions.len()],
    };
    let answered = questions.iter().zip(answers);
    answered
        .map(|(question, answer)| (question.listen, question.certificate.name.as_str(), answer))
        .collect()
}

/// The addresses on which clients reach the site: those of links.toml, and those of this host that the site shares with others.
fn public_addresses(config: &Config, site: Option<&Site>) -> Vec<SocketAddr> {
    let edge = config.edge_port().map(layout::edge_address);
    let mut addresses = with_shared(nginx::addresses(config, has_ipv6()), site, false);
    addresses.retain(|address| edge != Some(*address));
    addresses
}

fn tls_addresses(config: &Config, site: Option<&Site>) -> Vec<SocketAddr> {
    with_shared(nginx::tls_addresses(config, has_ipv6()), site, true)
}

/// The addresses, and those of this host that the site shares with others.
fn with_shared(mut addresses: Vec<SocketAddr>, site: Option<&Site>, tls: bool) -> Vec<SocketAddr> {
    let written = site
        .filter(|site| !site.edited)
        .map(|site| conf::addresses(&site.text, tls));
    for address in written.unwrap_or_default() {
        // nginx also accepts addresses that the host does not have, if it listens on all.
        if !addresses.contains(&address) && is_of_this_host(address.ip()) {
            addresses.push(address);
        }
    }
    addresses
}

/// Whether this host has the address.
fn is_of_this_host(ip: IpAddr) -> bool {
    TcpListener::bind((ip, 0)).is_ok()
}

/// Waits until every address answers as expected.
///
/// # Errors
/// An address still does not answer as expected after `timeout`. The error says what is wrong with the first such address.
pub fn wait(config: &Config, conf: Option<&Conf>, expected: Expected, timeout: Duration) -> Result<(), String> {
    let deadline = Instant::now() + timeout;
    open_way(config, conf, expected).map_err(|error| format!("cannot be asked: {error:#}"))?;
    loop {
        let wrong = ask(config, conf, expected)
            .into_iter()
            .find_map(|(address, answer)| Some(format!("on {address} {}", answer.err()?)));
        match wrong {
            None => return Ok(()),
            Some(wrong) if Instant::now() >= deadline => return Err(wrong),
            Some(_) => std::thread::sleep(POLL_INTERVAL),
        }
    }
}

/// Makes systemd let this process reach the addresses that [`ask`] connects to.
fn open_way(config: &Config, conf: Option<&Conf>, expected: Expected) -> anyhow::Result<()> {
    let mut listens = public_addresses(config, expected.site);
    if !expected.served().is_empty() {
        listens.extend(tls_addresses(config, expected.site));
    }
    let reached = listens.into_iter().filter_map(reach(conf, expected.site));
    own_addresses::reach(&reached.map(|address| address.ip()).collect::<Vec<_>>())
}

fn ask_one(address: Address, to: SocketAddr, host: &str, expected: Expected) -> Result<(), String> {
    let identity = expected.identity();
    if let Some(identity) = identity {
        let answer = get(to, address.is_proxied, host, nginx::WHICH_SITE)?;
        if answer.status != 200 || answer.body.trim_end() != identity {
            return Err(match answer.body.starts_with("links-site ") {
                true => "nginx still runs an earlier links site".to_owned(),
                false => format!("a server other than the links site answers ({})", answer.status),
            });
        }
    }
    // If the edge address has identified itself, it is the same nginx in front of the same instances.
    if !expected.health || (address.is_edge && identity.is_some()) {
        return Ok(());
    }
    let answer = get(to, address.is_proxied, host, HEALTH)?;
    let is_edited = expected.site.is_none_or(|site| site.edited);
    if answer.status == 200 || (is_edited && redirects_to_https(&answer)) {
        return Ok(());
    }
    let line = answer.body.lines().next().unwrap_or_default();
    Err(format!(
        "GET {HEALTH} returned {}{}{}",
        answer.status,
        if line.is_empty() || line.starts_with('<') {
            ""
        } else {
            ": "
        },
        if line.starts_with('<') { "" } else { line }
    ))
}

/// Whether the answer redirects to HTTPS, as certbot sets it up for requests without TLS.
fn redirects_to_https(response: &Response) -> bool {
    matches!(response.status, 301 | 302 | 307 | 308)
        && response
            .location
            .as_ref()
            .is_some_and(|location| location.starts_with("https://"))
}

fn get(address: SocketAddr, is_proxied: bool, host: &str, path: &str) -> Result<Response, String> {
    let request = Request {
        host,
        limit: QUOTE_BYTES,
        ..Request::get(path)
    };
    let send = || -> io::Result<Response> {
        let deadline = Instant::now() + TIMEOUT;
        let mut connection = TcpStream::connect_timeout(&address, TIMEOUT)?;
        if is_proxied {
            connection.write_all(PROXY_UNKNOWN)?;
        }
        http::send(connection.into(), &request, deadline)
    };
    send().map_err(|error| format!("nothing answers ({error})"))
}

/// The addresses on which other servers of nginx listen.
fn others(conf: Option<&Conf>, site: Option<&Site>) -> Vec<SocketAddr> {
    let (Some(conf), Some(site)) = (conf, site) else {
        return vec![];
    };
    conf.listens(&[&site.path])
}

/// How this host reaches the addresses on which the site listens: as [`reached_at`] says.
fn reach(conf: Option<&Conf>, site: Option<&Site>) -> impl Fn(SocketAddr) -> Option<SocketAddr> {
    let others = others(conf, site);
    let own = ipv6_addresses(&fs::read_to_string(IPV6_ADDRESSES).unwrap_or_default());
    move |listen| reached_at(listen, &others, &own)
}

/// An address of this host that reaches a socket on `listen` and that no other server of the same nginx listens on. `own` are
/// this host's IPv6 addresses. `None` if the host has no such address.
fn reached_at(listen: SocketAddr, others: &[SocketAddr], own: &[Ipv6Addr]) -> Option<SocketAddr> {
    if !listen.ip().is_unspecified() {
        return Some(listen);
    }
    let of = |ip: IpAddr| SocketAddr::new(ip, listen.port());
    let is_free = |address: &SocketAddr| !others.contains(address);
    match listen.ip() {
        IpAddr::V6(_) => own.iter().map(|ip| of((*ip).into())).find(is_free),
        // All of 127.0.0.0/8 is this host.
        IpAddr::V4(_) => (1..=254)
            .map(|last| of(Ipv4Addr::new(127, 0, 0, last).into()))
            .find(is_free),
    }
}

/// The host's IPv6 addresses, loopback first. Link-local ones are left out, because they need the name of an interface.
fn ipv6_addresses(table: &str) -> Vec<Ipv6Addr> {
    let addresses = table.lines().filter_map(|line| {
        let digits = line.split_whitespace().next().filter(|digits| digits.len() == 32)?;
        Some(Ipv6Addr::from(u128::from_str_radix(digits, 16).ok()?))
    });
    let mut addresses: Vec<_> = addresses.filter(|address| !address.is_unicast_link_local()).collect();
    addresses.sort_by_key(|address| !address.is_loopback());
    addresses
}

/// A host name for which nginx picks our server.
fn host(config: &Config) -> String {
    let names = nginx::server_names(config);
    let name = names.first().map_or("_", String::as_str);
    // nginx's forms: `*.example.org`, `.example.org`, `www.example.*`.
    match (name.strip_prefix("*."), name.strip_prefix('.'), name.strip_suffix(".*")) {
        (Some(domain), ..) => format!("links.{domain}"),
        (_, Some(domain), _) => domain.to_owned(),
        (.., Some(name)) => format!("{name}.invalid"),
        _ => name.to_owned(),
    }
}

/// Whether the kernel has IPv6.
pub fn has_ipv6() -> bool {
    Path::new("/proc/net/if_inet6").exists()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use super::*;
    use links_base::testing::{Response, Server};
    use links_config::links::Listen;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_wildcard_is_reached_on_an_address_without_another_server() {
        let others = [address("127.0.0.1:80"), address("127.0.0.2:81"), address("[::1]:81")];
        let table = "20010db8000000000000000000000001 02 40 00 80     eth0\n\
                     fe80000000000000000000000000abcd 02 40 20 80     eth0\n\
                     00000000000000000000000000000001 01 80 10 80       lo\n";
        let own = ipv6_addresses(table);
        for (listen, expected) in [
            ("0.0.0.0:80", "127.0.0.2:80"),
            ("0.0.0.0:81", "127.0.0.1:81"),
            ("[::]:80", "[::1]:80"),
            ("[::]:81", "[2001:db8::1]:81"),
            ("192.0.2.1:80", "192.0.2.1:80"),
        ] {
            assert_eq!(reached_at(address(listen), &others, &own), Some(address(expected)));
        }
        assert_eq!(reached_at(address("[::]:80"), &[], &ipv6_addresses("")), None);
    }

    #[test]
    fn the_host_is_one_that_the_site_answers_to() {
        let mut config = Config::default();
        assert_eq!(host(&config), "_");
        for (name, expected) in [
            ("s.example.org", "s.example.org"),
            ("*.example.org", "links.example.org"),
            (".example.org", "example.org"),
            ("www.example.*", "www.example.invalid"),
        ] {
            config.nginx.server_name = vec![name.to_owned()];
            assert_eq!(host(&config), expected);
        }
    }

    /// The status and the body for a path. The body of a redirect is its target.
    type Answer = (&'static str, u16, &'static str);

    /// Starts a server with a fixed answer for each path, and returns a configuration that listens on its address.
    fn server(answers: &'static [Answer]) -> Config {
        let server = Server::start(move |request| {
            let answer = answers.iter().find(|(path, ..)| *path == request.path);
            match answer {
                Some((_, 301, target)) => Response::from((301, String::new())).header("location", target),
                Some((_, status, body)) => (*status, (*body).to_owned()).into(),
                None => (404, String::new()).into(),
            }
        });
        let mut config = Config::default();
        config.nginx.listen = vec![Listen::Address(server.address())];
        config.nginx.cache_ttl = Some(Duration::ZERO);
        config
    }

    const OURS: Answer = ("/internal/site", 200, "links-site abc");
    const HEALTHY: Answer = ("/health", 200, "");

    fn site(edited: bool) -> Site {
        Site {
            path: "/etc/nginx/sites-enabled/links".into(),
            text: "        return 200 \"links-site abc\\n\";\n".to_owned(),
            edited,
        }
    }

    fn found(config: &Config, site: &Site, health: bool) -> Result<(), String> {
        let expected = Expected {
            site: Some(site),
            health,
            certificates: &[],
        };
        wait(config, None, expected, Duration::ZERO)
    }

    #[test]
    fn only_our_site_with_an_instance_behind_it_serves() {
        assert_eq!(found(&server(&[OURS, HEALTHY]), &site(false), true), Ok(()));
        assert_eq!(found(&server(&[OURS]), &site(false), false), Ok(()));
        let error = found(&server(&[OURS, ("/health", 502, "<html>")]), &site(false), true).unwrap_err();
        assert!(error.ends_with("GET /health returned 502"), "{error}");
        // Another program may have a page at /health, too.
        let error = found(&server(&[HEALTHY]), &site(false), true).unwrap_err();
        assert!(
            error.contains("a server other than the links site answers (404)"),
            "{error}"
        );
        let earlier = &[("/internal/site", 200, "links-site abd"), HEALTHY];
        let error = found(&server(earlier), &site(false), true).unwrap_err();
        assert!(error.contains("earlier links site"), "{error}");
    }

    #[test]
    fn an_edited_site_may_redirect_to_https() {
        const MOVED: Answer = ("/health", 301, "https://s.example.org/health");
        assert_eq!(found(&server(&[MOVED]), &site(true), true), Ok(()));
        assert_eq!(found(&server(&[HEALTHY]), &site(true), true), Ok(()));
        assert!(found(&server(&[OURS, MOVED]), &site(false), true).is_err());
    }

    #[test]
    fn an_address_that_the_site_shares_with_others_is_checked_too() {
        let config = Config::default();
        let with = |text: &str, edited| {
            let site = Site {
                text: text.to_owned(),
                ..site(edited)
            };
            let addresses = public_addresses(&config, Some(&site)).into_iter();
            addresses
                .filter(SocketAddr::is_ipv4)
                .map(|address| address.to_string())
                .collect::<Vec<_>>()
        };
        // The last one is the server for the instances, and 192.0.2.1 is no address of this host.
        let text = "server {\n listen 80;\n listen 127.0.0.9:80;\n listen 192.0.2.1:80;\n listen 127.0.0.9:443 ssl;\n}\n\
                    server { listen 127.0.0.1:7000; }";
        assert_eq!(with(text, false), ["0.0.0.0:80", "127.0.0.9:80"]);
        assert_eq!(with(text, true), ["0.0.0.0:80"]);
    }

    #[test]
    fn where_nginx_expects_the_proxy_protocol_the_request_begins_with_it() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut received = [0; 15];
            io::Read::read_exact(&mut stream, &mut received).unwrap();
            stream
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                .unwrap();
            received
        });
        let mut config = Config {
            nginx: links_config::links::Nginx {
                listen: vec![Listen::Address(address)],
                cache_ttl: Some(Duration::ZERO),
                ..Config::default().nginx
            },
            ..Config::default()
        };
        config.nginx.proxy_protocol = true;
        assert_eq!(found(&config, &site(true), true), Ok(()));
        assert_eq!(&server.join().unwrap(), PROXY_UNKNOWN);
    }

    #[test]
    fn an_address_where_nothing_listens_is_reported() {
        let mut config = Config::default();
        let taken = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        config.nginx.listen = vec![Listen::Address(taken)];
        let error = found(&config, &site(false), true).unwrap_err();
        assert!(error.starts_with(&format!("on {taken} nothing answers")), "{error}");
    }
}
