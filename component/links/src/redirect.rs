//! `GET /:slug`.

use links_core::age::Age;
use links_core::link;
use links_core::problem::Problem;
use links_core::reply::Reply;
use links_core::slug::Slug;

use crate::outage::Service;
use crate::store::Store;
use crate::{cache, clock};

pub async fn follow(slug: &Slug) -> Result<Reply, Problem> {
    let Some(bounds) = cache::bounds().await else {
        return link::follow(Store::new().find(slug).await?, clock::now());
    };
    let kept = cache::get(slug).await;
    let asked_at = clock::now();
    let age = kept.as_ref().map(|entry| entry.age(asked_at, &bounds));
    let was_kept = kept.is_some();
    let spare = match (kept, age) {
        (Some(entry), Some(Age::Fresh)) => return link::follow(Some(entry.link), asked_at),
        (Some(entry), Some(Age::Stale)) => Some(entry.link),
        _ => None,
    };
    if spare.is_some() && Service::Database.rests().await {
        return link::follow(spare, clock::now());
    }
    let store = if spare.is_some() { Store::hasty() } else { Store::new() };
    match (store.find(slug).await, spare) {
        (Ok(Some(found)), _) => {
            cache::put(slug, &found, asked_at).await;
            link::follow(Some(found), clock::now())
        }
        (Ok(None), _) => {
            if was_kept {
                cache::remove(slug).await;
            }
            link::follow(None, clock::now())
        }
        (Err(_), Some(spare)) => link::follow(Some(spare), clock::now()),
        (Err(problem), None) => Err(problem),
    }
}
