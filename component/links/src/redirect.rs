//! `GET /:slug`, and `HEAD`.

use std::time::Instant;

use links_core::age::Age;
use links_core::edge::PROMPT;
use links_core::link::{self, Stored};
use links_core::problem::Problem;
use links_core::purpose::Purpose;
use links_core::reply::Reply;
use links_core::slug::Slug;
use spin_sdk::wasip3::http::types;

use crate::outage::Service;
use crate::respond::raw_header;
use crate::store::Store;
use crate::{cache, clock, edge};

pub async fn follow(slug: &Slug, request: &types::Request, is_head: bool) -> Result<Reply, Problem> {
    let (asked_at, since) = (clock::now(), Instant::now());
    match find(slug).await? {
        Some(link) if link.limit.is_some() => follow_limited(slug, link, request, is_head).await,
        found => match edge::bounds().await {
            // What `HEAD` is answered has no body to be kept.
            Some(bounds) if !is_head && since.elapsed() < PROMPT => Ok(bounds.follow(found, asked_at, clock::now())),
            _ => link::follow(found, clock::now()),
        },
    }
}

/// By another path than the link's own: the edge does not keep the answer, as no change of the link would take it away.
pub async fn follow_as_sent(slug: &Slug, request: &types::Request, is_head: bool) -> Result<Reply, Problem> {
    match find(slug).await? {
        Some(link) if link.limit.is_some() => follow_limited(slug, link, request, is_head).await,
        found => link::follow(found, clock::now()),
    }
}

/// Takes one click if somebody follows the link; afterwards none is left if there was none to be taken.
async fn follow_limited(
    slug: &Slug,
    mut link: Stored,
    request: &types::Request,
    is_head: bool,
) -> Result<Reply, Problem> {
    let purpose = Purpose::of(is_head, |name| raw_header(request, name));
    if purpose == Purpose::Follow
        && let Some(limit) = link.limit.as_mut().filter(|limit| limit.left > 0)
    {
        match Store::new().take_click(slug, clock::now()).await? {
            Some(url) => link.url = url,
            None => limit.left = 0,
        }
    }
    link::follow_limited(link, purpose, clock::now())
}

/// From the cache where it knows the link, else from the database.
async fn find(slug: &Slug) -> Result<Option<Stored>, Problem> {
    let Some(bounds) = cache::bounds().await else {
        return Store::new().find(slug).await;
    };
    let kept = cache::get(slug).await;
    let asked_at = clock::now();
    let age = kept.as_ref().map(|entry| entry.age(asked_at, &bounds));
    let was_kept = kept.is_some();
    let spare = match (kept, age) {
        (Some(entry), Some(Age::Fresh)) => return Ok(Some(entry.link)),
        (Some(entry), Some(Age::Stale)) => Some(entry.link),
        _ => None,
    };
    if spare.is_some() && Service::Database.rests().await {
        return Ok(spare);
    }
    let store = if spare.is_some() { Store::hasty() } else { Store::new() };
    match (store.find(slug).await, spare) {
        (Ok(Some(found)), _) => {
            cache::put(slug, &found, asked_at).await;
            Ok(Some(found))
        }
        (Ok(None), _) => {
            if was_kept {
                cache::remove(slug).await;
            }
            Ok(None)
        }
        (Err(_), Some(spare)) => Ok(Some(spare)),
        (Err(problem), None) => Err(problem),
    }
}
