//! Requests that a component makes.

pub use crate::sdk::wasip3::http::types::Method;

use crate::sdk::wasip3::http::client;
use crate::sdk::wasip3::http::types::{self, ErrorCode, Fields, Scheme};
use crate::sdk::wasip3::wit_future;

use crate::request::first_text;

/// The number of attempts. A kept connection may have been closed unnoticed, as after a reload of nginx; the second attempt
/// opens a new one.
const ATTEMPTS: u32 = 2;

/// The status and the headers of a response.
pub struct Response(types::Response);

impl Response {
    pub fn status(&self) -> u16 {
        self.0.get_status_code()
    }

    /// The first header with this name, given in lower case, if it is visible ASCII.
    pub fn header(&self, name: &str) -> Option<String> {
        first_text(self.0.get_headers().get(name))
    }
}

/// Sends a request without a body to an HTTP server that the manifest grants. `authority` is its host and port. The request may
/// be sent twice.
///
/// # Errors
/// The runtime's message.
pub async fn request(method: &Method, authority: &str, path_with_query: &str) -> Result<Response, String> {
    let mut error = String::new();
    for _ in 0..ATTEMPTS {
        let request = without_body(method, authority, path_with_query);
        let outcome = match request {
            Ok(request) => client::send(request).await,
            Err(invalid) => Err(invalid),
        };
        match outcome {
            Ok(response) => return Ok(Response(response)),
            Err(failed) => error = text(failed),
        }
    }
    Err(error)
}

/// The cause in words. The derived `Debug` of this type is 4 KB of Wasm.
fn text(error: ErrorCode) -> String {
    let text = match error {
        ErrorCode::InternalError(Some(message)) => return message,
        ErrorCode::ConnectionRefused => "the connection was refused",
        ErrorCode::ConnectionTerminated => "the connection was closed",
        ErrorCode::ConnectionTimeout | ErrorCode::ConnectionReadTimeout | ErrorCode::HttpResponseTimeout => {
            "there was no answer in time"
        }
        ErrorCode::HttpRequestDenied => "spin.toml does not allow this address",
        _ => "the request failed",
    };
    text.to_owned()
}

fn without_body(method: &Method, authority: &str, path_with_query: &str) -> Result<types::Request, ErrorCode> {
    let (_, trailers) = wit_future::new(|| Ok(None));
    let (request, _) = types::Request::new(Fields::new(), None, trailers, None);
    let invalid = |()| ErrorCode::HttpRequestUriInvalid;
    request
        .set_method(method)
        .map_err(|()| ErrorCode::HttpRequestMethodInvalid)?;
    request.set_scheme(Some(&Scheme::Http)).map_err(invalid)?;
    request.set_authority(Some(authority)).map_err(invalid)?;
    request.set_path_with_query(Some(path_with_query)).map_err(invalid)?;
    Ok(request)
}
