//! Which answers nginx, the edge, may cache, and for how long.

use std::cell::Cell;

use futures_util::future::try_join;
use links_domain::slug::Slug;
use links_domain::variable::Invalid;
use links_platform::clock;
use links_platform::variables::{self, Cached};
use links_web::edge::{self, Lifetime};
use links_web::problem::Problem;
use links_web::purge_query;
use links_web::reply::Reply;

use crate::proxy;

thread_local! {
    static LIFETIME: Cell<Cached<Option<Lifetime>>> = const { Cell::new(Cached::Unread) };
}

/// How long nginx may cache redirects; `None` if nginx has no cache or the variables cannot be read.
pub async fn lifetime() -> Option<Lifetime> {
    let lifetime = variables::read_once(&LIFETIME, "nginx does not cache redirects", read).await;
    lifetime.flatten()
}

async fn read() -> Result<Option<Lifetime>, String> {
    let invalid = |invalid: Invalid| invalid.to_string();
    if edge::port(&variables::get("edge_port").await?)
        .map_err(invalid)?
        .is_none()
    {
        return Ok(None);
    }
    let (ttl, stale) = try_join(variables::get("edge_ttl"), variables::get("edge_stale")).await?;
    Ok(Some(Lifetime::parse(&ttl, &stale).map_err(invalid)?))
}

/// The reply to a request for an unknown path. nginx may cache it: nginx forwards one request for a path at a time, so without
/// the cache the other requests for that path would wait for each other.
pub async fn lasting(problem: Problem) -> Reply {
    let reply = Reply::from(problem);
    match lifetime().await {
        Some(lifetime) => lifetime.lasting(reply, clock::now()),
        None => reply,
    }
}

/// The reply that makes nginx forget a slug; `None` if no instance has signed the query.
pub async fn forget(slug: &Slug, query: &str) -> Option<Reply> {
    if !purge_query::is_claimed(query) {
        return None;
    }
    let (proof, now) = (proxy::proof().await?, clock::now());
    let lifetime = lifetime().await?;
    purge_query::is_valid(&proof, slug, query, now).then(|| lifetime.forget(now))
}
