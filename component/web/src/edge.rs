//! How long nginx, the edge, may keep an answer.
//!
//! `X-Accel-Expires` names a point in time rather than a duration, so an answer that arrives late is not kept for longer. nginx
//! takes whole seconds, and keeps an answer until the end of the given second.

use std::time::Duration;

use links_domain::expiry::Expiry;
use links_domain::link::{self, Stored};
use links_domain::variable::{Invalid, seconds};

use crate::links::followed;
use crate::reply::Reply;

/// An answer that takes an instance longer than this is not kept, because the edge may already have shown a change by the time
/// the answer arrives.
pub const PROMPT: Duration = Duration::from_millis(500);

/// The port on 127.0.0.1 where instances ask nginx about its cache; `None` if there is no cache.
///
/// # Errors
/// The value is not a port.
pub fn port(edge_port: &str) -> Result<Option<u16>, Invalid> {
    match edge_port.trim() {
        "" => Ok(None),
        text => text
            .parse()
            .map(|port| Some(port).filter(|port| *port != 0))
            .map_err(|_| Invalid {
                variable: "edge_port",
                wanted: "a port, or 0 for none",
            }),
    }
}

/// How long redirects are kept, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifetime {
    /// How long a redirect is kept. A change made on another machine is visible within this time.
    pub ttl: i64,
    /// How much longer the old answer is served while no instance has a new one.
    pub stale: i64,
}

impl Lifetime {
    pub const DEFAULT_TTL: i64 = 5;
    pub const DEFAULT_STALE: i64 = 600;

    /// Parses the two variables.
    ///
    /// # Errors
    /// One of the values is not a number of seconds.
    pub fn parse(edge_ttl: &str, edge_stale: &str) -> Result<Lifetime, Invalid> {
        Ok(Lifetime {
            ttl: seconds("edge_ttl", edge_ttl, Self::DEFAULT_TTL)?,
            stale: seconds("edge_stale", edge_stale, Self::DEFAULT_STALE)?,
        })
    }

    /// Answers `GET /:slug` and sets how long nginx may keep the answer. The answer for a link with a limit is never kept.
    /// `asked_at` is when the database was asked; it and `now` are in Unix seconds.
    pub fn follow(&self, stored: Option<Stored>, asked_at: i64, now: i64) -> Reply {
        let keep = match &stored {
            Some(Stored { limit: Some(_), .. }) => None,
            Some(Stored { url, expiry, .. }) if expiry.is_none_or(|expiry| !expiry.is_over(now)) => {
                self.keep(*expiry, asked_at, hash(url, asked_at))
            }
            // The link may be created at any moment. `purge` then waits for the end of this second.
            _ => Some(Keep {
                last: asked_at,
                revalidating: 0,
                if_error: 0,
            }),
        };
        let reply = followed(link::follow(stored, now)).unwrap_or_else(Reply::from);
        match keep {
            Some(keep) => keep.apply(reply),
            None => reply,
        }
    }

    /// An answer that replaces what nginx has kept for a slug and expires with this second. `now` is in Unix seconds.
    pub fn forget(&self, now: i64) -> Reply {
        self.follow(None, now, now)
    }

    /// Lets nginx keep an answer that only changes with the program for as long as a link without an expiry. `now` is in Unix
    /// seconds.
    pub fn lasting(&self, reply: Reply, now: i64) -> Reply {
        match self.keep(None, now, 0) {
            Some(keep) => keep.apply(reply),
            None => reply,
        }
    }

    /// At the end of the ttl, nginx fetches a new answer while clients get the old one. So nobody waits for the answer to a link
    /// that is in use, nor for another client's request to fetch it, which nginx polls only ten times a second
    /// (`proxy_cache_lock_timeout` in packaging/nginx/site.conf).
    ///
    /// That time is between a quarter and half of the ttl, depending on `jitter`, any number: links that nginx fetched in the same
    /// second would otherwise all be fetched again in the same second.
    fn keep(&self, expiry: Option<Expiry>, asked_at: i64, jitter: u64) -> Option<Keep> {
        let end = expiry.map_or(i64::MAX, |Expiry(second)| second - 1);
        let quarter = (self.ttl / 4).max(1);
        let jitter = jitter
            .checked_rem(quarter.unsigned_abs() + 1)
            .unwrap_or(0)
            .cast_signed();
        let revalidating = (quarter + jitter).min(self.ttl - 1);
        let last = asked_at.saturating_add(self.ttl - 1 - revalidating).min(end);
        let left = end.saturating_sub(last);
        (self.ttl > 0).then(|| Keep {
            last,
            revalidating: revalidating.min(left),
            if_error: (revalidating + self.stale).min(left),
        })
    }
}

