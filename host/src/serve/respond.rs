//! Answers a request: by the runtime itself, or by the component that its route leads to.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as Task, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{HOST, HeaderName, HeaderValue, RETRY_AFTER};
use http::uri::{Authority, Scheme};
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use wasmtime_wasi_http::{Error, WasiBody};

use super::engine::MOST_INSTANCES;
use super::instances::{Handler, RequestData};
use super::listen::Peer;
use super::pace::PacedBody;
use super::route::{Match, Route, Router, WELL_KNOWN};
use super::stop::Stop;
use crate::telemetry::{Requests, Span, Tracer};

/// The maximum number of requests that components work on at once; the others wait. It is below the maximum number of
/// instances, because some of those are idle.
const MOST_REQUESTS: u32 = MOST_INSTANCES * 9 / 10;
/// The maximum number of responses that are streamed at once: slow readers must not use up all permits.
const MOST_STREAMS: usize = MOST_REQUESTS as usize / 2;
/// How long a request waits for a permit before it is refused with 503.
const PERMIT_TIMEOUT: Duration = Duration::from_secs(5);
/// The maximum size in bytes of a body that is buffered as a whole, so that a slow client does not occupy a component.
const MAX_BUFFERED: u64 = 64 << 10;

const PATH_INFO: HeaderName = HeaderName::from_static("spin-path-info");
const FULL_URL: HeaderName = HeaderName::from_static("spin-full-url");
const MATCHED_ROUTE: HeaderName = HeaderName::from_static("spin-matched-route");
const BASE_PATH: HeaderName = HeaderName::from_static("spin-base-path");
const RAW_COMPONENT_ROUTE: HeaderName = HeaderName::from_static("spin-raw-component-route");
const COMPONENT_ROUTE: HeaderName = HeaderName::from_static("spin-component-route");
const CLIENT_ADDR: HeaderName = HeaderName::from_static("spin-client-addr");

/// The application: its routes, its limits, and what all requests share.
pub struct App {
    router: Router<Target>,
    permits: Arc<Semaphore>,
    streams: Arc<Semaphore>,
    /// How long a client may keep the server waiting for the next part of a request.
    client_timeout: Duration,
    stop: Stop,
    /// `None` if requests are not traced.
    tracer: Option<Tracer>,
}

/// The component that a route leads to.
pub struct Target {
    pub id: String,
    handler: Handler,
    /// The route as written in spin.toml.
    raw: HeaderValue,
    /// The route without its trailing `/...`.
    prefix: HeaderValue,
    /// `None` if requests are not counted.
    requests: Option<Requests>,
}

impl Target {
    /// # Errors
    /// The route cannot be sent as a header value.
    pub fn new(id: String, handler: Handler, route: &Route, requests: Option<Requests>) -> anyhow::Result<Self> {
        let value = |text: &str| HeaderValue::from_str(text);
        Ok(Self {
            id,
            handler,
            raw: value(&route.raw)?,
            prefix: value(route.prefix())?,
            requests,
        })
    }
}

impl App {
    pub fn new(router: Router<Target>, client_timeout: Duration, stop: Stop, tracer: Option<Tracer>) -> Self {
        Self {
            router,
            permits: Arc::new(Semaphore::new(MOST_REQUESTS as usize)),
            streams: Arc::new(Semaphore::new(MOST_STREAMS)),
            client_timeout,
            stop,
            tracer,
        }
    }

    pub fn routes(&self) -> impl Iterator<Item = (&Route, &str)> {
        self.router.iter().map(|(route, target)| (route, target.id.as_str()))
    }

    /// Waits until every component is idle. No new requests may arrive. A component can still be busy with a request whose
    /// client has disconnected, or with work that it does after its response.
    pub async fn done(&self) {
        // The semaphore is never closed.
        drop(self.permits.acquire_many(MOST_REQUESTS).await);
        self.stop.done().await;
    }

    pub async fn respond(&self, request: Request<Incoming>, peer: Peer) -> Response<ResponseBody> {
        let Some(tracer) = &self.tracer else {
            return self.route(request, peer, None).await;
        };
        let span = tracer.request(&request, &peer);
        if !span.is_recording() {
            return self.route(request, peer, None).await;
        }
        let response = self.route(request, peer, Some(&span)).await;
        span.answered(response.status().as_u16());
        span.end();
        response
    }

    async fn route(&self, request: Request<Incoming>, peer: Peer, span: Option<&Span>) -> Response<ResponseBody> {
        let path = request.uri().path();
        if let Some(page) = path.strip_prefix(WELL_KNOWN) {
            return match page {
                "health" => fixed(StatusCode::OK, "OK"),
                _ => fixed(StatusCode::NOT_FOUND, ""),
            };
        }
        let path = path.to_owned();
        let Some((matched, target)) = self.router.find(&path) else {
            return fixed(StatusCode::NOT_FOUND, "");
        };
        if let Some(span) = span {
            span.matched(request.method(), &matched.route.raw);
        }
        let Some(request) = prepare(request, &matched, target, peer.address) else {
            return fixed(StatusCode::BAD_REQUEST, "The Host header is missing or invalid.\n");
        };
        if let Some(requests) = &target.requests {
            requests.count();
        }
        let Some(span) = span else {
            return self.call(request, target, None).await;
        };
        let span = span.execution(&target.id);
        let response = self.call(request, target, Some(span.clone())).await;
        span.end();
        response
    }

