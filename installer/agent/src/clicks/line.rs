//! Parses a line of nginx's journal. Its format is called `l1` (packaging/nginx) and consists of fields separated by tabs:
//!
//! `l1`, `$msec`, `$status`, `$request_time`, `$upstream_response_time`, `$upstream_cache_status`, `$request_method`, `$uri`,
//! `$remote_addr`, `$http_referer`, and `$http_user_agent` or the word `prefetch`.
//!
//! nginx writes `"`, `\`, and every byte below 32 or above 126 of a value as `\xXX`, and an empty one as `-`
//! (ngx_http_log_module, `escape=default`), so no value can end a field or a line.

use std::borrow::Cow;

use links_domain::slug;

const FIELDS: usize = 11;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line<'a> {
    /// When the request was answered, in milliseconds since 1970.
    pub at: u64,
    pub status: u16,
    /// The time from the first byte of the request to the last byte of the response, in milliseconds.
    pub duration: u32,
    /// The time of all instances that nginx passed the request to, in milliseconds; `None` if nginx answered by itself.
    pub upstream: Option<u32>,
    pub cache: Cache,
    pub route: Route,
    pub is_get: bool,
    /// The slug of a redirect; empty for every other route.
    pub slug: &'a str,
    /// As written, with escapes.
    pub address: &'a [u8],
    /// As written, with escapes.
    pub referrer: &'a [u8],
    /// As written, with escapes.
    pub user_agent: &'a [u8],
}

/// What nginx's cache did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cache {
    /// The cache was not used.
    None,
    Hit,
    Miss,
    Expired,
    /// Answered with a stale response because no instance answers.
    Stale,
    /// Answered with a stale response while a new one is being fetched.
    Updating,
    Bypass,
    Revalidated,
}

impl Cache {
    /// The name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Hit => "hit",
            Self::Miss => "miss",
            Self::Expired => "expired",
            Self::Stale => "stale",
            Self::Updating => "updating",
            Self::Bypass => "bypass",
            Self::Revalidated => "revalidated",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Route {
    Redirect,
    Shorten,
    Api,
    Health,
    Other,
}

impl Route {
    /// The name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Redirect => "redirect",
            Self::Shorten => "shorten",
            Self::Api => "api",
            Self::Health => "health",
            Self::Other => "other",
        }
    }
}

impl Line<'_> {
    /// Whether the request was redirected. A `HEAD` request does not count.
    pub fn is_click(&self) -> bool {
        self.route == Route::Redirect && self.status == 302 && self.is_get
    }
}

/// The whole line that follows an incomplete one. A copy of a file may end anywhere, and nginx appends to it.
pub fn parse_torn(bytes: &[u8]) -> Option<Line<'_>> {
    let mut beginnings = memchr::memmem::find_iter(bytes, b"l1\t").filter(|start| *start > 0);
    beginnings.find_map(|start| parse(&bytes[start..]))
}

/// Parses a line. Returns `None` if it is incomplete or not in nginx's format.
pub fn parse(line: &[u8]) -> Option<Line<'_>> {
    let mut fields = [&[][..]; FIELDS];
    let mut count = 0;
    let mut start = 0;
    for tab in memchr::memchr_iter(b'\t', line) {
        *fields.get_mut(count)? = &line[start..tab];
        count += 1;
        start = tab + 1;
    }
    *fields.get_mut(count)? = &line[start..];
    if count + 1 != FIELDS {
        return None;
    }
    let [
        form,
        at,
        status,
        duration,
        upstream,
        cache,
        method,
        path,
        address,
        referrer,
        user_agent,
    ] = fields;
    if form != b"l1" {
        return None;
    }
    let status = number(status)?;
    let (route, slug) = route(path);
    Some(Line {
        at: milliseconds(at)?,
        status: u16::try_from(status).ok()?,
        duration: u32::try_from(milliseconds(duration)?).ok()?,
        upstream: upstream_time(upstream)?,
        cache: match cache {
            b"-" => Cache::None,
            b"HIT" => Cache::Hit,
            b"MISS" => Cache::Miss,
            b"EXPIRED" => Cache::Expired,
            b"STALE" => Cache::Stale,
            b"UPDATING" => Cache::Updating,
            b"BYPASS" => Cache::Bypass,
            b"REVALIDATED" => Cache::Revalidated,
            _ => return None,
        },
        route,
        is_get: method == b"GET",
        slug,
        address,
        referrer,
        user_agent,
    })
}

/// The route of a path, and its slug if it is a redirect. It agrees with the component (`links_web::routes::redirect`), to
/// which packaging/nginx passes the path with its escapes undone.
fn route(path: &[u8]) -> (Route, &str) {
    match path.strip_prefix(b"/") {
        Some(b"shorten") => (Route::Shorten, ""),
        Some(b"health") => (Route::Health, ""),
        Some(rest) if rest.starts_with(b"api/") => (Route::Api, ""),
        Some(rest) => slug(rest).map_or((Route::Other, ""), |slug| (Route::Redirect, slug)),
        None => (Route::Other, ""),
    }
}

