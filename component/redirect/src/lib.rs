//! The component `redirect`, which follows links and answers `/health`.
//!
//! The public reaches this component, so it has neither the admin token nor access to the network. This crate only passes
//! values between the runtime and the crates that make the decisions. Nothing here panics, because a trap would end all
//! requests of an instance.

mod edge;
mod follow;
mod proxy;

use links_domain::slug::Slug;
use links_platform::database::timeouts::Timeouts;
use links_platform::request::{Method, Request};
use links_platform::response::Response;
use links_store::{Store, link_cache};
use links_web::problem::Problem;
use links_web::reply::Reply;
use links_web::routes::redirect::Route;

use crate::follow::{Caching, follow};

links_platform::serve!(answer);

async fn answer(request: Request, method: &Method) -> Response {
    let Reply { status, headers, body } = reply(&request, method).await.unwrap_or_else(Reply::from);
    Response { status, headers, body }
}

async fn reply(request: &Request, method: &Method) -> Result<Reply, Problem> {
    let target = request.path_with_query();
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let is_head = *method == Method::HEAD;
    match Route::of(method.as_str(), path) {
        Ok(Route::Follow(slug)) => match edge::forget(&slug, query).await {
            Some(reply) => Ok(reply),
            None => follow(&slug, request, is_head, Caching::Allowed).await,
        },
        Ok(Route::FollowAsSent(slug)) => follow_as_sent(&slug, request, is_head).await,
        Ok(Route::Health) => health().await,
        Err(problem) if problem.status == 404 && *method == Method::GET => Ok(edge::lasting(problem).await),
        Err(problem) => Err(problem),
    }
}

/// Follows a link requested by a path other than its own, such as `/abc.` at the end of a sentence. nginx caches one answer for
/// each link, under the link's own path, so the reply makes nginx redirect there internally.
async fn follow_as_sent(slug: &Slug, request: &Request, is_head: bool) -> Result<Reply, Problem> {
    match proxy::is_sender(request).await? {
        true => Ok(Reply::internal_redirect(slug)),
        false => follow(slug, request, is_head, Caching::Forbidden).await,
    }
}

async fn health() -> Result<Reply, Problem> {
    // Reading the variables first matters: with a link cache, the instances share the state of the database's circuit breaker.
    link_cache::lifetime().await;
    let outcome = Store::with(Timeouts::PROBE).check().await;
    outcome
        .map(|()| Reply::healthy())
        .map_err(|cause| Problem::unavailable(format!("The database does not answer: {cause}.")))
}
