//! `POST /shorten`.

use links_domain::link::NewLink;
use links_domain::request_id::RequestId;
use links_domain::slug::{MAX_ATTEMPTS, Slug};
use links_platform::request::Request;
use links_platform::{clock, log, random};
use links_store::{Store, link_cache};
use links_web::body::{MAX_BODY, MediaType};
use links_web::problem::Problem;
use links_web::purge::Change;
use links_web::reply::Reply;
use links_web::{json, links};

use crate::authentication::{Action, authenticate};
use crate::{base_url, body, edge, request_id, settings};

pub async fn shorten(request: Request) -> Reply {
    let origin = request.text_header("origin");
    let reply = create(request).await.unwrap_or_else(Reply::from);
    reply.with_headers(settings::cors().await.headers(origin.as_deref()))
}

async fn create(request: Request) -> Result<Reply, Problem> {
    let settings = authenticate(&request, Action::Create).await?;
    body::check(&request, MediaType::Json, MAX_BODY)?;
    let base_url = base_url::of(&request, &settings).await?;
    let id = request_id::of(&request).await?;
    let link = json::link_request(&body::read(request, MAX_BODY).await?)?;
    let is_cached = link_cache::lifetime().await.is_some();
    let now = clock::now();
    let link = NewLink::check(&link, &base_url, now).map_err(Problem::unprocessable)?;
    if is_cached
        && let (Some(slug), Some(_)) = (&link.slug, link.max_clicks)
        && !link_cache::remove(slug).await
    {
        return Err(Problem::unavailable(
            "The link cache does not answer, and may still redirect this slug as an earlier link did, without counting. Try \
             again, or leave out max_clicks.",
        ));
    }
    let slug = match &link.slug {
        Some(slug) => with_slug(slug, &link, id, now).await?,
        None => with_generated_slug(&link, id, now).await?,
    };
    let stored = link.as_stored();
    if is_cached {
        link_cache::put(&slug, &stored, now).await;
    }
    let reply = links::created(&slug, &base_url);
    Ok(edge::show(reply, &slug, Change::Created(&stored)).await)
}

async fn with_slug(slug: &Slug, link: &NewLink, id: RequestId, now: i64) -> Result<Slug, Problem> {
    let store = Store::default();
    // Two attempts, because the link that has the slug may be deleted between the insert and the lookup.
    for _ in 0..2 {
        if let Some(slug) = insert(&store, slug, link, id, now).await? {
            return Ok(slug);
        }
        if let Some(existing) = store.details(slug).await? {
            link.agree_with(&existing).map_err(Problem::conflict)?;
            return Ok(slug.clone());
        }
    }
    Err(Problem::unavailable(
        "Other requests are changing this slug at the moment. Try again.",
    ))
}

async fn with_generated_slug(link: &NewLink, id: RequestId, now: i64) -> Result<Slug, Problem> {
    let store = Store::default();
    for attempt in 0..MAX_ATTEMPTS {
        let slug = random::with_generator(|generator| Slug::generate(generator, attempt));
        let slug = slug.ok_or_else(|| Problem::new(500, "The server cannot generate a slug. Send your own slug."))?;
        if let Some(slug) = slug
            && let Some(slug) = insert(&store, &slug, link, id, now).await?
        {
            return Ok(slug);
        }
    }
    log::line("no free slug", format!("{MAX_ATTEMPTS} generated slugs were taken"));
    Err(Problem::unavailable(
        "No free slug was found. Try again, or send your own slug.",
    ))
}

/// Inserts the link and returns its slug: the given one, or the one that nginx's earlier attempt at this request got. Returns
/// `None` if the slug is taken.
async fn insert(store: &Store, slug: &Slug, link: &NewLink, id: RequestId, now: i64) -> Result<Option<Slug>, Problem> {
    match store.insert(slug, link, id, now).await? {
        Some((slug, existing)) if link.is_stored_as(&slug, &existing) => Ok(Some(slug)),
        None => Ok(None),
        // An earlier attempt at this request created the link, and the link has been changed since.
        Some(_) => {
            let inserted = store.insert(slug, link, request_id::new()?, now).await?;
            Ok(inserted.map(|(slug, _)| slug))
        }
    }
}
