//! The bodies of requests and responses. Small ones are buffered, so that a slow client does not occupy a component.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::Request;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::sync::OwnedSemaphorePermit;
use wasmtime_wasi_http::{Error, WasiBody};

use super::pace::PacedBody;

/// The maximum size in bytes of a body that is buffered as a whole.
pub const MAX_BUFFERED: u64 = 64 << 10;

/// The body of a response: a component's, or one from memory.
pub enum ResponseBody {
    Component {
        body: WasiBody,
        _stream: OwnedSemaphorePermit,
        _permit: Arc<OwnedSemaphorePermit>,
    },
    Fixed(Full<Bytes>),
    /// The body of a response to HEAD, of which only the size is sent.
    Unsent(SizeHint),
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        match self.get_mut() {
            Self::Component { body, .. } => Pin::new(body).poll_frame(task),
            Self::Fixed(body) => Pin::new(body).poll_frame(task).map_err(|never| match never {}),
            Self::Unsent(_) => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Component { body, .. } => body.is_end_stream(),
            Self::Fixed(body) => body.is_end_stream(),
            Self::Unsent(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Component { body, .. } => body.size_hint(),
            Self::Fixed(body) => body.size_hint(),
            Self::Unsent(size) => *size,
        }
    }
}

/// Buffers the body of the request if it is small. `limit` is how long its client may keep the server waiting.
///
/// # Errors
/// The client is too slow, or disconnects.
pub async fn receive(request: Request<Incoming>, limit: Duration) -> Result<Request<WasiBody>, Error> {
    let (head, body) = request.into_parts();
    let body = if body.is_end_stream() {
        fixed_body(Bytes::new())
    } else if body.size_hint().upper().is_some_and(|most| most <= MAX_BUFFERED) {
        fixed_body(PacedBody::new(body, limit).collect().await?.to_bytes())
    } else {
        PacedBody::new(body, limit).boxed_unsync()
    };
    Ok(Request::from_parts(head, body))
}

fn fixed_body(bytes: Bytes) -> WasiBody {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

/// Collects a body of this size. Does not wait for anything after its last byte, such as trailers.
///
/// # Errors
/// The component fails, or its body is shorter.
pub async fn collect(mut body: WasiBody, size: u64) -> wasmtime::Result<Bytes> {
    let mut bytes = BytesMut::new();
    while (bytes.len() as u64) < size {
        match body.frame().await {
            Some(frame) => match frame?.into_data() {
                // The usual case: the body arrives in one piece.
                Ok(data) if bytes.is_empty() && data.len() as u64 == size => return Ok(data),
                Ok(data) => bytes.extend_from_slice(&data),
                Err(_) => {}
            },
            None => wasmtime::bail!("the body has {} bytes, but its content-length is {size}", bytes.len()),
        }
    }
    Ok(bytes.freeze())
}
