//! Responses for the runtime.

use std::borrow::Cow;

use crate::sdk::http::FullBody;
use crate::sdk::wasip3::http::types::{self, ErrorCode, Fields};
use crate::sdk::wasip3::http_compat::BodyWriter;
use crate::sdk::wasip3::wit_future;
use crate::sdk::wit_bindgen::spawn;
use bytes::Bytes;

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
    /// body needs. `idle_task` ends when the body has been sent.
    #[doc(hidden)]
    pub fn send(self, is_head: bool, idle_task: IdleTask) -> Result<types::Response, ErrorCode> {
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
        let (response, _) = if is_head || body.is_empty() {
            let (_, trailers) = wit_future::new(|| Ok(None));
            types::Response::new(from_list(&fields)?, None, trailers)
        } else {
            let (writer, contents, trailers) = BodyWriter::new();
            let response = types::Response::new(from_list(&fields)?, Some(contents), trailers);
            spawn(async move {
                // Sending only fails if the client is gone.
                let _ = writer.send_http_body(&mut FullBody::new(Bytes::from(body))).await;
                drop(idle_task);
            });
            response
        };
        // This only fails for an invalid status.
        let _ = response.set_status_code(status);
        Ok(response)
    }
}

fn from_list(fields: &[(String, Vec<u8>)]) -> Result<Fields, ErrorCode> {
    Fields::from_list(fields).map_err(|error| {
        log::line("the runtime rejected a response header", format!("{error:?}"));
        ErrorCode::InternalError(None)
    })
}
