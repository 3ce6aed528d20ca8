//! What the instances have sent, on its way to the user's collector. Who sends never waits for it: what finds no room is
//! dropped, the oldest first, and counted.

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

use crate::config::links::Protocol;
use crate::config::telemetry::{Target, headers};
use crate::log;

/// What waits at most: an export of each of 16 instances every 10 s fills it in ten minutes.
const MOST: usize = 1000;
const MOST_BYTES: usize = 16 << 20;
/// For an answer of the collector.
const PATIENCE: Duration = Duration::from_secs(10);
/// After a failure, doubled for each in a row.
const PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Of an answer, which nobody needs more of.
const LONGEST_ANSWER: usize = 64 << 10;
/// OTLP specification, "OTLP/gRPC Request": the full name of the call.
const GRPC_PATH: &str = "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export";

/// One message of an instance.
#[derive(Clone, Debug)]
struct Export {
    instance: u16,
    message: Bytes,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub forwarded: u64,
    /// There was no room.
    pub full: u64,
    /// The collector does not want it, and never will.
    pub refused: u64,
    /// Wait now.
    pub queued: u64,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Export>,
    bytes: usize,
    /// As each instance was started with it.
    targets: BTreeMap<u16, Target>,
    counts: Counts,
}

/// Between those who receive and the one who sends.
#[derive(Debug, Default)]
pub struct Queue {
    state: Mutex<State>,
    filled: Notify,
}

