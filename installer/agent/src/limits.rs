//! Limits the clients that send many requests for unknown links and other unknown paths, many that are not in nginx's cache, or
//! many wrong tokens. Each of these takes a request to an instance, and nginx does not know beforehand which requests they are.
//! So the agent counts them in the journal, and sets a flag for a client that exceeds a limit. packaging/nginx/site.conf says
//! what nginx does then.
//!
//! Each limit is a bucket that leaks: it takes as many requests at once as the limit allows per minute, and empties within a
//! minute. A client keeps its flag until its bucket is half empty. Requests that nginx has refused go into the bucket too, so a
//! client that goes on unchanged keeps its flag. If two buckets hold one flag, it stays until both have let go of it.

use std::collections::{BTreeSet, HashMap};
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
/// The maximum number of buckets. Each takes about a hundred bytes, and a flag as much again in /run.
const MAX_BUCKETS: usize = 50_000;

/// What a client does too often.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Offense {
    /// It asks for links, or other paths, that do not exist.
    UnknownLink,
    /// It asks for links, or other paths, that an instance has to answer.
    CacheMiss,
    /// It uses the API with a wrong token, or without one.
    WrongToken,
}

impl Offense {
    const ALL: [Self; 3] = [Self::UnknownLink, Self::CacheMiss, Self::WrongToken];

    /// The flag of a client that exceeds the limit.
    fn flag(self) -> Flag {
        match self {
            Self::UnknownLink | Self::CacheMiss => Flag::Links,
            Self::WrongToken => Flag::Tokens,
        }
    }

    /// Whether requests of this route may count.
    fn concerns(self, route: Route) -> bool {
        match self.flag() {
            Flag::Links => matches!(route, Route::Redirect | Route::Other),
            Flag::Tokens => matches!(route, Route::Shorten | Route::Api),
        }
    }

    /// Whether the request, which has a route that this concerns, counts. `is_limited` is whether the client has exceeded the
    /// limit.
    fn is_in(self, line: &Line<'_>, is_limited: bool) -> bool {
        let is_refused = is_limited && line.status == 429;
        match self {
            // An answer from the cache costs nothing, as for the robots.txt and favicon.ico that browsers and crawlers ask for.
            Self::UnknownLink => {
                // nginx answers by itself below /internal/, and perhaps in a location of the administrator.
                let is_unknown = line.status == 404 && (line.route == Route::Redirect || line.upstream.is_some());
                line.cache != Cache::Hit && (is_unknown || is_refused)
            }
            Self::CacheMiss => {
                // nginx sends a stale answer or 502 where no instance answers, and 429 by itself.
                let is_of_nginx = line.cache == Cache::Stale || matches!(line.status, 429 | 502);
                // The instances answer other paths with errors only. The rest is from a location of the administrator.
                let is_of_links = line.route == Route::Redirect || line.status >= 400;
                line.upstream.is_some() && is_of_links && !is_of_nginx || is_refused
            }
            Self::WrongToken => line.status == 401 || is_refused,
        }
    }
}

/// What nginx refuses to a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Flag {
    /// Links and other paths that are not in its cache.
    Links,
    /// API requests with a token.
    Tokens,
}

impl Flag {
    /// The beginning of the flag's name, which packaging/nginx/site.conf repeats.
    fn prefix(self) -> &'static str {
        match self {
            Self::Links => "links-",
            Self::Tokens => "tokens-",
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

/// A change of a flag. One that is set already may be set again.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Change {
    Set(Flag, String),
    Remove(Flag, String),
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
            Offense::CacheMiss => self.limits.cache_misses,
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
        let mut change = None;
        for offense in Offense::ALL {
            if offense.concerns(line.route) && self.fill(offense, client, line, now) {
                change = Some(Change::Set(offense.flag(), client.to_owned()));
            }
        }
        change
    }

