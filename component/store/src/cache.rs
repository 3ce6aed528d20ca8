//! The entries of the link cache. It is a key-value store that spares redirects a query to the database.

use links_domain::age::Age;
use links_domain::expiry::Expiry;
use links_domain::link::Stored;
use links_domain::slug::Slug;
use links_domain::variable::{Invalid, seconds};

/// The name and version of the format. Every entry starts with it, because other programs may share the store.
const FORMAT: &str = "links1";

/// How long entries may be served, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifetime {
    /// The age up to which an entry is served without a query to the database. A change is visible everywhere within this time.
    pub ttl: i64,
    /// The age up to which an entry is served while the database does not answer.
    pub stale: i64,
}

impl Lifetime {
    pub const DEFAULT_TTL: i64 = 60;
    pub const DEFAULT_STALE: i64 = 86_400;

    /// # Errors
    /// Fails if one of the values is not a number.
    pub fn parse(cache_ttl: &str, cache_stale: &str) -> Result<Lifetime, Invalid> {
        Ok(Lifetime {
            ttl: seconds("cache_ttl", cache_ttl, Self::DEFAULT_TTL)?,
            stale: seconds("cache_stale", cache_stale, Self::DEFAULT_STALE)?,
        })
    }
}

/// Whether the variable `link_cache` turns the cache on.
///
/// # Errors
/// Fails if the value is neither "on" nor "off".
pub fn is_on(link_cache: &str) -> Result<bool, Invalid> {
    match link_cache.trim() {
        "" | "off" => Ok(false),
        "on" => Ok(true),
        _ => Err(Invalid {
            variable: "link_cache",
            wanted: "\"on\" or \"off\"",
        }),
    }
}

/// The key of a link's entry. Every kind of store accepts these characters in a key.
pub fn key(slug: &Slug) -> String {
    format!("links:redirect:{slug}")
}

/// A link as the database had it. A link with a click limit is never cached, because the database counts its clicks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub link: Stored,
    /// When the query was sent, in Unix seconds. The time of the answer would hide a change made in between.
    pub asked_at: i64,
}

impl Entry {
    /// One line with the format, the time, the expiry or `-`, and the URL, which contains no space.
    pub fn encode(&self) -> String {
        let Entry { link, asked_at } = self;
        match link.expiry {
            Some(Expiry(expiry)) => format!("{FORMAT} {asked_at} {expiry} {}", link.url),
            None => format!("{FORMAT} {asked_at} - {}", link.url),
        }
    }

    /// Reads an entry. Returns `None` for anything malformed: another program may have written it.
    pub fn decode(bytes: &[u8]) -> Option<Entry> {
        let text = std::str::from_utf8(bytes).ok()?;
        let rest = text.strip_prefix(FORMAT)?.strip_prefix(' ')?;
        let mut parts = rest.splitn(3, ' ');
        let asked_at = parts.next()?.parse().ok()?;
        let expiry = match parts.next()? {
            "-" => None,
            seconds => Some(Expiry(seconds.parse().ok()?)),
        };
        let url = parts.next().filter(|url| is_url(url))?.to_owned();
        Some(Entry {
            link: Stored {
                url,
                expiry,
                limit: None,
            },
            asked_at,
        })
    }

    /// Whether the entry may be served. Whether the link has expired is decided by [`links_domain::link::follow`]. `now` is in
    /// Unix seconds.
    pub fn age(&self, now: i64, lifetime: &Lifetime) -> Age {
        Age::of(self.asked_at, now, lifetime.ttl, lifetime.stale)
    }
}

