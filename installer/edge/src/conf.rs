//! nginx's configuration as text: the output of `nginx -T`, and which file includes which.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::path::{Path, PathBuf};

use glob::{MatchOptions, Pattern};

/// The header that `nginx -T` prints before each file.
const FILE: &str = "# configuration file ";
/// The maximum depth of includes. nginx itself has no such limit, and fails on a cycle.
const MAX_DEPTH: usize = 16;
/// The rules of glob(3), which nginx calls.
const GLOB: MatchOptions = MatchOptions {
    case_sensitive: true,
    require_literal_separator: true,
    require_literal_leading_dot: true,
};

/// A configuration that nginx accepts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conf {
    main: PathBuf,
    files: BTreeMap<PathBuf, String>,
}

/// Where a directive is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub file: PathBuf,
    /// The line, starting at 1.
    pub line: usize,
}

/// The form `FILE:LINE`.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)
    }
}

/// A `server` block of the `http` block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// Where the block begins.
    pub place: Place,
    /// Increases in the order in which nginx reads the servers.
    pub position: usize,
    pub listens: Vec<Listen>,
    pub names: Vec<Name>,
}

/// A `listen` directive with an IP address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    pub place: Place,
    pub address: SocketAddr,
    pub default_server: bool,
    pub proxy_protocol: bool,
    /// Whether the socket of an IPv6 address is for IPv4 too.
    pub takes_ipv4: bool,
}

impl Listen {
    /// Parses the arguments of the directive. `None` for a host name or a Unix socket.
    fn new(place: &Place, arguments: &[String]) -> Option<Self> {
        let (address, rest) = arguments.split_first()?;
        let has = |words: &[&str]| rest.iter().any(|word| words.contains(&word.as_str()));
        Some(Self {
            place: place.clone(),
            address: listen_address(address)?,
            default_server: has(&["default_server", "default"]),
            proxy_protocol: has(&["proxy_protocol"]),
            takes_ipv4: has(&["ipv6only=off"]),
        })
    }
}

/// A name in a `server_name` directive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    pub place: Place,
    /// In lower case, as nginx compares it.
    pub name: String,
}

/// A directive outside of the servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directive {
    pub place: Place,
    pub arguments: Vec<String>,
}

/// Replacements for paths that nginx includes: the file to read instead, or `None` for no file.
pub type Overrides = BTreeMap<PathBuf, Option<PathBuf>>;

impl Conf {
    /// Parses the output of `nginx -T`. `None` if it names no file.
    pub fn read(dump: &str) -> Option<Self> {
        let mut conf = Self::default();
        let mut current: Option<(PathBuf, String)> = None;
        for line in dump.split_inclusive('\n') {
            let name = line
                .strip_prefix(FILE)
                .and_then(|rest| rest.trim_end().strip_suffix(':'))
                .filter(|name| name.starts_with('/'));
            match (name, &mut current) {
                (Some(name), _) => {
                    conf.files.extend(current.replace((name.into(), String::new())));
                    if conf.main.as_os_str().is_empty() {
                        conf.main = name.into();
                    }
                }
                (None, Some((_, text))) => text.push_str(line),
                (None, None) => {}
            }
        }
        conf.files.extend(current);
        (!conf.files.is_empty()).then_some(conf)
    }

    pub fn main(&self) -> &Path {
        &self.main
    }

    /// Where the `http` block of the main file begins. `None` if it is empty or elsewhere.
    pub fn http(&self) -> Option<Place> {
        let text = self.files.get(&self.main)?;
        let mut statements = statements(text).into_iter();
        let inside = statements.find(|statement| statement.context.first().is_some_and(|name| name == "http"))?;
        Some(Place {
            file: self.main.clone(),
            line: line(text, *inside.blocks.first()?),
        })
    }

    /// Whether nginx would read a file at this path into its `http` block.
    pub fn includes(&self, path: &Path) -> bool {
        self.leads_to(&self.main, &[], path, MAX_DEPTH)
    }

