//! Sends telemetry to a collector: OTLP over HTTP as the exporters produce it, or the same message over gRPC.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use bytes::{BufMut as _, Bytes, BytesMut};
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, TE, USER_AGENT};
use http::{HeaderMap, Request, Response, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use opentelemetry_http::{HttpClient, HttpError};
use tokio::runtime::Handle;
use wasmtime_wasi::async_trait;

use super::settings::{Protocol, Signal};
use crate::http_client::{Client, Version};

/// How long an export may take. The default of OTLP.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The maximum size of a response, in bytes.
const MAX_RESPONSE: usize = 1 << 20;
/// The size in bytes of the prefix of a gRPC message: the compression flag and the length.
const PREFIX: usize = 5;
/// The minimum length in bytes of a secret. Shorter header values are not secret, and occur in ordinary words.
const SHORTEST_SECRET: usize = 4;

/// The HTTP client of an exporter. Exporters run on their own threads, but the network work runs on this process's executor.
#[derive(Debug)]
pub struct Collector(std::sync::Arc<Inner>);

#[derive(Debug)]
struct Inner {
    runtime: Handle,
    signal: Signal,
    protocol: Protocol,
    plain: Client,
    tls: Client,
    /// Whether the current failure was logged.
    failing: AtomicBool,
}

impl Collector {
    pub fn new(runtime: Handle, signal: Signal, protocol: Protocol) -> Self {
        let version = match protocol {
            Protocol::Http => Version::Http1,
            Protocol::Grpc => Version::Http2,
        };
        Self(std::sync::Arc::new(Inner {
            runtime,
            signal,
            protocol,
            plain: Client::with_tls(false, version),
            tls: Client::with_tls(true, version),
            failing: AtomicBool::new(false),
        }))
    }
}

#[async_trait]
impl HttpClient for Collector {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let inner = self.0.clone();
        let sent = self.0.runtime.spawn(async move { inner.export(request).await });
        Ok(sent.await??)
    }
}

impl Inner {
    async fn export(&self, request: Request<Bytes>) -> Result<Response<Bytes>> {
        let host = host(request.uri());
        let secrets = secrets(request.headers());
        let answer = match tokio::time::timeout(TIMEOUT, self.send(request)).await {
            Ok(answer) => answer,
            Err(_) => Err(anyhow::anyhow!("no answer within {TIMEOUT:?}")),
        };
        let problem = match &answer {
            Ok(answer) if answer.status().is_success() => None,
            Ok(answer) => Some(format!("HTTP {}", answer.status())),
            Err(error) => Some(format!("{error:#}")),
        };
        // Log each failure once, when it begins: the exporters log nothing.
        match problem {
            Some(problem) if !self.failing.swap(true, Relaxed) => {
                // A server may quote the request in its error.
                let problem = secrets.iter().fold(problem, |text, secret| text.replace(secret, "***"));
                tracing::warn!("telemetry ({:?}) does not arrive at {host}: {problem}", self.signal);
            }
            None if self.failing.swap(false, Relaxed) => {
                tracing::info!("telemetry ({:?}) arrives at {host} again", self.signal);
            }
            _ => {}
        }
        answer
    }

    async fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>> {
        let client = if request.uri().scheme_str() == Some("https") {
            &self.tls
        } else {
            &self.plain
        };
        let request = match self.protocol {
            Protocol::Http => request,
            Protocol::Grpc => framed(request, self.signal.service())?,
        };
        let (head, body) = client.send(request.map(Full::new)).await?.into_parts();
        let body = Limited::new(body, MAX_RESPONSE).collect().await;
        let body = body.map_err(|error| anyhow::anyhow!("the response breaks off: {error}"))?;
        if self.protocol == Protocol::Http {
            return Ok(Response::from_parts(head, body.to_bytes()));
        }
        ensure!(head.status.is_success(), "HTTP {}", head.status);
        // An error without a body has its status in the headers instead of the trailers.
        let trailers = body.trailers().cloned().unwrap_or_else(|| head.headers.clone());
        check(&trailers)?;
        let message = body.to_bytes();
        let message = if message.len() > PREFIX {
            message.slice(PREFIX..)
        } else {
            Bytes::new()
        };
        Ok(Response::new(message))
    }
}