/// A number that differs between links, and from one second to the next.
fn hash(url: &str, second: i64) -> u64 {
    // FNV-1a, which is smaller than the standard library's SipHash. Its upper half is the better one.
    let bytes = url.bytes().chain(second.to_le_bytes());
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    hash >> 32
}

/// How long nginx may keep an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Keep {
    /// The last second in which nginx answers without asking an instance, in Unix seconds.
    last: i64,
    /// How many seconds after `last` nginx may serve the old answer while it fetches a new one.
    revalidating: i64,
    /// How many seconds after `last` nginx may serve the old answer while no instance has a new one.
    if_error: i64,
}

impl Keep {
    /// Sets the headers for nginx. It reads the directives about staleness (RFC 5861) only until it knows the lifetime of the
    /// answer, so they must come first. There must be no `no-store`, which nginx would obey. nginx hides both headers from
    /// clients and sends them `no-store` itself.
    fn apply(self, reply: Reply) -> Reply {
        let Keep {
            last,
            revalidating,
            if_error,
        } = self;
        let stale = format!("stale-while-revalidate={revalidating}, stale-if-error={if_error}");
        let mut headers = Vec::with_capacity(reply.headers.len() + 2);
        headers.push(("cache-control", stale.into()));
        headers.push(("x-accel-expires", format!("@{last}").into()));
        headers.extend(reply.headers.into_iter().filter(|(name, _)| *name != "cache-control"));
        Reply { headers, ..reply }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use links_domain::limit::Limit;

    use super::*;

    const NOW: i64 = 1_767_225_600;
    const LIFETIME: Lifetime = Lifetime { ttl: 5, stale: 600 };

    fn stored(expiry: Option<i64>) -> Stored {
        Stored {
            url: "https://example.com/".into(),
            expiry: expiry.map(Expiry),
            limit: None,
        }
    }

    /// The status of the answer, and how long nginx may keep it.
    fn directives(lifetime: Lifetime, stored: Option<Stored>, now: i64) -> (u16, Option<Keep>) {
        let reply = lifetime.follow(stored, NOW, now);
        let number = |text: &str| text.parse::<i64>().unwrap();
        let keep = reply.header("x-accel-expires").map(|expires| {
            let (revalidating, if_error) = reply.header("cache-control").unwrap().split_once(", ").unwrap();
            Keep {
                last: number(expires.strip_prefix('@').unwrap()),
                revalidating: number(revalidating.strip_prefix("stale-while-revalidate=").unwrap()),
                if_error: number(if_error.strip_prefix("stale-if-error=").unwrap()),
            }
        });
        (reply.status, keep)
    }

    fn keep(last: i64, revalidating: i64, if_error: i64) -> Option<Keep> {
        Some(Keep {
            last,
            revalidating,
            if_error,
        })
    }

    #[test]
    fn a_redirect_is_kept_for_the_ttl_and_revalidated_at_its_end() {
        let kept = |ttl, jitter| Lifetime { ttl, stale: 600 }.keep(None, NOW, jitter);
        assert_eq!(kept(60, 0), keep(NOW + 44, 15, 615));
        assert_eq!(kept(60, 15), keep(NOW + 29, 30, 630));
        assert_eq!(kept(60, 16), kept(60, 0));
        assert_eq!(kept(5, 0), keep(NOW + 3, 1, 601));
        assert_eq!(kept(5, 1), keep(NOW + 2, 2, 602));
        for jitter in [0, 1, u64::MAX] {
            assert_eq!(kept(2, jitter), keep(NOW, 1, 601));
            assert_eq!(kept(1, jitter), keep(NOW, 0, 600));
            assert_eq!(kept(0, jitter), None);
        }
    }

    #[test]
    fn links_that_were_fetched_together_are_not_fetched_again_together() {
        let last = |link: u32, second| {
            let stored = Stored {
                url: format!("https://example.com/{link}"),
                ..stored(None)
            };
            let reply = LIFETIME.follow(Some(stored), second, second);
            reply.header("x-accel-expires").unwrap().to_owned()
        };
        let early = (0..1000)
            .filter(|link| last(*link, NOW) == format!("@{}", NOW + 2))
            .count();
        assert!((400..600).contains(&early), "{early} of 1000");
        // Nor do the same two links stay together from one time to the next.
        let together = (0..1000).filter(|second| {
            let [one, other] = [1, 2].map(|link| last(link, NOW + second));
            one == other
        });
        assert!((400..600).contains(&together.count()));
    }

    #[test]
    fn nothing_outlives_the_expiry_even_while_no_instance_answers() {
        for (expiry, wanted) in [
            (1, keep(NOW, 0, 0)),
            (4, keep(NOW + 3, 0, 0)),
            (5, keep(NOW + 3, 1, 1)),
            (100, keep(NOW + 3, 1, 96)),
            (1000, keep(NOW + 3, 1, 601)),
        ] {
            let kept = LIFETIME.keep(Some(Expiry(NOW + expiry)), NOW, 0);
            assert_eq!(kept, wanted, "{expiry} s before it");
        }
    }

    #[test]
    fn a_missing_link_is_kept_for_the_second_in_which_the_database_was_asked() {
        assert_eq!(directives(LIFETIME, None, NOW + 9), (404, keep(NOW, 0, 0)));
        assert_eq!(
            directives(LIFETIME, Some(stored(Some(NOW))), NOW),
            (410, keep(NOW, 0, 0))
        );
        // The link expired while the database was being asked.
        assert_eq!(
            directives(LIFETIME, Some(stored(Some(NOW + 1))), NOW + 1),
            (410, keep(NOW, 0, 0))
        );
    }

    #[test]
    fn a_link_with_a_limit_is_never_kept() {
        for left in [1, 0] {
            let limit = Some(Limit { most: 1, left });
            let reply = LIFETIME.follow(Some(Stored { limit, ..stored(None) }), NOW, NOW);
            assert_eq!(reply.header("x-accel-expires"), None);
            assert_eq!(reply.header("cache-control"), Some("no-store"));
        }
    }

    #[test]
    fn a_lasting_answer_is_kept_like_a_link() {
        let lasting = LIFETIME.lasting(Reply::new(404, "text/plain", vec![]), NOW);
        assert_eq!(
            lasting.header("x-accel-expires"),
            Some(format!("@{}", NOW + 3).as_str())
        );
        let stale = Some("stale-while-revalidate=1, stale-if-error=601");
        assert_eq!(lasting.header("cache-control"), stale);
        let nothing_is_kept = Lifetime { ttl: 0, stale: 600 };
        let reply = nothing_is_kept.lasting(Reply::healthy(), NOW);
        assert_eq!(reply, Reply::healthy());
    }

    #[test]
    fn the_headers_for_nginx_come_first_and_once() {
        let lasting = LIFETIME.lasting(Reply::healthy(), NOW);
        let links = [None, Some(stored(None))].map(|link| LIFETIME.follow(link, NOW, NOW));
        for reply in links.into_iter().chain([lasting]) {
            let names: Vec<_> = reply.headers.iter().map(|(name, _)| *name).collect();
            assert_eq!(names[..2], ["cache-control", "x-accel-expires"]);
            assert!(!names[2..].contains(&"cache-control"));
        }
    }

    #[test]
    fn a_forgotten_answer_expires_with_its_second() {
        let reply = LIFETIME.forget(NOW);
        assert_eq!(reply.status, 404);
        assert_eq!(reply.header("x-accel-expires"), Some(format!("@{NOW}").as_str()));
        assert_eq!(
            reply.header("cache-control"),
            Some("stale-while-revalidate=0, stale-if-error=0")
        );
    }

    #[test]
    fn variables_have_defaults() {
        assert_eq!(Lifetime::parse("", " "), Ok(LIFETIME));
        assert_eq!(Lifetime::parse("0", "5\n"), Ok(Lifetime { ttl: 0, stale: 5 }));
        assert_eq!(Lifetime::parse("5s", "").unwrap_err().variable, "edge_ttl");
        assert_eq!(Lifetime::parse("", "-1").unwrap_err().variable, "edge_stale");
        assert_eq!(
            (port(""), port("0"), port("7000\n")),
            (Ok(None), Ok(None), Ok(Some(7000)))
        );
        assert_eq!(port("70000").unwrap_err().variable, "edge_port");
    }
}
