//! nginx's cache in front of the instances of this machine: telling it how long to keep redirects, and making it right
//! when a link is made.

use std::cell::Cell;
use std::time::{Duration, Instant};

use futures_util::future::try_join;
use http::{Method, Request};
use links_core::edge::{self, Became, Bounds, HEADER, Remedy, Sight};
use links_core::problem::Problem;
use links_core::reply::Reply;
use links_core::settings::Invalid;
use links_core::slug::Slug;
use spin_sdk::http::{EmptyBody, Response, send};

use crate::variable::{self, Knowledge};
use crate::{clock, log, proof};

/// How long a change waits until nginx shows it. nginx answers in a millisecond, after half a second where somebody else
/// is just asking for the same slug; and a second has to pass where it has an older answer.
const LIMIT: Duration = Duration::from_secs(3);

/// Between two attempts at replacing an answer.
const PAUSE: Duration = Duration::from_millis(50);

/// A kept connection may have ended unnoticed, as after a reload of nginx: the second attempt makes a new one.
const ATTEMPTS: u32 = 2;

#[derive(Clone, Copy)]
struct Known {
    port: u16,
    bounds: Bounds,
}

thread_local! {
    static KNOWN: Cell<Knowledge<Option<Known>>> = const { Cell::new(Knowledge::Unread) };
}

/// The edge may not yet know of a change; the operator was told why.
pub struct Stale;

/// `None`: nginx is to keep nothing.
pub async fn bounds() -> Option<Bounds> {
    known().await.flatten().map(|known| known.bounds)
}

/// A refusal that changes with this program alone. nginx asks for a path once at a time, and others wait for the answer: so
/// it is to keep this one, too.
pub async fn keep(refusal: Problem) -> Reply {
    let reply = Reply::from(refusal);
    match bounds().await {
        Some(bounds) => bounds.lasting(reply, clock::now()),
        None => reply,
    }
}

/// `Some(None)`: there is no cache in front. `None`: nobody can tell.
async fn known() -> Option<Option<Known>> {
    variable::once(&KNOWN, "redirects are not kept by nginx", read).await
}

async fn read() -> Result<Option<Known>, String> {
    let parsed = |invalid: Invalid| invalid.to_string();
    let Some(port) = edge::port(&variable::get("edge_port").await?).map_err(parsed)? else {
        return Ok(None);
    };
    let (ttl, stale) = try_join(variable::get("edge_ttl"), variable::get("edge_stale")).await?;
    let bounds = Bounds::parse(&ttl, &stale).map_err(parsed)?;
    Ok(Some(Known { port, bounds }))
}

/// Returns when whoever asks this machine's nginx for the link gets what is in the database by now.
///
/// # Errors
/// That is not certain: until the ttl is over, some may get what was there before.
pub async fn show(slug: &Slug, became: Became<'_>) -> Result<(), Stale> {
    let Some(Known { port, .. }) = known().await.ok_or(Stale)? else {
        return Ok(());
    };
    let shown = clock::within(LIMIT, replace(port, slug, became)).await;
    shown
        .unwrap_or_else(|| Err("no answer in time".to_owned()))
        .map_err(|error| {
            log::line(&format!("nginx may not know yet of the change of /{slug}"), error);
            Stale
        })
}

/// An answer that is out of date may be in nginx's cache, or on its way there from any instance and arrive after a newer
/// one.
async fn replace(port: u16, slug: &Slug, became: Became<'_>) -> Result<(), String> {
    let (now, since) = (clock::now_in_milliseconds(), Instant::now());
    let mut sight = look(port, slug).await?;
    if became.is_known(&sight) {
        return Ok(());
    }
    let rest = became.rest(&sight, now);
    loop {
        match became.remedy(&sight) {
            Remedy::Fetch => drop(ask(Method::GET, port, slug, "").await?),
            Remedy::Empty => {
                let order = proof::of_agent().await;
                let order = order.and_then(|proof| edge::order(&proof, slug, clock::now()));
                let order = order
                    .ok_or("it leads where an earlier link led, and there is no agent_secret to order otherwise")?;
                drop(ask(Method::GET, port, slug, &format!("?{order}")).await?);
            }
            Remedy::Wait => {}
        }
        spin_sdk::time::sleep(rest.saturating_sub(since.elapsed()).max(PAUSE)).await;
        sight = look(port, slug).await?;
        if became.is_shown(&sight) {
            return Ok(());
        }
    }
}

/// The answer to an instance that has nginx ask for a slug whose answer it is to forget ([`Remedy::Empty`]).
pub async fn forgets(slug: &Slug, query: &str) -> Option<Reply> {
    if !edge::looks_like_order(query) {
        return None;
    }
    let (proof, now) = (proof::of_agent().await?, clock::now());
    let bounds = bounds().await?;
    edge::is_order(&proof, slug, query, now).then(|| bounds.nothing(now))
}

async fn look(port: u16, slug: &Slug) -> Result<Sight, String> {
    let seen = ask(Method::HEAD, port, slug, "").await?;
    let text = |name| seen.headers().get(name).and_then(|value| value.to_str().ok());
    let sight = Sight::of(seen.status().as_u16(), text(HEADER), text("location"));
    sight.ok_or_else(|| format!("port {port} is not answered by the nginx of links"))
}

/// `HEAD` looks at what nginx has, `GET` makes it fetch the answer anew. `query` is empty or begins with `?`.
async fn ask(method: Method, port: u16, slug: &Slug, query: &str) -> Result<Response, String> {
    let mut error = String::new();
    for _ in 0..ATTEMPTS {
        let request = Request::builder()
            .method(method.clone())
            .uri(format!("http://127.0.0.1:{port}/{slug}{query}"))
            .body(EmptyBody::new());
        match send(request.map_err(|error| error.to_string())?).await {
            Ok(response) => return Ok(response),
            Err(failed) => error = format!("127.0.0.1:{port}: {failed:?}"),
        }
    }
    Err(error)
}
