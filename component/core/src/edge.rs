//! The cache of nginx, the edge: how long it may keep an answer, and when what it has is right after a change.
//!
//! nginx keeps an answer for as long as the answer says (`X-Accel-Expires`), up to a point in time rather than for a
//! while: so an answer that was long on its way is not kept longer for it. nginx takes whole seconds, and keeps an answer
//! until the end of the second that is named.

use std::time::Duration;

use crate::expiry::Expiry;
use crate::link::{self, Stored};
use crate::reply::Reply;
use crate::settings::{Invalid, seconds};

/// Carries how nginx's cache came by its answer, on the port that only instances ask; and, in an answer to a client, that
/// the edge may not yet know of the client's change.
pub const HEADER: &str = "links-edge";

/// The value of [`HEADER`] for a client.
pub const STALE: &str = "stale";

/// An answer that takes an instance longer than this is not kept: by the time it comes, a change may have been seen at the
/// edge already.
pub const PROMPT: Duration = Duration::from_millis(500);

/// After a change that was made while an older answer was kept, this long is looked whether one that was on its way, given
/// in time (see [`PROMPT`]), has taken its place.
pub const SETTLED: Duration = Duration::from_secs(1);

/// nginx looks at the clock once for all events that arrived together, so its second may end a little later than others'.
const LATE: Duration = Duration::from_millis(50);

/// The port of 127.0.0.1 where nginx is asked about its cache; `None`: there is no such cache.
///
/// # Errors
/// What is no port.
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

/// How long redirects are good for, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// A change that was made on another machine is seen within this time.
    pub ttl: i64,
    /// How much longer an answer is given while no instance has a better one.
    pub stale: i64,
}

impl Bounds {
    pub const DEFAULT_TTL: i64 = 5;
    pub const DEFAULT_STALE: i64 = 600;

    /// # Errors
    /// A number that is none.
    pub fn parse(edge_ttl: &str, edge_stale: &str) -> Result<Bounds, Invalid> {
        Ok(Bounds {
            ttl: seconds("edge_ttl", edge_ttl, Self::DEFAULT_TTL)?,
            stale: seconds("edge_stale", edge_stale, Self::DEFAULT_STALE)?,
        })
    }

    /// Answers `GET /:slug` as [`link::follow`] does, and tells nginx how long that is good for. The database was asked at
    /// `asked_at`, before it answered, and it is `now`; both in Unix seconds.
    pub fn follow(&self, stored: Option<Stored>, asked_at: i64, now: i64) -> Reply {
        let keep = match &stored {
            Some(Stored { limit: Some(_), .. }) => None,
            Some(Stored { expiry, .. }) if expiry.is_none_or(|expiry| !expiry.is_over(now)) => {
                self.keep(*expiry, asked_at)
            }
            // It may be made at any moment: what waits for that counts on this second (see [`rest_of_second`]).
            _ => Some(Keep {
                last: asked_at,
                renewing: 0,
                alone: 0,
            }),
        };
        let reply = link::follow(stored, now).unwrap_or_else(Reply::from);
        match keep {
            Some(keep) => keep.tell(reply),
            None => reply,
        }
    }

    /// An answer that changes with the program alone, given at `now` (Unix seconds): kept as long as a link without end.
    pub fn lasting(&self, reply: Reply, now: i64) -> Reply {
        match self.keep(None, now) {
            Some(keep) => keep.tell(reply),
            None => reply,
        }
    }

    /// The last quarter of the ttl is for getting a new answer, while clients are given this one: nobody waits for the next
    /// answer to a link that is asked for now and then, or for somebody else who does, which nginx looks for only ten times
    /// a second (`proxy_cache_lock_timeout` in packaging/nginx/site.conf).
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
    /// The last second, in Unix seconds, in which the answer is given without a question.
    last: i64,
    /// For how long it is given while a new one is being fetched.
    renewing: i64,
    /// For how long it is given while no instance has a new one.
    alone: i64,
}

impl Keep {
    /// nginx reads what is said about staleness (RFC 5861) only before it knows for how long the answer is good, so that
    /// must come first; and no `no-store`, which it would obey: nginx sends that to clients, who see neither header.
    fn tell(self, mut reply: Reply) -> Reply {
        let Keep { last, renewing, alone } = self;
        reply.headers.retain(|(name, _)| *name != "cache-control");
        let stale = format!("stale-while-revalidate={renewing}, stale-if-error={alone}");
        reply.headers.insert(0, ("x-accel-expires", format!("@{last}").into()));
        reply.headers.insert(0, ("cache-control", stale.into()));
        reply
    }
}

/// What nginx's cache had for a link that is another by now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sight {
    /// Nothing, and nothing was on its way to it.
    Nothing,
    /// A link that leads there.
    Link(String),
    /// An answer that there is no link, or none any more.
    Other,
    /// An answer that is not given any more.
    Expired,
}

impl Sight {
    /// By the answer to `HEAD /:slug` on nginx's port for instances: its status, its header [`HEADER`] and where it leads.
    /// `None`: this was not nginx, or it has no cache.
    pub fn of(status: u16, header: Option<&str>, location: Option<&str>) -> Option<Sight> {
        match (header?, status) {
            ("MISS", _) => Some(Sight::Nothing),
            ("HIT" | "STALE" | "UPDATING", 302) => Some(Sight::Link(location.unwrap_or_default().to_owned())),
            ("HIT" | "STALE" | "UPDATING", _) => Some(Sight::Other),
            ("EXPIRED", _) => Some(Sight::Expired),
            _ => None,
        }
    }
}

