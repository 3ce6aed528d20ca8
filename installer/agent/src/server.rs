//! The agent's HTTP server, on a thread of its own. It serves `GET /metrics` and receives the instances' exports, which
//! [`super::service`] answers.
//!
//! Every user of the machine can reach both. Everyone may read the metrics page: it contains counts (requests by route and
//! status, total clicks, bytes of the database), versions and release IDs, but no links, addresses or secrets. Exports need
//! the secret that the instances share with the agent, because they are counted, and forwarded with the operator's
//! credentials. A request without the secret is refused before its body is read.
//!
//! The unit limits the agent's memory, so everything that a client can make the agent hold is bounded: [`MAX_CONNECTIONS`]
//! request heads of [`MAX_HEAD`] bytes, and [`BODY_BUDGET`] for all bodies together, compressed and decompressed.
//!
//! [`BODY_BUDGET`]: super::service::BODY_BUDGET

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context as _;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::runtime;
use tokio::sync::{Semaphore, watch};
use tokio::time::{sleep, timeout};

use super::clicks::Progress;
use super::service::{Role, Service};
use links_base::layout::Layout;
use links_base::log;

/// The maximum number of concurrent connections on one address.
const MAX_CONNECTIONS: usize = 256;
/// The maximum size of a request without its body, in bytes.
const MAX_HEAD: usize = 16 << 10;
/// How long a connection may stay open without an authorized request. Then it is closed to make room for others.
const STRANGER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the head of a request may take, including the time that a kept-alive connection is idle. This is longer than the
/// intervals of Prometheus and of the runtimes.
const HEAD_TIMEOUT: Duration = Duration::from_secs(90);
/// The interval between two saves of the counters. If the agent is killed, cumulative metrics that it has not saved are sent
/// again.
const SAVE_INTERVAL: Duration = Duration::from_secs(5);

/// The addresses to serve on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    pub metrics: BTreeSet<SocketAddr>,
    pub otlp: BTreeSet<SocketAddr>,
}

/// The server's thread.
#[derive(Debug)]
pub struct Server {
    addresses: watch::Sender<Addresses>,
    thread: JoinHandle<()>,
}

impl Server {
    /// Starts the thread. The server listens on no address until [`Self::serve_on`] is called.
    ///
    /// # Errors
    /// Fails if the kernel refuses to create a thread or an epoll instance.
    pub fn start(layout: Layout, clicks: Arc<Mutex<Progress>>) -> anyhow::Result<Self> {
        let (addresses, wanted) = watch::channel(Addresses::default());
        let runtime = runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()
            .context("Starting the metrics server")?;
        let service = Arc::new(Service::new(layout, clicks));
        let thread = std::thread::Builder::new()
            .name("metrics".to_owned())
            .spawn(move || runtime.block_on(serve(&service, wanted)))
            .context("Starting the metrics server")?;
        Ok(Self { addresses, thread })
    }

    /// Serves on exactly these addresses. An address in use is reported once, and retried whenever this is called.
    pub fn serve_on(&self, addresses: Addresses) {
        self.addresses.send_replace(addresses);
    }

    /// Whether the thread has panicked, so nothing is served any more.
    pub fn is_gone(&self) -> bool {
        self.thread.is_finished()
    }

    /// Ends the thread, which saves the counters for the next agent.
    pub fn stop(self) {
        drop(self.addresses);
        // The panic hook has already reported a panic.
        let _ = self.thread.join();
    }
}

