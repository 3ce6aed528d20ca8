//! A small HTTP server on loopback for unit tests. It ends with the runtime of its test.

#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

#[derive(Clone, Debug)]
pub struct Request {
    /// The request line and the header fields, each with its CRLF.
    pub head: String,
    pub body: String,
}

impl Request {
    pub fn path(&self) -> &str {
        self.head.split(' ').nth(1).unwrap()
    }

    /// Reads a request whose body, if it has one, has a content-length.
    pub async fn read(stream: &mut TcpStream) -> Self {
        let mut bytes = Vec::new();
        loop {
            let text = String::from_utf8_lossy(&bytes).into_owned();
            if let Some((head, body)) = text.split_once("\r\n\r\n") {
                let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
                if body.len() >= length.map_or(0, |length| length.parse().unwrap()) {
                    return Self {
                        head: format!("{head}\r\n"),
                        body: body.to_owned(),
                    };
                }
            }
            assert_ne!(stream.read_buf(&mut bytes).await.unwrap(), 0, "{text}");
        }
    }
}

#[derive(Clone, Debug)]
pub struct Response {
    status: u16,
    /// Header fields, each with its CRLF.
    headers: String,
    body: String,
    /// The number of bytes of the body after which the server stalls.
    stalls_after: usize,
}

impl Response {
    pub fn new(status: u16, body: impl Into<String>) -> Self {
        Self {
            status,
            headers: String::new(),
            body: body.into(),
            stalls_after: usize::MAX,
        }
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push_str(&format!("{name}: {value}\r\n"));
        self
    }

    /// Sends only so many bytes of the body, and keeps the connection open.
    pub fn stalling_after(mut self, bytes: usize) -> Self {
        self.stalls_after = bytes;
        self
    }
}

/// A server that answers the requests in turn, each on a connection of its own, and keeps what it has received.
#[derive(Clone, Debug)]
pub struct Server {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    /// Starts a server that answers with what `answer` returns. Without an answer it stays silent, for this and all later
    /// requests.
    pub async fn start(mut answer: impl FnMut(&Request) -> Option<Response> + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Self {
            address: listener.local_addr().unwrap(),
            requests: Arc::default(),
        };
        let requests = Arc::clone(&server.requests);
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let request = Request::read(&mut stream).await;
                let response = answer(&request);
                requests.lock().unwrap().push(request);
                let Some(response) = response else {
                    std::future::pending::<()>().await;
                    return;
                };
                let Response {
                    status,
                    headers,
                    body,
                    stalls_after,
                } = response;
                let head = format!(
                    "HTTP/1.1 {status} X\r\n{headers}content-length: {}\r\nconnection: close\r\n\r\n",
                    body.len()
                );
                stream.write_all(head.as_bytes()).await.unwrap();
                let sent = body.len().min(stalls_after);
                stream.write_all(&body.as_bytes()[..sent]).await.unwrap();
                if sent < body.len() {
                    std::future::pending::<()>().await;
                }
            }
        });
        server
    }

    /// Starts a server that sends these responses, one to each request. After the last one it stays silent.
    pub async fn with(responses: Vec<Response>) -> Self {
        let mut responses = responses.into_iter();
        Self::start(move |_| responses.next()).await
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The requests so far.
    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }
}
