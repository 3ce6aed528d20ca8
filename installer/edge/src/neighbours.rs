//! The other sites of the same nginx, as far as they have addresses or names in common with the site of links. Everything here
//! follows from nginx's configuration and links.toml.

use std::net::SocketAddr;
use std::path::Path;

use crate::conf::{Conf, Directive, Listen, Name, Server};
use crate::nginx::{self, Terms};
use crate::ports::{Overlap, overlap};
use links_config::links::{self, Config, TLS_PORT};

/// The directive by which nginx finds room for long names.
pub const NAMES_BUCKET: &str = "server_names_hash_bucket_size";
/// nginx's default for [`NAMES_BUCKET`] on the processors of today: the size of a cache line.
const DEFAULT_BUCKET: usize = 64;

/// Whether nginx has room for the names of the site.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NamesBucket {
    Sufficient,
    /// The site has to set this value, because nobody sets one.
    Unset(usize),
    /// Somebody sets a value that is too small.
    TooSmall {
        set: Directive,
        needed: usize,
    },
}

/// A name of the site that another server has on the same address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SameName {
    pub name: Name,
    pub address: SocketAddr,
    /// Whether nginx ignores the site of links for this name, because it reads the other server first.
    pub hides_us: bool,
}

/// The other sites of the same nginx.
#[derive(Debug)]
pub struct Neighbours<'a> {
    conf: &'a Conf,
    config: &'a Config,
    /// The position at which nginx reads the site of links.
    position: usize,
    /// Files that do not count: those of links, and a site that makes way.
    except: Vec<&'a Path>,
    servers: Vec<Server>,
    streams: Vec<Listen>,
}

/// Explains one of [`Neighbours::obstacles`].
pub fn obstacle(listen: &Listen) -> String {
    let Listen { address, .. } = listen;
    let what = match listen.takes_ipv4 {
        true => "is for IPv4 too",
        false => "is for streams",
    };
    format!(
        "the socket of this server on {address} {what}, so nginx cannot open one for links on port {}",
        address.port()
    )
}

/// What to do about it.
pub const OBSTACLE_HELP: &str = "give this server another address, or links by listen in [nginx] of links.toml";

impl<'a> Neighbours<'a> {
    /// Finds the other sites: all servers that are not in one of the files in `except`. nginx reads the site of links at
    /// `read_at`.
    pub fn new(conf: &'a Conf, config: &'a Config, read_at: &Path, except: Vec<&'a Path>) -> Self {
        Self {
            servers: conf.servers_except(&except),
            streams: conf.stream_listens(),
            position: conf.position(read_at),
            conf,
            config,
            except,
        }
    }

    pub fn terms(&self) -> Terms {
        Terms {
            default_server: self.default_server().is_none(),
            shared: self.shared(),
            tls_shared: self.tls_shared(),
            names_bucket: match self.names_bucket() {
                NamesBucket::Unset(size) => Some(size),
                NamesBucket::Sufficient | NamesBucket::TooSmall { .. } => None,
            },
        }
    }

    fn listens(&self) -> impl Iterator<Item = &Listen> {
        self.servers.iter().flat_map(|server| &server.listens)
    }

    fn addresses(&self) -> Vec<SocketAddr> {
        nginx::addresses(self.config, true)
    }

    /// Where another server claims, on an address of the site, all host names that no other server has.
    pub fn default_server(&self) -> Option<&Listen> {
        let addresses = self.addresses();
        self.listens()
            .find(|listen| listen.default_server && addresses.contains(&listen.address))
    }

    /// The `listen` directives with an address of their own, on a port on which links is to answer on every address. nginx
    /// passes requests there only to servers that name this address.
    fn own_addresses(&self) -> impl Iterator<Item = &Listen> {
        let ports: Vec<u16> = self
            .config
            .nginx
            .listen
            .iter()
            .filter_map(|listen| match listen {
                links::Listen::Port(port) => Some(*port),
                links::Listen::Address(_) => None,
            })
            .collect();
        let addresses = self.addresses();
        self.listens().filter(move |listen| {
            let address = listen.address;
            ports.contains(&address.port()) && !address.ip().is_unspecified() && !addresses.contains(&address)
        })
    }

    /// Whether the site can name this address too, without taking requests for unknown host names from the other server: nginx
    /// passes them to the default server, or else to the first server with that address.
    fn can_share(&self, address: SocketAddr) -> bool {
        nginx::server_names(self.config) != ["_"] && self.stays_default(address)
    }

    /// Whether another server stays the default of this address if the site names it too.
    fn stays_default(&self, address: SocketAddr) -> bool {
        let stays_default = |server: &Server| {
            let mut listens = server.listens.iter().filter(|listen| listen.address == address);
            listens.any(|listen| listen.default_server || self.is_before_us(server))
        };
        self.servers.iter().any(stays_default)
    }

