//! Answers the requests to the agent: the metrics page, and the instances' exports.

use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::{Method, Request, Response, StatusCode};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::clicks::Progress;
use super::counters::Counters;
use super::database::Observer;
use super::exposition::{CONTENT_TYPE as PAGE, Exposition};
use super::forward::{Queue, forward};
use super::otlp::{MAX_BODY, Refusal, decompress, exports};
use super::scrape::{self, Received};
use links_base::layout::Layout;
use links_base::log;
use links_base::secrets::{OTLP_HEADER, Secret};
use links_config::telemetry::Target;

/// What an address serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// The metrics page, for scrapers.
    Metrics,
    /// The instances' exports.
    Otlp,
}

/// The maximum total size of all bodies in memory, in bytes. 16 instances send a few kilobytes each.
pub const BODY_BUDGET: usize = 8 << 20;
/// How long the body of a request may take.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
pub const PROTOBUF: &str = "application/x-protobuf";

/// The state that all requests share.
#[derive(Debug)]
pub struct Service {
    layout: Layout,
    clicks: Arc<Mutex<Progress>>,
    counters: Mutex<Counters>,
    received: Mutex<Received>,
    queue: Queue,
    database: Observer,
    /// The bytes of [`BODY_BUDGET`] that are free.
    budget: Arc<Semaphore>,
}

/// Locks a mutex and ignores poisoning: no panic leaves these values half updated.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

type Answer = Response<Full<Bytes>>;

fn with(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    answer
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}

fn plain(status: StatusCode, text: &str) -> Answer {
    with(status, "text/plain; charset=utf-8", format!("{text}\n"))
}

fn closing(mut answer: Answer) -> Answer {
    answer
        .headers_mut()
        .insert(CONNECTION, HeaderValue::from_static("close"));
    answer
}

fn not_allowed(methods: &'static str) -> Answer {
    let mut answer = plain(StatusCode::METHOD_NOT_ALLOWED, methods);
    answer.headers_mut().insert(ALLOW, HeaderValue::from_static(methods));
    answer
}

impl Service {
    pub fn new(layout: Layout, clicks: Arc<Mutex<Progress>>) -> Self {
        Self {
            clicks,
            counters: Mutex::new(Counters::load(&layout)),
            received: Mutex::default(),
            queue: Queue::default(),
            database: Observer::start(layout.clone()),
            budget: Arc::new(Semaphore::new(BODY_BUDGET)),
            layout,
        }
    }

    /// Forwards exports to the operators' collectors. Never returns.
    pub async fn forward(&self) {
        forward(&self.queue).await;
    }

