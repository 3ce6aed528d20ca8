//! `/api/v1/links/:slug`.

use links_domain::change::Change;
use links_domain::slug::Slug;
use links_platform::clock;
use links_platform::request::Request;
use links_store::{Store, link_cache};
use links_web::body::{MAX_BODY, MediaType};
use links_web::links::{details, not_found};
use links_web::problem::Problem;
use links_web::reply::Reply;
use links_web::{json, purge};

use crate::authentication::{Action, authenticate};
use crate::{base_url, body, edge, request_id};

pub async fn show(request: &Request, slug: &Slug) -> Result<Reply, Problem> {
    let settings = authenticate(request, Action::Manage).await?;
    let base_url = base_url::of(request, &settings).await?;
    let link = Store::default().details(slug).await?.ok_or_else(not_found)?;
    Ok(details(slug, &link, &base_url))
}

pub async fn change(request: Request, slug: &Slug) -> Result<Reply, Problem> {
    let settings = authenticate(&request, Action::Manage).await?;
    body::check(&request, MediaType::MergePatch, MAX_BODY)?;
    let base_url = base_url::of(&request, &settings).await?;
    let asked_at = clock::now();
    let change = json::change_request(&body::read(request, MAX_BODY).await?)?;
    let change = Change::check(&change, &base_url, asked_at).map_err(Problem::unprocessable)?;
    let link = Store::default().change(slug, &change).await?.ok_or_else(not_found)?;
    if link_cache::lifetime().await.is_some() {
        link_cache::put(slug, &link.stored, asked_at).await;
    }
    let reply = details(slug, &link, &base_url);
    Ok(edge::show(reply, slug, purge::Change::Changed(&link.stored)).await)
}

pub async fn remove(request: &Request, slug: &Slug) -> Result<Reply, Problem> {
    authenticate(request, Action::Manage).await?;
    let id = request_id::of(request).await?;
    let removed = Store::default().remove(slug, id, clock::now()).await;
    // The caches are purged whatever the database answered. An earlier attempt whose answer was lost may have removed the link,
    // and then the caches would keep redirecting.
    if link_cache::lifetime().await.is_some() {
        link_cache::remove(slug).await;
    }
    let reply = match removed {
        Ok(true) => Reply::no_content(vec![]),
        Ok(false) => Reply::from(not_found()),
        Err(unavailable) => Reply::from(Problem::from(unavailable)),
    };
    Ok(edge::show(reply, slug, purge::Change::Removed).await)
}
