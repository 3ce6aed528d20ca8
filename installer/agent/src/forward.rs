//! Forwards the instances' metrics to the operator's collector. Instances never wait for the collector: if the queue is full,
//! the oldest exports are dropped and counted.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, TE};
use hyper::{Request, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::{self, Client};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use links_base::log;
use links_config::links::Protocol;
use links_config::telemetry::{Target, headers};

/// The maximum number of queued exports. 16 instances that send every 10 s fill the queue in ten minutes.
const MAX_QUEUED: usize = 1000;
/// The maximum total size of queued exports.
const MAX_QUEUED_BYTES: usize = 16 << 20;
/// How long the collector has to respond.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The pause after a failure. It doubles with each further failure in a row.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const MAX_PAUSE: Duration = Duration::from_secs(30);
/// The maximum size of a response body that is read.
const MAX_RESPONSE: usize = 64 << 10;
/// The full name of the gRPC method (OTLP specification, "OTLP/gRPC Request").
const GRPC_PATH: &str = "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export";

/// One message from an instance.
#[derive(Clone, Debug)]
struct Export {
    instance: u16,
    message: Bytes,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub forwarded: u64,
    /// Exports that were dropped because the queue was full.
    pub full: u64,
    /// Exports that the collector refused for good.
    pub refused: u64,
    /// Exports that are in the queue now.
    pub queued: u64,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Export>,
    bytes: usize,
    /// The collector that each instance was started with, by instance.
    targets: BTreeMap<u16, Target>,
    counts: Counts,
}

/// The exports that wait to be forwarded.
#[derive(Debug, Default)]
pub struct Queue {
    state: Mutex<State>,
    filled: Notify,
}

impl Queue {
    fn state(&self) -> MutexGuard<'_, State> {
        // No panic leaves this state half updated.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a message without waiting. An instance without a target has no collector, so its message is neither kept nor
    /// counted.
    pub fn push(&self, instance: u16, message: Bytes, target: Option<Target>) {
        let mut state = self.state();
        let Some(target) = target else {
            state.targets.remove(&instance);
            return;
        };
        state.targets.insert(instance, target);
        state.bytes += message.len();
        state.waiting.push_back(Export { instance, message });
        while state.waiting.len() > MAX_QUEUED || state.bytes > MAX_QUEUED_BYTES {
            let Some(dropped) = state.waiting.pop_front() else {
                break;
            };
            state.bytes -= dropped.message.len();
            state.counts.full += 1;
        }
        drop(state);
        self.filled.notify_one();
    }

    pub fn counts(&self) -> Counts {
        let state = self.state();
        Counts {
            queued: state.waiting.len() as u64,
            ..state.counts
        }
    }

    async fn next(&self) -> Export {
        loop {
            // A push between the check and the wait leaves a permit behind, so it is not missed.
            let filled = self.filled.notified();
            {
                let mut state = self.state();
                if let Some(export) = state.waiting.pop_front() {
                    state.bytes -= export.message.len();
                    return export;
                }
            }
            filled.await;
        }
    }

    fn target(&self, instance: u16) -> Option<Target> {
        self.state().targets.get(&instance).cloned()
    }

    fn count(&self, change: impl FnOnce(&mut Counts)) {
        change(&mut self.state().counts);
    }
}

/// Why an export was not accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Failure {
    /// A retry may succeed.
    Retry(String),
    /// The collector will never accept this export.
    Final(String),
}

/// Sends queued exports one after the other, until the future is dropped.
pub async fn forward(queue: &Queue) {
    let mut clients = Clients::new();
    // The last failure that was logged.
    let mut logged = None;
    loop {
        let export = queue.next().await;
        let mut pause = FIRST_PAUSE;
        // The target may change between two attempts.
        while let Some(target) = queue.target(export.instance) {
            let sent = timeout(TIMEOUT, clients.send(&target, export.message.clone())).await;
            let failure = match sent.unwrap_or_else(|_| Err(Failure::Retry(format!("no answer within {TIMEOUT:?}")))) {
                Ok(()) => {
                    if logged.take().is_some() {
                        log::notice!("the collector {} takes metrics again", target.url);
                    }
                    queue.count(|counts| counts.forwarded += 1);
                    break;
                }
                Err(failure) => failure,
            };
            if logged.as_ref() != Some(&failure) {
                let (Failure::Retry(why) | Failure::Final(why)) = &failure;
                log::error!("the collector {} does not take metrics: {why}", target.url);
                logged = Some(failure.clone());
            }
            if matches!(failure, Failure::Final(_)) {
                queue.count(|counts| counts.refused += 1);
                break;
            }
            sleep(pause).await;
            pause = MAX_PAUSE.min(pause * 2);
            clients.tls = None;
        }
    }
}

