//! An HTTP/1.1 client for servers inside a machine or on this computer. It follows no redirects and repeats no requests.

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

pub use crate::failure::Failure;
use crate::namespace::NetNamespace;
use crate::stream::{Address, Stream};
use crate::wire::Wire;

/// An HTTP response.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    /// A header's value, or `""` if the header is missing or is not text.
    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Parses the body as JSON.
    ///
    /// # Errors
    /// Fails if the body is not the JSON of a `T`. The error holds the whole answer.
    pub fn json<T: DeserializeOwned>(&self) -> anyhow::Result<T> {
        serde_json::from_slice(&self.body).map_err(|error| anyhow::anyhow!("{error} in the body of: {self}"))
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?} {}", self.status, self.headers, self.text())
    }
}

/// A client for one address. It opens a new connection for each request.
#[derive(Clone, Debug)]
pub struct Client {
    /// The network of the machine in which the address is; `None` for this computer's.
    network: Option<NetNamespace>,
    address: Address,
    headers: HeaderMap,
    deadline: Duration,
}

impl Client {
    /// The `Host` header, unless [`Self::header`] sets another.
    const HOST: HeaderValue = HeaderValue::from_static("links.example");

    /// A client for an address in a machine.
    pub(crate) fn inside(network: NetNamespace, address: Address) -> Self {
        Self::new(Some(network), address)
    }

    /// A client for an address on this computer.
    pub fn here(address: Address) -> Self {
        Self::new(None, address)
    }

    fn new(network: Option<NetNamespace>, address: Address) -> Self {
        let headers = HeaderMap::from_iter([(HOST, Self::HOST)]);
        Self {
            network,
            address,
            headers,
            deadline: Duration::from_secs(10),
        }
    }

    /// Sets a header for every request.
    ///
    /// # Panics
    /// Panics if `name` or `value` is not allowed in a header.
    #[must_use]
    #[allow(clippy::expect_used, reason = "the name and the value are literals of a test")]
    pub fn header(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        let name = HeaderName::from_bytes(name.as_bytes()).expect("a header name");
        let value = HeaderValue::from_bytes(value.as_ref()).expect("a header value");
        self.headers.insert(name, value);
        self
    }

    /// Sets `Authorization: Bearer`.
    #[must_use]
    pub fn bearer(self, token: &str) -> Self {
        self.header("authorization", format!("Bearer {token}"))
    }

    /// Sets the time from connecting to the last byte of the answer. The default is 10 s.
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

    /// Posts JSON, unless [`Self::header`] sets another content type.
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

    /// Posts bytes. [`Self::header`] sets their content type.
    pub fn post_bytes(&self, path: &str, body: impl Into<Bytes>) -> Result<Answer, Failure> {
        self.connect()?.send(Method::POST, path, body.into())
    }

    /// Opens a connection for several requests.
    pub fn connect(&self) -> Result<Connection, Failure> {
        let stream = self.stream().map_err(|error| Failure::of_io(&error, self.deadline))?;
        Connection::over(stream, self.headers.clone(), self.deadline)
    }

    /// Opens a connection and sends nothing over it.
    ///
    /// # Errors
    /// Fails as [`Stream::connect`] does.
    pub fn stream(&self) -> io::Result<Stream> {
        match &self.network {
            Some(network) => network.connect(&self.address, self.deadline),
            None => Stream::connect(&self.address, self.deadline),
        }
    }

    /// Opens a connection from a thread that has already entered the machine's network.
    pub(crate) fn wire(&self) -> Result<Wire, Failure> {
        Wire::connect(&self.address, self.deadline)
    }

    /// The header fields of every request, in the form in which they are sent.
    pub fn header_lines(&self) -> String {
        let line = |(name, value): (&HeaderName, &HeaderValue)| {
            format!("{name}: {}\r\n", String::from_utf8_lossy(value.as_bytes()))
        };
        self.headers.iter().map(line).collect()
    }

    /// Moves the calling thread into the network of the address, for good.
    pub(crate) fn enter_network(&self) -> io::Result<()> {
        self.network.as_ref().map_or(Ok(()), NetNamespace::enter)
    }
}

/// An open connection for several requests.
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

    /// Like [`Client::post`].
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
    // The error of the connection also ends the waiting request, which reports it.
    tokio::spawn(async { drop(connection.await) });
    Ok(sender)
}