    /// Whether nginx reads a server before the site of links.
    fn is_before_us(&self, server: &Server) -> bool {
        server.position < self.position
    }

    /// The addresses of other sites that the site names as well.
    pub fn shared(&self) -> Vec<SocketAddr> {
        let own = self.own_addresses().map(|listen| listen.address);
        let mut shared: Vec<_> = own.filter(|address| self.can_share(*address)).collect();
        shared.sort_unstable();
        shared.dedup();
        shared
    }

    /// The addresses of other sites with TLS that the site names as well. Clients name one of its certificates' names there, and
    /// get another site otherwise.
    fn tls_shared(&self) -> Vec<SocketAddr> {
        let own = self.own_tls_addresses().map(|listen| listen.address);
        let mut shared: Vec<_> = own.filter(|address| self.stays_default(*address)).collect();
        shared.sort_unstable();
        shared.dedup();
        shared
    }

    /// The `listen` directives with an address of their own, where links is to answer with TLS on every address.
    fn own_tls_addresses(&self) -> impl Iterator<Item = &Listen> {
        let is_everywhere = |listen: &links::Listen| matches!(listen, links::Listen::Port(_));
        let addresses = match self.config.nginx.listen.iter().any(is_everywhere) && self.config.tls.is_on() {
            true => nginx::tls_addresses(self.config, true),
            false => vec![],
        };
        self.listens().filter(move |listen| {
            let address = listen.address;
            let is_own = !address.ip().is_unspecified() && !addresses.contains(&address);
            !addresses.is_empty() && address.port() == TLS_PORT && is_own
        })
    }

    /// Where other sites have an address on which no request reaches links.
    pub fn unreachable(&self) -> Vec<&Listen> {
        let mut found: Vec<&Listen> = vec![];
        let plain = self.own_addresses().filter(|listen| !self.can_share(listen.address));
        let with_tls = self
            .own_tls_addresses()
            .filter(|listen| !self.stays_default(listen.address));
        for listen in plain.chain(with_tls) {
            let is_known = found.iter().any(|known| known.address == listen.address);
            if !is_known {
                found.push(listen);
            }
        }
        found
    }

    /// The sockets of nginx beside which it cannot open those of the site. `nginx -t` does not notice.
    pub fn obstacles(&self) -> Vec<&Listen> {
        let mut ours = self.addresses();
        if self.config.tls.is_on() {
            ours.extend(nginx::tls_addresses(self.config, true));
        }
        let overlaps = |listen: &Listen, with: &[Overlap]| {
            let mut overlaps = ours.iter().map(|address| overlap(*address, listen.address));
            overlaps.any(|overlap| with.contains(&overlap) && (overlap == Overlap::Certain || listen.takes_ipv4))
        };
        // All servers of the `http` block with the same address have one socket.
        let http = self.listens().filter(|listen| overlaps(listen, &[Overlap::Possible]));
        let streams = self.streams.iter();
        http.chain(streams.filter(|listen| overlaps(listen, &[Overlap::Possible, Overlap::Certain])))
            .collect()
    }

    /// The names of the site that other servers have on the same address. nginx ignores all but the first server.
    pub fn same_names(&self) -> Vec<SameName> {
        let ours: Vec<_> = nginx::server_names(self.config)
            .iter()
            .filter(|name| *name != "_")
            .map(|name| name.to_lowercase())
            .collect();
        let addresses = [self.addresses(), self.shared()].concat();
        let mut found = vec![];
        for server in &self.servers {
            let common = server.listens.iter().find(|listen| addresses.contains(&listen.address));
            let Some(listen) = common else { continue };
            let same = server.names.iter().filter(|name| ours.contains(&name.name));
            found.extend(same.map(|name| SameName {
                name: name.clone(),
                address: listen.address,
                hides_us: self.is_before_us(server),
            }));
        }
        found
    }

    /// Where other servers share an address with the site, but do not agree whether clients send the PROXY protocol there.
    /// nginx expects it from all clients of an address if one server does.
    pub fn other_protocols(&self) -> Vec<&Listen> {
        let addresses = [self.addresses(), self.shared()].concat();
        let expected = self.config.nginx.proxy_protocol;
        self.listens()
            .filter(|listen| addresses.contains(&listen.address) && listen.proxy_protocol != expected)
            .collect()
    }

