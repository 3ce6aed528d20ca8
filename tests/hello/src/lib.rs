//! The smallest component that answers with a redirect. `make bench` uses it to measure the cost of the runtime itself.

#[cfg(feature = "wasi-0-3-0-rc-2026-03-15")]
extern crate spin_sdk_6 as spin_sdk;
#[cfg(not(feature = "wasi-0-3-0-rc-2026-03-15"))]
extern crate spin_sdk_7 as spin_sdk;

use http::header::LOCATION;
use http::{HeaderMap, HeaderValue, StatusCode};
use spin_sdk::http::{EmptyBody, IntoResponse, Request};
use spin_sdk::http_service;

#[http_service]
async fn handle(_: Request) -> impl IntoResponse {
    let headers = HeaderMap::from_iter([(LOCATION, HeaderValue::from_static("https://example.com/hello"))]);
    (StatusCode::FOUND, headers, EmptyBody::new())
}
