//! `POST /shorten`.

use links_core::access::Access;
use links_core::edge::Became;
use links_core::link::NewLink;
use links_core::origin::Origin;
use links_core::problem::Problem;
use links_core::reply::Reply;
use links_core::request::{self, Body, Shorten};
use links_core::request_id::{HEADER, RequestId};
use links_core::settings::{Settings, Shorteners};
use links_core::slug::{MAX_ATTEMPTS, Slug};
use spin_sdk::http::Request;

use crate::respond::header;
use crate::store::Store;
use crate::{access, body, cache, clock, edge, links, log, proof, random, settings};

pub async fn shorten(request: Request) -> Result<Reply, Problem> {
    let origin = header(&request, "origin").map(str::to_owned);
    let reply = create(request).await.unwrap_or_else(Reply::from);
    Ok(reply.with_headers(settings::cors().await.headers(origin.as_deref())))
}

async fn create(request: Request) -> Result<Reply, Problem> {
    let settings = &settings::current().await?;
    let access = match settings.shorteners {
        Shorteners::Everybody => Access::Open,
        Shorteners::TokenHolders => access::current(settings.secrets.as_ref()).await?,
    };
    access.check(request.headers().get("authorization").map(|value| value.as_bytes()))?;
    Body::Json.check_type(header(&request, "content-type"))?;
    request::check_length(header(&request, "content-length"), request::MAX_BODY)?;
    let own = own(settings, &request).await?;
    let id = request_id(&request).await?;
    let wish = Shorten::parse(&body::read(request, request::MAX_BODY).await?)?;
    let is_cached = cache::bounds().await.is_some();
    let now = clock::now();
    let link = NewLink::check(&wish, &own, now)?;
    if is_cached
        && let (Some(slug), Some(_)) = (&link.slug, link.max_clicks)
        && !cache::remove(slug).await
    {
        return Err(Problem::unavailable(
            "The cache of links does not answer, and may lead this slug to an earlier link without counting. Try again, or \
             leave out max_clicks.",
        ));
    }
    let slug = match &link.slug {
        Some(slug) => with_slug(slug, &link, id, now).await?,
        None => with_generated_slug(&link, id, now).await?,
    };
    let stored = link.as_stored();
    if is_cached {
        cache::put(&slug, &stored, now).await;
    }
    let reply = Reply::shortened(slug.as_str(), &own.short_url(&slug));
    Ok(links::seen(reply, edge::show(&slug, Became::New(&stored)).await))
}

/// Where the appliance is reached: where its operator says, or where the client thinks it is.
pub async fn own(settings: &Settings, request: &Request) -> Result<Origin, Problem> {
    if let Some(public) = &settings.public {
        return Ok(public.clone());
    }
    let forwarded = match proof::is_through_nginx(request.headers()).await? {
        true => ["x-forwarded-proto", "x-forwarded-host"].map(|name| header(request, name)),
        false => [None, None],
    };
    let [scheme, host] = forwarded;
    let host = host.or_else(|| header(request, "host"));
    Origin::forwarded(
        scheme,
        host.or_else(|| request.uri().authority().map(|authority| authority.as_str())),
    )
}

/// The name that nginx has given to this request, the same in each attempt at it, or a new one for a request that came without
/// nginx: then it is the same in each attempt at the database.
pub async fn request_id(request: &Request) -> Result<RequestId, Problem> {
    let headers = request.headers();
    let given = match proof::is_through_nginx(headers).await? {
        true => headers.get(HEADER).and_then(|value| RequestId::parse(value.as_bytes())),
        false => None,
    };
    given.map_or_else(new_request_id, Ok)
}

fn new_request_id() -> Result<RequestId, Problem> {
    random::request_id().map_err(|error| {
        log::line("no random numbers from the runtime", error);
        Problem::unavailable("The server cannot tell requests apart at the moment. Try again.")
    })
}

async fn with_slug(slug: &Slug, link: &NewLink, id: RequestId, now: i64) -> Result<Slug, Problem> {
    let store = Store::new();
    // Twice: the link that had the slug may be deleted between the insert and the look at it.
    for _ in 0..2 {
        if let Some(slug) = insert(&store, slug, link, id, now).await? {
            return Ok(slug);
        }
        if let Some(stored) = store.find(slug).await? {
            return link.agree_with(&stored).map(|()| slug.clone());
        }
    }
    Err(Problem::unavailable("The slug is being changed by others. Try again."))
}

async fn with_generated_slug(link: &NewLink, id: RequestId, now: i64) -> Result<Slug, Problem> {
    let store = Store::new();
    for attempt in 0..MAX_ATTEMPTS {
        let slug = random::slug(attempt).map_err(|error| {
            log::line("no random numbers from the runtime", error);
            Problem::new(500, "The server cannot make a slug. Send one of your own.")
        })?;
        if let Some(slug) = slug
            && let Some(slug) = insert(&store, &slug, link, id, now).await?
        {
            return Ok(slug);
        }
    }
    log::line("no free slug", format!("{MAX_ATTEMPTS} generated ones were taken"));
    Err(Problem::unavailable(
        "No free slug was found. Try again, or send one of your own.",
    ))
}

/// The slug under which the link is there now: the one given, or the one that an earlier attempt of nginx at this
/// request got. `None`: the slug given is taken.
async fn insert(store: &Store, slug: &Slug, link: &NewLink, id: RequestId, now: i64) -> Result<Option<Slug>, Problem> {
    match store.insert(slug, link, id, now).await? {
        Some((slug, stored)) if link.is_stored_as(&slug, &stored) => Ok(Some(slug)),
        None => Ok(None),
        // Another link has the id: an earlier attempt at this request has made it, and it was changed since.
        Some(_) => {
            let made = store.insert(slug, link, new_request_id()?, now).await?;
            Ok(made.map(|(slug, _)| slug))
        }
    }
}
