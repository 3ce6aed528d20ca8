//! One request: what the runtime answers itself, which component answers the rest, and how it is asked.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as Task, Poll};

use bytes::Bytes;
use http::header::{HOST, HeaderName, HeaderValue};
use http::uri::{Authority, Scheme};
use http::{Request, Response, StatusCode, Uri};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::sync::{Semaphore, oneshot};
use wasmtime::component::Accessor;
use wasmtime_wasi_http::handler::Proxy;
use wasmtime_wasi_http::p3;
use wasmtime_wasi_http::p3::bindings::http::types::ErrorCode;

use crate::context::Context;
use crate::engine::{Handler, MOST_INSTANCES};
use crate::listen::Peer;
use crate::route::{Match, Route, Router, WELL_KNOWN};
use crate::stop::Stop;
use crate::telemetry::{Requests, Span, Tracer};

/// Requests that components work on at once; further ones wait. Below the number of instances, since some are idle.
const MOST_REQUESTS: u32 = MOST_INSTANCES * 9 / 10;

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
    stop: Stop,
    /// None: requests are not traced.
    tracer: Option<Tracer>,
}

/// Where a route leads.
pub struct Target {
    pub id: String,
    handler: Arc<Handler>,
    /// The route and its prefix, as header values.
    raw: HeaderValue,
    prefix: HeaderValue,
    /// None: requests are not counted.
    requests: Option<Requests>,
}

impl Target {
    /// # Errors
    /// A route that is no header value.
    pub fn new(id: String, handler: Arc<Handler>, route: &Route, requests: Option<Requests>) -> anyhow::Result<Self> {
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
    pub fn new(router: Router<Target>, stop: Stop, tracer: Option<Tracer>) -> Self {
        Self {
            router,
            permits: Arc::new(Semaphore::new(MOST_REQUESTS as usize)),
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
        let Ok(permit) = self.permits.clone().acquire_owned().await else {
            return fixed(StatusCode::SERVICE_UNAVAILABLE, "");
        };
        let line = format!("{} {}", request.method(), request.uri().path());
        let (sender, receiver) = oneshot::channel();
        let component = target.id.clone();
        let span_there = span.clone();
        target.handler.spawn(
            None,
            Box::new(move |accessor, proxy| {
                Box::pin(async move {
                    if let Err(error) = call(accessor, proxy, request, sender, span_there).await {
                        tracing::error!("component {component}: {line}: {error:#}");
                    }
                    drop(permit);
                })
            }),
        );
        // Nobody sends when the component fails, or another request of its instance traps.
        receiver.await.unwrap_or_else(|_| {
            if let Some(span) = span {
                span.failed("the component failed");
            }
            fixed(StatusCode::INTERNAL_SERVER_ERROR, "")
        })
    }
}

/// Has the component handle the request, and stays until its answer is written: until then it may still produce it.
async fn call(
    accessor: &Accessor<Context>,
    proxy: &Proxy,
    request: Request<Incoming>,
    sender: oneshot::Sender<Response<Answer>>,
    span: Option<Span>,
) -> wasmtime::Result<()> {
    let Proxy::P3(service) = proxy;
    let first = accessor.with(|mut access| {
        let context = access.get();
        context.span = span;
        let first = context.watch.take();
        if first.is_some() {
            context.memory_on_init = context.limits.memory();
        }
        first
    });
    if let Some(watch) = first {
        accessor.spawn(watch);
    }
    let request = request.map(|body| body.map_err(|error| ErrorCode::InternalError(Some(error.to_string()))));
    let (request, outcome) = p3::Request::from_http(request);
    let response = service.handle(accessor, request).await??;
    let response = accessor.with(|store| response.into_http(store, outcome))?;
    let (done, written) = oneshot::channel();
    let response = response.map(|body| Answer::Component { body, _done: done });
    if sender.send(response).is_ok() {
        // It ends with an error by being dropped, which is what is waited for.
        let _dropped = written.await;
    }
    accessor.with(|mut access| access.get().span = None);
    Ok(())
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

/// A body: a component's, or one of our own.
pub enum Answer {
    Component {
        body: UnsyncBoxBody<Bytes, ErrorCode>,
        _done: oneshot::Sender<()>,
    },
    Fixed(Full<Bytes>),
}

fn fixed(status: StatusCode, text: &'static str) -> Response<Answer> {
    let mut response = Response::new(Answer::Fixed(Full::new(Bytes::from_static(text.as_bytes()))));
    *response.status_mut() = status;
    response
}

impl Body for Answer {
    type Data = Bytes;
    type Error = ErrorCode;

    fn poll_frame(self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<Option<Result<Frame<Bytes>, ErrorCode>>> {
        match self.get_mut() {
            Self::Component { body, .. } => Pin::new(body).poll_frame(task),
            Self::Fixed(body) => Pin::new(body).poll_frame(task).map_err(|never| match never {}),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Component { body, .. } => body.is_end_stream(),
            Self::Fixed(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Component { body, .. } => body.size_hint(),
            Self::Fixed(body) => body.size_hint(),
        }
    }
}
