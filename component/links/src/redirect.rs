//! `GET /:slug`.

use std::time::Instant;

use links_core::age::Age;
use links_core::edge::PROMPT;
use links_core::link::{self, Limit, Stored};
use links_core::problem::Problem;
use links_core::reply::Reply;
use links_core::slug::Slug;

use crate::outage::Service;
use crate::store::Store;
use crate::{cache, clock, edge};

/// What a request does to a link with a limit.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// `GET`: takes one of its clicks.
    Follow,
    /// `HEAD`: takes none.
    Look,
}

/// What `HEAD` is answered has no body to be kept.
pub async fn follow(slug: &Slug, purpose: Purpose) -> Result<Reply, Problem> {
    let (asked_at, since) = (clock::now(), Instant::now());
    let mut found = find(slug).await?;
    if purpose == Purpose::Follow
        && let Some(limit) = found.as_mut().and_then(|link| link.limit.as_mut())
    {
        take_click(slug, limit).await?;
    }
    let now = clock::now();
    match edge::bounds().await {
        Some(bounds) if purpose == Purpose::Follow && since.elapsed() < PROMPT => {
            Ok(bounds.follow(found, asked_at, now))
        }
        _ => link::follow(found, now),
    }
}

/// Takes one click; afterwards none is left if there was none to be taken.
async fn take_click(slug: &Slug, limit: &mut Limit) -> Result<(), Problem> {
    if limit.left > 0 && !Store::new().take_click(slug, clock::now()).await? {
        limit.left = 0;
    }
    Ok(())
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
