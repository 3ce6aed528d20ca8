//! How long nginx, the edge, may keep an answer.
//!
//! `X-Accel-Expires` names a point in time rather than a duration, so an answer that was slow to arrive is not kept longer for
//! it. nginx takes whole seconds, and keeps an answer until the end of the second that is named.

use std::time::Duration;

use links_domain::expiry::Expiry;
use links_domain::link::{self, Stored};
use links_domain::variable::{Invalid, seconds};

use crate::links::followed;
use crate::reply::Reply;

/// An answer that takes an instance longer than this is not kept: by the time it arrives, the edge may already have shown a
/// change.
pub const PROMPT: Duration = Duration::from_millis(500);

/// The port of 127.0.0.1 where nginx answers questions about its cache; `None`: there is no such cache.
///
/// # Errors
/// Not a port.
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
    /// A change made on another machine is visible within this time.
    pub ttl: i64,
    /// Additional time in which the old answer serves while no instance has a better one.
    pub stale: i64,
}

impl Lifetime {
    pub const DEFAULT_TTL: i64 = 5;
    pub const DEFAULT_STALE: i64 = 600;

    /// # Errors
    /// One is not a number.
    pub fn parse(edge_ttl: &str, edge_stale: &str) -> Result<Lifetime, Invalid> {
        Ok(Lifetime {
            ttl: seconds("edge_ttl", edge_ttl, Self::DEFAULT_TTL)?,
            stale: seconds("edge_stale", edge_stale, Self::DEFAULT_STALE)?,
        })
    }

    /// Answers `GET /:slug` for a link whose clicks are not limited, and says how long that may be kept. The database was
    /// asked at `asked_at`, before it answered, and it is `now`; both in Unix seconds.
    pub fn follow(&self, stored: Option<Stored>, asked_at: i64, now: i64) -> Reply {
        let keep = match &stored {
            Some(Stored { limit: Some(_), .. }) => None,
            Some(Stored { expiry, .. }) if expiry.is_none_or(|expiry| !expiry.is_over(now)) => {
                self.keep(*expiry, asked_at)
            }
            // The link may be created at any moment; `purge` waits for the end of this second.
            _ => Some(Keep {
                last: asked_at,
                renewing: 0,
                alone: 0,
            }),
        };
        let reply = followed(link::follow(stored, now)).unwrap_or_else(Reply::from);
        match keep {
            Some(keep) => keep.apply(reply),
            None => reply,
        }
    }

    /// Replaces what nginx has kept for a slug by an answer that ends with this second. `now` in Unix seconds.
    pub fn forget(&self, now: i64) -> Reply {
        self.follow(None, now, now)
    }

    /// Keeps an answer that only changes with the program as long as a link without an expiry. `now` in Unix seconds.
    pub fn lasting(&self, reply: Reply, now: i64) -> Reply {
        match self.keep(None, now) {
            Some(keep) => keep.apply(reply),
            None => reply,
        }
    }

    /// The last quarter of the ttl is for fetching a new answer while clients get this one. So nobody waits for the next answer
    /// to a link that is in use, nor for another client's request for it, which nginx polls only ten times a second
    /// (`proxy_cache_lock_timeout` in packaging/nginx/site.conf).
    fn keep(&self, expiry: Option<Expiry>, asked_at: i64) -> Option<Keep> {
        let end = expiry.map_or(i64::MAX, |Expiry(second)| second - 1);
        let renewing = (self.ttl / 4).max(1).min(self.ttl - 1);
        let last = asked_at.saturating_add(self.ttl - 1 - renewing).min(end);
        let left = end.saturating_sub(last);
        (self.ttl > 0).then(|| Keep {
            last,
            renewing: renewing.min(left),
            alone: (renewing + self.stale).min(left),
        })
    }
}

/// What nginx is told. `renewing` and `alone` are seconds after `last`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Keep {
    /// The last second, in Unix seconds, in which nginx answers without asking.
    last: i64,
    /// How long it answers while a new answer is being fetched.
    renewing: i64,
    /// How long it answers while no instance has a new answer.
    alone: i64,
}