    fn leads_to(&self, file: &Path, around: &[String], path: &Path, depth: usize) -> bool {
        let Some(text) = self.files.get(file).filter(|_| depth > 0) else {
            return false;
        };
        statements(text).into_iter().any(|statement| {
            let Some(pattern) = self.included(&statement) else {
                return false;
            };
            let context = [around, &statement.context].concat();
            (context == ["http"] && pattern.matches_path_with(path, GLOB))
                || self
                    .matching(&pattern)
                    .any(|next| self.leads_to(next, &context, path, depth - 1))
        })
    }

    fn included(&self, statement: &Statement) -> Option<Pattern> {
        let [directive, pattern] = statement.words.as_slice() else {
            return None;
        };
        if directive != "include" {
            return None;
        }
        // Relative to the directory of the main file (ngx_conf_full_name).
        let absolute = self.main.parent()?.join(pattern);
        Pattern::new(absolute.to_str()?).ok()
    }

    fn matching(&self, pattern: &Pattern) -> impl Iterator<Item = &PathBuf> {
        self.files.keys().filter(|path| pattern.matches_path_with(path, GLOB))
    }

    /// The text of the main file with the overrides applied.
    ///
    /// The caller has to write it beside the main file, so that relative paths keep their meaning.
    pub fn with(&self, overrides: &Overrides) -> String {
        let text = self.files.get(&self.main).map(String::as_str).unwrap_or_default();
        self.rewritten(&self.main, overrides, MAX_DEPTH)
            .unwrap_or_else(|| text.to_owned())
    }

    /// The text of one file with the overrides applied. `None` if the file does not lead to an overridden path.
    fn rewritten(&self, file: &Path, overrides: &Overrides, depth: usize) -> Option<String> {
        let text = self.files.get(file).filter(|_| depth > 0)?;
        let mut changed = false;
        let mut rewritten = String::new();
        let mut end = 0;
        for statement in statements(text) {
            let Some(pattern) = self.included(&statement) else {
                continue;
            };
            let mut reached: BTreeMap<&PathBuf, String> = BTreeMap::new();
            let mut differs = false;
            for path in self.matching(&pattern).filter(|path| !overrides.contains_key(*path)) {
                let inside = self.rewritten(path, overrides, depth - 1);
                differs |= inside.is_some();
                reached.insert(path, inside.unwrap_or_else(|| include(path)));
            }
            for (path, other) in overrides {
                if pattern.matches_path_with(path, GLOB) {
                    differs = true;
                    reached.extend(other.as_ref().map(|other| (path, include(other))));
                }
            }
            if differs {
                changed = true;
                rewritten.push_str(&text[end..statement.span.start]);
                reached.values().for_each(|text| rewritten.push_str(text));
                end = statement.span.end;
            }
        }
        rewritten.push_str(&text[end..]);
        changed.then_some(rewritten)
    }

