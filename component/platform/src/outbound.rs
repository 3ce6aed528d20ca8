//! Requests that a component makes.

use crate::sdk::http::{EmptyBody, send};
pub use crate::sdk::http::{Method, Response};
use http::Request;

/// The number of attempts. A kept connection may have been closed unnoticed, as after a reload of nginx; the second attempt
/// opens a new one.
const ATTEMPTS: u32 = 2;

/// Sends a request without a body to an address that the manifest grants. It may be sent twice.
///
/// # Errors
/// The runtime's message.
pub async fn request(method: &Method, url: &str) -> Result<Response, String> {
    let mut error = String::new();
    for _ in 0..ATTEMPTS {
        let request = Request::builder().method(method.clone()).uri(url);
        let request = request.body(EmptyBody::new()).map_err(|error| error.to_string())?;
        match send(request).await {
            Ok(response) => return Ok(response),
            Err(failed) => error = format!("{failed:?}"),
        }
    }
    Err(error)
}
