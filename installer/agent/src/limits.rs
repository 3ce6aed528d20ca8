//! Limits the clients that send many requests for unknown links and other unknown paths, or many wrong tokens. Each of these
//! takes a request to an instance, and only the instances know which requests they are. So the agent counts them in the
//! journal, and sets a flag for a client that exceeds a limit. packaging/nginx/site.conf says what nginx does then.
//!
//! Each limit is a bucket that leaks: it takes as many requests at once as the limit allows per minute, and empties within a
//! minute. A client keeps its flag until its bucket is half empty. Requests that nginx has refused go into the bucket too, so a
//! client that goes on unchanged keeps its flag.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::clicks::line::{Cache, Line, Route};
use links_base::layout::{KEEPALIVE_FLAG, Layout};
use links_base::{files, log};
use links_config::links;

/// How long a full bucket takes to empty, in milliseconds.
const MINUTE: u64 = 60_000;
/// The maximum number of clients that are counted. Each takes about a hundred bytes, and a flag as much again in /run.
const MAX_CLIENTS: usize = 50_000;

/// What a client does too often.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Offense {
    /// It asks for links, or other paths, that do not exist.
    UnknownLink,
    /// It uses the API with a wrong token, or without one.
    WrongToken,
}

impl Offense {
    /// The beginning of the flag's name, which packaging/nginx/site.conf repeats.
    fn prefix(self) -> &'static str {
        match self {
            Self::UnknownLink => "links-",
            Self::WrongToken => "tokens-",
        }
    }

    /// Whether the request counts. `is_limited` is whether the client has its flag.
    fn is_in(self, line: &Line<'_>, is_limited: bool) -> bool {
        match self {
            // An answer from the cache costs nothing, as for the robots.txt and favicon.ico that browsers and crawlers ask for.
            Self::UnknownLink if matches!(line.route, Route::Redirect | Route::Other) => {
                // nginx answers by itself below /internal/, and perhaps in a location of the administrator.
                let is_unknown = line.status == 404 && (line.route == Route::Redirect || line.upstream.is_some());
                line.cache != Cache::Hit && (is_unknown || is_limited && line.status == 429)
            }
            Self::WrongToken if matches!(line.route, Route::Shorten | Route::Api) => {
                line.status == 401 || is_limited && line.status == 429
            }
            Self::UnknownLink | Self::WrongToken => false,
        }
    }
}

/// The client of an address, as nginx names it in `$links_client`: an IPv4 address, or the first four groups of an IPv6 address.
/// `None` for addresses of this host, which have no limits.
fn client(address: &[u8]) -> Option<&str> {
    let address = std::str::from_utf8(address).ok()?;
    // A socket for both protocols reports IPv4 addresses in this form (RFC 4291, section 2.5.5.2).
    let is_ipv4 = |text: &&str| text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let mapped = address.strip_prefix("::ffff:").filter(is_ipv4);
    let address = mapped.unwrap_or(address);
    if address == "::1" || address.starts_with("127.") || address.starts_with("unix:") {
        return None;
    }
    let is_plain = |byte: u8| byte.is_ascii_hexdigit() || matches!(byte, b'.' | b':');
    if !address.bytes().all(is_plain) {
        return None;
    }
    let groups = address.match_indices(':').map(|(index, _)| index).nth(3);
    let end = match (address.find("::"), groups) {
        (Some(zeros), Some(groups)) if zeros < groups => Some(zeros + 1),
        (Some(zeros), None) => Some(zeros + 1),
        (_, groups) => groups,
    };
    Some(end.map_or(address, |end| &address[..=end]))
}

/// The bucket of a client.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    /// When the bucket will be empty, in milliseconds since 1970.
    empty_at: u64,
    is_limited: bool,
}

/// A change of a flag.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Change {
    Set(Offense, String),
    Remove(Offense, String),
}

/// Which clients have exceeded which limits. It does no I/O.
#[derive(Debug)]
struct Limiter {
    limits: links::Limits,
    buckets: HashMap<(Offense, Box<str>), Bucket>,
}

