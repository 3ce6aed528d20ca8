//! The component `api`, which creates and manages links, reports statistics, and receives the agent's clicks.
//!
//! This crate only passes values between the runtime and the crates that make the decisions. Nothing here panics, because a
//! trap would end all requests of an instance.

mod authentication;
mod base_url;
mod body;
mod clicks;
mod create;
mod edge;
mod links;
mod proof;
mod request_id;
mod settings;
mod stats;
mod token;

use links_platform::database::timeouts::Timeouts;
use links_platform::request::{Method, Request};
use links_platform::response::Response;
use links_store::Store;
use links_web::links::not_found;
use links_web::problem::Problem;
use links_web::reply::Reply;
use links_web::routes::api::{Route, is_internal};

links_platform::serve!(answer);

async fn answer(request: Request, method: &Method) -> Response {
    let Reply { status, headers, body } = reply(request, method).await.unwrap_or_else(Reply::from);
    Response { status, headers, body }
}

async fn reply(request: Request, method: &Method) -> Result<Reply, Problem> {
    let target = request.path_with_query();
    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (&*target, None),
    };
    let route = match is_internal(path) && !proof::is_from_agent(&request).await? {
        true => Err(not_found()),
        false => Route::of(method.as_str(), path),
    };
    let route = match route {
        Err(problem) if problem.status == 404 && *method == Method::GET => return Ok(edge::lasting(problem).await),
        route => route?,
    };
    serve(route, request, query).await
}

async fn serve(route: Route, request: Request, query: Option<&str>) -> Result<Reply, Problem> {
    match route {
        Route::Shorten => Ok(create::shorten(request).await),
        Route::Preflight => Ok(settings::cors()
            .await
            .preflight(request.text_header("origin").as_deref())),
        Route::Show(slug) => links::show(&request, &slug).await,
        Route::Change(slug) => links::change(request, &slug).await,
        Route::Remove(slug) => links::remove(&request, &slug).await,
        Route::Stats(slug) => stats::report(&request, query, Some(&slug)).await,
        Route::StatsOfAll => stats::report(&request, query, None).await,
        Route::AddClicks => clicks::add(request, query).await,
        Route::ClickPosition => clicks::position(query).await,
        Route::DatabaseSize => Ok(Reply::json(&Store::with(Timeouts::COUNT).size().await?)),
        Route::Engine => Ok(Reply::json(&Store::default().engine().await?)),
    }
}