    /// Every server of the `http` block, in nginx's order.
    pub fn servers(&self) -> Vec<Server> {
        // Each with its block, and whether it has a `listen` directive.
        let mut servers: Vec<(usize, bool, Server)> = vec![];
        for (position, statement) in self.flattened().into_iter().enumerate() {
            let [http, server] = statement.context.as_slice() else {
                continue;
            };
            if http.name != "http" || server.name != "server" {
                continue;
            }
            let index = match servers.iter().position(|(id, ..)| *id == server.id) {
                Some(index) => index,
                None => {
                    let new = Server {
                        place: server.place.clone(),
                        position,
                        listens: vec![],
                        names: vec![],
                    };
                    servers.push((server.id, false, new));
                    servers.len() - 1
                }
            };
            let (_, has_listen, found) = &mut servers[index];
            match statement.words.as_slice() {
                [directive, arguments @ ..] if directive == "listen" => {
                    *has_listen = true;
                    found.listens.extend(Listen::new(&statement.place, arguments));
                }
                [directive, names @ ..] if directive == "server_name" => {
                    found.names.extend(names.iter().map(|name| Name {
                        place: statement.place.clone(),
                        name: name.to_lowercase(),
                    }));
                }
                _ => {}
            }
        }
        let complete = servers.into_iter().map(|(_, has_listen, mut server)| {
            if !has_listen {
                // The default of nginx.
                server.listens.push(Listen {
                    place: server.place.clone(),
                    address: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 80)),
                    default_server: false,
                    proxy_protocol: false,
                    takes_ipv4: false,
                });
            }
            server
        });
        complete.collect()
    }

    /// Every server of the `http` block that is not in one of the given files.
    pub fn servers_except(&self, files: &[&Path]) -> Vec<Server> {
        let mut servers = self.servers();
        servers.retain(|server| !files.contains(&server.place.file.as_path()));
        servers
    }

    /// The `listen` directives of the `stream` block, except those for UDP.
    pub fn stream_listens(&self) -> Vec<Listen> {
        let flattened = self.flattened().into_iter();
        let listens = flattened.filter_map(|statement| {
            let [stream, server] = statement.context.as_slice() else {
                return None;
            };
            let (directive, arguments) = statement.words.split_first()?;
            let is_meant = stream.name == "stream" && server.name == "server" && directive == "listen";
            let is_tcp = !arguments.iter().any(|word| word == "udp");
            (is_meant && is_tcp).then(|| Listen::new(&statement.place, arguments))?
        });
        listens.collect()
    }

    /// The directives with this name at the level of the `http` block, except those in the given files.
    pub fn of_http(&self, directive: &str, except: &[&Path]) -> Vec<Directive> {
        let flattened = self.flattened().into_iter();
        let wanted = flattened.filter(|statement| {
            matches!(statement.context.as_slice(), [http] if http.name == "http")
                && statement.words.first().is_some_and(|word| word == directive)
                && !except.contains(&statement.place.file.as_path())
        });
        wanted
            .map(|statement| Directive {
                place: statement.place,
                arguments: statement.words[1..].to_vec(),
            })
            .collect()
    }

    /// The [`Server::position`] that a server in a file at this path has. It is that of no server if nginx does not read the file.
    pub fn position(&self, path: &Path) -> usize {
        let mut walk = Walk {
            mark: Some(path),
            ..Walk::default()
        };
        self.flatten(&self.main, &[], &mut walk, MAX_DEPTH);
        walk.marked.unwrap_or(usize::MAX)
    }

    /// All directives without a block, in nginx's order, with includes replaced by what they include.
    fn flattened(&self) -> Vec<Flat> {
        let mut walk = Walk::default();
        self.flatten(&self.main, &[], &mut walk, MAX_DEPTH);
        walk.flattened
    }

    fn flatten<'a>(&'a self, file: &Path, around: &[Block], walk: &mut Walk<'a>, depth: usize) {
        if walk.mark == Some(file) {
            walk.marked.get_or_insert(walk.flattened.len());
        }
        let Some(text) = self.files.get(file).filter(|_| depth > 0) else {
            return;
        };
        // The positions of the blocks are unique within a file only, and a file may be included several times.
        let mut known: BTreeMap<usize, usize> = BTreeMap::new();
        for statement in statements(text) {
            let place = |offset| Place {
                file: file.to_owned(),
                line: line(text, offset),
            };
            let inside = statement.context.iter().zip(&statement.blocks).map(|(name, start)| {
                let id = *known.entry(*start).or_insert_with(|| {
                    walk.blocks += 1;
                    walk.blocks
                });
                Block {
                    name: name.clone(),
                    id,
                    place: place(*start),
                }
            });
            let context: Vec<_> = around.iter().cloned().chain(inside).collect();
            match self.included(&statement) {
                Some(pattern) => {
                    // glob(3) sorts by name. The marked file may not exist yet.
                    let mark = walk.mark.filter(|mark| pattern.matches_path_with(mark, GLOB));
                    let reached: BTreeSet<&Path> = self.matching(&pattern).map(PathBuf::as_path).chain(mark).collect();
                    for next in reached {
                        self.flatten(next, &context, walk, depth - 1);
                    }
                }
                None => walk.flattened.push(Flat {
                    place: place(statement.span.start),
                    words: statement.words,
                    context,
                }),
            }
        }
    }

    /// The addresses of all `listen` directives, except those in the given files.
    pub fn listens(&self, except: &[&Path]) -> Vec<SocketAddr> {
        let servers = self.servers_except(except).into_iter();
        servers
            .flat_map(|server| server.listens)
            .map(|listen| listen.address)
            .collect()
    }

    /// The workers' group according to the `user` directive. If that names only a user, the group has the user's name.
    pub fn worker_group(&self) -> Option<String> {
        let words = self.at_top_level(&self.main, "user", MAX_DEPTH)?;
        words.into_iter().skip(1).last()
    }

    /// The words of the first such directive outside of all blocks.
    fn at_top_level(&self, file: &Path, directive: &str, depth: usize) -> Option<Vec<String>> {
        let text = self.files.get(file).filter(|_| depth > 0)?;
        let statements = statements(text).into_iter();
        statements
            .filter(|statement| statement.context.is_empty())
            .find_map(|statement| {
                if statement.words.first()? == directive {
                    return Some(statement.words);
                }
                let pattern = self.included(&statement)?;
                self.matching(&pattern)
                    .find_map(|next| self.at_top_level(next, directive, depth - 1))
            })
    }

    /// The first argument of the first such directive, in any file and any block.
    pub fn argument(&self, directive: &str) -> Option<String> {
        self.files
            .values()
            .flat_map(|text| statements(text))
            .find_map(|statement| (statement.words.first()? == directive).then(|| statement.words.get(1).cloned())?)
    }
}

