//! Clients that speak HTTP/2 over TLS and keep their connections, as browsers do.
//!
//! # What counts as a failed request
//! As in [`crate::load`], a request fails unless its answer is exactly the right one. There is one exception, which HTTP/2
//! defines: a server that closes a connection says in its GOAWAY which requests it has received. A client sends the others
//! again over a new connection, a `POST` too, because they were not processed (RFC 9113, section 6.8; counted as
//! [`Report::repeated`]). A request that the server has received must be answered.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::client::conn::http2::{self, SendRequest};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::{runtime, time};
use tokio_rustls::TlsConnector;

use crate::host::Host;
use crate::load::Link;
use crate::namespace::NetNamespace;
use crate::process::eventually;

/// The number of connections, each in a thread of its own.
const CONNECTIONS: usize = 6;
/// The number of requests that are under way on a connection at the same time.
const STREAMS: usize = 4;
/// The time between two requests of a stream, which leaves processor time for everything else.
const PAUSE: Duration = Duration::from_millis(20);
/// How long one answer may take.
const DEADLINE: Duration = Duration::from_secs(10);
/// The number of requests that must follow a change, so that they show whether it broke anything.
const AFTERMATH: u64 = 100;
const MAX_EXAMPLES: usize = 10;

/// What all clients need to know.
#[derive(Debug)]
struct Target {
    network: NetNamespace,
    name: String,
    roots: Arc<RootCertStore>,
    authorization: String,
    link: Link,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    answered: AtomicU64,
    repeated: AtomicU64,
    connections: AtomicU64,
    failed: AtomicU64,
    /// The first failures.
    examples: Mutex<Vec<String>>,
    acknowledged: Mutex<Vec<Link>>,
}

impl Shared {
    fn fail(&self, what: String) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        let mut examples = self.examples.lock().unwrap_or_else(PoisonError::into_inner);
        if examples.len() < MAX_EXAMPLES {
            examples.push(what);
        }
    }
}

/// What the clients have seen.
#[derive(Debug)]
pub struct Report {
    pub answered: u64,
    /// The number of requests that were sent again because the server had not received them.
    pub repeated: u64,
    pub connections: u64,
    pub failed: u64,
    pub examples: Vec<String>,
    /// The links that were created.
    pub acknowledged: Vec<Link>,
}

/// A load in progress. When it is dropped, the clients stop after their current request.
#[derive(Debug)]
pub struct Http2Load {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<Result<()>>>,
}

impl Http2Load {
    /// Starts clients that follow `link` and create links at `https://NAME`, whose certificate has to lead to one of `roots` in
    /// PEM. Waits until they are in full swing.
    ///
    /// # Errors
    /// Fails if the roots cannot be parsed, or if the first requests are not answered.
    pub fn start(host: &Host, name: &str, roots: &str, link: &Link) -> Result<Self> {
        let target = Arc::new(Target {
            network: host.network(),
            name: name.to_owned(),
            roots: Arc::new(parse(roots)?),
            authorization: format!("Bearer {}", host.token()?),
            link: link.clone(),
        });
        let shared = Arc::new(Shared::default());
        let threads = (0..CONNECTIONS).map(|number| {
            let (target, shared) = (target.clone(), shared.clone());
            thread::spawn(move || {
                target.network.enter().context("Entering the machine's network")?;
                let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on(keep_connected(number, &target, &shared))
            })
        });
        let load = Self {
            threads: threads.collect(),
            shared,
        };
        load.wait_for(AFTERMATH)?;
        Ok(load)
    }

    /// Waits for this many more right answers.
    ///
    /// # Errors
    /// Fails if they take longer than 30 s.
    pub fn wait_for(&self, answers: u64) -> Result<()> {
        let answered = || self.shared.answered.load(Ordering::Relaxed);
        let wanted = answered() + answers;
        eventually(
            &format!("{wanted} answers over HTTP/2"),
            Duration::from_secs(30),
            || Ok((answered() >= wanted).then_some(())),
        )
        .with_context(|| format!("{:?}", self.shared))
    }

    /// Runs `change` under load, and waits for more answers after it.
    ///
    /// # Errors
    /// Fails if `change` fails, or as [`Self::wait_for`] does.
    pub fn during<T>(&self, change: impl FnOnce() -> Result<T>) -> Result<T> {
        let changed = change()?;
        self.wait_for(AFTERMATH)?;
        Ok(changed)
    }

    /// Stops the clients, and returns what they have seen.
    ///
    /// # Errors
    /// Fails if a client could not connect.
    pub fn stop(mut self) -> Result<Report> {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().map_err(|_| anyhow!("a client panicked"))??;
        }
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let list = |list: &Mutex<Vec<String>>| list.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Ok(Report {
            answered: count(&self.shared.answered),
            repeated: count(&self.shared.repeated),
            connections: count(&self.shared.connections),
            failed: count(&self.shared.failed),
            examples: list(&self.shared.examples),
            acknowledged: self
                .shared
                .acknowledged
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone(),
        })
    }
}

