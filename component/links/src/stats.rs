//! `GET /api/v1/links/:slug/stats` and `GET /api/v1/stats`.

use links_core::problem::Problem;
use links_core::reply::Reply;
use links_core::route;
use links_core::slug::Slug;
use links_core::stats::{Report, Span};
use spin_sdk::http::Request;

use crate::store::{ALL_LINKS, Store};
use crate::{access, clock, settings};

/// `None`: of all links.
pub async fn stats(request: &Request, slug: Option<&Slug>) -> Result<Reply, Problem> {
    let settings = settings::current().await?;
    // Whoever may shorten: how a link is used is the business of who has the token.
    let access = access::current(settings.secrets.as_ref()).await?;
    access.check(request.headers().get("authorization").map(|value| value.as_bytes()))?;
    let span = Span::parse(request.uri().query(), clock::now())?;
    let store = Store::new();
    let link = match slug {
        Some(slug) => store.find_id(slug).await?.ok_or_else(route::not_found)?,
        None => ALL_LINKS,
    };
    let found = store.stats(link, span).await?;
    Ok(Report::new(slug.map(Slug::as_str), span, found).reply())
}