/// A walk through the whole configuration.
#[derive(Debug, Default)]
struct Walk<'a> {
    flattened: Vec<Flat>,
    /// The number of blocks so far.
    blocks: usize,
    /// A file whose position is wanted.
    mark: Option<&'a Path>,
    /// The number of directives before that file.
    marked: Option<usize>,
}

/// A directive in the order of the whole configuration.
#[derive(Clone, Debug)]
struct Flat {
    place: Place,
    words: Vec<String>,
    context: Vec<Block>,
}

/// A block of the whole configuration.
#[derive(Clone, Debug)]
struct Block {
    name: String,
    /// Different for each block.
    id: usize,
    place: Place,
}

/// The number of the line that holds this byte.
fn line(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1
}

fn include(path: &Path) -> String {
    format!("include \"{}\";\n", path.display())
}

/// The IP addresses on which the servers in a file of a site listen, with or without TLS.
pub fn addresses(site: &str, tls: bool) -> Vec<SocketAddr> {
    let listens = statements(site).into_iter().filter_map(|statement| {
        let [directive, address, rest @ ..] = statement.words.as_slice() else {
            return None;
        };
        let is_meant = directive == "listen" && rest.iter().any(|word| word == "ssl") == tls;
        (is_meant && statement.context == ["server"]).then(|| listen_address(address))?
    });
    listens.collect()
}

/// Parses the argument of `listen` as nginx does. `None` for a host name or a Unix socket.
fn listen_address(argument: &str) -> Option<SocketAddr> {
    let any = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    if let Ok(port) = argument.parse() {
        return Some(SocketAddr::new(any, port));
    }
    if let Some(port) = argument.strip_prefix("*:") {
        return Some(SocketAddr::new(any, port.parse().ok()?));
    }
    let bare = argument.trim_start_matches('[').trim_end_matches(']');
    argument
        .parse()
        .ok()
        .or_else(|| Some(SocketAddr::new(bare.parse().ok()?, 80)))
}

/// A directive without a block.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Statement {
    words: Vec<String>,
    /// The names of the blocks around the directive, within its file.
    context: Vec<String>,
    /// The byte at which each of these blocks begins.
    blocks: Vec<usize>,
    /// The bytes from the first word up to and including the semicolon.
    span: Range<usize>,
}

/// Splits a file into statements, by the rules of nginx's ngx_conf_read_token.
fn statements(text: &str) -> Vec<Statement> {
    let bytes = text.as_bytes();
    let mut statements = vec![];
    let (mut context, mut blocks) = (vec![], vec![]);
    let mut words: Vec<String> = vec![];
    let mut start = 0;
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            byte if byte.is_ascii_whitespace() => at += 1,
            b'#' => at += bytes[at..].iter().take_while(|byte| **byte != b'\n').count(),
            b';' => {
                at += 1;
                statements.push(Statement {
                    words: std::mem::take(&mut words),
                    context: context.clone(),
                    blocks: blocks.clone(),
                    span: start..at,
                });
            }
            b'{' => {
                let name = std::mem::take(&mut words).into_iter().next().unwrap_or_default();
                at += 1;
                // Lua has other rules for quotes and comments.
                if name.ends_with("_by_lua_block") {
                    at = end_of_block(bytes, at);
                } else {
                    context.push(name);
                    blocks.push(start);
                }
            }
            b'}' => {
                words.clear();
                context.pop();
                blocks.pop();
                at += 1;
            }
            _ => {
                if words.is_empty() {
                    start = at;
                }
                let (word, end) = word(text, at);
                words.push(word);
                at = end;
            }
        }
    }
    statements
}