/// Whether the text may be sent as a `location` header as it is. The database holds only normalized URLs, which may.
fn is_url(text: &str) -> bool {
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    rest.is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_graphic()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use links_domain::link::{self, Outcome};

    use super::*;

    const NOW: i64 = 1_767_225_600;

    fn entry(expiry: Option<i64>) -> Entry {
        Entry {
            link: Stored {
                url: "https://example.com/?q=1%202#-".into(),
                expiry: expiry.map(Expiry),
                limit: None,
            },
            asked_at: NOW,
        }
    }

    #[test]
    fn an_entry_comes_back_as_it_was() {
        for expiry in [None, Some(NOW + 1), Some(-1), Some(i64::MAX)] {
            let entry = entry(expiry);
            assert_eq!(Entry::decode(entry.encode().as_bytes()), Some(entry));
        }
        assert_eq!(
            entry(Some(5)).encode(),
            "links1 1767225600 5 https://example.com/?q=1%202#-"
        );
    }

    #[test]
    fn anything_malformed_is_not_an_entry() {
        for text in [
            "",
            "links1",
            "links1 ",
            "links1 1767225600",
            "links1 1767225600 -",
            "links1 1767225600 - ",
            "links1 1767225600 https://example.com/",
            "links1 - - https://example.com/",
            "links1 1767225600 never https://example.com/",
            "links1 99999999999999999999 - https://example.com/",
            "links1 1767225600 - example.com",
            "links1 1767225600 - javascript:alert(1)",
            "links1 1767225600 - https://example.com/ x",
            "links1 1767225600 - https://example.com/\r\nset-cookie:x",
            "links1 1767225600 - https://example.com/\n",
            "links1 1767225600 - https://exämple.com/",
            "links2 1767225600 - https://example.com/",
            "links11 1767225600 - https://example.com/",
            " links1 1767225600 - https://example.com/",
            "https://example.com/",
            r#"{"url":"https://example.com/"}"#,
        ] {
            assert_eq!(Entry::decode(text.as_bytes()), None, "{text:?}");
        }
        assert_eq!(Entry::decode(b"links1 1767225600 - https://example.com/\xff"), None);
    }

    #[test]
    fn an_entry_without_a_host_is_refused() {
        let whole = entry(None).encode();
        let url_begins = whole.find("https://").unwrap() + "https://".len();
        for length in 0..=url_begins {
            assert_eq!(Entry::decode(&whole.as_bytes()[..length]), None, "{length} bytes");
        }
    }

    #[test]
    fn an_entry_becomes_stale_and_then_gone() {
        let lifetime = Lifetime { ttl: 60, stale: 600 };
        let entry = entry(None);
        for (after, age) in [
            (0, Age::Fresh),
            (59, Age::Fresh),
            (60, Age::Stale),
            (599, Age::Stale),
            (600, Age::Gone),
        ] {
            assert_eq!(entry.age(NOW + after, &lifetime), age, "after {after} s");
        }
    }

    #[test]
    fn a_fresh_entry_of_a_link_that_expired_meanwhile_leads_nowhere() {
        let entry = entry(Some(NOW + 10));
        let later = NOW + 10;
        assert_eq!(entry.age(later, &Lifetime { ttl: 60, stale: 600 }), Age::Fresh);
        assert_eq!(link::follow(Some(entry.link), later), Outcome::Expired(Expiry(later)));
    }

    #[test]
    fn lifetimes_have_defaults_and_are_whole_seconds() {
        assert_eq!(Lifetime::parse("", " "), Ok(Lifetime { ttl: 60, stale: 86_400 }));
        assert_eq!(Lifetime::parse("0", "5\n"), Ok(Lifetime { ttl: 0, stale: 5 }));
        assert_eq!(Lifetime::parse("1m", "5").unwrap_err().variable, "cache_ttl");
        assert_eq!(Lifetime::parse("60", "-1").unwrap_err().variable, "cache_stale");
    }

    #[test]
    fn the_cache_is_off_unless_it_is_turned_on() {
        assert_eq!(is_on(""), Ok(false));
        assert_eq!(is_on("off"), Ok(false));
        assert_eq!(is_on("on\n"), Ok(true));
        assert_eq!(is_on("true").unwrap_err().variable, "link_cache");
    }

    #[test]
    fn every_link_has_a_key_of_its_own() {
        let [lower, upper] = ["abc", "ABC"].map(|slug| key(&Slug::in_path(slug).unwrap()));
        assert_eq!(lower, "links:redirect:abc");
        assert_ne!(lower, upper);
    }
}
