//! The HTTP client of the network process. Every request has a deadline, and every response a maximum length.

use std::error::Error as StdError;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Limited};
use hyper::header::{HeaderValue, RETRY_AFTER, USER_AGENT};
use hyper::{Method, Request, Response};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};
use tokio::time::timeout;

/// The maximum length of a response in bytes. A chain of certificates takes a few KiB.
const LONGEST: usize = 256 << 10;
/// Shorter than any server keeps a connection. Nobody watches idle ones while the other process works.
const IDLE_TIMEOUT: Duration = Duration::from_secs(5);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long one request may take.
pub const HTTP_TIMEOUT: Duration = Duration::from_secs(30);

/// What instant-acme does not pass on of a response.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// The status of the last response.
    pub status: Option<u16>,
    /// `Retry-After` of the last response, as it was sent.
    pub retry_after: Option<String>,
    /// The last response to a GET: the directory.
    pub fetched: Bytes,
}

/// A client that can be cloned. All clones share what they have seen.
#[derive(Clone)]
pub struct Http {
    client: Client<HttpsConnector<HttpConnector>, BodyWrapper<Bytes>>,
    seen: Arc<Mutex<Seen>>,
}

impl fmt::Debug for Http {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Http").field("seen", &self.seen).finish_non_exhaustive()
    }
}

/// There is no response.
#[derive(Debug)]
pub enum NoResponse {
    /// Not in time.
    TimedOut,
    Failed(Box<dyn StdError + Send + Sync>),
}

impl fmt::Display for NoResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TimedOut => write!(f, "no response within {} s", HTTP_TIMEOUT.as_secs()),
            Self::Failed(error) => write!(f, "{error}"),
        }
    }
}

impl StdError for NoResponse {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match self {
            Self::TimedOut => None,
            Self::Failed(error) => Some(&**error),
        }
    }
}

/// The certificates in PEM by which a client trusts a server.
///
/// # Errors
/// There is none, or one is damaged.
pub fn roots_in(pem: &str) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        let certificate = certificate.map_err(|_| "one of the certificates is damaged".to_owned())?;
        roots.add(certificate).map_err(|error| error.to_string())?;
    }
    match roots.is_empty() {
        true => Err("there is no certificate in PEM in it".to_owned()),
        false => Ok(roots),
    }
}

/// The certificates that this machine trusts or, if it has none, those that browsers trust.
fn system_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    roots
}

impl Http {
    /// # Errors
    /// `roots` cannot be used.
    pub fn new(roots: Option<&str>) -> Result<Self, String> {
        let roots = roots.map_or_else(|| Ok(system_roots()), roots_in)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_only()
            .enable_http1()
            .enable_http2()
            .wrap_connector(connector);
        Ok(Self {
            client: Client::builder(TokioExecutor::new())
                .pool_idle_timeout(IDLE_TIMEOUT)
                .pool_timer(TokioTimer::new())
                .timer(TokioTimer::new())
                .build(connector),
            seen: Arc::default(),
        })
    }

    pub fn seen(&self) -> Seen {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        // No panic leaves this half updated.
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a request of instant-acme.
    async fn send(self, mut request: Request<BodyWrapper<Bytes>>) -> Result<BytesResponse, NoResponse> {
        let is_get = request.method() == Method::GET;
        name_ourselves(&mut request);
        let exchange = async {
            let response = self.client.request(request).await?;
            let (head, body) = response.into_parts();
            let body = Limited::new(body, LONGEST).collect().await?.to_bytes();
            Ok((head, body))
        };
        let (head, body) = timeout(HTTP_TIMEOUT, exchange)
            .await
            .map_err(|_| NoResponse::TimedOut)?
            .map_err(NoResponse::Failed)?;
        let mut seen = self.lock();
        seen.status = Some(head.status.as_u16());
        seen.retry_after = head
            .headers
            .get(RETRY_AFTER)
            .and_then(|value| value.to_str().ok())
            .map(str::to_owned);
        if is_get {
            seen.fetched = body.clone();
        }
        drop(seen);
        let (mut parts, ()) = Response::new(()).into_parts();
        parts.status = head.status;
        parts.headers = head.headers;
        Ok(BytesResponse {
            parts,
            body: Box::new(body),
        })
    }

    /// Fetches a resource that needs no account.
    ///
    /// # Errors
    /// The URL is none, or there is no response.
    pub async fn get(&self, url: &str) -> Result<(), Error> {
        let request = Request::get(url).body(BodyWrapper::default())?;
        self.clone().send(request).await.map(drop).map_err(other)
    }
}

/// An ACME client should say what it is (RFC 8555, section 6.1).
fn name_ourselves(request: &mut Request<BodyWrapper<Bytes>>) {
    let own = concat!("links-shortener/", env!("CARGO_PKG_VERSION"));
    let library = request.headers().get(USER_AGENT).and_then(|value| value.to_str().ok());
    let both = library.map_or_else(|| own.to_owned(), |library| format!("{own} {library}"));
    if let Ok(value) = HeaderValue::try_from(both) {
        request.headers_mut().insert(USER_AGENT, value);
    }
}

fn other(error: NoResponse) -> Error {
    Error::Other(Box::new(error))
}

impl HttpClient for Http {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let sending = self.clone().send(request);
        Box::pin(async move { sending.await.map_err(other) })
    }
}