    pub fn names_bucket(&self) -> NamesBucket {
        let needed = bucket_for(&nginx::server_names(self.config));
        match self.conf.of_http(NAMES_BUCKET, &self.except).pop() {
            Some(set) => {
                let size: Option<usize> = set.arguments.first().and_then(|size| size.parse().ok());
                match size.is_none_or(|size| size >= needed) {
                    true => NamesBucket::Sufficient,
                    false => NamesBucket::TooSmall { set, needed },
                }
            }
            None if needed <= DEFAULT_BUCKET => NamesBucket::Sufficient,
            None => NamesBucket::Unset(needed),
        }
    }
}

/// The smallest power of two that holds the longest name. In a bucket, a name takes a pointer and, rounded up to pointers, its
/// length and two bytes; the bucket ends with a pointer (ngx_hash.c, `NGX_HASH_ELT_SIZE`).
fn bucket_for(names: &[String]) -> usize {
    const POINTER: usize = size_of::<usize>();
    let longest = names.iter().map(String::len).max().unwrap_or(0);
    let needed = POINTER + (longest + 2).next_multiple_of(POINTER) + POINTER;
    needed.next_power_of_two()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use super::*;

    const SITES: &str = "/etc/nginx/sites-enabled/";

    fn conf(files: &[(&str, &str)]) -> Conf {
        let main = "# configuration file /etc/nginx/nginx.conf:\nhttp { include /etc/nginx/sites-enabled/*; }\n";
        let files = files
            .iter()
            .map(|(name, text)| format!("# configuration file {SITES}{name}:\n{text}\n"));
        Conf::read(&(main.to_owned() + &files.collect::<String>())).unwrap()
    }

    fn config(text: &str) -> Config {
        Config::parse(text, "links.toml").unwrap()
    }

    const NAMED: &str = "public_url = \"https://s.example.org\"";

    fn with<T>(files: &[(&str, &str)], links: &str, look: impl FnOnce(&Neighbours) -> T) -> T {
        let (conf, config) = (conf(files), config(links));
        let ours = Path::new("/etc/nginx/sites-enabled/links");
        look(&Neighbours::new(&conf, &config, ours, vec![ours]))
    }

    fn shared(files: &[(&str, &str)], links: &str) -> Vec<String> {
        with(files, links, |found| {
            found.shared().iter().map(ToString::to_string).collect()
        })
    }

    fn unreachable(files: &[(&str, &str)], links: &str) -> Vec<String> {
        with(files, links, |found| {
            let listens = found.unreachable().into_iter();
            listens
                .map(|listen| format!("{}:{}", listen.address, listen.place.line))
                .collect()
        })
    }

    #[test]
    fn an_address_of_another_site_with_tls_is_shared_too() {
        let before = (
            "a",
            "server { listen 192.0.2.1:443 ssl; listen 192.0.2.1:80; listen 443 ssl; }",
        );
        let after = ("own", "server { listen 192.0.2.2:443 ssl; }");
        let tls = "[tls]\nmode = \"acme\"\nnames = \"s.example.org\"\n";
        let found = |links: &str| with(&[before, after], links, |found| found.terms().tls_shared);
        // Of the other one, nginx would make links the default.
        assert_eq!(found(tls), ["192.0.2.1:443".parse().unwrap()]);
        assert_eq!(unreachable(&[before, after], tls), ["192.0.2.2:443:1"]);
        assert_eq!(found(&format!("nginx.listen = \"192.0.2.1:80\"\n{tls}")), []);
    }

    #[test]
    fn an_address_of_another_site_is_shared_if_that_site_stays_its_default() {
        let marked = (
            "own",
            "server {\nlisten 192.0.2.1:80 default_server;\nlisten [2001:db8::1]:80 default_server; }",
        );
        assert_eq!(shared(&[marked], NAMED), ["192.0.2.1:80", "[2001:db8::1]:80"]);
        // "links" is read before "own", but after "blog".
        let (before, after) = (
            ("blog", "server { listen 192.0.2.1; }"),
            ("own", "server {\nlisten 192.0.2.1; }"),
        );
        assert_eq!(shared(&[before], NAMED), ["192.0.2.1:80"]);
        assert_eq!(shared(&[after], NAMED), [""; 0]);
        assert_eq!(unreachable(&[after], NAMED), ["192.0.2.1:80:2"]);
        assert_eq!(unreachable(&[before, after], NAMED), [""; 0]);
        // Without a name, there is nothing by which nginx could choose links there.
        assert_eq!((shared(&[before], ""), unreachable(&[before], "").len()), (vec![], 1));
    }

    #[test]
    fn other_ports_and_named_addresses_are_not_shared() {
        let other = [("blog", "server { listen 192.0.2.1:8080; listen 80; listen unix:/x; }")];
        assert_eq!(shared(&other, NAMED), [""; 0]);
        let own = [("blog", "server { listen 192.0.2.1; }")];
        let links = format!("{NAMED}\nnginx.listen = [\"192.0.2.1:80\", \"192.0.2.2:80\"]");
        assert_eq!(shared(&own, &links), [""; 0]);
        assert_eq!(unreachable(&own, &links), [""; 0]);
    }

    #[test]
    fn a_name_that_another_site_has_too_is_found_with_its_place() {
        let found = |name: &str, text: &str| {
            with(&[(name, text)], NAMED, |found| {
                let same = found.same_names().into_iter();
                same.map(|same| (same.name.place.line, same.address.to_string(), same.hides_us))
                    .collect::<Vec<_>>()
            })
        };
        let text = "server {\nlisten 80;\nserver_name a.example S.Example.org; }";
        assert_eq!(found("blog", text), [(3, "0.0.0.0:80".to_owned(), true)]);
        assert_eq!(found("own", text), [(3, "0.0.0.0:80".to_owned(), false)]);
        assert_eq!(found("blog", "server { listen 81; server_name s.example.org; }"), []);
        assert_eq!(found("blog", "server { listen 80; server_name *.example.org; }"), []);
    }

    #[test]
    fn a_socket_that_nginx_cannot_have_beside_those_of_links_is_an_obstacle() {
        let found = |main: &str, links: &str| {
            let conf = Conf::read(&format!("# configuration file /etc/nginx/nginx.conf:\n{main}\n")).unwrap();
            let config = config(links);
            let neighbours = Neighbours::new(&conf, &config, Path::new("/x"), vec![]);
            let obstacles = neighbours.obstacles().into_iter();
            obstacles
                .map(|listen| format!("{}:{}", listen.place, obstacle(listen)))
                .collect::<Vec<_>>()
        };
        let dual = "http { server { listen 81; }\nserver { listen [::]:80 ipv6only=off; } }";
        assert_eq!(
            found(dual, ""),
            [
                "/etc/nginx/nginx.conf:2:the socket of this server on [::]:80 is for IPv4 too, so nginx cannot open one for links on port 80"
            ]
        );
        for links in ["nginx.listen = \"[::]:80\"", "nginx.listen = 8080"] {
            assert_eq!(found(dual, links), [""; 0], "{links}");
        }
        assert_eq!(found("http { server { listen [::]:80; listen 80; } }", ""), [""; 0]);
        let stream = "stream { server { listen 80 udp; listen 53; listen 127.0.0.1:80; listen 443; } }";
        assert_eq!(
            found(stream, ""),
            [
                "/etc/nginx/nginx.conf:1:the socket of this server on 127.0.0.1:80 is for streams, so nginx cannot open one for links on port 80"
            ]
        );
        let tls = "[tls]\nmode = \"acme\"\nnames = \"s.example.org\"\n";
        assert_eq!(found(stream, tls).len(), 2);
    }

    #[test]
    fn the_proxy_protocol_is_per_address() {
        let lines = |text: &str, links: &str| {
            with(&[("blog", text)], links, |found| {
                let others = found.other_protocols().into_iter();
                others.map(|listen| listen.place.line).collect::<Vec<_>>()
            })
        };
        let text = "server {\nlisten 80;\nlisten 81 proxy_protocol;\nlisten [::]:80 proxy_protocol; }";
        assert_eq!(lines(text, NAMED), [4]);
        let proxied = "nginx = { proxy_protocol = true, trusted_proxies = \"10.0.0.0/8\" }";
        assert_eq!(lines(text, proxied), [2]);
    }

    #[test]
    fn a_long_name_needs_a_larger_bucket() {
        let name = |length: usize| vec!["x".repeat(length)];
        // nginx refuses a name of 47 bytes with its default of 64.
        for (length, size) in [(1, 32), (46, 64), (47, 128), (110, 128), (111, 256), (253, 512)] {
            assert_eq!(bucket_for(&name(length)), size, "{length}");
        }
        let links = format!("nginx.server_name = \"{}\"", name(60)[0]);
        assert_eq!(with(&[], &links, |found| found.names_bucket()), NamesBucket::Unset(128));
        assert_eq!(with(&[], NAMED, |found| found.names_bucket()), NamesBucket::Sufficient);
        let set = |size| with(&[("blog", size)], &links, |found| found.names_bucket());
        assert_eq!(set("server_names_hash_bucket_size 128;"), NamesBucket::Sufficient);
        let found = set("\nserver_names_hash_bucket_size 64;");
        assert!(
            matches!(&found, NamesBucket::TooSmall { set, needed: 128 } if set.place.line == 2),
            "{found:?}"
        );
        // What the site itself sets does not count.
        let own = [("links", "server_names_hash_bucket_size 64;")];
        assert_eq!(
            with(&own, &links, |found| found.names_bucket()),
            NamesBucket::Unset(128)
        );
    }
}
