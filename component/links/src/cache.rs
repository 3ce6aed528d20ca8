//! The cache of links, in the key-value store "default". While it is off, no store is asked for anything. While the store
//! does not answer, the cache is as good as empty, and never a reason for an error.

use std::cell::Cell;
use std::time::Instant;

use futures_util::future::try_join;
use links_core::cache::{self, Bounds, Entry};
use links_core::link::Stored;
use links_core::settings::Invalid;
use links_core::slug::Slug;
use links_core::sql;

use crate::kv::Place;
use crate::outage::Service;
use crate::variable::{self, Knowledge};

#[derive(Clone, Copy)]
struct Known {
    /// `None`: there is no cache.
    bounds: Option<Bounds>,
    database_is_remote: bool,
}

thread_local! {
    static KNOWN: Cell<Knowledge<Known>> = const { Cell::new(Knowledge::Unread) };
}

/// `None`: there is no cache.
pub async fn bounds() -> Option<Bounds> {
    let known = variable::once(&KNOWN, "redirects go without the cache", read).await;
    known.and_then(|known| known.bounds)
}

/// Whether the variables were read and turn it on.
pub fn is_known_to_be_on() -> bool {
    variable::known(&KNOWN).is_some_and(|known| known.bounds.is_some())
}

/// Whether the database is on another machine; `None`: the variables were not read.
pub fn is_database_remote() -> Option<bool> {
    variable::known(&KNOWN).map(|known| known.database_is_remote)
}

async fn read() -> Result<Known, String> {
    let invalid = |invalid: Invalid| invalid.to_string();
    let (cache, place) = try_join(variable::get("link_cache"), variable::get("database_place")).await?;
    let bounds = match cache::is_on(&cache).map_err(invalid)? {
        true => {
            let (ttl, stale) = try_join(variable::get("cache_ttl"), variable::get("cache_stale")).await?;
            Some(Bounds::parse(&ttl, &stale).map_err(invalid)?)
        }
        false => None,
    };
    let database_is_remote = sql::is_remote(&place).map_err(invalid)?;
    Ok(Known {
        bounds,
        database_is_remote,
    })
}

/// What is kept of a link, however old.
pub async fn get(slug: &Slug) -> Option<Entry> {
    let entry = ask(async || Place::Cache.get(&cache::key(slug)).await)
        .await
        .flatten()?;
    Entry::decode(&entry)
}

/// Keeps a link as the database has it, asked at `asked_at` (Unix seconds). Of one whose clicks the database counts nothing
/// may be kept, nor of an earlier link with its slug. False: the store does not answer, and may have an older one.
pub async fn put(slug: &Slug, link: &Stored, asked_at: i64) -> bool {
    if link.limit.is_some() {
        return remove(slug).await;
    }
    let link = link.clone();
    let entry = Entry { link, asked_at }.encode();
    ask(async || Place::Cache.set(&cache::key(slug), &entry).await)
        .await
        .is_some()
}

/// False: the store does not answer, and may have it still.
pub async fn remove(slug: &Slug) -> bool {
    ask(async || Place::Cache.delete(&cache::key(slug)).await)
        .await
        .is_some()
}

async fn ask<T>(question: impl AsyncFnOnce() -> Result<T, String>) -> Option<T> {
    if Service::Cache.rests().await {
        return None;
    }
    let asked = Instant::now();
    match question().await {
        Ok(answer) => {
            Service::Cache.answered(asked.elapsed()).await;
            Some(answer)
        }
        Err(error) => {
            Service::Cache.failed(&error, asked.elapsed()).await;
            None
        }
    }
}
