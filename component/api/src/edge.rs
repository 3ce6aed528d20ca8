//! The cache of the nginx in front of this machine's instances. A change must be visible there before it is acknowledged.

use std::cell::Cell;
use std::time::{Duration, Instant};

use futures_util::future::try_join;
use links_domain::slug::Slug;
use links_domain::variable::Invalid;
use links_platform::outbound::{Method, Response, request};
use links_platform::variables::{self, Cached};
use links_platform::{clock, log};
use links_web::edge::{self, Lifetime};
use links_web::problem::Problem;
use links_web::purge::{CacheStatus, Change, HEADER, Remedy, STALE};
use links_web::purge_query;
use links_web::reply::Reply;

use crate::proof;

/// How long a change waits until it is visible. nginx answers within a millisecond, or within half a second while another
/// client requests the same slug. If nginx has an older answer, a second must pass before the answer can be replaced.
const TIMEOUT: Duration = Duration::from_secs(3);

/// The pause between two attempts to replace an answer.
const PAUSE: Duration = Duration::from_millis(50);

#[derive(Clone, Copy)]
struct Edge {
    port: u16,
    lifetime: Lifetime,
}

thread_local! {
    static EDGE: Cell<Cached<Option<Edge>>> = const { Cell::new(Cached::Unread) };
}

/// nginx may still have the answer from before the change. The reason has been logged.
struct Stale;

/// The cache in front: `Some(None)` if there is none, `None` if the variables cannot be read.
async fn edge() -> Option<Option<Edge>> {
    variables::read_once(&EDGE, "the cache of nginx is not updated", read).await
}

async fn read() -> Result<Option<Edge>, String> {
    let invalid = |invalid: Invalid| invalid.to_string();
    let Some(port) = edge::port(&variables::get("edge_port").await?).map_err(invalid)? else {
        return Ok(None);
    };
    let (ttl, stale) = try_join(variables::get("edge_ttl"), variables::get("edge_stale")).await?;
    let lifetime = Lifetime::parse(&ttl, &stale).map_err(invalid)?;
    Ok(Some(Edge { port, lifetime }))
}

/// The reply to a request for an unknown path. nginx may cache it: nginx forwards one request for a path at a time, so without
/// the cache the other requests for that path would wait for each other.
pub async fn lasting(problem: Problem) -> Reply {
    let reply = Reply::from(problem);
    match edge().await.flatten() {
        Some(Edge { lifetime, .. }) => lifetime.lasting(reply, clock::now()),
        None => reply,
    }
}

/// Waits until this machine's nginx answers with the new state of the link. Adds `links-edge: stale` to the reply if nginx may
/// still give the old answer.
pub async fn show(reply: Reply, slug: &Slug, change: Change<'_>) -> Reply {
    match purge(slug, change).await {
        Ok(()) => reply,
        Err(Stale) => reply.with_headers(vec![(HEADER, STALE.into())]),
    }
}

async fn purge(slug: &Slug, change: Change<'_>) -> Result<(), Stale> {
    let Some(Edge { port, .. }) = edge().await.ok_or(Stale)? else {
        return Ok(());
    };
    let outcome = clock::within(TIMEOUT, purge_and_wait(port, slug, change)).await;
    outcome
        .unwrap_or_else(|| Err("no answer in time".to_owned()))
        .map_err(|error| {
            log::line(format_args!("nginx may still have the old answer for /{slug}"), error);
            Stale
        })
}

async fn purge_and_wait(port: u16, slug: &Slug, change: Change<'_>) -> Result<(), String> {
    let (now, since) = (clock::now_in_milliseconds(), Instant::now());
    let mut status = peek(port, slug).await?;
    if change.needs_nothing(&status) {
        return Ok(());
    }
    let pause = change.pause(&status, now);
    loop {
        match change.remedy(&status) {
            Remedy::Fetch => drop(send(&Method::Get, port, slug, "").await?),
            Remedy::Forget => {
                let query = proof::of_proxy().await;
                let query = query.and_then(|proof| purge_query::sign(&proof, slug, clock::now()));
                let query = query
                    .ok_or("nginx redirects as an earlier link did, and only proxy_secret can make it forget that")?;
                drop(send(&Method::Get, port, slug, &format!("?{query}")).await?);
            }
            Remedy::Wait => {}
        }
        clock::sleep(pause.saturating_sub(since.elapsed()).max(PAUSE)).await;
        status = peek(port, slug).await?;
        if change.is_visible(&status) {
            return Ok(());
        }
    }
}

async fn peek(port: u16, slug: &Slug) -> Result<CacheStatus, String> {
    let response = send(&Method::Head, port, slug, "").await?;
    let [header, location] = [HEADER, "location"].map(|name| response.header(name));
    let status = CacheStatus::of(response.status(), header.as_deref(), location.as_deref());
    status.ok_or_else(|| format!("port {port} does not belong to the nginx site of links"))
}

/// Sends a request to nginx: `HEAD` reports what its cache has, `GET` makes it fetch a new answer. `query` is empty or begins
/// with `?`.
async fn send(method: &Method, port: u16, slug: &Slug, query: &str) -> Result<Response, String> {
    let authority = format!("127.0.0.1:{port}");
    let response = request(method, &authority, &format!("/{slug}{query}")).await;
    response.map_err(|error| format!("{authority}: {error}"))
}