/// The host and port of a URI, without user name and password.
fn host(uri: &Uri) -> String {
    let host = uri.host().unwrap_or_default();
    match uri.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}

/// The values of all headers that may be secret, and the words in them, as in `Bearer TOKEN`. The longest comes first.
fn secrets(headers: &HeaderMap) -> Vec<String> {
    let public = [CONTENT_TYPE, CONTENT_LENGTH, CONTENT_ENCODING, USER_AGENT];
    let mut secrets: Vec<String> = headers
        .iter()
        .filter(|(name, _)| !public.contains(name))
        .filter_map(|(_, value)| value.to_str().ok())
        .flat_map(|value| std::iter::once(value).chain(value.split(' ')))
        .filter(|secret| secret.len() >= SHORTEST_SECRET)
        .map(str::to_owned)
        .collect();
    secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
    secrets
}

/// Converts an exporter's HTTP request to gRPC. The message is the same.
fn framed(request: Request<Bytes>, service: &'static str) -> Result<Request<Bytes>> {
    let (mut head, message) = request.into_parts();
    let mut uri = head.uri.into_parts();
    uri.path_and_query = Some(service.parse()?);
    head.uri = Uri::from_parts(uri).context("the endpoint has no host")?;
    head.headers.remove(CONTENT_LENGTH);
    head.headers
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    head.headers.insert(TE, HeaderValue::from_static("trailers"));
    let mut body = BytesMut::with_capacity(PREFIX + message.len());
    body.put_u8(0);
    body.put_u32(u32::try_from(message.len()).context("the message is too large")?);
    body.put(message);
    Ok(Request::from_parts(head, body.freeze()))
}

/// Checks the status of gRPC.
///
/// # Errors
/// The status is missing, or is not OK.
fn check(trailers: &HeaderMap) -> Result<()> {
    let text = |name| {
        trailers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    };
    match text("grpc-status") {
        "0" => Ok(()),
        "" => bail!("the server does not speak gRPC"),
        status => bail!("gRPC status {status}: {}", text("grpc-message")),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic fails the test")]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_framed_for_grpc() {
        let request = Request::post("http://collector:4317/v1/traces")
            .header("authorization", "Bearer t")
            .header(CONTENT_TYPE, "application/x-protobuf")
            .body(Bytes::from_static(b"abc"))
            .unwrap();
        let framed = framed(request, Signal::Traces.service()).unwrap();
        assert_eq!(
            framed.uri(),
            "http://collector:4317/opentelemetry.proto.collector.trace.v1.TraceService/Export"
        );
        assert_eq!(framed.headers()["authorization"], "Bearer t");
        assert_eq!(framed.headers()[CONTENT_TYPE], "application/grpc");
        assert_eq!(framed.headers()[TE], "trailers");
        assert_eq!(framed.body().as_ref(), b"\0\0\0\0\x03abc");
    }

    #[test]
    fn what_is_logged_contains_no_secret() {
        assert_eq!(
            host(&"http://user:s3cret@collector:4317/v1/traces".parse().unwrap()),
            "collector:4317"
        );
        let mut headers = HeaderMap::new();
        headers.insert("authorization", HeaderValue::from_static("Bearer s3cret"));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
        assert_eq!(secrets(&headers), ["Bearer s3cret", "Bearer", "s3cret"]);
    }

    #[test]
    fn only_grpc_status_0_is_success() {
        let trailers = |pairs: &[(&'static str, &'static str)]| {
            pairs
                .iter()
                .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
                .collect::<HeaderMap>()
        };
        assert!(check(&trailers(&[("grpc-status", "0")])).is_ok());
        let error = check(&trailers(&[("grpc-status", "16"), ("grpc-message", "who are you")])).unwrap_err();
        assert_eq!(error.to_string(), "gRPC status 16: who are you");
        assert!(check(&HeaderMap::new()).is_err());
    }
}