impl Queue {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing in here is left half done by a panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Never waits. Without a target nobody wants it, and nothing is counted.
    pub fn push(&self, instance: u16, message: Bytes, target: Option<Target>) {
        let mut state = self.state();
        let Some(target) = target else {
            state.targets.remove(&instance);
            return;
        };
        state.targets.insert(instance, target);
        state.bytes += message.len();
        state.waiting.push_back(Export { instance, message });
        while state.waiting.len() > MOST || state.bytes > MOST_BYTES {
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
            // A push between the look and the wait leaves its notification behind.
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

/// Why a collector has not got something.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Failure {
    /// It may take it later.
    Later(String),
    Never(String),
}

/// Sends what comes, one after the other, until it is dropped.
pub async fn forward(queue: &Queue) {
    let mut clients = Clients::new();
    // What was wrong last: the same again is no news.
    let mut trouble = None;
    loop {
        let export = queue.next().await;
        let mut pause = PAUSE;
        // The target may change while this waits.
        while let Some(target) = queue.target(export.instance) {
            let sent = timeout(PATIENCE, clients.send(&target, export.message.clone())).await;
            let failure = match sent.unwrap_or_else(|_| Err(Failure::Later(format!("no answer within {PATIENCE:?}")))) {
                Ok(()) => {
                    if trouble.take().is_some() {
                        log::notice!("the collector {} takes metrics again", target.url);
                    }
                    queue.count(|counts| counts.forwarded += 1);
                    break;
                }
                Err(failure) => failure,
            };
            if trouble.as_ref() != Some(&failure) {
                let (Failure::Later(why) | Failure::Never(why)) = &failure;
                log::error!("the collector {} does not take metrics: {why}", target.url);
                trouble = Some(failure.clone());
            }
            if matches!(failure, Failure::Never(_)) {
                queue.count(|counts| counts.refused += 1);
                break;
            }
            sleep(pause).await;
            pause = LONGEST_PAUSE.min(pause * 2);
            clients.tls = None;
        }
    }
}

type Body = Full<Bytes>;

struct Clients {
    plain: Client<HttpConnector, Body>,
    plain_grpc: Client<HttpConnector, Body>,
    /// HTTP and gRPC by TLS, from the first export that needs it until one fails: the host may trust another authority
    /// then.
    tls: Option<[Client<HttpsConnector<HttpConnector>, Body>; 2]>,
}

fn builder(grpc: bool) -> legacy::Builder {
    let mut builder = Client::builder(TokioExecutor::new());
    builder.pool_timer(TokioTimer::new()).timer(TokioTimer::new());
    builder.http2_only(grpc);
    builder
}

/// Without certificates of the host nobody can be trusted.
fn tls() -> Result<[Client<HttpsConnector<HttpConnector>, Body>; 2], Failure> {
    let roots = HttpsConnectorBuilder::new()
        .with_provider_and_native_roots(rustls::crypto::ring::default_provider())
        .map_err(|error| Failure::Later(format!("the host's certificates (package ca-certificates): {error}")))?;
    // Which of the two is agreed on at the handshake.
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
        let response = response.await.map_err(|error| Failure::Later(chain(&error)))?;
        let (head, body) = response.into_parts();
        // Read to its end, so that the connection can be used again.
        let body = Limited::new(body, LONGEST_ANSWER).collect().await;
        if !grpc || !head.status.is_success() {
            return judge_http(head.status.as_u16());
        }
        let body = body.map_err(|error| Failure::Later(error.to_string()))?;
        judge_grpc(body.trailers().unwrap_or(&head.headers))
    }
}

fn request(target: &Target, message: Bytes) -> Result<Request<Body>, Failure> {
    let wrong = |error: &dyn std::fmt::Display| Failure::Never(error.to_string());
    let (uri, content_type, body) = match target.protocol {
        Protocol::Http => (target.url.clone(), "application/x-protobuf", message),
        Protocol::Grpc => (
            format!("{}{GRPC_PATH}", target.url),
            "application/grpc",
            framed(&message),
        ),
    };
    let uri: Uri = uri.parse().map_err(|error| wrong(&error))?;
    let mut request = Request::post(uri)
        .body(Full::new(body))
        .map_err(|error| wrong(&error))?;
    let fields = request.headers_mut();
    for (name, value) in target.headers.as_deref().and_then(headers).unwrap_or_default() {
        let name: HeaderName = name.parse().map_err(|error| wrong(&error))?;
        let mut value: HeaderValue = value.parse().map_err(|error| wrong(&error))?;
        value.set_sensitive(true);
        fields.insert(name, value);
    }
    fields.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    if target.protocol == Protocol::Grpc {
        fields.insert(TE, HeaderValue::from_static("trailers"));
    }
    Ok(request)
}

/// As gRPC has a message on the wire ("gRPC over HTTP2", Length-Prefixed-Message): not compressed, four bytes of length.
fn framed(message: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(5 + message.len());
    frame.put_u8(0);
    // At most what was received, which is bounded.
    frame.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    frame.put_slice(message);
    frame.freeze()
}

/// OTLP specification, "OTLP/HTTP Response": which statuses may be tried again. All others must not.
fn judge_http(status: u16) -> Result<(), Failure> {
    match status {
        200..=299 => Ok(()),
        429 | 502..=504 => Err(Failure::Later(format!("it answers {status}"))),
        _ => Err(Failure::Never(format!("it answers {status}"))),
    }
}

/// OTLP specification, "OTLP/gRPC Response": which codes may be tried again.
fn judge_grpc(trailers: &HeaderMap) -> Result<(), Failure> {
    let status = trailers.get("grpc-status").and_then(|value| value.to_str().ok());
    match status {
        Some("0") => Ok(()),
        Some(status @ ("1" | "4" | "8" | "10" | "11" | "14" | "15")) => {
            Err(Failure::Later(format!("it answers gRPC status {status}")))
        }
        Some(status) => Err(Failure::Never(format!("it answers gRPC status {status}"))),
        None => Err(Failure::Later("it answers without a gRPC status".to_owned())),
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
    fn what_finds_no_room_drops_the_oldest_and_is_counted() {
        let queue = Queue::default();
        for length in 0..=MOST {
            queue.push(1, message(length), Some(target(Protocol::Http)));
        }
        let counts = queue.counts();
        assert_eq!((counts.queued, counts.full), (MOST as u64, 1));
        assert_eq!(queue.state().waiting[0].message.len(), 1, "the empty one is gone");

        queue.push(1, message(MOST_BYTES), Some(target(Protocol::Http)));
        let state = queue.state();
        assert_eq!((state.waiting.len(), state.bytes), (1, MOST_BYTES));
        assert_eq!(state.counts.full, 1 + MOST as u64);
    }

    #[test]
    fn what_nobody_wants_is_not_kept() {
        let queue = Queue::default();
        queue.push(1, message(1), None);
        assert_eq!(queue.counts(), Counts::default());
        queue.push(1, message(1), Some(target(Protocol::Http)));
        queue.push(1, message(1), None);
        assert_eq!(queue.target(1), None, "what waits for it is let go");
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
    fn only_what_can_never_be_taken_is_given_up() {
        assert_eq!(judge_http(200), Ok(()));
        for status in [429, 502, 503, 504] {
            assert!(matches!(judge_http(status), Err(Failure::Later(_))), "{status}");
        }
        for status in [301, 400, 401, 404, 500] {
            assert!(matches!(judge_http(status), Err(Failure::Never(_))), "{status}");
        }
        let of = |status: &str| {
            judge_grpc(&HeaderMap::from_iter([(
                "grpc-status".parse().unwrap(),
                status.parse().unwrap(),
            )]))
        };
        assert_eq!(of("0"), Ok(()));
        assert!(matches!(of("14"), Err(Failure::Later(_))));
        assert!(matches!(of("3"), Err(Failure::Never(_))));
        assert!(matches!(judge_grpc(&HeaderMap::new()), Err(Failure::Later(_))));
    }
}