/// How long it takes until an answer "no such link" of this second, or of an earlier one, is given no more: neither one
/// that nginx has nor one that is still on its way there. `now` in Unix milliseconds.
pub fn rest_of_second(now: i64) -> Duration {
    let rest = 1000 - now.rem_euclid(1000);
    Duration::from_millis(rest.unsigned_abs()) + LATE
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use crate::link::Limit;

    const NOW: i64 = 1_767_225_600;
    const BOUNDS: Bounds = Bounds { ttl: 5, stale: 600 };

    fn stored(expiry: Option<i64>) -> Stored {
        Stored {
            url: "https://example.com/".into(),
            expiry: expiry.map(Expiry),
            limit: None,
        }
    }

    /// Status, and what nginx is told.
    fn told(bounds: Bounds, stored: Option<Stored>, now: i64) -> (u16, Option<Keep>) {
        let reply = bounds.follow(stored, NOW, now);
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
        let redirect = |ttl| told(Bounds { ttl, stale: 600 }, Some(stored(None)), NOW);
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
            assert_eq!(told(BOUNDS, link, NOW), (302, wanted), "{expiry} s before it");
        }
    }

    #[test]
    fn that_there_is_no_link_counts_for_the_second_in_which_it_was_asked() {
        assert_eq!(told(BOUNDS, None, NOW + 9), (404, keep(NOW, 0, 0)));
        assert_eq!(told(BOUNDS, Some(stored(Some(NOW))), NOW), (410, keep(NOW, 0, 0)));
        // It ended while the database was being asked.
        assert_eq!(
            told(BOUNDS, Some(stored(Some(NOW + 1))), NOW + 1),
            (410, keep(NOW, 0, 0))
        );
    }

    #[test]
    fn a_link_whose_clicks_are_counted_is_kept_by_nobody() {
        for left in [1, 0] {
            let limit = Some(Limit { most: 1, left });
            let reply = BOUNDS.follow(Some(Stored { limit, ..stored(None) }), NOW, NOW);
            assert_eq!(reply.header("x-accel-expires"), None);
            assert_eq!(reply.header("cache-control"), Some("no-store"));
        }
    }

    #[test]
    fn what_lasts_is_kept_like_a_link() {
        let link = BOUNDS.follow(Some(stored(None)), NOW, NOW);
        let lasting = BOUNDS.lasting(Reply::new(404, "text/plain", vec![]), NOW);
        for name in ["cache-control", "x-accel-expires"] {
            assert_eq!(lasting.header(name), link.header(name));
        }
        let nothing_is_kept = Bounds { ttl: 0, stale: 600 };
        let reply = nothing_is_kept.lasting(Reply::healthy(), NOW);
        assert_eq!(reply, Reply::healthy());
    }

    #[test]
    fn what_nginx_reads_comes_first_and_once() {
        let lasting = BOUNDS.lasting(Reply::healthy(), NOW);
        let links = [None, Some(stored(None))].map(|link| BOUNDS.follow(link, NOW, NOW));
        for reply in links.into_iter().chain([lasting]) {
            let names: Vec<_> = reply.headers.iter().map(|(name, _)| *name).collect();
            assert_eq!(names[..2], ["cache-control", "x-accel-expires"]);
            assert!(!names[2..].contains(&"cache-control"));
        }
    }

    #[test]
    fn sees_what_the_edge_has() {
        const TARGET: &str = "https://example.com/";
        let link = || Sight::Link(TARGET.to_owned());
        for (status, header, sight) in [
            (302, Some("MISS"), Some(Sight::Nothing)),
            (502, Some("MISS"), Some(Sight::Nothing)),
            (302, Some("HIT"), Some(link())),
            (302, Some("UPDATING"), Some(link())),
            (302, Some("STALE"), Some(link())),
            (404, Some("HIT"), Some(Sight::Other)),
            (410, Some("HIT"), Some(Sight::Other)),
            // A new answer, which is not kept.
            (302, Some("EXPIRED"), Some(Sight::Expired)),
            (302, Some("BYPASS"), None),
            (302, Some(""), None),
            (200, None, None),
        ] {
            assert_eq!(Sight::of(status, header, Some(TARGET)), sight, "{status} {header:?}");
        }
    }

    #[test]
    fn waits_for_the_end_of_the_second() {
        for (now, milliseconds) in [(0, 1050), (1, 1049), (999, 51), (1000, 1050), (-1, 51)] {
            assert_eq!(rest_of_second(now), Duration::from_millis(milliseconds), "{now}");
        }
    }

    #[test]
    fn variables_have_defaults() {
        assert_eq!(Bounds::parse("", " "), Ok(BOUNDS));
        assert_eq!(Bounds::parse("0", "5\n"), Ok(Bounds { ttl: 0, stale: 5 }));
        assert_eq!(Bounds::parse("5s", "").unwrap_err().variable, "edge_ttl");
        assert_eq!(Bounds::parse("", "-1").unwrap_err().variable, "edge_stale");
        assert_eq!(
            (port(""), port("0"), port("7000\n")),
            (Ok(None), Ok(None), Ok(Some(7000)))
        );
        assert_eq!(port("70000").unwrap_err().variable, "edge_port");
    }
}