type Body = Full<Bytes>;

struct Clients {
    plain: Client<HttpConnector, Body>,
    plain_grpc: Client<HttpConnector, Body>,
    /// The HTTP and the gRPC client for TLS. They are created for the first export that needs them and discarded after a
    /// failure, because the host's certificate authorities may have changed by then.
    tls: Option<[Client<HttpsConnector<HttpConnector>, Body>; 2]>,
}

fn builder(grpc: bool) -> legacy::Builder {
    let mut builder = Client::builder(TokioExecutor::new());
    builder.pool_timer(TokioTimer::new()).timer(TokioTimer::new());
    builder.http2_only(grpc);
    builder
}

/// Clients that trust the host's certificate authorities.
fn tls() -> Result<[Client<HttpsConnector<HttpConnector>, Body>; 2], Failure> {
    let roots = HttpsConnectorBuilder::new()
        .with_provider_and_native_roots(rustls::crypto::ring::default_provider())
        .map_err(|error| Failure::Retry(format!("the host's CA certificates (package ca-certificates): {error}")))?;
    // The handshake (ALPN) chooses between the two.
    let connector = roots.https_only().enable_http1().enable_http2().build();
    Ok([false, true].map(|grpc| builder(grpc).build(connector.clone())))
}

impl Clients {
    fn new() -> Self {
        Self {
            plain: builder(false).build_http(),
            plain_grpc: builder(true).build_http(),
            tls: None,
        }
    }

    async fn send(&mut self, target: &Target, message: Bytes) -> Result<(), Failure> {
        let request = request(target, message)?;
        let grpc = target.protocol == Protocol::Grpc;
        let response = match (request.uri().scheme_str(), grpc) {
            (Some("https"), _) => {
                let [http, with_grpc] = match &mut self.tls {
                    Some(clients) => clients,
                    none => none.insert(tls()?),
                };
                if grpc { with_grpc } else { http }.request(request)
            }
            (_, true) => self.plain_grpc.request(request),
            (_, false) => self.plain.request(request),
        };
        let response = response.await.map_err(|error| Failure::Retry(chain(&error)))?;
        let (head, body) = response.into_parts();
        // Reads the whole body so that the connection can be reused.
        let body = Limited::new(body, MAX_RESPONSE).collect().await;
        if !grpc || !head.status.is_success() {
            return check_http(head.status.as_u16());
        }
        let body = body.map_err(|error| Failure::Retry(error.to_string()))?;
        check_grpc(body.trailers().unwrap_or(&head.headers))
    }
}

fn request(target: &Target, message: Bytes) -> Result<Request<Body>, Failure> {
    let invalid = |error: &dyn std::fmt::Display| Failure::Final(error.to_string());
    let (uri, content_type, body) = match target.protocol {
        Protocol::Http => (target.url.clone(), "application/x-protobuf", message),
        Protocol::Grpc => (
            format!("{}{GRPC_PATH}", target.url),
            "application/grpc",
            framed(&message),
        ),
    };
    let uri: Uri = uri.parse().map_err(|error| invalid(&error))?;
    let mut request = Request::post(uri)
        .body(Full::new(body))
        .map_err(|error| invalid(&error))?;
    let fields = request.headers_mut();
    for (name, value) in target.headers.as_deref().and_then(headers).unwrap_or_default() {
        let name: HeaderName = name.parse().map_err(|error| invalid(&error))?;
        let mut value: HeaderValue = value.parse().map_err(|error| invalid(&error))?;
        value.set_sensitive(true);
        fields.insert(name, value);
    }
    fields.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    if target.protocol == Protocol::Grpc {
        fields.insert(TE, HeaderValue::from_static("trailers"));
    }
    Ok(request)
}

/// A message in gRPC's framing ("gRPC over HTTP2", Length-Prefixed-Message): a zero byte for "not compressed" and four bytes of
/// length.
fn framed(message: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(5 + message.len());
    frame.put_u8(0);
    // Received messages are far shorter than 4 GiB.
    frame.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    frame.put_slice(message);
    frame.freeze()
}

