//! The HTTP client for everything that is asked over the network: databases, secrets, collectors of telemetry.

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

/// How long a connection may take to come about, TLS not counted.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long an unused connection is kept; less than what servers and load balancers do.
const KEPT: Duration = Duration::from_secs(30);
/// How much of a server's explanation goes into an error.
const EXPLANATION: usize = 300;

type Hyper<B> = legacy::Client<HttpsConnector<HttpConnector>, B>;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Version {
    Http1,
    /// Without an upgrade: for gRPC.
    Http2,
}

/// Connections, to one server as a rule; they are kept for the next requests. Nothing is set up before the first request.
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
    /// For a URL with that scheme.
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

    /// How long a connection may take to come about, TLS not counted.
    pub fn with_connect_timeout(self, connect_timeout: Duration) -> Self {
        Self {
            connect_timeout,
            ..self
        }
    }

    /// # Errors
    /// What went wrong with the connection; never the URL, never a header.
    pub async fn send(&self, request: Request<B>) -> Result<Response<Incoming>> {
        let hyper = self.hyper.get_or_try_init(|| self.build()).await?;
        hyper
            .request(request)
            .await
            .map_err(|error| anyhow!("{}", causes(&error)))
    }

    async fn build(&self) -> Result<Hyper<B>> {
        let tls = if self.tls {
            // It reads the certificates of this machine.
            tokio::task::spawn_blocking(trusted).await??
        } else {
            config(RootCertStore::empty())?
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
            .pool_idle_timeout(KEPT)
            .pool_timer(TokioTimer::new())
            .build(connector))
    }
}

/// What this machine trusts; without any of that, what Mozilla trusts.
fn trusted() -> Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        tracing::warn!("this machine has no certificates of its own (package ca-certificates): Mozilla's are used");
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    config(roots)
}

fn config(roots: RootCertStore) -> Result<ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    Ok(ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth())
}

/// The whole body.
///
/// # Errors
/// It is larger than `most` bytes, or breaks off.
pub async fn read(body: Incoming, most: usize) -> Result<Bytes> {
    match Limited::new(body, most).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => bail!("the answer is larger than {most} bytes"),
        Err(error) => bail!("the answer breaks off: {}", causes(error.as_ref())),
    }
}

/// What a refusal says: its status, and its first words on one line.
pub async fn refusal(response: Response<Incoming>, message: impl FnOnce(&[u8]) -> Option<String>) -> String {
    let status = response.status();
    let mut text = format!("HTTP {}", status.as_u16());
    if let Ok(body) = read(response.into_body(), 64 << 10).await {
        let message = message(&body).unwrap_or_else(|| String::from_utf8_lossy(&body).into_owned());
        let message = message.split_whitespace().collect::<Vec<_>>().join(" ");
        if !message.is_empty() {
            text.push_str(": ");
            text.extend(message.chars().take(EXPLANATION));
            return text;
        }
    }
    if let Some(reason) = status.canonical_reason() {
        // Writing to a string cannot fail.
        let _ = write!(text, " {reason}");
    }
    text
}

/// An error with what caused it, each once.
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

/// The URL of a server, as a configuration has it: with no secret in it, so that it can be shown.
///
/// # Errors
/// It is no URL, has another scheme, or holds a name and password or a query. The error does not quote it.
pub fn server_url(text: &str, schemes: &[&str], secret_goes: &str) -> Result<Url> {
    let url = Url::parse(text).context("url is not a URL")?;
    ensure!(
        schemes.contains(&url.scheme()),
        "url begins with {}://, expected one of {}",
        url.scheme(),
        schemes
            .iter()
            .map(|scheme| format!("{scheme}://"))
            .collect::<Vec<_>>()
            .join(", ")
    );
    ensure!(url.has_host(), "url names no host");
    ensure!(
        url.username().is_empty() && url.password().is_none() && url.query().is_none() && url.fragment().is_none(),
        "url must hold no name, password, query or fragment; {secret_goes}"
    );
    Ok(url)
}

/// `url` and a path below it.
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
                server_url(bad, &["http"], "the token goes into token").unwrap_err()
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
    fn causes_are_told_once() {
        let error = std::io::Error::other(std::io::Error::other("the end"));
        assert_eq!(causes(&error), "the end");
    }

    #[tokio::test]
    async fn nobody_there_is_told_as_such() {
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
