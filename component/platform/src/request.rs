//! Requests from the runtime.

use std::borrow::Cow;
use std::time::Duration;

use crate::sdk::http::FromRequest as _;
pub use crate::sdk::http::HeaderMap;
use crate::sdk::wasip3::http::types;
use http_body_util::BodyExt as _;

use crate::clock;

/// The method of a request. `http::Method` would check it again, and bring its tables for that into the component.
#[derive(PartialEq, Eq)]
pub struct Method(Cow<'static, str>);

impl Method {
    pub const GET: Method = Method(Cow::Borrowed("GET"));
    pub const HEAD: Method = Method(Cow::Borrowed("HEAD"));

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A request whose headers and body have all been fetched from the runtime.
pub type FetchedRequest = crate::sdk::http::Request;

/// A request whose parts are fetched one by one. Fetching all headers would cost as much as the rest of a redirect.
pub struct Request(types::Request);

impl Request {
    #[doc(hidden)]
    pub fn new(request: types::Request) -> Request {
        Request(request)
    }

    #[doc(hidden)]
    pub fn method(&self) -> Method {
        Method(match self.0.get_method() {
            types::Method::Get => "GET".into(),
            types::Method::Head => "HEAD".into(),
            types::Method::Post => "POST".into(),
            types::Method::Put => "PUT".into(),
            types::Method::Delete => "DELETE".into(),
            types::Method::Connect => "CONNECT".into(),
            types::Method::Options => "OPTIONS".into(),
            types::Method::Trace => "TRACE".into(),
            types::Method::Patch => "PATCH".into(),
            types::Method::Other(name) => name.into(),
        })
    }

    pub fn path_with_query(&self) -> String {
        self.0.get_path_with_query().unwrap_or_default()
    }

    /// The bytes of the first header with this name, given in lower case.
    pub fn header(&self, name: &str) -> Option<Vec<u8>> {
        self.0.get_headers().get(name).into_iter().next()
    }

    /// Fetches the whole request. `None` if it is invalid.
    pub fn fetch(self) -> Option<FetchedRequest> {
        FetchedRequest::from_request(self.0).ok()
    }
}

/// The first header with this name, if it is visible ASCII.
pub fn header<'a>(request: &'a FetchedRequest, name: &str) -> Option<&'a str> {
    request.headers().get(name).and_then(|value| value.to_str().ok())
}

/// Why a body could not be read.
pub enum BodyError {
    TooLarge,
    EndedEarly,
    TimedOut,
}

/// Reads the body. No more than `most` bytes of it are ever held.
///
/// # Errors
/// The body is larger than `most` bytes, ended early, or did not arrive within `limit`.
pub async fn read_body(request: FetchedRequest, most: usize, limit: Duration) -> Result<Vec<u8>, BodyError> {
    let length: Option<usize> = header(&request, "content-length").and_then(|length| length.parse().ok());
    let mut body = request.into_body();
    let read = async {
        let mut bytes = Vec::new();
        // Asking for the end of a body of known length would suspend the task for nothing.
        while length != Some(bytes.len())
            && let Some(frame) = body.frame().await
        {
            let frame = frame.map_err(|_| BodyError::EndedEarly)?;
            let data = frame.into_data().unwrap_or_default();
            if bytes.len() + data.len() > most {
                return Err(BodyError::TooLarge);
            }
            bytes.extend_from_slice(&data);
        }
        Ok(bytes)
    };
    clock::within(limit, read).await.unwrap_or(Err(BodyError::TimedOut))
}