impl Limiter {
    fn new(limits: links::Limits) -> Self {
        Self {
            limits,
            buckets: HashMap::new(),
        }
    }

    /// The milliseconds that a request fills of the bucket. `None` without a limit.
    fn weight(&self, offense: Offense) -> Option<u64> {
        let limit = match offense {
            Offense::UnknownLink => self.limits.unknown_links,
            Offense::WrongToken => self.limits.wrong_tokens,
        };
        MINUTE.checked_div(limit.into())
    }

    /// Counts a request, if it is one of those that are limited. `now` is in milliseconds since 1970.
    fn take(&mut self, line: &Line<'_>, now: u64) -> Option<Change> {
        // The lines of a time when the agent did not run would limit clients that may have stopped since.
        if now.saturating_sub(line.at) > MINUTE {
            return None;
        }
        let client = client(line.address)?;
        let offense = match line.route {
            Route::Redirect | Route::Other => Offense::UnknownLink,
            Route::Shorten | Route::Api => Offense::WrongToken,
            Route::Health => return None,
        };
        let weight = self.weight(offense)?;
        let key = (offense, Box::from(client));
        let known = self.buckets.get(&key).copied();
        if !offense.is_in(line, known.is_some_and(|bucket| bucket.is_limited)) {
            return None;
        }
        if known.is_none() && self.buckets.len() >= MAX_CLIENTS {
            return None;
        }
        let before = known.unwrap_or(Bucket {
            empty_at: now,
            is_limited: false,
        });
        // The clock may have been set back since.
        let filled = before.empty_at.clamp(now, now + MINUTE) + weight;
        let is_full = filled > now + MINUTE;
        let bucket = Bucket {
            empty_at: filled,
            is_limited: before.is_limited || is_full,
        };
        let change = (bucket.is_limited && !before.is_limited).then(|| Change::Set(offense, client.to_owned()));
        self.buckets.insert(key, bucket);
        change
    }

    /// Ends the limits of clients whose buckets are half empty, and forgets empty ones.
    fn release(&mut self, now: u64) -> Vec<Change> {
        let mut changes = vec![];
        self.buckets.retain(|(offense, client), bucket| {
            bucket.empty_at = bucket.empty_at.min(now + 2 * MINUTE);
            if bucket.is_limited && bucket.empty_at <= now + MINUTE / 2 {
                bucket.is_limited = false;
                changes.push(Change::Remove(*offense, client.to_string()));
            }
            bucket.empty_at > now
        });
        changes
    }

    fn has_limited(&self) -> bool {
        self.buckets.values().any(|bucket| bucket.is_limited)
    }

    /// Applies changed limits. Returns the changes that end those that are off now.
    fn change(&mut self, limits: links::Limits) -> Vec<Change> {
        if limits == self.limits {
            return vec![];
        }
        self.limits = limits;
        let mut changes = vec![];
        let on: Vec<_> = [Offense::UnknownLink, Offense::WrongToken]
            .into_iter()
            .filter(|offense| self.weight(*offense).is_some())
            .collect();
        self.buckets.retain(|(offense, client), bucket| {
            let stays = on.contains(offense);
            if !stays && bucket.is_limited {
                changes.push(Change::Remove(*offense, client.to_string()));
            }
            stays
        });
        changes
    }
}

/// The flags of the clients that have exceeded a limit, as files that nginx looks for.
#[derive(Debug)]
struct Flags {
    directory: PathBuf,
    /// Exists while no client has a flag, so that nginx need not look for one.
    unlimited: PathBuf,
}

impl Flags {
    fn new(layout: &Layout) -> Self {
        Self {
            directory: layout.limits_dir(),
            unlimited: layout.unlimited_flag(),
        }
    }

    /// Removes all flags, which another agent has left.
    fn clear(&self) -> io::Result<()> {
        for name in files::list(&self.directory)? {
            if self.unlimited.file_name() != Some(name.as_ref()) {
                files::remove_if_present(&self.directory.join(name))?;
            }
        }
        self.set_unlimited()
    }

