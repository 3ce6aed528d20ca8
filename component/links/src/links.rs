//! `/api/v1/links/:slug`: a link as it is, its change, and its end.

use std::rc::Rc;

use links_core::change::Change;
use links_core::edge::{Became, HEADER, STALE};
use links_core::problem::Problem;
use links_core::reply::Reply;
use links_core::request::{self, Body};
use links_core::route;
use links_core::settings::Settings;
use links_core::slug::Slug;
use spin_sdk::http::Request;

use crate::respond::header;
use crate::store::Store;
use crate::{access, body, cache, clock, edge, settings, shorten};

/// Whoever has the token.
async fn admitted(request: &Request) -> Result<Rc<Settings>, Problem> {
    let settings = settings::current().await?;
    let access = access::current(settings.secrets.as_ref()).await?;
    access.check(request.headers().get("authorization").map(|value| value.as_bytes()))?;
    Ok(settings)
}

pub async fn show(request: &Request, slug: &Slug) -> Result<Reply, Problem> {
    let settings = admitted(request).await?;
    let own = shorten::own(&settings, request).await?;
    let link = Store::new().show(slug).await?.ok_or_else(route::not_found)?;
    Ok(link.reply(slug, &own))
}

pub async fn change(request: Request, slug: &Slug) -> Result<Reply, Problem> {
    let settings = admitted(&request).await?;
    Body::MergePatch.check_type(header(&request, "content-type"))?;
    request::check_length(header(&request, "content-length"), request::MAX_BODY)?;
    let own = shorten::own(&settings, &request).await?;
    let asked_at = clock::now();
    let change = Change::parse(&body::read(request, request::MAX_BODY).await?, &own, asked_at)?;
    let changed = Store::new().change(slug, &change).await?;
    let link = changed.ok_or_else(route::not_found)?;
    if cache::bounds().await.is_some() {
        cache::put(slug, &link.stored, asked_at).await;
    }
    Ok(seen(
        link.reply(slug, &own),
        edge::show(slug, Became::Changed(&link.stored)).await,
    ))
}

pub async fn remove(request: &Request, slug: &Slug) -> Result<Reply, Problem> {
    admitted(request).await?;
    let id = shorten::request_id(request).await?;
    let removed = Store::new().remove(slug, id, clock::now()).await;
    // Whatever the database says: the link may have been removed by an earlier attempt whose answer got lost, and what leads
    // on by itself would go on doing so.
    if cache::bounds().await.is_some() {
        cache::remove(slug).await;
    }
    let shown = edge::show(slug, Became::Nothing).await;
    let reply = match removed {
        Ok(true) => Reply::no_content(vec![]),
        Ok(false) => Reply::from(route::not_found()),
        Err(problem) => Reply::from(problem),
    };
    Ok(seen(reply, shown))
}

/// Tells the client where the edge may not yet know of it.
pub fn seen(reply: Reply, shown: Result<(), edge::Stale>) -> Reply {
    match shown {
        Ok(()) => reply,
        Err(edge::Stale) => reply.with_headers(vec![(HEADER, STALE.into())]),
    }
}
