//! How a change of a link becomes visible at the edge, nginx's cache.
//!
//! An outdated answer may be in the cache, or on its way there from any instance and arrive after a newer one. So the instance
//! that made the change peeks into the cache, has the answer replaced, waits, and peeks again.

use std::time::Duration;

use links_domain::link::Stored;

/// The header with the cache status of nginx's answer, on the port for instances. In an answer to a client its value is
/// [`STALE`].
pub const HEADER: &str = "links-edge";

/// The value of [`HEADER`] for a client whose change may not be visible at the edge yet.
pub const STALE: &str = "stale";

/// How long after a change an outdated answer may still arrive and be kept (see [`crate::edge::PROMPT`]).
const SETTLED: Duration = Duration::from_secs(1);

/// How much later a second may end for nginx, which reads the clock once for all events that arrived together.
const CLOCK_LAG: Duration = Duration::from_millis(50);

/// What has happened to the link of a slug.
#[derive(Debug, Clone, Copy)]
pub enum Change<'a> {
    Created(&'a Stored),
    Changed(&'a Stored),
    Removed,
}

/// How nginx gets rid of an outdated answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remedy {
    /// Fetch the link past the cache. nginx keeps the new answer.
    Fetch,
    /// Have an instance answer that there is no link (see [`crate::purge_query`]). nginx does not keep the answer for a link
    /// with a limit, so fetching that would replace nothing and take a click.
    Forget,
    /// Do nothing: the outdated answer expires by itself.
    Wait,
}

impl Change<'_> {
    /// Whether the first peek after the change shows that nothing has to be done.
    pub fn needs_nothing(&self, status: &CacheStatus) -> bool {
        match (self, status) {
            (_, CacheStatus::Miss) => true,
            // Another client was quick. For a new link with a limit or an expiry, this may be an older link to the same URL.
            (Change::Created(link), CacheStatus::Link(url)) => {
                link.limit.is_none() && link.expiry.is_none() && *url == link.url
            }
            _ => false,
        }
    }

    pub fn remedy(&self, status: &CacheStatus) -> Remedy {
        match (self, status) {
            (Change::Created(link) | Change::Changed(link), _) if link.limit.is_none() => Remedy::Fetch,
            (Change::Removed, _) => Remedy::Fetch,
            (_, CacheStatus::Link(_)) => Remedy::Forget,
            _ => Remedy::Wait,
        }
    }

    /// How long to wait before the next peek. `now` is in Unix milliseconds.
    pub fn pause(&self, status: &CacheStatus, now: i64) -> Duration {
        match (self, status) {
            // "No such link" is only kept for the second in which the database was asked.
            (Change::Created(_), CacheStatus::Miss | CacheStatus::NoLink | CacheStatus::Expired) => rest_of_second(now),
            _ => SETTLED,
        }
    }

    /// Whether every client now gets the new state.
    pub fn is_visible(&self, status: &CacheStatus) -> bool {
        match (self, status) {
            (_, CacheStatus::Miss | CacheStatus::Expired) => true,
            (Change::Created(link) | Change::Changed(link), CacheStatus::Link(url)) => {
                link.limit.is_none() && *url == link.url
            }
            (Change::Created(_) | Change::Changed(_), CacheStatus::NoLink) => false,
            (Change::Removed, CacheStatus::Link(_)) => false,
            (Change::Removed, CacheStatus::NoLink) => true,
        }
    }
}

/// What nginx has in its cache for a slug.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CacheStatus {
    /// No answer, and none was on its way there.
    Miss,
    /// A redirect to this URL.
    Link(String),
    /// An answer that the link does not exist, or no longer exists.
    NoLink,
    /// An answer that is no longer served.
    Expired,
}

impl CacheStatus {
    /// Reads the answer to `HEAD /:slug` on nginx's port for instances: its status, its header [`HEADER`] and its location.
    /// `None` if the answer is not from nginx, or nginx has no cache.
    pub fn of(status: u16, header: Option<&str>, location: Option<&str>) -> Option<CacheStatus> {
        match (header?, status) {
            ("MISS", _) => Some(CacheStatus::Miss),
            ("HIT" | "STALE" | "UPDATING", 302) => Some(CacheStatus::Link(location.unwrap_or_default().to_owned())),
            ("HIT" | "STALE" | "UPDATING", _) => Some(CacheStatus::NoLink),
            ("EXPIRED", _) => Some(CacheStatus::Expired),
            _ => None,
        }
    }
}

/// The time until nginx no longer serves a "no such link" of this second or an earlier one, even if that answer is still on its
/// way. `now` is in Unix milliseconds.
fn rest_of_second(now: i64) -> Duration {
    let rest = 1000 - now.rem_euclid(1000);
    Duration::from_millis(rest.unsigned_abs()) + CLOCK_LAG
}

