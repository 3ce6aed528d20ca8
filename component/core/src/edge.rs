//! The cache of nginx, the edge: how long it may keep an answer, and when what it has is right after a change.
//!
//! nginx keeps an answer for as long as the answer says (`X-Accel-Expires`), up to a point in time rather than for a
//! while: so an answer that was long on its way is not kept longer for it. nginx takes whole seconds, and keeps an answer
//! until the end of the second that is named.

use std::time::Duration;

use crate::expiry::Expiry;
use crate::link::{self, Stored};
use crate::proof::Proof;
use crate::reply::Reply;
use crate::settings::{Invalid, seconds};
use crate::slug::Slug;

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

    /// Takes the place of what nginx has kept for a slug, and is over with this second. `now` in Unix seconds.
    pub fn nothing(&self, now: i64) -> Reply {
        self.follow(None, now, now)
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

/// What there is for a slug now, in the database.
#[derive(Debug, Clone, Copy)]
pub enum Became<'a> {
    /// There was nothing before.
    New(&'a Stored),
    Changed(&'a Stored),
    Nothing,
}

/// How nginx's cache gets right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remedy {
    /// By asking for the slug past it: it keeps the new answer.
    Fetch,
    /// By being answered that there is nothing: the answer of a link with a limit is not kept, so it would take the place of
    /// nothing, and asking for it would take a click.
    Empty,
    /// By time.
    Wait,
}

impl Became<'_> {
    /// Whether the first look after the change has found that nothing is to be done.
    pub fn is_known(&self, sight: &Sight) -> bool {
        match (self, sight) {
            (_, Sight::Nothing) => true,
            // Somebody was quick. With a limit or an end it is an older link to the same place.
            (Became::New(link), Sight::Link(url)) => link.limit.is_none() && link.expiry.is_none() && *url == link.url,
            _ => false,
        }
    }

    pub fn remedy(&self, sight: &Sight) -> Remedy {
        match (self, sight) {
            (Became::New(link) | Became::Changed(link), _) if link.limit.is_none() => Remedy::Fetch,
            (Became::Nothing, _) => Remedy::Fetch,
            (_, Sight::Link(_)) => Remedy::Empty,
            _ => Remedy::Wait,
        }
    }

    /// How long after the change it is looked whether that has helped; `now` in Unix milliseconds.
    pub fn rest(&self, sight: &Sight, now: i64) -> Duration {
        match (self, sight) {
            // That there is no such link is said for the second in which it was found out: then it is over.
            (Became::New(_), Sight::Nothing | Sight::Other | Sight::Expired) => rest_of_second(now),
            // An older answer may be on its way to the cache and arrive after a newer one.
            _ => SETTLED,
        }
    }

    /// Whether everybody gets what there is now.
    pub fn is_shown(&self, sight: &Sight) -> bool {
        match (self, sight) {
            (_, Sight::Nothing | Sight::Expired) => true,
            (Became::New(link) | Became::Changed(link), Sight::Link(url)) => link.limit.is_none() && *url == link.url,
            (Became::New(_) | Became::Changed(_), Sight::Other) => false,
            (Became::Nothing, Sight::Link(_)) => false,
            (Became::Nothing, Sight::Other) => true,
        }
    }
}

/// For how many seconds an order to forget a slug is good.
const ORDER_LASTS: i64 = 10;

/// Begins the query that asks an instance, through nginx, to answer that there is nothing ([`Remedy::Empty`]).
const ORDER: &str = "links-forget=";

/// The query that orders it for a slug; only the instances of this machine can make one. `None`: they have no secret.
/// `now` in Unix seconds.
pub fn order(proof: &Proof, slug: &Slug, now: i64) -> Option<String> {
    let signature = proof.sign(&format!("{slug} {now}"))?;
    Some(format!("{ORDER}{now}.{signature}"))
}

/// Whether a query might be an order: then [`is_order`] is worth asking.
pub fn looks_like_order(query: &str) -> bool {
    query.starts_with(ORDER)
}

