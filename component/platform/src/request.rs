//! Requests from the runtime.

use std::borrow::Cow;
use std::time::Duration;

use crate::sdk::wasip3::http::types;
use crate::sdk::wasip3::wit_future;
use crate::sdk::wit_bindgen::StreamResult;

use crate::clock;

/// How many bytes of a body of unknown length are asked for at once.
const CHUNK: usize = 16 * 1024;

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

/// A request whose parts are fetched one by one. Fetching all headers would cost as much as the rest of a redirect, and the
/// SDK's types for them would add 40 KB to the component.
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

    /// The host and the port in the request's URI.
    pub fn authority(&self) -> Option<String> {
        self.0.get_authority()
    }

    /// The bytes of the first header with this name, given in lower case.
    pub fn header(&self, name: &str) -> Option<Vec<u8>> {
        self.0.get_headers().get(name).into_iter().next()
    }

    /// The first header with this name, given in lower case, if it is visible ASCII.
    pub fn text_header(&self, name: &str) -> Option<String> {
        first_text(self.0.get_headers().get(name))
    }

    /// Reads the body, and stops soon after `most` bytes.
    ///
    /// # Errors
    /// The body is larger than `most` bytes, ended early, or did not arrive within `limit`.
    pub async fn read_body(self, most: usize, limit: Duration) -> Result<Vec<u8>, BodyError> {
        let length: Option<usize> = self
            .text_header("content-length")
            .and_then(|length| length.parse().ok());
        if length.is_some_and(|length| length > most) {
            return Err(BodyError::TooLarge);
        }
        // The runtime learns the outcome when the writer is dropped.
        let (_outcome, outcome) = wit_future::new(|| Ok(()));
        let (mut stream, trailers) = types::Request::consume_body(self.0, outcome);
        let read = async {
            let mut bytes = Vec::new();
            // Asking for the end of a body of known length would suspend the task for nothing.
            while length != Some(bytes.len()) {
                bytes.reserve(length.map_or(CHUNK, |length| length.saturating_sub(bytes.len())));
                let result;
                (result, bytes) = stream.read(bytes).await;
                if !matches!(result, StreamResult::Complete(_)) {
                    trailers.await.map_err(|_| BodyError::EndedEarly)?;
                    break;
                }
                if bytes.len() > most {
                    return Err(BodyError::TooLarge);
                }
            }
            Ok(bytes)
        };
        clock::within(limit, read).await.unwrap_or(Err(BodyError::TimedOut))
    }
}

/// The first value of a header, if it is visible ASCII.
pub(crate) fn first_text(values: Vec<Vec<u8>>) -> Option<String> {
    let is_visible = |byte: &u8| matches!(byte, b'\t' | b' '..=b'~');
    let value = values.into_iter().next().filter(|value| value.iter().all(is_visible));
    String::from_utf8(value?).ok()
}

/// Why a body could not be read.
pub enum BodyError {
    TooLarge,
    EndedEarly,
    TimedOut,
}