impl Drop for Http2Load {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

fn parse(roots: &str) -> Result<RootCertStore> {
    let mut store = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(roots.as_bytes()) {
        store.add(certificate.map_err(|error| anyhow!("{error}"))?)?;
    }
    ensure!(!store.is_empty(), "no certificate in {roots:?}");
    Ok(store)
}

/// Opens one connection after the other, as long as the load runs.
async fn keep_connected(number: usize, target: &Arc<Target>, shared: &Arc<Shared>) -> Result<()> {
    let mut streams: Vec<_> = (0..STREAMS)
        .map(|stream| Stream {
            target: target.clone(),
            shared: shared.clone(),
            label: format!("https://load.example/http2/{number}/{stream}"),
            sent: 0,
        })
        .collect();
    while !shared.stop.load(Ordering::Relaxed) {
        // Connecting may fail like a request may: nginx accepts connections at every moment of a reload.
        let sender = match time::timeout(DEADLINE, connect(target)).await {
            Ok(Ok(sender)) => sender,
            Ok(Err(error)) => {
                shared.fail(format!("connecting: {error:#}"));
                time::sleep(PAUSE).await;
                continue;
            }
            Err(_) => {
                shared.fail("connecting: no answer".to_owned());
                continue;
            }
        };
        shared.connections.fetch_add(1, Ordering::Relaxed);
        let mut running = JoinSet::new();
        for stream in streams.drain(..) {
            running.spawn(stream.work(sender.clone()));
        }
        drop(sender);
        while let Some(stream) = running.join_next().await {
            streams.push(stream?);
        }
    }
    Ok(())
}

async fn connect(target: &Target) -> Result<SendRequest<Full<Bytes>>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(target.roots.clone())
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 443));
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let name = ServerName::try_from(target.name.clone())?;
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
    ensure!(
        stream.get_ref().1.alpn_protocol() == Some(b"h2"),
        "the server does not speak HTTP/2"
    );
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    // Its error also ends the waiting requests, which report it.
    tokio::spawn(async { drop(connection.await) });
    Ok(sender)
}

/// One request after the other, over the connection that there is.
struct Stream {
    target: Arc<Target>,
    shared: Arc<Shared>,
    /// The beginning of the URLs that it shortens.
    label: String,
    /// The number of requests that have ended. One that has to be sent again has not.
    sent: u64,
}

impl Stream {
    /// Sends requests until the load is stopped or the connection ends.
    async fn work(mut self, mut sender: SendRequest<Full<Bytes>>) -> Self {
        while !self.shared.stop.load(Ordering::Relaxed) && sender.ready().await.is_ok() {
            let answer = time::timeout(DEADLINE, self.exchange(&mut sender)).await;
            match answer {
                Ok(Ok((status, location, body))) => self.check(status, &location, &body),
                Ok(Err(error)) if was_not_received(&error) => {
                    self.shared.repeated.fetch_add(1, Ordering::Relaxed);
                    break;
                }
                Ok(Err(error)) => {
                    self.shared.fail(format!("request {}: {error:?}", self.sent));
                    self.sent += 1;
                    break;
                }
                Err(_) => {
                    self.shared
                        .fail(format!("request {}: no answer within {DEADLINE:?}", self.sent));
                    self.sent += 1;
                    break;
                }
            }
            time::sleep(PAUSE).await;
        }
        self
    }

    /// Whether the next request creates a link.
    fn creates(&self) -> bool {
        self.sent.is_multiple_of(4)
    }

    fn url(&self) -> String {
        format!("{}/{}", self.label, self.sent)
    }

    async fn exchange(&self, sender: &mut SendRequest<Full<Bytes>>) -> hyper::Result<(StatusCode, String, Bytes)> {
        let (name, slug) = (&self.target.name, &self.target.link.slug);
        let request = match self.creates() {
            true => Request::builder()
                .method(Method::POST)
                .uri(format!("https://{name}/shorten"))
                .header(AUTHORIZATION, &self.target.authorization)
                .header(CONTENT_TYPE, "application/json")
                .body(Full::from(serde_json::json!({ "url": self.url() }).to_string())),
            false => Request::builder()
                .uri(format!("https://{name}/{slug}"))
                .body(Full::default()),
        };
        // The parts of the request are those of a test, and valid.
        let request = request.unwrap_or_default();
        let (head, body) = sender.send_request(request).await?.into_parts();
        let body = body.collect().await?.to_bytes();
        let location = head.headers.get("location").and_then(|value| value.to_str().ok());
        Ok((head.status, location.unwrap_or_default().to_owned(), body))
    }

    fn check(&mut self, status: StatusCode, location: &str, body: &Bytes) {
        let slug = || {
            let answer: serde_json::Value = serde_json::from_slice(body).ok()?;
            answer["slug"].as_str().map(str::to_owned)
        };
        let is_right = match self.creates() {
            true if status == StatusCode::OK => slug().map(|slug| {
                let url = self.url();
                let mut acknowledged = self.shared.acknowledged.lock().unwrap_or_else(PoisonError::into_inner);
                acknowledged.push(Link { slug, url });
            }),
            true => None,
            false => (status == StatusCode::FOUND && location == self.target.link.url).then_some(()),
        };
        match is_right {
            Some(()) => drop(self.shared.answered.fetch_add(1, Ordering::Relaxed)),
            None => self
                .shared
                .fail(format!("request {}: {status} {location} {body:?}", self.sent)),
        }
        self.sent += 1;
    }
}

/// Whether the server says that it has not received the request, or the connection ended before it was sent.
fn was_not_received(error: &hyper::Error) -> bool {
    let source = std::error::Error::source(error).and_then(|source| source.downcast_ref::<h2::Error>());
    match source {
        Some(error) => error.is_go_away() && error.is_remote() && error.reason() == Some(h2::Reason::NO_ERROR),
        None => error.is_canceled() || error.is_closed(),
    }
}
