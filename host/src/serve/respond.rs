//! Answers a request: by the runtime itself, or by the component that its route leads to.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{HeaderValue, RETRY_AFTER};
use http::uri::PathAndQuery;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::{Body as _, Incoming};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use wasmtime_wasi_http::{Error, WasiBody};

use super::body::{MAX_BUFFERED, ResponseBody, collect, receive};
use super::instances::{Handler, RequestData};
use super::listen::Peer;
use super::request::{RouteHeaders, prepare};
use super::route::{Route, Router, WELL_KNOWN};
use super::stop::Stop;
use crate::telemetry::{Requests, Span, Tracer};

/// The maximum number of requests that components work on at once; the others wait. It is below the maximum number of
/// instances, because some of those are idle.
fn most_requests(max_instances: u32) -> u32 {
    max_instances * 9 / 10
}

/// How long a request waits for a permit before it is refused with 503.
const PERMIT_TIMEOUT: Duration = Duration::from_secs(5);

/// The application: its routes, its limits, and what all requests share.
pub struct App {
    router: Router<Target>,
    most_requests: u32,
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
    route: RouteHeaders,
    /// `None` if requests are not counted.
    requests: Option<Requests>,
}

impl Target {
    /// # Errors
    /// The route cannot be sent as a header value.
    pub fn new(id: String, handler: Handler, route: &Route, requests: Option<Requests>) -> anyhow::Result<Self> {
        Ok(Self {
            id,
            handler,
            route: RouteHeaders::new(route)?,
            requests,
        })
    }
}

impl App {
    /// `max_instances` is how many instances of its components can exist at once.
    pub fn new(
        router: Router<Target>,
        max_instances: u32,
        client_timeout: Duration,
        stop: Stop,
        tracer: Option<Tracer>,
    ) -> Self {
        let most_requests = most_requests(max_instances);
        Self {
            router,
            most_requests,
            permits: Arc::new(Semaphore::new(most_requests as usize)),
            // Slow readers, to whom a response is streamed, must not use up all permits.
            streams: Arc::new(Semaphore::new(most_requests as usize / 2)),
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
        drop(self.permits.acquire_many(self.most_requests).await);
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
        // This clone shares the memory of the request, and outlives its URI.
        let path = request.uri().path_and_query().cloned();
        let path = path.as_ref().map_or("", PathAndQuery::path);
        if let Some(page) = path.strip_prefix(WELL_KNOWN) {
            return match page {
                "health" => fixed(StatusCode::OK, "OK"),
                _ => fixed(StatusCode::NOT_FOUND, ""),
            };
        }
        let Some((matched, target)) = self.router.find(path) else {
            return fixed(StatusCode::NOT_FOUND, "");
        };
        if let Some(span) = span {
            span.matched(request.method(), &matched.route.raw);
        }
        let Some(request) = prepare(request, &matched, &target.route, peer.address) else {
            return fixed(StatusCode::BAD_REQUEST, "The Host header is missing or invalid.\n");
        };
        if let Some(requests) = &target.requests {
            requests.count();
        }
        let Some(span) = span else {
            return self.call(request, target, path, None).await;
        };
        let span = span.execution(&target.id);
        let response = self.call(request, target, path, Some(span.clone())).await;
        span.end();
        response
    }

    async fn call(
        &self,
        request: Request<Incoming>,
        target: &Target,
        path: &str,
        span: Option<Span>,
    ) -> Response<ResponseBody> {
        let request = match receive(request, self.client_timeout).await {
            Ok(request) => request,
            Err(Error::ConnectionReadTimeout) => return fixed(StatusCode::REQUEST_TIMEOUT, ""),
            Err(_) => return fixed(StatusCode::BAD_REQUEST, ""),
        };
        let Some(permit) = acquire(&self.permits).await else {
            return overloaded();
        };
        let permit = Arc::new(permit);
        let data = RequestData {
            permit: permit.clone(),
            span: span.clone(),
        };
        let method = request.method().clone();
        let response = match target.handler.handle(data, request).await {
            Ok(response) => self.finish(response, method == Method::HEAD, permit).await,
            Err(error) => Err(error),
        };
        response.unwrap_or_else(|error| {
            tracing::error!("component {}: {method} {path}: {error:#}", target.id);
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
            _ => match acquire(&self.streams).await {
                Some(stream) => ResponseBody::Component {
                    body,
                    _stream: stream,
                    _permit: permit,
                },
                None => return Ok(overloaded()),
            },
        };
        Ok(Response::from_parts(head, body))
    }
}

/// A permit; `None` if there is none in time.
async fn acquire(permits: &Arc<Semaphore>) -> Option<OwnedSemaphorePermit> {
    // Usually there is one, and no timer is needed.
    if let Ok(permit) = permits.clone().try_acquire_owned() {
        return Some(permit);
    }
    let permit = timeout(PERMIT_TIMEOUT, permits.clone().acquire_owned()).await;
    permit.ok()?.ok()
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