    /// Answers a request. Sets `is_authorized` if the client may stay connected.
    pub async fn answer(
        &self,
        request: Request<Incoming>,
        role: Role,
        is_authorized: &AtomicBool,
    ) -> Result<Answer, Infallible> {
        if role == Role::Otlp && !self.is_from_an_instance(&request) {
            locked(&self.received).rejected += 1;
            // The body stays unread, so the connection cannot be reused.
            return Ok(closing(plain(
                StatusCode::UNAUTHORIZED,
                "only links' own instances may send metrics here, with the secret of this boot",
            )));
        }
        is_authorized.store(true, Ordering::Relaxed);
        Ok(match (role, request.uri().path()) {
            (Role::Metrics, "/metrics") => match *request.method() {
                Method::GET | Method::HEAD => with(StatusCode::OK, PAGE, self.page()),
                _ => not_allowed("GET, HEAD"),
            },
            (Role::Otlp, "/v1/metrics") => match *request.method() {
                Method::POST => match self.receive(request).await {
                    // An empty ExportMetricsServiceResponse is encoded as zero bytes.
                    Ok(()) => with(StatusCode::OK, PROTOBUF, Bytes::new()),
                    Err(Refusal(status, why)) => {
                        locked(&self.received).rejected += 1;
                        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_REQUEST);
                        let mut refusal = closing(plain(status, &why));
                        if status == StatusCode::TOO_MANY_REQUESTS {
                            // OTLP specification, "OTLP/HTTP Throttling".
                            refusal.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
                        }
                        refusal
                    }
                },
                _ => not_allowed("POST"),
            },
            (Role::Metrics, _) => plain(StatusCode::NOT_FOUND, "the metrics are at /metrics"),
            (Role::Otlp, _) => plain(StatusCode::NOT_FOUND, "exports are accepted at /v1/metrics only"),
        })
    }

    /// Whether the request carries the instances' secret. The file is read each time, because root creates it at boot or when
    /// it is missing. Without the file no request is accepted.
    fn is_from_an_instance(&self, request: &Request<Incoming>) -> bool {
        let Some(sent) = request.headers().get(OTLP_HEADER) else {
            return false;
        };
        Secret::read(&self.layout.otlp_secret()).is_ok_and(|secret| secret.matches(sent.as_bytes()))
    }

    fn page(&self) -> String {
        let mut page = Exposition::default();
        scrape::host(&mut page, &self.layout);
        scrape::database(&mut page, self.database.facts());
        {
            let clicks = locked(&self.clicks);
            scrape::http(&mut page, &clicks);
            scrape::clicks(&mut page, &clicks, SystemTime::now());
        }
        scrape::runtimes(&mut page, &locked(&self.counters));
        scrape::otlp(&mut page, &locked(&self.received), self.queue.counts());
        page.text()
    }

    async fn receive(&self, request: Request<Incoming>) -> Result<(), Refusal> {
        let header = |name| {
            request
                .headers()
                .get(name)
                .and_then(|value: &HeaderValue| value.to_str().ok())
        };
        let kind = header(CONTENT_TYPE).unwrap_or_default();
        if kind.split(';').next().map(str::trim) != Some(PROTOBUF) {
            return Err(Refusal(
                415,
                format!("Content-Type {kind:?} is not supported; expected {PROTOBUF}"),
            ));
        }
        let encoding = header(CONTENT_ENCODING).map(str::to_ascii_lowercase);
        let announced = header(CONTENT_LENGTH).and_then(|length| length.parse().ok());
        let length = announced.unwrap_or(MAX_BODY);
        if length > MAX_BODY {
            return Err(Refusal::too_large());
        }
        let decompressed_length = if encoding.is_some() { MAX_BODY } else { 0 };
        // Held until the message is counted.
        let _reserved = u32::try_from(length + decompressed_length)
            .ok()
            .and_then(|bytes| Arc::clone(&self.budget).try_acquire_many_owned(bytes).ok())
            .ok_or_else(|| Refusal(429, "too many exports at once; retry later".to_owned()))?;
        let body = Limited::new(request.into_body(), MAX_BODY).collect();
        let body = match timeout(BODY_TIMEOUT, body).await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(error)) if error.is::<LengthLimitError>() => return Err(Refusal::too_large()),
            Ok(Err(error)) => return Err(Refusal(400, error.to_string())),
            Err(_) => return Err(Refusal(408, format!("the body did not arrive within {BODY_TIMEOUT:?}"))),
        };
        let message = decompress(body.into(), encoding.as_deref())?;
        let exports = exports(&message)?;
        let Some(first) = exports.first().map(|export| export.instance) else {
            return Ok(());
        };
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs();
        let mut counters = locked(&self.counters);
        for export in &exports {
            locked(&self.received).requests[usize::from(export.instance - 1)] += 1;
            for point in &export.points {
                counters.take(export.instance, point, now);
            }
        }
        drop(counters);
        // A message comes from one runtime. If it mixed several, it would go to the collector of the first.
        self.queue.push(first, message.into(), self.target(first));
        Ok(())
    }

    /// The instance's collector, from a file that its supervisor keeps while the instance runs.
    fn target(&self, instance: u16) -> Option<Target> {
        let bytes = std::fs::read(self.layout.instance_forward(instance)).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    /// Saves the counters for the next agent. An error is logged.
    pub fn save_counters(&self) {
        let changes = locked(&self.counters).take_changes();
        if let Some(changes) = changes
            && let Err(error) = Counters::save(&self.layout, &changes)
        {
            log::error!("saving the instances' counters: {error:#}");
        }
    }
}
