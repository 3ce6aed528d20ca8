//! A client for HTTP/1.1 inside a machine: follows nothing, retries nothing.

use std::fmt;
use std::io;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::runtime::{self, Runtime};

use crate::NetNamespace;
use crate::stream::{Address, Stream};
use crate::wire::Wire;

/// What came back.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    /// A header's value, or `""` where it is absent or not text.
    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// # Errors
    /// The body is not the JSON of a `T`; the error holds the whole answer.
    pub fn json<T: DeserializeOwned>(&self) -> anyhow::Result<T> {
        serde_json::from_slice(&self.body).map_err(|error| anyhow::anyhow!("{error} in the body of: {self}"))
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?} {}", self.status, self.headers, self.text())
    }
}

/// Why no answer came.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("connection refused")]
    Refused,
    /// The connection was reset, or closed before the answer was complete.
    #[error("the connection was reset")]
    Reset,
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
    #[error("{0}")]
    Other(String),
}

impl Failure {
    pub(crate) fn of_io(error: &io::Error, deadline: Duration) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionRefused => Self::Refused,
            io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::UnexpectedEof => Self::Reset,
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Self::TimedOut(deadline),
            _ => Self::Other(error.to_string()),
        }
    }

    fn of_hyper(error: &hyper::Error, deadline: Duration) -> Self {
        let source = std::error::Error::source(error).and_then(|source| source.downcast_ref::<io::Error>());
        match source {
            Some(source) => Self::of_io(source, deadline),
            None if error.is_incomplete_message() || error.is_canceled() || error.is_closed() => Self::Reset,
            None => Self::Other(error.to_string()),
        }
    }
}

/// Talks to one address of a machine, over a connection of its own for each request.
#[derive(Clone, Debug)]
pub struct Client {
    network: NetNamespace,
    address: Address,
    headers: HeaderMap,
    deadline: Duration,
}

impl Client {
    /// The `Host` that is sent unless [`Self::header`] gives another.
    const HOST: HeaderValue = HeaderValue::from_static("links.example");

    pub(crate) fn new(network: NetNamespace, address: Address) -> Self {
        let headers = HeaderMap::from_iter([(HOST, Self::HOST)]);
        Self {
            network,
            address,
            headers,
            deadline: Duration::from_secs(10),
        }
    }

    /// The same with a header for every request, in place of one of that name.
    ///
    /// # Panics
    /// `name` or `value` may not stand in a header.
    #[must_use]
    #[allow(clippy::expect_used, reason = "the name and the value are literals of a test")]
    pub fn header(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        let name = HeaderName::from_bytes(name.as_bytes()).expect("a header name");
        let value = HeaderValue::from_bytes(value.as_ref()).expect("a header value");
        self.headers.insert(name, value);
        self
    }

    /// The same with `Authorization: Bearer`.
    #[must_use]
    pub fn bearer(self, token: &str) -> Self {
        self.header("authorization", format!("Bearer {token}"))
    }