/// The slug at the start of a path. The characters of a slug are never escaped in the journal; what follows the slug may be.
fn slug(path: &[u8]) -> Option<&str> {
    match memchr::memchr(b'\\', path) {
        None => slug::as_sent(path),
        Some(escape) => {
            let length = slug::as_sent(&unescaped(path))?.len();
            std::str::from_utf8(path.get(..length.min(escape))?).ok()
        }
    }
}

fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || digits.len() > 15 {
        return None;
    }
    digits.iter().try_fold(0, |number, digit| {
        digit.is_ascii_digit().then(|| number * 10 + u64::from(digit - b'0'))
    })
}

/// The milliseconds in a number of seconds with exactly three decimals.
fn milliseconds(field: &[u8]) -> Option<u64> {
    let (seconds, [b'.', rest @ ..]) = field.split_at(field.len().checked_sub(4)?) else {
        return None;
    };
    Some(number(seconds)? * 1000 + number(rest)?)
}

/// The sum of the times of all instances that were asked. The field has one time for each, or `-` for one that did not answer.
/// The times after ` : ` belong to an internal redirect.
fn upstream_time(field: &[u8]) -> Option<Option<u32>> {
    if field == b"-" {
        return Some(None);
    }
    let times = field.split(|byte| matches!(byte, b',' | b':' | b' '));
    let mut sum = 0;
    for time in times.filter(|time| !time.is_empty() && time != b"-") {
        sum += milliseconds(time)?;
    }
    Some(Some(u32::try_from(sum).ok()?))
}