    /// Puts a request into one bucket of a client. Returns whether it is the first one beyond the limit.
    fn fill(&mut self, offense: Offense, client: &str, line: &Line<'_>, now: u64) -> bool {
        let Some(weight) = self.weight(offense) else {
            return false;
        };
        let key = (offense, Box::from(client));
        let known = self.buckets.get(&key).copied();
        if !offense.is_in(line, known.is_some_and(|bucket| bucket.is_limited)) {
            return false;
        }
        if known.is_none() && self.buckets.len() >= MAX_BUCKETS {
            return false;
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
        self.buckets.insert(key, bucket);
        bucket.is_limited && !before.is_limited
    }

    /// Ends the limits of clients whose buckets are half empty, and forgets empty ones.
    fn release(&mut self, now: u64) -> Vec<Change> {
        let mut released = BTreeSet::new();
        self.buckets.retain(|(offense, client), bucket| {
            bucket.empty_at = bucket.empty_at.min(now + 2 * MINUTE);
            if bucket.is_limited && bucket.empty_at <= now + MINUTE / 2 {
                bucket.is_limited = false;
                released.insert((offense.flag(), client.clone()));
            }
            bucket.empty_at > now
        });
        self.ended(released)
    }

    /// The ends of those flags, each released by a bucket, that no other bucket of the client holds.
    fn ended(&self, released: BTreeSet<(Flag, Box<str>)>) -> Vec<Change> {
        let free = released.into_iter().filter(|(flag, client)| !self.holds(*flag, client));
        free.map(|(flag, client)| Change::Remove(flag, client.into_string()))
            .collect()
    }

    /// Whether a bucket of the client holds this flag.
    fn holds(&self, flag: Flag, client: &str) -> bool {
        let mut offenses = Offense::ALL.into_iter().filter(|offense| offense.flag() == flag);
        offenses.any(|offense| {
            let bucket = self.buckets.get(&(offense, Box::<str>::from(client)));
            bucket.is_some_and(|bucket| bucket.is_limited)
        })
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
        let mut released = BTreeSet::new();
        let on: Vec<_> = Offense::ALL
            .into_iter()
            .filter(|offense| self.weight(*offense).is_some())
            .collect();
        self.buckets.retain(|(offense, client), bucket| {
            let stays = on.contains(offense);
            if !stays && bucket.is_limited {
                released.insert((offense.flag(), client.clone()));
            }
            stays
        });
        self.ended(released)
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
            Change::Set(flag, client) => {
                fs::write(self.directory.join(format!("{}{client}", flag.prefix())), b"")?;
                files::remove_if_present(&self.unlimited)
            }
            Change::Remove(flag, client) => {
                files::remove_if_present(&self.directory.join(format!("{}{client}", flag.prefix())))?;
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

    /// Whether a request may concern a limit. Most are answered from nginx's cache, and need not be taken.
    pub fn concern(line: &Line<'_>) -> bool {
        line.upstream.is_some() || matches!(line.status, 401 | 404 | 429)
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
        cache_misses: 0,
    };

    /// A line of the journal with this status, cache status, path and address.
    fn line(at: u64, status: u16, cache: &str, path: &str, address: &str) -> String {
        let (seconds, milliseconds) = (at / 1000, at % 1000);
        format!("l1\t{seconds}.{milliseconds:03}\t{status}\t0.001\t0.001\t{cache}\tGET\t{path}\t{address}\t-\t-")
    }

    /// The same line if no instance was asked.
    fn by_nginx(line: &str) -> String {
        let (before, after) = line.split_once("\t0.001\t0.001\t").unwrap();
        format!("{before}\t0.001\t-\t{after}")
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
        Change::Set(Flag::Links, client.to_owned())
    }

    fn remove(client: &str) -> Change {
        Change::Remove(Flag::Links, client.to_owned())
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
                Change::Set(flag, _) => Some((flag, number)),
                Change::Remove(..) => None,
            })
        };
        assert_eq!(count(404, "MISS", "/x"), Some((Flag::Links, 7)));
        assert_eq!(count(404, "EXPIRED", "/x"), Some((Flag::Links, 7)));
        // An instance answers for these paths too.
        for path in ["/x/random", "/x.php", "/", "/robots.txt"] {
            assert_eq!(count(404, "MISS", path), Some((Flag::Links, 7)), "{path}");
        }
        assert_eq!(count(401, "-", "/api/v1/stats"), Some((Flag::Tokens, 4)));
        assert_eq!(count(401, "-", "/shorten"), Some((Flag::Tokens, 4)));
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
        let refused = by_nginx(&line(NOW, 404, "-", "/internal/x", "192.0.2.1"));
        assert!((0..20).all(|_| take(&mut limiter, NOW, &refused).is_none()));
        assert!(limiter.buckets.is_empty());
    }

