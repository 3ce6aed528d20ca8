//! The component `links`: redirects, shortening, the health of both, and the count of clicks.
//!
//! This crate only moves values between the runtime and `links_core`, which decides. An instance serves several
//! requests at once and a panic would end them all, so no path here panics, and no borrow of shared state lives across
//! an `await`.

mod access;
mod body;
mod cache;
mod checkpoint;
mod clicks;
mod clock;
mod connection;
mod edge;
mod kv;
mod links;
mod local;
mod log;
mod outage;
mod proof;
mod random;
mod redirect;
mod respond;
mod settings;
mod shorten;
mod stats;
mod store;
mod variable;

use links_core::problem::Problem;
use links_core::reply::Reply;
use links_core::route::{self, Route};
use spin_sdk::http::{FromRequest as _, Method, Request};
use spin_sdk::wasip3::exports::http::handler::Guest;
use spin_sdk::wasip3::http::{service, types};

use crate::respond::header;
use crate::store::Store;

struct Links;

service::export!(Links);

impl Guest for Links {
    async fn handle(request: types::Request) -> Result<types::Response, types::ErrorCode> {
        let method = Method::try_from(request.get_method()).map_err(|_| types::ErrorCode::HttpRequestMethodInvalid)?;
        let reply = answer(request, &method).await.unwrap_or_else(Reply::from);
        respond::send(reply, method == Method::HEAD)
    }
}

async fn answer(request: types::Request, method: &Method) -> Result<Reply, Problem> {
    let target = request.get_path_with_query().unwrap_or_default();
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let found = match route::is_internal(path) && !proof::is_from_agent(&request).await? {
        true => Err(route::not_found()),
        false => Route::of(method.as_str(), path),
    };
    let route = match found {
        Err(nothing) if nothing.status == 404 && *method == Method::GET => return Ok(edge::keep(nothing).await),
        found => found?,
    };
    match route {
        Route::Follow(slug) => match edge::forgets(&slug, query).await {
            Some(nothing) => Ok(nothing),
            None => redirect::follow(&slug, &request, *method == Method::HEAD).await,
        },
        // nginx keeps one answer for each link, under its own path.
        Route::FollowAsSent(slug) if proof::comes_through_nginx(&request).await? => Ok(Reply::as_for(&slug)),
        Route::FollowAsSent(slug) => redirect::follow_as_sent(&slug, &request, *method == Method::HEAD).await,
        Route::Health => {
            // What is found out about the database is for all instances, where there is a cache to go on with.
            cache::bounds().await;
            Store::probing().check().await.map(|()| Reply::healthy())
        }
        Route::Preflight => {
            let request = whole(request)?;
            Ok(settings::cors().await.preflight(header(&request, "origin")))
        }
        Route::Show(slug) => links::show(&whole(request)?, &slug).await,
        Route::Change(slug) => links::change(whole(request)?, &slug).await,
        Route::Remove(slug) => links::remove(&whole(request)?, &slug).await,
        Route::Stats(slug) => stats::stats(&whole(request)?, Some(&slug)).await,
        Route::StatsOfAll => stats::stats(&whole(request)?, None).await,
        Route::TakeClicks => clicks::take(whole(request)?).await,
        Route::FindClicks => clicks::find(&whole(request)?).await,
        Route::Shorten => shorten::shorten(whole(request)?).await,
        Route::Database => Store::counting().holds().await.map(|held| held.reply()),
        Route::Engine => Store::new().engine().await.map(|engine| engine.reply()),
    }
}

/// With its headers and its body. They are fetched from the runtime one by one, which is as much work as all the rest of a
/// redirect, and most requests are for redirects: so this is not done for all of them, as the SDK's `http_service` would.
fn whole(request: types::Request) -> Result<Request, Problem> {
    Request::from_request(request).map_err(|_| Problem::new(400, "The request cannot be read."))
}