/// Which HTTP statuses may be retried; all others must not be (OTLP specification, "OTLP/HTTP Response").
fn check_http(status: u16) -> Result<(), Failure> {
    match status {
        200..=299 => Ok(()),
        429 | 502..=504 => Err(Failure::Retry(format!("HTTP status {status}"))),
        _ => Err(Failure::Final(format!("HTTP status {status}"))),
    }
}

/// Which gRPC codes may be retried (OTLP specification, "OTLP/gRPC Response").
fn check_grpc(trailers: &HeaderMap) -> Result<(), Failure> {
    let status = trailers.get("grpc-status").and_then(|value| value.to_str().ok());
    match status {
        Some("0") => Ok(()),
        Some(status @ ("1" | "4" | "8" | "10" | "11" | "14" | "15")) => {
            Err(Failure::Retry(format!("gRPC status {status}")))
        }
        Some(status) => Err(Failure::Final(format!("gRPC status {status}"))),
        None => Err(Failure::Retry("the response has no gRPC status".to_owned())),
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use super::*;

    fn target(protocol: Protocol) -> Target {
        Target {
            url: "http://127.0.0.1:9/base".to_owned(),
            protocol,
            headers: Some("authorization=Bearer%20s3cret".to_owned()),
        }
    }

    fn message(length: usize) -> Bytes {
        Bytes::from(vec![0; length])
    }

    #[test]
    fn a_full_queue_drops_the_oldest_exports_and_counts_them() {
        let queue = Queue::default();
        for length in 0..=MAX_QUEUED {
            queue.push(1, message(length), Some(target(Protocol::Http)));
        }
        let counts = queue.counts();
        assert_eq!((counts.queued, counts.full), (MAX_QUEUED as u64, 1));
        assert_eq!(queue.state().waiting[0].message.len(), 1, "the empty one was dropped");

        queue.push(1, message(MAX_QUEUED_BYTES), Some(target(Protocol::Http)));
        let state = queue.state();
        assert_eq!((state.waiting.len(), state.bytes), (1, MAX_QUEUED_BYTES));
        assert_eq!(state.counts.full, 1 + MAX_QUEUED as u64);
    }

    #[test]
    fn without_a_collector_nothing_is_queued() {
        let queue = Queue::default();
        queue.push(1, message(1), None);
        assert_eq!(queue.counts(), Counts::default());
        queue.push(1, message(1), Some(target(Protocol::Http)));
        queue.push(1, message(1), None);
        assert_eq!(queue.target(1), None, "its queued exports have no target any more");
    }

    #[test]
    fn a_request_has_the_form_of_its_protocol_and_the_users_headers() {
        let http = request(&target(Protocol::Http), Bytes::from_static(b"message")).unwrap();
        assert_eq!(http.uri(), "http://127.0.0.1:9/base");
        assert_eq!(http.headers()["content-type"], "application/x-protobuf");
        assert_eq!(http.headers()["authorization"], "Bearer s3cret");
        assert!(!format!("{:?}", http.headers()).contains("s3cret"));

        let grpc = Target {
            url: "http://127.0.0.1:9".to_owned(),
            ..target(Protocol::Grpc)
        };
        let grpc = request(&grpc, Bytes::from_static(b"message")).unwrap();
        assert_eq!(grpc.uri().path(), GRPC_PATH);
        assert_eq!(grpc.headers()["te"], "trailers");
        assert_eq!(framed(b"message"), &b"\0\0\0\0\x07message"[..]);
    }

    #[test]
    fn only_permanent_failures_are_not_retried() {
        assert_eq!(check_http(200), Ok(()));
        for status in [429, 502, 503, 504] {
            assert!(matches!(check_http(status), Err(Failure::Retry(_))), "{status}");
        }
        for status in [301, 400, 401, 404, 500] {
            assert!(matches!(check_http(status), Err(Failure::Final(_))), "{status}");
        }
        let of = |status: &str| {
            check_grpc(&HeaderMap::from_iter([(
                "grpc-status".parse().unwrap(),
                status.parse().unwrap(),
            )]))
        };
        assert_eq!(of("0"), Ok(()));
        assert!(matches!(of("14"), Err(Failure::Retry(_))));
        assert!(matches!(of("3"), Err(Failure::Final(_))));
        assert!(matches!(check_grpc(&HeaderMap::new()), Err(Failure::Retry(_))));
    }
}