    #[test]
    fn what_an_instance_has_to_answer_counts_whatever_the_answer_is() {
        let limits = links::Limits {
            unknown_links: 0,
            cache_misses: 12,
            ..LIMITS
        };
        let count = |line: &str| {
            let mut limiter = Limiter::new(limits);
            let flag = Some(set("192.0.2.1"));
            (1..=20).find(|_| take(&mut limiter, NOW, line) == flag)
        };
        let of = |status, cache, path| line(NOW, status, cache, path, "192.0.2.1");
        for (status, cache, path) in [
            (302, "MISS", "/x"),
            (302, "EXPIRED", "/x"),
            // Without a cache.
            (302, "-", "/x"),
            // A preview of a link that can be followed a limited number of times.
            (200, "MISS", "/x"),
            (404, "MISS", "/x"),
            (404, "MISS", "/x/random"),
            (405, "-", "/x"),
            (410, "MISS", "/x"),
            (503, "MISS", "/x"),
            // An instance has led from `/x.` to the entry of `/x`.
            (302, "HIT", "/x"),
        ] {
            let line = of(status, cache, path);
            assert_eq!(count(&line), Some(13), "{line}");
        }
        for line in [
            by_nginx(&of(302, "HIT", "/x")),
            by_nginx(&of(302, "UPDATING", "/x")),
            by_nginx(&of(413, "-", "/x")),
            // No instance has answered.
            of(302, "STALE", "/x"),
            of(502, "MISS", "/x"),
            // A location of the administrator leads to another program.
            of(200, "-", "/app/style.css"),
            // Only a client with a flag is refused for a miss.
            of(429, "MISS", "/x"),
            of(200, "-", "/health"),
            of(200, "-", "/shorten"),
            of(200, "-", "/api/v1/stats"),
            line(NOW, 302, "MISS", "/x", "127.0.0.1"),
        ] {
            assert_eq!(count(&line), None, "{line}");
        }
    }

    #[test]
    fn what_nginx_answers_from_its_cache_concerns_no_limit() {
        let concern = |line: &str| Limits::concern(&parse(line.as_bytes()).unwrap());
        let missed = line(NOW, 302, "MISS", "/x", "192.0.2.1");
        assert!(concern(&missed));
        assert!(!concern(&by_nginx(&missed.replace("MISS", "HIT"))));
        // Without a cache, nginx refuses without asking anybody.
        assert!(concern(&by_nginx(&line(NOW, 429, "-", "/x", "192.0.2.1"))));
    }

    #[test]
    fn a_client_that_goes_on_to_miss_the_cache_keeps_its_flag() {
        let mut limiter = Limiter::new(links::Limits {
            cache_misses: 12,
            ..LIMITS
        });
        let missed = line(NOW, 302, "MISS", "/x", "192.0.2.1");
        assert_eq!((1..=20).find(|_| take(&mut limiter, NOW, &missed).is_some()), Some(13));
        let refused = line(NOW + 20_000, 429, "MISS", "/x", "192.0.2.1");
        for _ in 0..100 {
            assert_eq!(take(&mut limiter, NOW + 20_000, &refused), None);
        }
        assert_eq!(limiter.release(NOW + 50_000), []);
        assert_eq!(limiter.release(NOW + 61_000), [remove("192.0.2.1")]);
    }

    #[test]
    fn a_flag_that_two_limits_hold_stays_until_both_end() {
        // The limit of unknown links ends 40 s after the start, and that of misses 35 s after the last miss.
        for (last_miss, stays_until, ends_at) in [(0, 39_999, 40_000), (10_000, 44_999, 45_000), (0, 0, 60_000)] {
            let mut limiter = Limiter::new(links::Limits {
                cache_misses: 12,
                ..LIMITS
            });
            assert_eq!(limited_after(&mut limiter, NOW, 7, "192.0.2.1"), Some(7));
            let missed = line(NOW + last_miss, 302, "MISS", "/x", "192.0.2.1");
            for _ in 0..13 {
                take(&mut limiter, NOW + last_miss, &missed);
            }
            assert_eq!(limiter.release(NOW + stays_until), [], "{last_miss}");
            assert_eq!(limiter.release(NOW + ends_at), [remove("192.0.2.1")], "{last_miss}");
            assert!(!limiter.has_limited());
        }
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

        for number in 0..MAX_BUCKETS as u32 + 10 {
            let address = std::net::Ipv4Addr::from(0x0a00_0000 + number).to_string();
            limited_after(&mut limiter, NOW, 1, &address);
        }
        assert!(limiter.buckets.len() <= MAX_BUCKETS);
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

        // Unknown links are misses of the cache too.
        let both = links::Limits {
            cache_misses: 12,
            ..LIMITS
        };
        let mut limiter = Limiter::new(both);
        limited_after(&mut limiter, NOW, 7, "192.0.2.1");
        for _ in 0..13 {
            take(&mut limiter, NOW, &line(NOW, 302, "MISS", "/x", "192.0.2.1"));
        }
        let misses = links::Limits {
            unknown_links: 0,
            ..both
        };
        assert_eq!(limiter.change(misses), []);
        assert_eq!(limiter.change(off), [remove("192.0.2.1")]);
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