    fn set_unlimited(&self) -> io::Result<()> {
        match symlink(Path::new("..").join(KEEPALIVE_FLAG), &self.unlimited) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            done => done,
        }
    }

    /// Makes a change. `is_last` is whether no client has a flag afterwards.
    fn apply(&self, change: &Change, is_last: bool) -> io::Result<()> {
        match change {
            Change::Set(offense, client) => {
                fs::write(self.directory.join(format!("{}{client}", offense.prefix())), b"")?;
                files::remove_if_present(&self.unlimited)
            }
            Change::Remove(offense, client) => {
                files::remove_if_present(&self.directory.join(format!("{}{client}", offense.prefix())))?;
                match is_last {
                    true => self.set_unlimited(),
                    false => Ok(()),
                }
            }
        }
    }
}

/// The limits in force.
#[derive(Debug)]
pub struct Limits {
    limiter: Limiter,
    flags: Flags,
    /// Whether the last change of a flag failed, which is reported once.
    has_failed: bool,
}

impl Limits {
    /// Starts without limited clients.
    pub fn new(layout: &Layout, limits: links::Limits) -> Self {
        let mut new = Self {
            limiter: Limiter::new(limits),
            flags: Flags::new(layout),
            has_failed: false,
        };
        let cleared = new.flags.clear();
        new.note(cleared);
        new
    }

    /// Whether a request may concern a limit. Most do not, and need not be taken.
    pub fn concern(line: &Line<'_>) -> bool {
        matches!(line.status, 401 | 404 | 429)
    }

    /// Counts a request.
    pub fn take(&mut self, line: &Line<'_>) {
        if let Some(change) = self.limiter.take(line, now()) {
            self.apply(&[change]);
        }
    }

    /// Ends limits whose time is over, and applies the current links.toml. The caller does this every few seconds.
    pub fn refresh(&mut self, limits: Option<links::Limits>) {
        let mut changes = self.limiter.release(now());
        changes.extend(limits.map(|limits| self.limiter.change(limits)).unwrap_or_default());
        self.apply(&changes);
    }

    /// Removes all flags before the agent ends.
    pub fn stop(&mut self) {
        let cleared = self.flags.clear();
        self.note(cleared);
    }

    fn apply(&mut self, changes: &[Change]) {
        let none_left = !self.limiter.has_limited();
        for (index, change) in changes.iter().enumerate() {
            let applied = self.flags.apply(change, none_left && index + 1 == changes.len());
            self.note(applied);
        }
    }

    fn note(&mut self, outcome: io::Result<()>) {
        match outcome {
            Ok(()) => self.has_failed = false,
            Err(error) if !self.has_failed => {
                self.has_failed = true;
                log::error!(
                    "limits: {}: {error}; clients that exceed a limit are not limited",
                    self.flags.directory.display()
                );
            }
            Err(_) => {}
        }
    }
}

