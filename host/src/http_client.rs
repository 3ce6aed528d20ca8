//! The HTTP client for remote databases, secret stores, telemetry collectors and outbound requests of components.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::{Body, Incoming};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::{ClientConfig, RootCertStore};
use tokio::sync::OnceCell;
use url::Url;

/// How long a TCP connection may take to establish. The TLS handshake is not included.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long an idle connection is kept. Servers and load balancers keep theirs longer.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// The maximum length of a server's message within an error, in characters.
const MAX_MESSAGE_CHARS: usize = 300;

type Hyper<B> = legacy::Client<HttpsConnector<HttpConnector>, B>;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Version {
    Http1,
    /// HTTP/2 with prior knowledge, as gRPC needs it.
    Http2,
}

/// An HTTP client with a connection pool, usually for one server. It is set up on the first request.
#[derive(Debug)]
pub struct Client<B = Full<Bytes>> {
    version: Version,
    tls: bool,
    connect_timeout: Duration,
    hyper: OnceCell<Hyper<B>>,
}

impl<B> Client<B>
where
    B: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send + Unpin + 'static,
{
    /// A client that uses TLS if the scheme of `url` is https.
    pub fn new(url: &Url, version: Version) -> Self {
        Self::with_tls(url.scheme() == "https", version)
    }

    pub fn with_tls(tls: bool, version: Version) -> Self {
        Self {
            version,
            tls,
            connect_timeout: CONNECT_TIMEOUT,
            hyper: OnceCell::new(),
        }
    }

    /// Replaces [`CONNECT_TIMEOUT`].
    pub fn with_connect_timeout(self, connect_timeout: Duration) -> Self {
        Self {
            connect_timeout,
            ..self
        }
    }

    /// # Errors
    /// Describes what went wrong with the connection. The error contains neither the URL nor a header, which may hold secrets.
    pub async fn send(&self, request: Request<B>) -> Result<Response<Incoming>> {
        let hyper = self.hyper.get_or_try_init(|| self.build()).await?;
        hyper
            .request(request)
            .await
            .map_err(|error| anyhow!("{}", causes(&error)))
    }

    async fn build(&self) -> Result<Hyper<B>> {
        let tls = if self.tls {
            // Reading the system's certificates blocks.
            tokio::task::spawn_blocking(system_tls_config).await??
        } else {
            tls_config(RootCertStore::empty())?
        };
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(self.connect_timeout));
        let builder = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http();
        let connector = match self.version {
            Version::Http1 => builder.enable_http1().wrap_connector(connector),
            Version::Http2 => builder.enable_http2().wrap_connector(connector),
        };
        Ok(legacy::Client::builder(TokioExecutor::new())
            .http2_only(self.version == Version::Http2)
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_timer(TokioTimer::new())
            .build(connector))
    }
}

/// Trusts the system's CA certificates, or Mozilla's if the system has none.
fn system_tls_config() -> Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        tracing::warn!(
            "no CA certificates found on this system (package ca-certificates), using the built-in Mozilla list"
        );
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    tls_config(roots)
}

fn tls_config(roots: RootCertStore) -> Result<ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    Ok(ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth())
}

/// Reads a whole body.
///
/// # Errors
/// The body is larger than `max_bytes`, or ends early.
pub async fn read(body: Incoming, max_bytes: usize) -> Result<Bytes> {
    match Limited::new(body, max_bytes).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => bail!("the response is larger than {max_bytes} bytes"),
        Err(error) => bail!("the response ended early: {}", causes(error.as_ref())),
    }
}

/// Describes an unsuccessful response in one line: its status and the beginning of its message.
///
/// `message` extracts the message from the body; if it finds none, the body itself is the message.
pub async fn refusal(response: Response<Incoming>, message: impl FnOnce(&[u8]) -> Option<String>) -> String {
    let status = response.status();
    let mut text = format!("HTTP {}", status.as_u16());
    if let Ok(body) = read(response.into_body(), 64 << 10).await {
        let message = message(&body).unwrap_or_else(|| String::from_utf8_lossy(&body).into_owned());
        let message = message.split_whitespace().collect::<Vec<_>>().join(" ");
        if !message.is_empty() {
            text.push_str(": ");
            text.extend(message.chars().take(MAX_MESSAGE_CHARS));
            return text;
        }
    }
    if let Some(reason) = status.canonical_reason() {
        // Writing to a string cannot fail.
        let _ = write!(text, " {reason}");
    }
    text
}

/// An error and its causes on one line. A cause that the text already contains is not repeated.
pub fn causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}

/// Parses a server URL from a configuration file. The result holds no secret, so it can be printed.
///
/// # Errors
/// The text is not a URL, has an unexpected scheme, or holds credentials, a query or a fragment. The error does not quote the
/// URL, which may hold a secret.
pub fn server_url(text: &str, schemes: &[&str], secret_goes: &str) -> Result<Url> {
    let url = Url::parse(text).context("url is not a URL")?;
    ensure!(
        schemes.contains(&url.scheme()),
        "url starts with {}://, expected one of {}",
        url.scheme(),
        schemes
            .iter()
            .map(|scheme| format!("{scheme}://"))
            .collect::<Vec<_>>()
            .join(", ")
    );
    ensure!(url.has_host(), "url has no host");
    ensure!(
        url.username().is_empty() && url.password().is_none() && url.query().is_none() && url.fragment().is_none(),
        "url must not contain a user name, password, query or fragment; {secret_goes}"
    );
    Ok(url)
}

/// Appends `path` to `url`.
pub fn below(url: &Url, path: &str) -> String {
    format!("{}/{path}", url.as_str().trim_end_matches('/'))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a URL that is not read as expected fails the test")]
mod tests {
    use super::*;

    #[test]
    fn a_url_with_a_secret_is_refused_without_being_quoted() {
        for bad in [
            "http://user:s3cret@db:8080",
            "http://s3cret@db",
            "http://db/?authToken=s3cret",
            "http://db/#s3cret",
            "ftp://db/s3cret",
            "s3cret",
        ] {
            let error = format!(
                "{:#}",
                server_url(bad, &["http"], "put the token into `token`").unwrap_err()
            );
            assert!(error.contains("url") && !error.contains("s3cret"), "{error}");
        }
    }

    #[test]
    fn paths_go_below_the_url() {
        let below = |text| below(&server_url(text, &["http", "https"], "").unwrap(), "v3/pipeline");
        assert_eq!(below("http://db:8080"), "http://db:8080/v3/pipeline");
        assert_eq!(below("https://db/name/"), "https://db/name/v3/pipeline");
    }

    #[test]
    fn a_cause_is_not_repeated() {
        let error = std::io::Error::other(std::io::Error::other("the end"));
        assert_eq!(causes(&error), "the end");
    }

    #[tokio::test]
    async fn a_refused_connection_is_reported_without_the_url() {
        let free = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let url = Url::parse(&format!("http://{free}/secret")).unwrap();
        let request = Request::get(url.as_str()).body(Full::default()).unwrap();
        let error = Client::new(&url, Version::Http1)
            .send(request)
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains("refused") && !error.contains("secret"), "{error}");
    }
}
