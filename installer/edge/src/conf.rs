//! nginx's configuration as text: the output of `nginx -T`, and which file includes which.

use std::collections::BTreeMap;
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

/// A `listen` directive of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    pub file: PathBuf,
    pub address: SocketAddr,
    pub default_server: bool,
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

    /// Every `listen` directive with an IP address, except those in the given files.
    pub fn listens(&self, except: &[&Path]) -> Vec<Listen> {
        let files = self.files.iter().filter(|(path, _)| !except.contains(&path.as_path()));
        files
            .flat_map(|(path, text)| statements(text).into_iter().map(move |statement| (path, statement)))
            .filter_map(|(path, statement)| {
                let [directive, address, rest @ ..] = statement.words.as_slice() else {
                    return None;
                };
                Some(Listen {
                    file: path.clone(),
                    address: (directive == "listen").then(|| listen_address(address))??,
                    default_server: rest.iter().any(|word| word == "default_server" || word == "default"),
                })
            })
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

fn include(path: &Path) -> String {
    format!("include \"{}\";\n", path.display())
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
    /// The bytes from the first word up to and including the semicolon.
    span: Range<usize>,
}

/// Splits a file into statements, by the rules of nginx's ngx_conf_read_token.
fn statements(text: &str) -> Vec<Statement> {
    let bytes = text.as_bytes();
    let mut statements = vec![];
    let mut context = vec![];
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
                }
            }
            b'}' => {
                words.clear();
                context.pop();
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
        let found: Vec<_> = listens
            .iter()
            .map(|listen| (listen.address.to_string(), listen.default_server))
            .collect();
        assert_eq!(found, [("0.0.0.0:80".to_owned(), true), ("[::]:80".to_owned(), true)]);
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
        let text = "# listen 1;\nset $x 'listen 2;';\ncontent_by_lua_block { -- don't { }\n listen(3); }\n\
                    server { listen 4; set $y \"a\\\"; listen 5;\"; }";
        let conf = conf(&[("/n.conf", text)]);
        let ports: Vec<_> = conf.listens(&[]).iter().map(|listen| listen.address.port()).collect();
        assert_eq!(ports, [4]);
        assert_eq!(conf.argument("worker_connections"), None);
        assert_eq!(debian().argument("worker_connections").as_deref(), Some("768"));
        assert_eq!(debian().argument("worker_rlimit_nofile"), None);
    }
}