/// Milliseconds since 1970.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use super::*;
    use crate::clicks::line::parse;
    use links_base::layout::temporary;

    const NOW: u64 = 1_767_225_600_000;
    const LIMITS: links::Limits = links::Limits {
        create: 0,
        wrong_tokens: 3,
        unknown_links: 6,
    };

    /// A line of the journal with this status, cache status, path and address.
    fn line(at: u64, status: u16, cache: &str, path: &str, address: &str) -> String {
        let (seconds, milliseconds) = (at / 1000, at % 1000);
        format!("l1\t{seconds}.{milliseconds:03}\t{status}\t0.001\t0.001\t{cache}\tGET\t{path}\t{address}\t-\t-")
    }

    fn take(limiter: &mut Limiter, at: u64, line: &str) -> Option<Change> {
        limiter.take(&parse(line.as_bytes()).unwrap(), at)
    }

    /// Sends this many requests for unknown links at once. Returns the number of the one after which the client is limited.
    fn limited_after(limiter: &mut Limiter, at: u64, count: usize, address: &str) -> Option<usize> {
        let unknown = line(at, 404, "MISS", "/x", address);
        (1..=count).find(|_| take(limiter, at, &unknown).is_some())
    }

    fn set(client: &str) -> Change {
        Change::Set(Offense::UnknownLink, client.to_owned())
    }

    fn remove(client: &str) -> Change {
        Change::Remove(Offense::UnknownLink, client.to_owned())
    }

    #[test]
    fn a_client_is_limited_when_it_exceeds_the_limit_of_a_minute() {
        let mut limiter = Limiter::new(LIMITS);
        assert_eq!(limited_after(&mut limiter, NOW, 20, "192.0.2.1"), Some(7));
        // Others are not.
        assert_eq!(limited_after(&mut limiter, NOW, 6, "192.0.2.2"), None);
        // A steady rate below the limit never reaches it.
        for number in 0..100 {
            let at = NOW + number * 10_001;
            assert_eq!(limited_after(&mut limiter, at, 1, "192.0.2.3"), None, "{number}");
        }
    }

    #[test]
    fn a_limit_ends_half_a_minute_after_the_last_request_and_a_client_that_goes_on_keeps_it() {
        let mut limiter = Limiter::new(LIMITS);
        limited_after(&mut limiter, NOW, 20, "192.0.2.1");
        assert_eq!(limiter.release(NOW + 1000), []);
        // nginx refuses these, and each still counts.
        let refused = line(NOW + 20_000, 429, "MISS", "/x", "192.0.2.1");
        for _ in 0..100 {
            assert_eq!(take(&mut limiter, NOW + 20_000, &refused), None);
        }
        assert_eq!(limiter.release(NOW + 50_000), []);
        assert_eq!(limiter.release(NOW + 61_000), [remove("192.0.2.1")]);
        assert!(!limiter.has_limited());
        assert_eq!(limiter.release(NOW + 200_000), []);
        assert!(limiter.buckets.is_empty());
        assert_eq!(limited_after(&mut limiter, NOW + 200_000, 20, "192.0.2.1"), Some(7));
    }

    #[test]
    fn only_unknown_links_and_wrong_tokens_count() {
        let count = |status, cache: &str, path: &str| {
            let mut limiter = Limiter::new(LIMITS);
            let line = line(NOW, status, cache, path, "192.0.2.1");
            (1..=20).find_map(|number| match take(&mut limiter, NOW, &line)? {
                Change::Set(offense, _) => Some((offense, number)),
                Change::Remove(..) => None,
            })
        };
        assert_eq!(count(404, "MISS", "/x"), Some((Offense::UnknownLink, 7)));
        assert_eq!(count(404, "EXPIRED", "/x"), Some((Offense::UnknownLink, 7)));
        // An instance answers for these paths too.
        for path in ["/x/random", "/x.php", "/", "/robots.txt"] {
            assert_eq!(count(404, "MISS", path), Some((Offense::UnknownLink, 7)), "{path}");
        }
        assert_eq!(count(401, "-", "/api/v1/stats"), Some((Offense::WrongToken, 4)));
        assert_eq!(count(401, "-", "/shorten"), Some((Offense::WrongToken, 4)));
        for (status, cache, path) in [
            (404, "HIT", "/x"),
            (302, "MISS", "/x"),
            (410, "MISS", "/x"),
            // Nearly all requests of browsers for these are answered from the cache.
            (404, "HIT", "/favicon.ico"),
            (404, "HIT", "/apple-touch-icon.png"),
            (404, "-", "/api/v1/links/x"),
            (200, "-", "/shorten"),
            (403, "MISS", "/x"),
            // Only a client with a flag is refused for one of these; others have created too many links.
            (429, "-", "/shorten"),
            (429, "MISS", "/x"),
        ] {
            assert_eq!(count(status, cache, path), None, "{status} {cache} {path}");
        }
    }

    #[test]
    fn what_nginx_refuses_by_itself_does_not_count() {
        let mut limiter = Limiter::new(LIMITS);
        let refused = line(NOW, 404, "-", "/internal/x", "192.0.2.1").replace("\t0.001\t-\t", "\t-\t-\t");
        assert!(refused.contains("\t0.001\t-\t-\tGET\t"), "{refused}");
        assert!((0..20).all(|_| take(&mut limiter, NOW, &refused).is_none()));
        assert!(limiter.buckets.is_empty());
    }

    #[test]
    fn a_client_is_an_ipv4_address_or_four_groups_of_an_ipv6_address() {
        for (address, expected) in [
            ("192.0.2.1", Some("192.0.2.1")),
            ("2001:db8:0:1:2:3:4:5", Some("2001:db8:0:1:")),
            ("2001:db8:0:1::5", Some("2001:db8:0:1:")),
            ("2001:db8:0:1::", Some("2001:db8:0:1:")),
            ("2001:db8:0::5", Some("2001:db8:0::")),
            ("2001:db8::5:6:7:8", Some("2001:db8::")),
            ("2001:db8::", Some("2001:db8::")),
            ("::5", Some("::")),
            ("::ffff:192.0.2.1", Some("192.0.2.1")),
            ("::ffff:127.0.0.1", None),
            ("::ffff:a:1", Some("::")),
            ("::1", None),
            ("127.0.0.1", None),
            ("unix:", None),
            ("-", None),
            ("../x", None),
        ] {
            assert_eq!(client(address.as_bytes()), expected, "{address}");
        }
        assert_eq!(client(b"\xff"), None);
    }

    #[test]
    fn old_lines_a_clock_that_is_set_back_and_very_many_clients_do_no_harm() {
        let mut limiter = Limiter::new(LIMITS);
        let old = line(NOW - 61_000, 404, "MISS", "/x", "192.0.2.1");
        assert!((0..20).all(|_| take(&mut limiter, NOW, &old).is_none()));
        assert!(limiter.buckets.is_empty());

        limited_after(&mut limiter, NOW, 7, "192.0.2.1");
        let earlier = NOW - 3_600_000;
        assert_eq!(limiter.release(earlier), []);
        assert_eq!(limiter.release(earlier + 100_000), [remove("192.0.2.1")]);

        for number in 0..MAX_CLIENTS as u32 + 10 {
            let address = std::net::Ipv4Addr::from(0x0a00_0000 + number).to_string();
            limited_after(&mut limiter, NOW, 1, &address);
        }
        assert!(limiter.buckets.len() <= MAX_CLIENTS);
    }

    #[test]
    fn a_limit_of_zero_is_none_and_turning_it_off_ends_it() {
        let mut limiter = Limiter::new(LIMITS);
        limited_after(&mut limiter, NOW, 7, "192.0.2.1");
        let off = links::Limits {
            unknown_links: 0,
            ..LIMITS
        };
        assert_eq!(limiter.change(LIMITS), []);
        assert_eq!(limiter.change(off), [remove("192.0.2.1")]);
        assert_eq!(limited_after(&mut limiter, NOW, 50, "192.0.2.1"), None);
    }

    #[test]
    fn nginx_finds_the_flags_and_looks_for_them_only_while_there_is_one() {
        let (_root, layout) = temporary(&[Layout::limits_dir]);
        fs::write(layout.keepalive_flag(), b"").unwrap();
        let left = layout.limits_dir().join("links-192.0.2.9");
        fs::write(&left, b"").unwrap();
        let mut limits = Limits::new(&layout, LIMITS);
        assert!(!left.exists() && layout.unlimited_flag().exists());
        // The flag is one with the keep-alive flag: nginx checks both by one path.
        fs::remove_file(layout.keepalive_flag()).unwrap();
        assert!(!layout.unlimited_flag().exists());
        fs::write(layout.keepalive_flag(), b"").unwrap();

        limits.apply(&[set("192.0.2.1")]);
        let flag = layout.limits_dir().join("links-192.0.2.1");
        assert!(flag.exists() && !layout.unlimited_flag().exists());
        limits.apply(&[remove("192.0.2.1")]);
        assert!(!flag.exists() && layout.unlimited_flag().exists());

        limits.apply(&[set("2001:db8:0:1:")]);
        limits.stop();
        assert_eq!(files::list(&layout.limits_dir()).unwrap(), ["none"]);
    }

    #[test]
    fn without_its_directory_clients_are_not_limited() {
        let (_root, layout) = temporary(&[]);
        let mut limits = Limits::new(&layout, LIMITS);
        limits.apply(&[set("192.0.2.1")]);
        assert!(limits.has_failed);
    }
}