fn end_of_block(bytes: &[u8], mut at: usize) -> usize {
    let mut depth = 1;
    while at < bytes.len() && depth > 0 {
        match bytes[at] {
            b'{' => depth += 1,
            b'}' => depth -= 1,
            _ => {}
        }
        at += 1;
    }
    at
}

/// The word that begins at `start`, without its quotes, and the position after it.
fn word(text: &str, start: usize) -> (String, usize) {
    let bytes = text.as_bytes();
    let quote = Some(bytes[start]).filter(|byte| matches!(byte, b'"' | b'\''));
    let mut at = start + usize::from(quote.is_some());
    let begin = at;
    while at < bytes.len() {
        match (bytes[at], quote) {
            (b'\\', _) => at += 1,
            (byte, Some(quote)) if byte == quote => return (text[begin..at].to_owned(), at + 1),
            (b'$', None) if bytes.get(at + 1) == Some(&b'{') => at += 1,
            (byte, None) if byte.is_ascii_whitespace() || matches!(byte, b';' | b'{') => break,
            _ => {}
        }
        at += 1;
    }
    let end = at.min(bytes.len());
    (text.get(begin..end).unwrap_or_default().to_owned(), end)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use super::*;

    const MAIN: &str = "user www-data;\nevents { worker_connections 768; # worker_rlimit_nofile 7;\n}\nhttp {\n\
                        \tinclude /etc/nginx/mime.types;\n\tlog_format x '{\"a\": ${b}}; # not a comment';\n\
                        \tinclude conf.d/*.conf; include /etc/nginx/sites-enabled/*;\n}\n";

    fn conf(files: &[(&str, &str)]) -> Conf {
        let dump: String = files
            .iter()
            .map(|(path, text)| format!("# configuration file {path}:\n{text}\n"))
            .collect();
        Conf::read(&dump).unwrap()
    }

    fn debian() -> Conf {
        conf(&[
            ("/etc/nginx/nginx.conf", MAIN),
            ("/etc/nginx/mime.types", "types { text/html html; }"),
            (
                "/etc/nginx/sites-enabled/default",
                "server { listen 80 default_server; listen [::]:80 default_server; root /var/www/html; }",
            ),
            ("/etc/nginx/sites-enabled/own", "server { listen 127.0.0.1:8080; }"),
        ])
    }

    #[test]
    fn a_dump_is_split_into_files() {
        let conf = debian();
        assert_eq!(conf.main(), Path::new("/etc/nginx/nginx.conf"));
        assert_eq!(conf.files.len(), 4);
        assert_eq!(
            conf.files[Path::new("/etc/nginx/nginx.conf")].trim_end(),
            MAIN.trim_end()
        );
        assert_eq!(Conf::read("nginx: [emerg] unknown directive\n"), None);
    }

    #[test]
    fn nginx_s_files_decide_what_is_included() {
        let conf = debian();
        for (path, expected) in [
            ("/etc/nginx/sites-enabled/links", true),
            ("/etc/nginx/conf.d/links.conf", true),
            ("/etc/nginx/conf.d/links.conf.bak", false),
            ("/etc/nginx/conf.d/.links.conf", false),
            ("/etc/nginx/conf.d/sub/links.conf", false),
            ("/etc/nginx/sites-available/links", false),
        ] {
            assert_eq!(conf.includes(Path::new(path)), expected, "{path}");
        }
    }

    #[test]
    fn a_site_can_be_in_a_nested_include_but_not_in_a_stream_block() {
        let conf = conf(&[
            (
                "/etc/nginx/nginx.conf",
                "stream { include streams/*.conf; }\nhttp { include web.conf; }",
            ),
            ("/etc/nginx/web.conf", "include conf.d/*.conf;"),
        ]);
        assert!(conf.includes(Path::new("/etc/nginx/conf.d/links.conf")));
        assert!(!conf.includes(Path::new("/etc/nginx/streams/links.conf")));
    }

    #[test]
    fn a_cycle_of_includes_ends() {
        let conf = conf(&[("/etc/nginx/nginx.conf", "http { include nginx.conf; }")]);
        assert!(!conf.includes(Path::new("/etc/nginx/conf.d/links.conf")));
        assert_eq!(
            conf.with(&Overrides::from([("/x".into(), None)])).trim_end(),
            "http { include nginx.conf; }"
        );
    }

    #[test]
    fn the_candidate_has_the_new_site_and_not_the_old_ones() {
        let overrides = Overrides::from([
            (
                "/etc/nginx/sites-enabled/links".into(),
                Some("/var/lib/links/candidate".into()),
            ),
            ("/etc/nginx/sites-enabled/default".into(), None),
        ]);
        let text = debian().with(&overrides);
        let expected = MAIN.replace(
            "include /etc/nginx/sites-enabled/*;",
            "include \"/var/lib/links/candidate\";\ninclude \"/etc/nginx/sites-enabled/own\";\n",
        );
        assert_eq!(text.trim_end(), expected.trim_end());
    }

    #[test]
    fn a_file_that_leads_to_the_site_becomes_part_of_the_candidate() {
        let conf = conf(&[
            (
                "/etc/nginx/nginx.conf",
                "http { include web.conf; include other.conf; }",
            ),
            ("/etc/nginx/other.conf", "gzip on;"),
            ("/etc/nginx/web.conf", "gzip off; include conf.d/*.conf;"),
        ]);
        let overrides = Overrides::from([("/etc/nginx/conf.d/links.conf".into(), Some("/c".into()))]);
        let text: String = conf.with(&overrides).split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(text, "http { gzip off; include \"/c\"; include other.conf; }");
    }

    #[test]
    fn listen_directives_are_found() {
        let conf = debian();
        let listens = conf.listens(&[Path::new("/etc/nginx/sites-enabled/own")]);
        let found: Vec<_> = listens.iter().map(ToString::to_string).collect();
        assert_eq!(found, ["0.0.0.0:80", "[::]:80"]);
        for (argument, address) in [
            ("*:81", Some("0.0.0.0:81")),
            ("[::1]", Some("[::1]:80")),
            ("192.0.2.1", Some("192.0.2.1:80")),
            ("unix:/run/x.sock", None),
            ("localhost:80", None),
        ] {
            assert_eq!(
                listen_address(argument),
                address.map(|address| address.parse().unwrap()),
                "{argument}"
            );
        }
    }

    /// Each server as its file, line, addresses and names.
    fn servers(conf: &Conf) -> Vec<String> {
        let servers = conf.servers();
        let shown = servers.iter().map(|server| {
            let listens = server.listens.iter().map(|listen| {
                let marks = [(listen.default_server, " default"), (listen.proxy_protocol, " proxied")];
                let marks: String = marks.iter().filter(|(is, _)| *is).map(|(_, mark)| *mark).collect();
                format!("{}@{}{marks}", listen.address, listen.place.line)
            });
            let names = server
                .names
                .iter()
                .map(|name| format!("{}@{}", name.name, name.place.line));
            let all: Vec<_> = listens.chain(names).collect();
            format!("{} {}", server.place, all.join(" "))
        });
        shown.collect()
    }

    #[test]
    fn servers_have_their_addresses_and_names_with_lines() {
        let conf = conf(&[
            (
                "/etc/nginx/nginx.conf",
                "stream { server { listen 1; } }\nhttp {\n  include sites/*;\n  server { server_name last; }\n}",
            ),
            (
                "/etc/nginx/sites/b",
                "server {\n  listen 80 default_server;\n  listen 127.0.0.1 proxy_protocol;\n  include names;\n\
                 location / { proxy_set_header a b; }\n}\nserver { listen unix:/x; server_name Two; }",
            ),
            ("/etc/nginx/names", "\n\nserver_name one *.ONE.example;"),
        ]);
        assert_eq!(
            servers(&conf),
            [
                "/etc/nginx/sites/b:1 0.0.0.0:80@2 default 127.0.0.1:80@3 proxied one@3 *.one.example@3",
                "/etc/nginx/sites/b:7 two@7",
                "/etc/nginx/nginx.conf:4 0.0.0.0:80@4 last@4",
            ]
        );
        let except = conf.servers_except(&[Path::new("/etc/nginx/sites/b")]);
        assert_eq!(except.len(), 1);
    }

    #[test]
    fn directives_of_http_have_their_place() {
        let conf = conf(&[
            (
                "/etc/nginx/nginx.conf",
                "http {\n include own;\n server { server_names_hash_bucket_size 1; }\n}",
            ),
            ("/etc/nginx/own", "# one\nserver_names_hash_bucket_size 64;"),
        ]);
        let found = conf.of_http("server_names_hash_bucket_size", &[]);
        let place = Place {
            file: "/etc/nginx/own".into(),
            line: 2,
        };
        let arguments = vec!["64".to_owned()];
        assert_eq!(found, [Directive { place, arguments }]);
        let except = [Path::new("/etc/nginx/own")];
        assert!(conf.of_http("server_names_hash_bucket_size", &except).is_empty());
    }

    #[test]
    fn servers_are_read_in_the_order_of_names_and_includes() {
        let main = "http {\n server { listen 1; }\n include conf.d/*.conf;\n include sites-enabled/*;\n server { listen 2; }\n}";
        let conf = conf(&[
            ("/etc/nginx/nginx.conf", main),
            ("/etc/nginx/sites-enabled/default", "server { listen 3; }"),
            ("/etc/nginx/sites-enabled/own", "server { listen 4; }"),
        ]);
        let before = |path: &str| {
            let position = conf.position(Path::new(path));
            let servers = conf.servers().into_iter().filter(|server| server.position < position);
            servers
                .map(|server| server.listens[0].address.port())
                .collect::<Vec<_>>()
        };
        // None of these files exists.
        assert_eq!(before("/etc/nginx/conf.d/links.conf"), [1]);
        assert_eq!(before("/etc/nginx/sites-enabled/links"), [1, 3]);
        assert_eq!(before("/etc/nginx/sites-enabled/own"), [1, 3]);
        assert_eq!(before("/etc/nginx/elsewhere"), [1, 3, 4, 2]);
    }

    #[test]
    fn the_workers_have_the_group_that_user_names() {
        let group = |files: &[(&str, &str)]| conf(files).worker_group();
        let main = |text| group(&[("/etc/nginx/nginx.conf", text)]);
        assert_eq!(debian().worker_group().as_deref(), Some("www-data"));
        assert_eq!(main("user  nginx;").as_deref(), Some("nginx"));
        assert_eq!(main("user nginx \"web\";").as_deref(), Some("web"));
        assert_eq!(main("# user nginx;\nevents {}"), None);
        let included = |include| {
            group(&[
                ("/etc/nginx/nginx.conf", include),
                ("/etc/nginx/first.conf", "user first;"),
            ])
        };
        assert_eq!(included("include first.conf; http {}").as_deref(), Some("first"));
        // An entry of a map is not a directive.
        assert_eq!(included("http { map $a $b { include first.conf; user b; } }"), None);
    }

    #[test]
    fn text_in_a_comment_a_string_or_lua_is_not_a_directive() {
        let text = "http {\n# listen 1;\nset $x 'listen 2;';\ncontent_by_lua_block { -- don't { }\n listen(3); }\n\
                    server { listen 4; set $y \"a\\\"; listen 5;\"; } }";
        let conf = conf(&[("/n.conf", text)]);
        let ports: Vec<_> = conf.listens(&[]).iter().map(SocketAddr::port).collect();
        assert_eq!(ports, [4]);
        assert_eq!(conf.argument("worker_connections"), None);
        assert_eq!(debian().argument("worker_connections").as_deref(), Some("768"));
        assert_eq!(debian().argument("worker_rlimit_nofile"), None);
    }
}