/// Serves until the sender of `wanted` is dropped.
async fn serve(service: &Arc<Service>, mut wanted: watch::Receiver<Addresses>) {
    let forwarding = Arc::clone(service);
    tokio::spawn(async move { forwarding.forward().await });
    let saving = Arc::clone(service);
    tokio::spawn(async move {
        loop {
            sleep(SAVE_INTERVAL).await;
            saving.save_counters();
        }
    });
    let mut open = BTreeMap::new();
    let mut errors = BTreeMap::new();
    while wanted.changed().await.is_ok() {
        let addresses = wanted.borrow_and_update().clone();
        let metrics = addresses.metrics.iter().map(|address| (Role::Metrics, *address));
        let otlp = addresses.otlp.iter().map(|address| (Role::Otlp, *address));
        let endpoints: BTreeSet<_> = metrics.chain(otlp).collect();
        open.retain(|endpoint, task: &mut tokio::task::JoinHandle<()>| {
            let stays = endpoints.contains(endpoint);
            if !stays {
                task.abort();
            }
            stays
        });
        errors.retain(|endpoint, _| endpoints.contains(endpoint));
        for endpoint in endpoints {
            let (role, address) = endpoint;
            if open.contains_key(&endpoint) {
                continue;
            }
            match listen(address).and_then(tokio::net::TcpListener::from_std) {
                Ok(listener) => {
                    if role == Role::Metrics {
                        log::notice!("metrics: http://{address}/metrics");
                    }
                    errors.remove(&endpoint);
                    open.insert(endpoint, tokio::spawn(accept(listener, role, Arc::clone(service))));
                }
                Err(error) => {
                    let text = explain(role, address, &error);
                    if errors.insert(endpoint, text.clone()).as_ref() != Some(&text) {
                        log::error!("{text}");
                    }
                }
            }
        }
    }
    service.save_counters();
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn explain(role: Role, address: SocketAddr, error: &io::Error) -> String {
    let key = match role {
        Role::Metrics => "metrics.listen",
        Role::Otlp => "metrics.otlp_listen",
    };
    if error.kind() == io::ErrorKind::AddrInUse {
        return format!(
            "{address} is in use by another program; `ss -ltnp 'sport = :{}'` as root shows which. End it, or choose \
             another {key} in links.toml. Until then nothing is served there",
            address.port()
        );
    }
    format!("listening on {address} ({key} of links.toml): {error}")
}

async fn accept(listener: tokio::net::TcpListener, role: Role, service: Arc<Service>) {
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else {
            return;
        };
        let Ok((stream, _)) = listener.accept().await else {
            // Out of file descriptors or memory, which may be a matter of a moment.
            sleep(Duration::from_millis(100)).await;
            continue;
        };
        let service = Arc::clone(&service);
        tokio::spawn(async move {
            let _permit = permit;
            let is_authorized = AtomicBool::new(false);
            let answer = service_fn(|request| service.answer(request, role, &is_authorized));
            let mut builder = hyper::server::conn::http1::Builder::new();
            let connection = builder
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .max_buf_size(MAX_HEAD)
                .serve_connection(TokioIo::new(stream), answer);
            let mut connection = pin!(connection);
            // An error means that the client has gone or sent no valid request; either way there is nothing to do.
            if timeout(STRANGER_TIMEOUT, connection.as_mut()).await.is_err() && is_authorized.load(Ordering::Relaxed) {
                let _ = connection.await;
            }
        });
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use std::time::Instant;

    use hyper::Request;
    use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
    use opentelemetry_proto::tonic::common::v1::any_value::Value;
    use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
    use opentelemetry_proto::tonic::metrics::v1::ResourceMetrics;
    use opentelemetry_proto::tonic::resource::v1::Resource;
    use prost::Message as _;

    use super::super::otlp::MAX_BODY;
    use super::super::service::{BODY_BUDGET, PROTOBUF};
    use super::*;
    use links_base::secrets::OTLP_HEADER;
    use links_release::runtime::free_address;

    const SECRET: &str = "5ec2e75ec2e75ec2e75ec2e75ec2e75ec2e75ec2e75ec2e75ec2e75ec2e75ec2";

    struct Agent {
        server: Server,
        root: tempfile::TempDir,
        metrics: SocketAddr,
        otlp: SocketAddr,
    }

    impl Agent {
        fn start() -> Self {
            let (root, layout) = links_base::layout::temporary(&[Layout::secrets_dir]);
            std::fs::write(layout.otlp_secret(), format!("{SECRET}\n")).unwrap();
            let server = Server::start(layout, Arc::default()).unwrap();
            let (metrics, otlp) = (free_address().unwrap(), free_address().unwrap());
            let agent = Self {
                server,
                root,
                metrics,
                otlp,
            };
            agent.server.serve_on(agent.addresses());
            agent.wait_until_open(metrics);
            agent.wait_until_open(otlp);
            agent
        }

        fn addresses(&self) -> Addresses {
            Addresses {
                metrics: [self.metrics].into(),
                otlp: [self.otlp].into(),
            }
        }

        /// Waits until the server's thread has opened the address.
        fn wait_until_open(&self, address: SocketAddr) {
            let deadline = Instant::now() + Duration::from_secs(10);
            while std::net::TcpStream::connect(address).is_err() {
                assert!(
                    Instant::now() < deadline && !self.server.is_gone(),
                    "{address} stays closed"
                );
                std::thread::yield_now();
            }
        }

        fn page(&self) -> String {
            let url = format!("http://{}/metrics", self.metrics);
            ureq::get(&url).call().unwrap().body_mut().read_to_string().unwrap()
        }

        fn post(&self, kind: &str, encoding: &str, body: &[u8]) -> u16 {
            self.post_with(SECRET, kind, encoding, body)
        }

        /// The response to a request head whose body is never sent.
        fn raw(&self, headers: &str) -> String {
            let mut stream = std::net::TcpStream::connect(self.otlp).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            let head = format!("POST /v1/metrics HTTP/1.1\r\nhost: x\r\n{headers}\r\n\r\n");
            io::Write::write_all(&mut stream, head.as_bytes()).unwrap();
            let mut answer = String::new();
            io::Read::read_to_string(&mut stream, &mut answer).unwrap();
            answer
        }

        fn post_with(&self, secret: &str, kind: &str, encoding: &str, body: &[u8]) -> u16 {
            let agent = ureq::Agent::config_builder()
                .http_status_as_error(false)
                .build()
                .new_agent();
            let url = format!("http://{}/v1/metrics", self.otlp);
            let request = agent
                .post(&url)
                .header(OTLP_HEADER, secret)
                .header("content-type", kind)
                .header("content-encoding", encoding);
            request.send(body).unwrap().status().as_u16()
        }
    }

    fn message() -> Vec<u8> {
        let id = KeyValue {
            key: "service.instance.id".to_owned(),
            value: Some(AnyValue {
                value: Some(Value::StringValue("2".to_owned())),
            }),
            ..KeyValue::default()
        };
        let resource = Resource {
            attributes: vec![id],
            ..Resource::default()
        };
        let metrics = ResourceMetrics {
            resource: Some(resource),
            ..ResourceMetrics::default()
        };
        ExportMetricsServiceRequest {
            resource_metrics: vec![metrics],
        }
        .encode_to_vec()
    }

    #[test]
    fn exports_are_received_and_counted() {
        let agent = Agent::start();
        assert_eq!(agent.post(PROTOBUF, "identity", &message()), 200);
        assert_eq!(agent.post("application/json", "identity", b"{}"), 415);
        assert_eq!(agent.post(PROTOBUF, "zstd", &message()), 415);
        assert_eq!(agent.post(PROTOBUF, "gzip", b"no gzip"), 400);
        assert_eq!(agent.post(PROTOBUF, "identity", b"no protobuf"), 400);
        let too_long = format!(
            "{OTLP_HEADER}: {SECRET}\r\ncontent-type: {PROTOBUF}\r\ncontent-length: {}",
            MAX_BODY + 1
        );
        assert!(agent.raw(&too_long).starts_with("HTTP/1.1 413 "));
        let page = agent.page();
        assert!(
            page.contains("links_otlp_received_requests_total{links_instance=\"2\"} 1"),
            "{page}"
        );
        assert!(page.contains("links_otlp_rejected_requests_total 5"), "{page}");
        agent.server.stop();
    }

    #[test]
    fn a_request_without_the_secret_is_refused_before_its_body_is_read() {
        let agent = Agent::start();
        for secret in ["", "5ec2e7", &SECRET.to_uppercase(), &format!("{SECRET}0")] {
            assert_eq!(
                agent.post_with(secret, PROTOBUF, "identity", &message()),
                401,
                "{secret}"
            );
        }
        let answer = agent.raw(&format!("content-type: {PROTOBUF}\r\ncontent-length: 400000"));
        assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
        let page = agent.page();
        assert!(!page.contains("links_otlp_received_requests_total{"), "{page}");
        // Without a secret of its own the agent accepts nothing.
        std::fs::write(agent.root.path().join("run/links/secrets/otlp"), "\n").unwrap();
        assert_eq!(agent.post_with("", PROTOBUF, "identity", &message()), 401);
        assert_eq!(agent.post(PROTOBUF, "identity", &message()), 401);
    }

    /// Many clients announce long bodies and send nothing.
    #[test]
    fn the_total_size_of_all_bodies_is_bounded() {
        let agent = Agent::start();
        let head = format!(
            "POST /v1/metrics HTTP/1.1\r\nhost: x\r\n{OTLP_HEADER}: {SECRET}\r\ncontent-type: {PROTOBUF}\r\n\
             expect: 100-continue\r\ncontent-length: {MAX_BODY}\r\n\r\n"
        );
        let mut waiting = vec![];
        for number in 0..=BODY_BUDGET / MAX_BODY {
            let mut stream = std::net::TcpStream::connect(agent.otlp).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            io::Write::write_all(&mut stream, head.as_bytes()).unwrap();
            let mut answer = [0; 12];
            io::Read::read_exact(&mut stream, &mut answer).unwrap();
            let expected = match number < BODY_BUDGET / MAX_BODY {
                // The body is being read.
                true => b"HTTP/1.1 100",
                false => b"HTTP/1.1 429",
            };
            assert_eq!(&answer, expected, "{number}");
            waiting.push(stream);
        }
        assert_eq!(agent.post(PROTOBUF, "identity", &message()), 429);
        drop(waiting);
        let deadline = Instant::now() + Duration::from_secs(10);
        while agent.post(PROTOBUF, "identity", &message()) != 200 {
            assert!(Instant::now() < deadline, "the budget is never freed");
        }
    }

    #[test]
    fn each_address_serves_only_its_own_path() {
        let agent = Agent::start();
        let status = |request: Request<()>| {
            let plain = ureq::Agent::config_builder()
                .http_status_as_error(false)
                .build()
                .new_agent();
            plain.run(request).unwrap().status().as_u16()
        };
        let get = |address: SocketAddr, path: &str| {
            let request = Request::get(format!("http://{address}{path}"));
            status(request.header(OTLP_HEADER, SECRET).body(()).unwrap())
        };
        assert_eq!(get(agent.metrics, "/"), 404);
        assert_eq!(get(agent.metrics, "/v1/metrics"), 404);
        assert_eq!(get(agent.otlp, "/metrics"), 404);
        assert_eq!(get(agent.otlp, "/v1/metrics"), 405);
        let head = Request::head(format!("http://{}/metrics", agent.metrics))
            .body(())
            .unwrap();
        assert_eq!(status(head), 200);
    }

    #[test]
    fn an_address_in_use_is_opened_as_soon_as_it_is_free() {
        let mut agent = Agent::start();
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let before = agent.metrics;
        agent.metrics = taken.local_addr().unwrap();
        let text = explain(Role::Metrics, agent.metrics, &listen(agent.metrics).unwrap_err());
        assert!(text.contains("is in use") && text.contains("metrics.listen"), "{text}");
        agent.server.serve_on(agent.addresses());
        // Addresses are opened in order: once the address for exports responds, the other one has been tried.
        assert_eq!(agent.post(PROTOBUF, "identity", &message()), 200);
        drop(taken);
        agent.server.serve_on(agent.addresses());
        agent.wait_until_open(agent.metrics);
        assert!(agent.page().contains("links_build_info"));
        assert!(listen(before).is_ok(), "the old address is closed");
    }
}