    async fn call(&self, request: Request<Incoming>, target: &Target, span: Option<Span>) -> Response<ResponseBody> {
        let request = match receive(request, self.client_timeout).await {
            Ok(request) => request,
            Err(Error::ConnectionReadTimeout) => return fixed(StatusCode::REQUEST_TIMEOUT, ""),
            Err(_) => return fixed(StatusCode::BAD_REQUEST, ""),
        };
        let Ok(Ok(permit)) = timeout(PERMIT_TIMEOUT, self.permits.clone().acquire_owned()).await else {
            return overloaded();
        };
        let permit = Arc::new(permit);
        let data = RequestData {
            permit: permit.clone(),
            span: span.clone(),
        };
        let (method, path) = (request.method().clone(), request.uri().path_and_query().cloned());
        let response = match target.handler.handle(data, request).await {
            Ok(response) => self.finish(response, method == Method::HEAD, permit).await,
            Err(error) => Err(error),
        };
        response.unwrap_or_else(|error| {
            let (id, path) = (&target.id, path.as_ref().map_or("/", |path| path.path()));
            tracing::error!("component {id}: {method} {path}: {error:#}");
            if let Some(span) = span {
                span.failed("the component failed");
            }
            fixed(StatusCode::INTERNAL_SERVER_ERROR, "")
        })
    }

    /// Turns a component's response into the response that is sent.
    async fn finish(
        &self,
        response: Response<WasiBody>,
        to_head: bool,
        permit: Arc<OwnedSemaphorePermit>,
    ) -> wasmtime::Result<Response<ResponseBody>> {
        let (head, body) = response.into_parts();
        let size = body.size_hint();
        let body = match size.exact() {
            // The body is not sent, but content-length may give its size.
            _ if to_head => ResponseBody::Unsent(size),
            Some(size) if size <= MAX_BUFFERED => ResponseBody::Fixed(Full::new(collect(body, size).await?)),
            _ => match timeout(PERMIT_TIMEOUT, self.streams.clone().acquire_owned()).await {
                Ok(Ok(stream)) => ResponseBody::Component {
                    body,
                    _stream: stream,
                    _permit: permit,
                },
                _ => return Ok(overloaded()),
            },
        };
        Ok(Response::from_parts(head, body))
    }
}

/// Buffers the body of the request if it is small.
async fn receive(request: Request<Incoming>, limit: Duration) -> Result<Request<WasiBody>, Error> {
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
async fn collect(mut body: WasiBody, size: u64) -> wasmtime::Result<Bytes> {
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

/// Gives the request the form that components expect: an absolute URI, and Spin's headers. `None` without a valid host.
fn prepare<B>(mut request: Request<B>, matched: &Match<'_>, target: &Target, peer: HeaderValue) -> Option<Request<B>> {
    let authority = authority(&request)?;
    let mut uri = std::mem::take(request.uri_mut()).into_parts();
    let path_and_query = uri
        .path_and_query
        .as_ref()
        .map_or("/", |path_and_query| path_and_query.as_str());
    let full_url = format!("http://{authority}{path_and_query}");
    uri.scheme = Some(Scheme::HTTP);
    uri.authority = Some(authority);
    *request.uri_mut() = Uri::from_parts(uri).ok()?;

    // These replace any headers of the same name from the client. Both a path and a header value may contain non-ASCII bytes.
    let headers = request.headers_mut();
    headers.insert(PATH_INFO, HeaderValue::from_bytes(matched.rest.as_bytes()).ok()?);
    headers.insert(FULL_URL, HeaderValue::from_bytes(full_url.as_bytes()).ok()?);
    headers.insert(MATCHED_ROUTE, target.raw.clone());
    headers.insert(BASE_PATH, HeaderValue::from_static("/"));
    headers.insert(RAW_COMPONENT_ROUTE, target.raw.clone());
    headers.insert(COMPONENT_ROUTE, target.prefix.clone());
    headers.insert(CLIENT_ADDR, peer);
    for (name, value) in &matched.parameters {
        let name = format!("spin-path-match-{}", name.to_ascii_lowercase().replace('_', "-"));
        headers.insert(
            HeaderName::from_bytes(name.as_bytes()).ok()?,
            HeaderValue::from_bytes(value.as_bytes()).ok()?,
        );
    }
    Some(request)
}

/// The requested host. `None` if the URI and the Host header contradict each other.
fn authority<B>(request: &Request<B>) -> Option<Authority> {
    let host = match request.headers().get(HOST) {
        Some(host) => Some(Authority::from_maybe_shared(host.clone()).ok()?),
        None => None,
    };
    match (host, request.uri().authority()) {
        (Some(host), None) => Some(host),
        (Some(host), Some(authority)) => (host == *authority).then_some(host),
        (None, authority) => authority.cloned(),
    }
}

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

fn fixed(status: StatusCode, text: &'static str) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::Fixed(Full::new(Bytes::from_static(text.as_bytes()))));
    *response.status_mut() = status;
    response
}

fn overloaded() -> Response<ResponseBody> {
    tracing::debug!("a request was refused: no capacity within {PERMIT_TIMEOUT:?}");
    let mut response = fixed(StatusCode::SERVICE_UNAVAILABLE, "");
    response
        .headers_mut()
        .insert(RETRY_AFTER, HeaderValue::from_static("1"));
    response
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
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
