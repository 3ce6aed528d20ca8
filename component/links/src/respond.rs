//! Between HTTP as the runtime has it and the values of `links_core`.

use bytes::Bytes;
use links_core::reply::Reply;
use spin_sdk::http::{FullBody, Request};
use spin_sdk::wasip3::http::types::{self, ErrorCode, Fields, Response};
use spin_sdk::wasip3::http_compat::BodyWriter;
use spin_sdk::wasip3::wit_future;
use spin_sdk::wit_bindgen::spawn;

use crate::log;

/// The first value of a header, if it is visible ASCII.
pub fn header<'a>(request: &'a Request, name: &str) -> Option<&'a str> {
    request.headers().get(name).and_then(|value| value.to_str().ok())
}

/// The same of a request whose headers were not fetched, whatever its bytes.
pub fn raw_header(request: &types::Request, name: &str) -> Option<Vec<u8>> {
    request.get_headers().get(name).into_iter().next()
}

/// Makes the response. One without a body, such as every redirect, is made without the stream that a body needs.
pub fn send(reply: Reply, without_body: bool) -> Result<Response, ErrorCode> {
    let Reply { status, headers, body } = reply;
    let mut fields: Vec<_> = headers
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value.into_owned().into_bytes()))
        .collect();
    // Without it the host would not know that a redirect has no body, and send chunks; 204 never has one (RFC 9110, 8.6).
    if !without_body && status != 204 {
        fields.push(("content-length".to_owned(), body.len().to_string().into_bytes()));
    }
    let (response, _) = if without_body || body.is_empty() {
        let (_, trailers) = wit_future::new(|| Ok(None));
        Response::new(from_list(&fields)?, None, trailers)
    } else {
        let (writer, contents, trailers) = BodyWriter::new();
        let response = Response::new(from_list(&fields)?, Some(contents), trailers);
        spawn(async move {
            // A client that has gone does not want the rest.
            let _ = writer.send_http_body(&mut FullBody::new(Bytes::from(body))).await;
        });
        response
    };
    // Every status of `links_core` is a valid one.
    let _ = response.set_status_code(status);
    Ok(response)
}

fn from_list(fields: &[(String, Vec<u8>)]) -> Result<Fields, ErrorCode> {
    Fields::from_list(fields).map_err(|error| {
        log::line("the runtime refuses a header of a response", format!("{error:?}"));
        ErrorCode::InternalError(None)
    })
}
