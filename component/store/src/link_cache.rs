//! The link cache, in the key-value store "default". While it is off, no store is used. While the store does not answer, the
//! cache behaves as if it were empty; it never causes an error.

use std::cell::Cell;
use std::time::Duration;

use futures_util::future::try_join;
use links_domain::link::Stored;
use links_domain::slug::Slug;
use links_domain::variable::Invalid;
use links_platform::circuit_breaker::{CircuitBreaker, Memory};
use links_platform::database;
use links_platform::kv::{self, Request};
use links_platform::time::Instant;
use links_platform::variables::{self, Cached};

use crate::cache::{self, Entry, Lifetime};
use crate::place;

#[derive(Clone, Copy)]
struct Settings {
    /// How long entries are used; `None` if the cache is off.
    lifetime: Option<Lifetime>,
    is_database_remote: bool,
}

thread_local! {
    static SETTINGS: Cell<Cached<Settings>> = const { Cell::new(Cached::Unread) };
    static OUTAGE: Memory = const { Memory::new(true) };
}

const BREAKER: CircuitBreaker = CircuitBreaker {
    name: "the key-value store \"default\"",
    outage_key: "links:outage:cache",
    end_key: "links:outage-end:cache",
    pause: Duration::from_secs(5),
    peek_interval: Duration::from_secs(1),
    memory: &OUTAGE,
};

/// How long entries are used; `None` if the cache is off or its variables cannot be read.
pub async fn lifetime() -> Option<Lifetime> {
    let settings = variables::read_once(&SETTINGS, "redirects go without the cache", read).await;
    settings.and_then(|settings| settings.lifetime)
}

/// Whether the database is on another machine; `None` if the variables have not been read.
pub fn is_database_remote() -> Option<bool> {
    variables::cached(&SETTINGS).map(|settings| settings.is_database_remote)
}

async fn read() -> Result<Settings, String> {
    let invalid = |invalid: Invalid| invalid.to_string();
    let (link_cache, place) = try_join(variables::get("link_cache"), variables::get("database_place")).await?;
    let lifetime = match cache::is_on(&link_cache).map_err(invalid)? {
        true => {
            let (ttl, stale) = try_join(variables::get("cache_ttl"), variables::get("cache_stale")).await?;
            Some(Lifetime::parse(&ttl, &stale).map_err(invalid)?)
        }
        false => None,
    };
    let is_database_remote = place::is_remote(&place).map_err(invalid)?;
    // Sharing pays only with a cache: without one there is no fallback while the database does not answer.
    database::BREAKER.share(lifetime.is_some());
    Ok(Settings {
        lifetime,
        is_database_remote,
    })
}

/// The entry of a link, however old.
pub async fn get(slug: &Slug) -> Option<Entry> {
    let key = &cache::key(slug);
    let entry = request(Request::Get { key }).await.flatten()?;
    Entry::decode(&entry)
}

/// Caches a link as the database had it at `asked_at`, in Unix seconds. For a link with a click limit it removes any entry of
/// the slug instead. Returns false if the store does not answer; it may then still have an older entry.
pub async fn put(slug: &Slug, link: &Stored, asked_at: i64) -> bool {
    if link.limit.is_some() {
        return remove(slug).await;
    }
    let link = link.clone();
    let (key, value) = (&cache::key(slug), &Entry { link, asked_at }.encode());
    request(Request::Set { key, value }).await.is_some()
}

/// Removes the entry of a link. Returns false if the store does not answer; it may then still have the entry.
pub async fn remove(slug: &Slug) -> bool {
    let key = &cache::key(slug);
    request(Request::Delete { key }).await.is_some()
}

/// The answer to a request; `None` if the store does not answer.
async fn request(request: Request<'_>) -> Option<Option<Vec<u8>>> {
    if BREAKER.is_open().await {
        return None;
    }
    let asked = Instant::now();
    match kv::Store::Default.request(request).await {
        Ok(answer) => {
            BREAKER.record_success(asked.elapsed()).await;
            Some(answer)
        }
        Err(error) => {
            BREAKER.record_failure(&error, asked.elapsed()).await;
            None
        }
    }
}