pub fn is_order(proof: &Proof, slug: &Slug, query: &str, now: i64) -> bool {
    let order = query.strip_prefix(ORDER).and_then(|order| order.split_once('.'));
    order.is_some_and(|(given, signature)| {
        let age = given.parse().map(|given: i64| now.abs_diff(given));
        age.is_ok_and(|age| age <= ORDER_LASTS.unsigned_abs())
            && proof.has_signed(&format!("{slug} {given}"), signature)
    })
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

    fn limited(url: &str) -> Stored {
        Stored {
            url: url.to_owned(),
            limit: Some(Limit { most: 1, left: 1 }),
            expiry: None,
        }
    }

    /// Whatever nginx has kept of a slug's earlier link.
    #[test]
    fn a_limited_link_never_leads_where_an_older_one_led() {
        let link = limited("https://example.com/");
        let older = Sight::Link("https://example.org/".to_owned());
        let same_place = Sight::Link(link.url.clone());
        for became in [Became::New(&link), Became::Changed(&link)] {
            for kept in [&older, &same_place] {
                assert!(!became.is_known(kept) && !became.is_shown(kept), "{became:?} {kept:?}");
                assert_eq!(became.remedy(kept), Remedy::Empty);
                assert_eq!(became.rest(kept, 0), SETTLED);
            }
            // To fetch it would take a click.
            for other in [Sight::Nothing, Sight::Other, Sight::Expired] {
                assert_eq!(became.remedy(&other), Remedy::Wait, "{became:?} {other:?}");
            }
            assert!(became.is_shown(&Sight::Nothing) && became.is_shown(&Sight::Expired));
            assert!(!became.is_shown(&Sight::Other));
        }
    }

    #[test]
    fn a_new_link_takes_the_place_of_an_older_one() {
        let link = stored(None);
        let became = Became::New(&link);
        let older = Sight::Link("https://example.org/".to_owned());
        assert!(!became.is_known(&older) && !became.is_shown(&older));
        assert_eq!(
            (became.remedy(&older), became.rest(&older, 0)),
            (Remedy::Fetch, SETTLED)
        );
        let same = Sight::Link(link.url.clone());
        assert!(became.is_known(&same) && became.is_shown(&same) && became.is_known(&Sight::Nothing));
        assert!(!became.is_known(&Sight::Other) && !became.is_known(&Sight::Expired));
        assert_eq!(became.rest(&Sight::Other, 300), rest_of_second(300));
        // The older one may have had no end.
        let ends = stored(Some(NOW));
        assert!(!Became::New(&ends).is_known(&same));
    }

    #[test]
    fn a_change_and_a_deletion_are_looked_after() {
        let link = stored(None);
        let older = Sight::Link("https://example.org/".to_owned());
        let same = Sight::Link(link.url.clone());
        let (changed, nothing) = (Became::Changed(&link), Became::Nothing);
        for became in [changed, nothing] {
            assert!(!became.is_known(&same) && became.is_known(&Sight::Nothing));
            assert!(!became.is_shown(&older) && became.is_shown(&Sight::Expired));
            assert_eq!(
                (became.remedy(&older), became.rest(&older, 0)),
                (Remedy::Fetch, SETTLED)
            );
        }
        assert!(changed.is_shown(&same) && !changed.is_shown(&Sight::Other));
        assert!(nothing.is_shown(&Sight::Other) && !nothing.is_shown(&same));
    }

    #[test]
    fn what_is_to_be_forgotten_is_over_with_its_second() {
        let reply = BOUNDS.nothing(NOW);
        assert_eq!(reply.status, 404);
        assert_eq!(reply.header("x-accel-expires"), Some(format!("@{NOW}").as_str()));
        assert_eq!(
            reply.header("cache-control"),
            Some("stale-while-revalidate=0, stale-if-error=0")
        );
    }

    #[test]
    fn only_an_instance_orders_a_slug_to_be_forgotten() {
        let proof = Proof::of("s3cret");
        let [abc, other] = ["abc", "abd"].map(|slug| Slug::in_path(slug).unwrap());
        let query = order(&proof, &abc, NOW).unwrap();
        assert!(looks_like_order(&query) && is_order(&proof, &abc, &query, NOW));
        assert!(is_order(&proof, &abc, &query, NOW + 10) && is_order(&proof, &abc, &query, NOW - 1));
        for (proof, slug, query, now) in [
            (proof, &other, query.as_str(), NOW),
            (proof, &abc, query.as_str(), NOW + 11),
            (Proof::of("s3cret2"), &abc, query.as_str(), NOW),
            (Proof::of(""), &abc, query.as_str(), NOW),
            (proof, &abc, "links-forget=", NOW),
            (proof, &abc, "links-forget=1767225600.", NOW),
            (proof, &abc, "links-forget=x.y", NOW),
            (proof, &abc, "", NOW),
        ] {
            assert!(!is_order(&proof, slug, query, now), "{query} for {slug} at {now}");
        }
        assert_eq!(order(&Proof::of(""), &abc, NOW), None);
        assert!(!looks_like_order("a=b") && !looks_like_order(""));
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