impl Keep {
    /// nginx reads the directives about staleness (RFC 5861) only until it knows how long the answer is good for, so they must
    /// come first. There must be no `no-store`, which nginx would obey; it sends that to clients itself and hides both headers.
    fn apply(self, mut reply: Reply) -> Reply {
        let Keep { last, renewing, alone } = self;
        reply.headers.retain(|(name, _)| *name != "cache-control");
        let stale = format!("stale-while-revalidate={renewing}, stale-if-error={alone}");
        reply.headers.insert(0, ("x-accel-expires", format!("@{last}").into()));
        reply.headers.insert(0, ("cache-control", stale.into()));
        reply
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

    /// The status, and what nginx is told.
    fn directives(lifetime: Lifetime, stored: Option<Stored>, now: i64) -> (u16, Option<Keep>) {
        let reply = lifetime.follow(stored, NOW, now);
        let number = |text: &str| text.parse::<i64>().unwrap();
        let keep = reply.header("x-accel-expires").map(|expires| {
            let (renewing, alone) = reply.header("cache-control").unwrap().split_once(", ").unwrap();
            Keep {
                last: number(expires.strip_prefix('@').unwrap()),
                renewing: number(renewing.strip_prefix("stale-while-revalidate=").unwrap()),
                alone: number(alone.strip_prefix("stale-if-error=").unwrap()),
            }
        });
        (reply.status, keep)
    }

    fn keep(last: i64, renewing: i64, alone: i64) -> Option<Keep> {
        Some(Keep { last, renewing, alone })
    }

    #[test]
    fn a_redirect_is_kept_for_the_ttl_whose_last_part_is_for_a_new_one() {
        let redirect = |ttl| directives(Lifetime { ttl, stale: 600 }, Some(stored(None)), NOW);
        assert_eq!(redirect(60), (302, keep(NOW + 44, 15, 615)));
        assert_eq!(redirect(5), (302, keep(NOW + 3, 1, 601)));
        assert_eq!(redirect(2), (302, keep(NOW, 1, 601)));
        assert_eq!(redirect(1), (302, keep(NOW, 0, 600)));
        assert_eq!(redirect(0), (302, None));
    }

    #[test]
    fn nothing_outlives_the_expiry_not_even_while_nobody_answers() {
        for (expiry, wanted) in [
            (1, keep(NOW, 0, 0)),
            (4, keep(NOW + 3, 0, 0)),
            (5, keep(NOW + 3, 1, 1)),
            (100, keep(NOW + 3, 1, 96)),
            (1000, keep(NOW + 3, 1, 601)),
        ] {
            let link = Some(stored(Some(NOW + expiry)));
            assert_eq!(directives(LIFETIME, link, NOW), (302, wanted), "{expiry} s before it");
        }
    }

    #[test]
    fn that_there_is_no_link_counts_for_the_second_in_which_it_was_asked() {
        assert_eq!(directives(LIFETIME, None, NOW + 9), (404, keep(NOW, 0, 0)));
        assert_eq!(
            directives(LIFETIME, Some(stored(Some(NOW))), NOW),
            (410, keep(NOW, 0, 0))
        );
        // It ended while the database was being asked.
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
    fn what_lasts_is_kept_like_a_link() {
        let link = LIFETIME.follow(Some(stored(None)), NOW, NOW);
        let lasting = LIFETIME.lasting(Reply::new(404, "text/plain", vec![]), NOW);
        for name in ["cache-control", "x-accel-expires"] {
            assert_eq!(lasting.header(name), link.header(name));
        }
        let nothing_is_kept = Lifetime { ttl: 0, stale: 600 };
        let reply = nothing_is_kept.lasting(Reply::healthy(), NOW);
        assert_eq!(reply, Reply::healthy());
    }

    #[test]
    fn what_nginx_reads_comes_first_and_once() {
        let lasting = LIFETIME.lasting(Reply::healthy(), NOW);
        let links = [None, Some(stored(None))].map(|link| LIFETIME.follow(link, NOW, NOW));
        for reply in links.into_iter().chain([lasting]) {
            let names: Vec<_> = reply.headers.iter().map(|(name, _)| *name).collect();
            assert_eq!(names[..2], ["cache-control", "x-accel-expires"]);
            assert!(!names[2..].contains(&"cache-control"));
        }
    }

    #[test]
    fn what_nginx_forgets_ends_with_its_second() {
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
