//! `GET` and `HEAD /:slug`.

use links_domain::age::Age;
use links_domain::link::{self, Stored};
use links_domain::purpose::Purpose;
use links_domain::slug::Slug;
use links_platform::database::BREAKER;
use links_platform::database::timeouts::Timeouts;
use links_platform::request::Request;
use links_platform::stopwatch::Stopwatch;
use links_store::{Store, link_cache};
use links_web::edge::PROMPT;
use links_web::links::followed;
use links_web::problem::Problem;
use links_web::reply::Reply;

use crate::edge;

/// Whether nginx may cache the answer.
pub enum Caching {
    Allowed,
    /// The link was requested by a path other than its own, so a change of the link would not replace the answer.
    Forbidden,
}

pub async fn follow(slug: &Slug, request: &Request, is_head: bool, caching: Caching) -> Result<Reply, Problem> {
    let stopwatch = Stopwatch::start();
    match find(slug, &stopwatch).await? {
        Some(link) if link.limit.is_some() => follow_limited(slug, link, request, is_head, &stopwatch).await,
        found => {
            let lifetime = match caching {
                Caching::Allowed => edge::lifetime().await,
                Caching::Forbidden => None,
            };
            let elapsed = stopwatch.elapsed();
            let now = stopwatch.at(elapsed);
            match lifetime {
                // nginx does not cache answers to HEAD.
                Some(lifetime) if !is_head && elapsed < PROMPT => {
                    Ok(lifetime.follow(found, stopwatch.started_at(), now))
                }
                _ => followed(link::follow(found, now)),
            }
        }
    }
}

/// Takes one click if the request is meant to follow the link. If the database has no click to take, none is left.
async fn follow_limited(
    slug: &Slug,
    mut link: Stored,
    request: &Request,
    is_head: bool,
    stopwatch: &Stopwatch,
) -> Result<Reply, Problem> {
    let purpose = Purpose::of(is_head, |name| request.header(name));
    if purpose == Purpose::Follow
        && let Some(limit) = link.limit.as_mut().filter(|limit| limit.left > 0)
    {
        match Store::default().take_click(slug, stopwatch.now()).await? {
            Some(url) => link.url = url,
            None => limit.left = 0,
        }
    }
    followed(link::follow_limited(link, purpose, stopwatch.now()))
}

/// Finds a link in the link cache, or else in the database.
async fn find(slug: &Slug, stopwatch: &Stopwatch) -> Result<Option<Stored>, Problem> {
    let Some(lifetime) = link_cache::lifetime().await else {
        return Ok(Store::since(stopwatch.since()).find(slug).await?);
    };
    let cached = link_cache::get(slug).await;
    let asked_at = stopwatch.now();
    let age = cached.as_ref().map(|entry| entry.age(asked_at, &lifetime));
    let was_cached = cached.is_some();
    let stale = match (cached, age) {
        (Some(entry), Some(Age::Fresh)) => return Ok(Some(entry.link)),
        (Some(entry), Some(Age::Stale)) => Some(entry.link),
        _ => None,
    };
    if stale.is_some() && BREAKER.is_open().await {
        return Ok(stale);
    }
    let store = match stale {
        Some(_) => Store::with(Timeouts::WITH_FALLBACK),
        None => Store::default(),
    };
    match (store.find(slug).await, stale) {
        (Ok(Some(found)), _) => {
            link_cache::put(slug, &found, asked_at).await;
            Ok(Some(found))
        }
        (Ok(None), _) => {
            if was_cached {
                link_cache::remove(slug).await;
            }
            Ok(None)
        }
        (Err(_), Some(stale)) => Ok(Some(stale)),
        (Err(unavailable), None) => Err(unavailable.into()),
    }
}