/// A value as the client sent it. `-` stands for an empty one.
pub fn unescaped(value: &[u8]) -> Cow<'_, [u8]> {
    if value == b"-" {
        return Cow::Borrowed(&[]);
    }
    let Some(first) = memchr::memchr(b'\\', value) else {
        return Cow::Borrowed(value);
    };
    let mut plain = value[..first].to_vec();
    let mut rest = &value[first..];
    while let Some((byte, after)) = rest.split_first() {
        rest = match (byte, after) {
            (b'\\', [b'x', high, low, after @ ..]) if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                let digit = |text: &u8| char::from(*text).to_digit(16).unwrap_or(0);
                plain.push((digit(high) * 16 + digit(low)) as u8);
                after
            }
            _ => {
                plain.push(*byte);
                after
            }
        };
    }
    Cow::Owned(plain)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use super::*;

    #[test]
    fn a_line_after_an_incomplete_one_is_found() {
        let whole = b"l1\t1767225600.000\t302\t0.000\t-\tHIT\tGET\t/l1\t192.0.2.1\t-\tMozilla/5.0";
        for half in [0, 1, 2, 3, 20, whole.len() - 20, whole.len() - 1, whole.len()] {
            let torn = [&whole[..half], whole].concat();
            let found = parse(&torn).or_else(|| parse_torn(&torn));
            assert_eq!(found.map(|line| line.slug), Some("l1"), "{half}");
        }
        assert!(parse_torn(b"l1\tl1\tl1\tx").is_none());
    }

    const CLICK: &str =
        "l1\t1767225600.123\t302\t0.001\t-\tHIT\tGET\t/abc\t192.0.2.7\tnews.example\tMozilla/5.0 (X11; Linux x86_64)";

    fn with(field: usize, value: &str) -> Vec<u8> {
        let mut fields: Vec<_> = CLICK.split('\t').collect();
        fields[field] = value;
        fields.join("\t").into_bytes()
    }

    #[test]
    fn a_line_is_parsed() {
        assert_eq!(
            parse(CLICK.as_bytes()),
            Some(Line {
                at: 1_767_225_600_123,
                status: 302,
                duration: 1,
                upstream: None,
                cache: Cache::Hit,
                route: Route::Redirect,
                is_get: true,
                slug: "abc",
                address: b"192.0.2.7",
                referrer: b"news.example",
                user_agent: b"Mozilla/5.0 (X11; Linux x86_64)",
            })
        );
        let api = b"l1\t1767225600.000\t401\t12.345\t12.300\t-\tGET\t/api/v1/stats\t2001:db8::1\t-\t-";
        let line = parse(api).unwrap();
        assert_eq!((line.route, line.slug), (Route::Api, ""));
        assert_eq!((line.duration, line.upstream), (12_345, Some(12_300)));
    }

    #[test]
    fn only_a_get_that_was_redirected_is_a_click() {
        let is_click = |line: &[u8]| parse(line).unwrap().is_click();
        assert!(is_click(CLICK.as_bytes()));
        for (field, value) in [(2, "404"), (2, "200"), (6, "HEAD"), (6, "POST"), (7, "/a/b"), (7, "-")] {
            assert!(!is_click(&with(field, value)), "{value}");
        }
    }

    #[test]
    fn times_of_several_instances_are_summed() {
        for (text, sum) in [
            ("-", None),
            ("0.001", Some(1)),
            ("0.001, 1.002", Some(1003)),
            ("-, 0.005", Some(5)),
            ("0.001, 0.002 : 0.003", Some(6)),
        ] {
            assert_eq!(parse(&with(4, text)).unwrap().upstream, sum, "{text}");
        }
    }

    #[test]
    fn what_nginx_does_not_write_is_not_parsed() {
        assert_eq!(parse(b""), None);
        for length in 0..CLICK.rfind('\t').unwrap() {
            assert_eq!(parse(&CLICK.as_bytes()[..length]), None, "{length} bytes");
        }
        assert_eq!(parse(format!("{CLICK}\tmore").as_bytes()), None);
        // A line that a full disk cut off, followed by another one.
        assert_eq!(parse(format!("{}{CLICK}", &CLICK[..40]).as_bytes()), None);
        for (field, value) in [
            (0, "l2"),
            (0, ""),
            (1, "1767225600"),
            (1, "-1.000"),
            (1, "99999999999999999999.000"),
            (2, "3 02"),
            (2, "99999"),
            (3, "-"),
            (3, "0.1"),
            (4, "fast"),
            (5, "SOMETIMES"),
        ] {
            assert_eq!(parse(&with(field, value)), None, "{value:?}");
        }
    }

    #[test]
    fn a_path_has_the_same_meaning_as_in_the_component() {
        let long = "x".repeat(64);
        for slug in ["abc", "-", "Health", "api", long.as_str()] {
            let line = with(7, &format!("/{slug}"));
            let line = parse(&line).unwrap();
            assert_eq!((line.route, line.slug), (Route::Redirect, slug));
        }
        for rest in [
            "/",
            ".",
            ",",
            ")",
            "'",
            ">",
            "!",
            r"\x22",
            r"\x0A",
            r"\xE2\x80\x9D",
            r"\x5C",
        ] {
            let line = with(7, &format!("/abc{rest}"));
            let line = parse(&line).unwrap();
            assert_eq!((line.route, line.slug), (Route::Redirect, "abc"), "{rest}");
        }
        let longer = format!("/{long}x");
        for (path, route) in [
            ("/shorten", Route::Shorten),
            ("/health", Route::Health),
            ("/api/v1/links/abc", Route::Api),
            ("/api/", Route::Api),
            ("/", Route::Other),
            ("-", Route::Other),
            ("", Route::Other),
            ("abc", Route::Other),
            ("/shorten/", Route::Other),
            ("/internal/clicks", Route::Other),
            ("/favicon.ico", Route::Other),
            (r"/a\x09b", Route::Other),
            (r"/abc\x0Ax", Route::Other),
            (r"/abc\xC3\xBC", Route::Other),
            (r"/abc\xFF", Route::Other),
            ("/api.", Route::Other),
            (longer.as_str(), Route::Other),
        ] {
            let line = with(7, path);
            let line = parse(&line).unwrap();
            assert_eq!((line.route, line.slug), (route, ""), "{path}");
        }
    }

    #[test]
    fn any_bytes_can_be_parsed() {
        // A fixed generator, so that every run is the same.
        let mut state = 1_u64;
        let mut byte = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        };
        for _ in 0..20_000 {
            let mut line = CLICK.as_bytes().to_vec();
            for _ in 0..=byte() % 4 {
                let place = usize::from(byte()) % line.len();
                line[place] = byte();
            }
            if let Some(line) = parse(&line) {
                unescaped(line.user_agent);
            }
        }
    }

    #[test]
    fn hostile_values_stay_in_their_field() {
        // This is how nginx writes `a"\t\n\\` and a byte that is not UTF-8.
        let agent = r"a\x22\x09\x0A\x5C\xFF";
        let line = with(10, agent);
        let line = parse(&line).unwrap();
        assert_eq!(*unescaped(line.user_agent), *b"a\"\t\n\\\xff");
        assert!(line.is_click());
        let long = "\\xFF".repeat(8192);
        assert_eq!(unescaped(parse(&with(9, &long)).unwrap().referrer).len(), 8192);
    }

    #[test]
    fn incomplete_escapes_are_kept() {
        for (value, plain) in [
            ("-", ""),
            ("--", "--"),
            ("\\", "\\"),
            ("\\x4", "\\x4"),
            ("\\xGG", "\\xGG"),
            ("\\x41-", "A-"),
        ] {
            assert_eq!(*unescaped(value.as_bytes()), *plain.as_bytes(), "{value}");
        }
    }
}