    /// The same with another limit than 10 s, from connecting to the last byte of the answer.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    pub fn get(&self, path: &str) -> Result<Answer, Failure> {
        self.connect()?.send(Method::GET, path, Bytes::new())
    }

    pub fn head(&self, path: &str) -> Result<Answer, Failure> {
        self.connect()?.send(Method::HEAD, path, Bytes::new())
    }

    /// Posts JSON; a [`Self::header`] may name another content type.
    pub fn post(&self, path: &str, body: impl ToString) -> Result<Answer, Failure> {
        self.connect()?.post(path, body)
    }

    pub fn put(&self, path: &str, body: impl ToString) -> Result<Answer, Failure> {
        self.connect()?.send(Method::PUT, path, Bytes::from(body.to_string()))
    }

    pub fn patch(&self, path: &str, body: impl ToString) -> Result<Answer, Failure> {
        self.connect()?.send(Method::PATCH, path, Bytes::from(body.to_string()))
    }

    pub fn delete(&self, path: &str) -> Result<Answer, Failure> {
        self.connect()?.send(Method::DELETE, path, Bytes::new())
    }

    /// Posts bytes; [`Self::header`] names the content type.
    pub fn post_bytes(&self, path: &str, body: impl Into<Bytes>) -> Result<Answer, Failure> {
        self.connect()?.send(Method::POST, path, body.into())
    }

    /// A connection that stays open for several requests.
    pub fn connect(&self) -> Result<Connection, Failure> {
        let stream = self.stream().map_err(|error| Failure::of_io(&error, self.deadline))?;
        Connection::over(stream, self.headers.clone(), self.deadline)
    }

    /// A connection over which nothing has been sent yet.
    ///
    /// # Errors
    /// As [`Stream::connect`].
    pub fn stream(&self) -> io::Result<Stream> {
        self.network.connect(&self.address, self.deadline)
    }

    /// Opens a connection from a thread that has entered the machine's network.
    pub(crate) fn wire(&self) -> Result<Wire, Failure> {
        Wire::connect(&self.address, self.deadline)
    }

    /// The header fields of every request, as they are sent.
    pub fn header_lines(&self) -> String {
        let line = |(name, value): (&HeaderName, &HeaderValue)| {
            format!("{name}: {}\r\n", String::from_utf8_lossy(value.as_bytes()))
        };
        self.headers.iter().map(line).collect()
    }

    pub(crate) fn network(&self) -> &NetNamespace {
        &self.network
    }
}

/// An open connection.
#[derive(Debug)]
pub struct Connection {
    runtime: Runtime,
    sender: SendRequest<Full<Bytes>>,
    headers: HeaderMap,
    deadline: Duration,
}

impl Connection {
    fn over(stream: Stream, headers: HeaderMap, deadline: Duration) -> Result<Self, Failure> {
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Failure::of_io(&error, deadline))?;
        let sender = match stream {
            Stream::Tcp(stream) => runtime.block_on(async {
                stream.set_nonblocking(true)?;
                Ok(handshake(tokio::net::TcpStream::from_std(stream)?).await)
            }),
            Stream::Unix(stream) => runtime.block_on(async {
                stream.set_nonblocking(true)?;
                Ok(handshake(tokio::net::UnixStream::from_std(stream)?).await)
            }),
        };
        let sender = sender
            .map_err(|error: io::Error| Failure::of_io(&error, deadline))?
            .map_err(|error| Failure::of_hyper(&error, deadline))?;
        Ok(Self {
            runtime,
            sender,
            headers,
            deadline,
        })
    }

    pub fn get(&mut self, path: &str) -> Result<Answer, Failure> {
        self.send(Method::GET, path, Bytes::new())
    }

    /// As [`Client::post`].
    pub fn post(&mut self, path: &str, body: impl ToString) -> Result<Answer, Failure> {
        self.send(Method::POST, path, Bytes::from(body.to_string()))
    }

    fn send(&mut self, method: Method, path: &str, body: Bytes) -> Result<Answer, Failure> {
        let mut request = Request::builder()
            .method(&method)
            .uri(path)
            .body(Full::new(body))
            .map_err(|error| Failure::Other(format!("{path:?}: {error}")))?;
        *request.headers_mut() = self.headers.clone();
        if [Method::POST, Method::PUT, Method::PATCH].contains(&method) {
            let json = HeaderValue::from_static("application/json");
            request.headers_mut().entry(CONTENT_TYPE).or_insert(json);
        }

        let sender = &mut self.sender;
        let exchange = async {
            sender.ready().await?;
            let response = sender.send_request(request).await?;
            let (head, body) = response.into_parts();
            let body = body.collect().await?.to_bytes();
            Ok(Answer {
                status: head.status,
                headers: head.headers,
                body,
            })
        };
        let deadline = self.deadline;
        match self
            .runtime
            .block_on(async { tokio::time::timeout(deadline, exchange).await })
        {
            Ok(result) => result.map_err(|error| Failure::of_hyper(&error, deadline)),
            Err(_) => Err(Failure::TimedOut(deadline)),
        }
    }
}

async fn handshake(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
) -> hyper::Result<SendRequest<Full<Bytes>>> {
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // Its error also ends the request that waits for it, which reports it.
    tokio::spawn(async { drop(connection.await) });
    Ok(sender)
}
