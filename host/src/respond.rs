//! One request: what the runtime answers itself, which component answers the rest, and how it is asked.

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

use crate::engine::{Handler, MOST_INSTANCES, Turn};
use crate::listen::Peer;
use crate::pace::PacedBody;
use crate::route::{Match, Route, Router, WELL_KNOWN};
use crate::stop::Stop;
use crate::telemetry::{Requests, Span, Tracer};

/// Requests that components work on at once; further ones wait. Below the number of instances, since some are idle.
const MOST_REQUESTS: u32 = MOST_INSTANCES * 9 / 10;
/// Responses that are streamed at once: clients that read slowly must leave room for other requests.
const MOST_STREAMS: usize = MOST_REQUESTS as usize / 2;
/// How long a request waits for its turn before it is refused with 503.
const TURN_TIMEOUT: Duration = Duration::from_secs(5);
/// A body of at most so many bytes is held in memory as a whole, so that a client who sends or reads slowly holds up no
/// component.
const SMALL: u64 = 64 << 10;

const PATH_INFO: HeaderName = HeaderName::from_static("spin-path-info");
const FULL_URL: HeaderName = HeaderName::from_static("spin-full-url");
const MATCHED_ROUTE: HeaderName = HeaderName::from_static("spin-matched-route");
const BASE_PATH: HeaderName = HeaderName::from_static("spin-base-path");
const RAW_COMPONENT_ROUTE: HeaderName = HeaderName::from_static("spin-raw-component-route");
const COMPONENT_ROUTE: HeaderName = HeaderName::from_static("spin-component-route");
const CLIENT_ADDR: HeaderName = HeaderName::from_static("spin-client-addr");

/// All that requests need.
pub struct App {
    router: Router<Target>,
    permits: Arc<Semaphore>,
    streams: Arc<Semaphore>,
    /// How long a client may take to send a part of its request.
    client_timeout: Duration,
    stop: Stop,
    /// None: requests are not traced.
    tracer: Option<Tracer>,
}

/// Where a route leads.
pub struct Target {
    pub id: String,
    handler: Handler,
    /// The route and its prefix, as header values.
    raw: HeaderValue,
    prefix: HeaderValue,
    /// None: requests are not counted.
    requests: Option<Requests>,
}

impl Target {
    /// # Errors
    /// A route that is no header value.
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

    /// Waits, when no request comes any more, until no component works: on a request whose client has gone, or on
    /// something that it does after its last answer.
    pub async fn done(&self) {
        // The semaphore is never closed.
        drop(self.permits.acquire_many(MOST_REQUESTS).await);
        self.stop.done().await;
    }

    /// Answers a request.
    pub async fn respond(&self, request: Request<Incoming>, peer: Peer) -> Response<Answer> {
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

    async fn route(&self, request: Request<Incoming>, peer: Peer, span: Option<&Span>) -> Response<Answer> {
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
            return fixed(StatusCode::BAD_REQUEST, "The Host header is missing or is no host.\n");
        };
        if let Some(requests) = &target.requests {
            requests.count();
        }
        let Some(span) = span else {
            return self.ask(request, target, None).await;
        };
        let span = span.execution(&target.id);
        let response = self.ask(request, target, Some(span.clone())).await;
        span.end();
        response
    }

    async fn ask(&self, request: Request<Incoming>, target: &Target, span: Option<Span>) -> Response<Answer> {
        let request = match received(request, self.client_timeout).await {
            Ok(request) => request,
            Err(Error::ConnectionReadTimeout) => return fixed(StatusCode::REQUEST_TIMEOUT, ""),
            Err(_) => return fixed(StatusCode::BAD_REQUEST, ""),
        };
        let Ok(Ok(permit)) = timeout(TURN_TIMEOUT, self.permits.clone().acquire_owned()).await else {
            return overloaded();
        };
        let permit = Arc::new(permit);
        let turn = Turn {
            permit: permit.clone(),
            span: span.clone(),
        };
        let (method, path) = (request.method().clone(), request.uri().path_and_query().cloned());
        let response = match target.handler.handle(turn, request).await {
            Ok(response) => self.answer(response, method == Method::HEAD, permit).await,
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

    /// What is sent of a component's response.
    async fn answer(
        &self,
        response: Response<WasiBody>,
        to_head: bool,
        permit: Arc<OwnedSemaphorePermit>,
    ) -> wasmtime::Result<Response<Answer>> {
        let (head, body) = response.into_parts();
        let size = body.size_hint();
        let body = match size.exact() {
            // It is not sent; only its size may be told.
            _ if to_head => Answer::Unsent(size),
            Some(size) if size <= SMALL => Answer::Fixed(Full::new(whole(body, size).await?)),
            _ => match timeout(TURN_TIMEOUT, self.streams.clone().acquire_owned()).await {
                Ok(Ok(stream)) => Answer::Component {
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

/// The request, with all of its body if that is small.
async fn received(request: Request<Incoming>, limit: Duration) -> Result<Request<WasiBody>, Error> {
    let (head, body) = request.into_parts();
    let body = if body.is_end_stream() {
        fixed_body(Bytes::new())
    } else if body.size_hint().upper().is_some_and(|most| most <= SMALL) {
        fixed_body(PacedBody::new(body, limit).collect().await?.to_bytes())
    } else {
        PacedBody::new(body, limit).boxed_unsync()
    };
    Ok(Request::from_parts(head, body))
}

fn fixed_body(bytes: Bytes) -> WasiBody {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

/// A body of this size. What follows the last of its bytes, which may be trailers, is not waited for.
async fn whole(mut body: WasiBody, size: u64) -> wasmtime::Result<Bytes> {
    let mut bytes = BytesMut::new();
    while (bytes.len() as u64) < size {
        match body.frame().await {
            Some(frame) => match frame?.into_data() {
                // As a rule it comes in one piece.
                Ok(data) if bytes.is_empty() && data.len() as u64 == size => return Ok(data),
                Ok(data) => bytes.extend_from_slice(&data),
                Err(_) => {}
            },
            None => wasmtime::bail!("the body has {} bytes, its content-length is {size}", bytes.len()),
        }
    }
    Ok(bytes.freeze())
}

/// The request as a component expects it: an absolute URI, and what Spin tells in headers. None without a usable Host.
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

    // They replace what the client may have sent under these names. A path may hold bytes beyond ASCII; so may a header.
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

/// The host that is asked for; none where the URI and the Host header differ.
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

/// The body of a response: a component's, or one of our own.
pub enum Answer {
    Component {
        body: WasiBody,
        _stream: OwnedSemaphorePermit,
        _permit: Arc<OwnedSemaphorePermit>,
    },
    Fixed(Full<Bytes>),
    /// The response to a HEAD request. Only the size counts, which a GET would have.
    Unsent(SizeHint),
}

fn fixed(status: StatusCode, text: &'static str) -> Response<Answer> {
    let mut response = Response::new(Answer::Fixed(Full::new(Bytes::from_static(text.as_bytes()))));
    *response.status_mut() = status;
    response
}

fn overloaded() -> Response<Answer> {
    tracing::debug!("a request was refused: no turn within {TURN_TIMEOUT:?}");
    let mut response = fixed(StatusCode::SERVICE_UNAVAILABLE, "");
    response
        .headers_mut()
        .insert(RETRY_AFTER, HeaderValue::from_static("1"));
    response
}

impl Body for Answer {
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
