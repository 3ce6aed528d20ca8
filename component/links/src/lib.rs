//! The component `links`: redirects, shortening, the health of both, and the count of clicks.
//!
//! This crate only moves values between the runtime and `links_core`, which decides. An instance serves several
//! requests at once and a panic would end them all, so no path here panics, and no borrow of shared state lives across
//! an `await`.

mod access;
mod body;
mod cache;
mod clicks;
mod clock;
mod edge;
mod kv;
mod links;
mod local;
mod log;
mod outage;
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
use links_core::route::Route;
use spin_sdk::http::{Method, Request};
use spin_sdk::http_service;
use spin_sdk::wasip3::http::types;

use crate::redirect::Purpose;
use crate::respond::header;
use crate::store::Store;

#[http_service]
async fn handle(request: Request) -> Result<types::Response, types::ErrorCode> {
    let without_body = request.method() == Method::HEAD;
    let reply = answer(request).await.unwrap_or_else(Reply::from);
    respond::send(reply, without_body)
}

async fn answer(request: Request) -> Result<Reply, Problem> {
    match Route::of(request.method().as_str(), request.uri().path())? {
        Route::Follow(slug) if request.method() == Method::HEAD => redirect::follow(&slug, Purpose::Look).await,
        Route::Follow(slug) => redirect::follow(&slug, Purpose::Follow).await,
        Route::Health => {
            // What is found out about the database is for all instances, where there is a cache to go on with.
            cache::bounds().await;
            Store::probing().check().await.map(|()| Reply::healthy())
        }
        Route::Preflight => Ok(settings::current().await?.cors.preflight(header(&request, "origin"))),
        Route::Show(slug) => links::show(&request, &slug).await,
        Route::Change(slug) => links::change(request, &slug).await,
        Route::Remove(slug) => links::remove(&request, &slug).await,
        Route::Stats(slug) => stats::stats(&request, Some(&slug)).await,
        Route::StatsOfAll => stats::stats(&request, None).await,
        Route::TakeClicks => clicks::take(request).await,
        Route::FindClicks => clicks::find(&request).await,
        Route::Shorten => shorten::shorten(request).await,
        Route::Database => Store::counting().holds().await.map(|held| held.reply()),
    }
}
