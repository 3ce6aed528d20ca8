//! Responses for the runtime.

use std::borrow::Cow;

use crate::sdk::wasip3::http::types::{self, ErrorCode, Fields, HeaderError};
use crate::sdk::wasip3::{wit_future, wit_stream};
use crate::sdk::wit_bindgen::spawn;

use crate::idle_task::IdleTask;
use crate::log;

pub struct Response {
    /// The status code, from 100 to 999.
    pub status: u16,
    /// The headers, with their names in lower case.
    pub headers: Vec<(&'static str, Cow<'static, str>)>,
    pub body: Vec<u8>,
}

impl Response {
    /// Converts the response for the runtime. One without a body, such as every redirect, is made without the stream that a
    /// body needs. `idle_task`, if the request has one, ends when the body has been sent.
    #[doc(hidden)]
    pub fn send(self, is_head: bool, idle_task: Option<IdleTask>) -> Result<types::Response, ErrorCode> {
        let Response { status, headers, body } = self;
        let mut fields = Vec::with_capacity(headers.len() + 1);
        fields.extend(
            headers
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value.into_owned().into_bytes())),
        );
        // Without a length the runtime would not know that a redirect has no body, and would send chunks. A 204 must not have
        // one (RFC 9110, 8.6).
        if !is_head && status != 204 {
            fields.push(("content-length".to_owned(), body.len().to_string().into_bytes()));
        }
        let (writers, contents, trailers) = if is_head || body.is_empty() {
            let (_, trailers) = wit_future::new(no_trailers);
            (None, None, trailers)
        } else {
            let (contents_writer, contents) = wit_stream::new();
            let (trailers_writer, trailers) = wit_future::new(no_trailers);
            (Some((contents_writer, trailers_writer)), Some(contents), trailers)
        };
        // Called in one place only, so that the compiler sees what becomes of the future that this returns, and leaves out what
        // else could be done with it (5 KB).
        let (response, _) = types::Response::new(from_list(&fields)?, contents, trailers);
        // The SDK's writer for bodies would bring `http::HeaderMap` into the component, for trailers.
        if let Some((mut contents_writer, trailers_writer)) = writers {
            spawn(async move {
                // Bytes are only left over if the client is gone.
                let _ = contents_writer.write_all(body).await;
                drop(contents_writer);
                drop(trailers_writer);
                drop(idle_task);
            });
        }
        // This only fails for an invalid status.
        let _ = response.set_status_code(status);
        Ok(response)
    }
}

/// What the writer of trailers writes when it is dropped.
fn no_trailers() -> Result<Option<Fields>, ErrorCode> {
    Ok(None)
}

fn from_list(fields: &[(String, Vec<u8>)]) -> Result<Fields, ErrorCode> {
    Fields::from_list(fields).map_err(|error| {
        // Not by `Debug`, which brings 4 KB for text with special characters into the component.
        let why = match &error {
            HeaderError::InvalidSyntax => "invalid syntax",
            HeaderError::Forbidden => "forbidden",
            HeaderError::Immutable => "immutable",
            HeaderError::SizeExceeded => "too long",
            HeaderError::Other(message) => message.as_deref().unwrap_or("no reason given"),
        };
        log::line("the runtime rejected a response header", why);
        ErrorCode::InternalError(None)
    })
}