#[cfg(test)]
mod tests {
    use links_domain::expiry::Expiry;
    use links_domain::limit::Limit;

    use super::*;

    fn stored(expiry: Option<i64>) -> Stored {
        Stored {
            url: "https://example.com/".into(),
            expiry: expiry.map(Expiry),
            limit: None,
        }
    }

    #[test]
    fn reads_the_cache_status() {
        const TARGET: &str = "https://example.com/";
        let link = || CacheStatus::Link(TARGET.to_owned());
        for (status, header, wanted) in [
            (302, Some("MISS"), Some(CacheStatus::Miss)),
            (502, Some("MISS"), Some(CacheStatus::Miss)),
            (302, Some("HIT"), Some(link())),
            (302, Some("UPDATING"), Some(link())),
            (302, Some("STALE"), Some(link())),
            (404, Some("HIT"), Some(CacheStatus::NoLink)),
            (410, Some("HIT"), Some(CacheStatus::NoLink)),
            // This answer is new, and nginx has not kept it.
            (302, Some("EXPIRED"), Some(CacheStatus::Expired)),
            (302, Some("BYPASS"), None),
            (302, Some(""), None),
            (200, None, None),
        ] {
            assert_eq!(
                CacheStatus::of(status, header, Some(TARGET)),
                wanted,
                "{status} {header:?}"
            );
        }
    }

    fn limited(url: &str) -> Stored {
        Stored {
            url: url.to_owned(),
            limit: Some(Limit { most: 1, left: 1 }),
            expiry: None,
        }
    }

    /// Whatever nginx has kept for an earlier link with this slug.
    #[test]
    fn a_limited_link_never_leads_where_an_older_one_led() {
        let link = limited("https://example.com/");
        let older = CacheStatus::Link("https://example.org/".to_owned());
        let same_url = CacheStatus::Link(link.url.clone());
        for change in [Change::Created(&link), Change::Changed(&link)] {
            for kept in [&older, &same_url] {
                assert!(
                    !change.needs_nothing(kept) && !change.is_visible(kept),
                    "{change:?} {kept:?}"
                );
                assert_eq!(change.remedy(kept), Remedy::Forget);
                assert_eq!(change.pause(kept, 0), SETTLED);
            }
            // Fetching the link would take a click.
            for other in [CacheStatus::Miss, CacheStatus::NoLink, CacheStatus::Expired] {
                assert_eq!(change.remedy(&other), Remedy::Wait, "{change:?} {other:?}");
            }
            assert!(change.is_visible(&CacheStatus::Miss) && change.is_visible(&CacheStatus::Expired));
            assert!(!change.is_visible(&CacheStatus::NoLink));
        }
    }

    #[test]
    fn a_new_link_takes_the_place_of_an_older_one() {
        let link = stored(None);
        let change = Change::Created(&link);
        let older = CacheStatus::Link("https://example.org/".to_owned());
        assert!(!change.needs_nothing(&older) && !change.is_visible(&older));
        assert_eq!(
            (change.remedy(&older), change.pause(&older, 0)),
            (Remedy::Fetch, SETTLED)
        );
        let same = CacheStatus::Link(link.url.clone());
        assert!(change.needs_nothing(&same) && change.is_visible(&same) && change.needs_nothing(&CacheStatus::Miss));
        assert!(!change.needs_nothing(&CacheStatus::NoLink) && !change.needs_nothing(&CacheStatus::Expired));
        assert_eq!(change.pause(&CacheStatus::NoLink, 300), rest_of_second(300));
        // The older link may have had no expiry.
        let ends = stored(Some(1_767_225_600));
        assert!(!Change::Created(&ends).needs_nothing(&same));
    }

    #[test]
    fn a_change_and_a_deletion_wait_until_they_are_visible() {
        let link = stored(None);
        let older = CacheStatus::Link("https://example.org/".to_owned());
        let same = CacheStatus::Link(link.url.clone());
        let (changed, removed) = (Change::Changed(&link), Change::Removed);
        for change in [changed, removed] {
            assert!(!change.needs_nothing(&same) && change.needs_nothing(&CacheStatus::Miss));
            assert!(!change.is_visible(&older) && change.is_visible(&CacheStatus::Expired));
            assert_eq!(
                (change.remedy(&older), change.pause(&older, 0)),
                (Remedy::Fetch, SETTLED)
            );
        }
        assert!(changed.is_visible(&same) && !changed.is_visible(&CacheStatus::NoLink));
        assert!(removed.is_visible(&CacheStatus::NoLink) && !removed.is_visible(&same));
    }

    #[test]
    fn waits_for_the_end_of_the_second() {
        for (now, milliseconds) in [(0, 1050), (1, 1049), (999, 51), (1000, 1050), (-1, 51)] {
            assert_eq!(rest_of_second(now), Duration::from_millis(milliseconds), "{now}");
        }
    }
}
