//! The component `links`: redirects, shortening and the health of both.

use spin_sdk::http::{IntoResponse, Request, StatusCode};
use spin_sdk::http_service;

#[http_service]
async fn handle(request: Request) -> impl IntoResponse {
    match request.uri().path() {
        "/health" => (StatusCode::OK, "ok".to_string()),
        _ => (StatusCode::NOT_FOUND, String::new()),
    }
}
