//! `GET /api/v1/links/:slug/stats` and `GET /api/v1/stats`.

use links_domain::slug::Slug;
use links_domain::stats::Report;
use links_platform::clock;
use links_platform::request::Request;
use links_store::{ALL_LINKS, Store};
use links_web::links::not_found;
use links_web::problem::Problem;
use links_web::queries;
use links_web::reply::Reply;

use crate::authentication::{Action, authenticate};

/// Reports the statistics of one link, or of all links together for `None`.
pub async fn report(request: &Request, query: Option<&str>, slug: Option<&Slug>) -> Result<Reply, Problem> {
    authenticate(request, Action::Manage).await?;
    let span = queries::span(query, clock::now())?;
    let store = Store::default();
    let link = match slug {
        Some(slug) => store.find_id(slug).await?.ok_or_else(not_found)?,
        None => ALL_LINKS,
    };
    let found = store.stats(link, span).await?;
    Ok(Reply::json(&Report::new(slug.map(Slug::as_str), span, found)))
}
