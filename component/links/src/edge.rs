//! nginx's cache in front of the instances of this machine: telling it how long to keep redirects, and making it right
//! when a link is made.

use std::cell::Cell;
use std::time::{Duration, Instant};

use futures_util::future::try_join;
use http::{Method, Request};
use links_core::edge::{self, Bounds, HEADER, Sight, rest_of_second};
use links_core::link::Stored;
use links_core::settings::Invalid;
use links_core::slug::Slug;
use spin_sdk::http::{EmptyBody, Response, send};

use crate::variable::{self, Knowledge};
use crate::{clock, log};

/// How long a change waits until nginx shows it. nginx answers in a millisecond, after half a second where somebody else
/// is just asking for the same slug; and the rest of a second has to pass where it has an older answer.
const LIMIT: Duration = Duration::from_secs(3);

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

/// Returns when whoever asks this machine's nginx for the link, which is in the database by now, is led on.
///
/// # Errors
/// That is not certain: until the ttl is over, some may be told that there is no such link.
pub async fn show(slug: &Slug, link: &Stored) -> Result<(), Stale> {
    let Some(Known { port, .. }) = known().await.ok_or(Stale)? else {
        return Ok(());
    };
    let shown = clock::within(LIMIT, replace(port, slug, link)).await;
    shown
        .unwrap_or_else(|| Err("no answer in time".to_owned()))
        .map_err(|error| {
            log::line(&format!("nginx may not know yet of the change of /{slug}"), error);
            Stale
        })
}

/// An answer that is out of date may be in nginx's cache, or on its way there from any instance and arrive after a newer
/// one. Neither is given any more once the second is over in which the change was made.
async fn replace(port: u16, slug: &Slug, link: &Stored) -> Result<(), String> {
    let rest = rest_of_second(clock::now_in_milliseconds());
    let since = Instant::now();
    let seen = ask(Method::HEAD, port, slug).await?;
    let header = seen.headers().get(HEADER).and_then(|value| value.to_str().ok());
    match Sight::of(seen.status().as_u16(), header) {
        Some(Sight::Nothing | Sight::Link) => return Ok(()),
        Some(Sight::Other) => {}
        None => return Err(format!("port {port} is not answered by the nginx of links")),
    }
    if link.limit.is_none() {
        ask(Method::GET, port, slug).await?;
    }
    spin_sdk::time::sleep(rest.saturating_sub(since.elapsed())).await;
    Ok(())
}

/// `HEAD` looks at what nginx has, `GET` makes it fetch the answer anew.
async fn ask(method: Method, port: u16, slug: &Slug) -> Result<Response, String> {
    let mut error = String::new();
    for _ in 0..ATTEMPTS {
        let request = Request::builder()
            .method(method.clone())
            .uri(format!("http://127.0.0.1:{port}/{slug}"))
            .body(EmptyBody::new());
        match send(request.map_err(|error| error.to_string())?).await {
            Ok(response) => return Ok(response),
            Err(failed) => error = format!("127.0.0.1:{port}: {failed:?}"),
        }
    }
    Err(error)
}
