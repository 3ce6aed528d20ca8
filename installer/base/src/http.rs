//! HTTP/1.0 requests to servers on this host. Each request has its own connection, which ends with the response: a keep-alive
//! connection would count as traffic while an instance drains.

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use socket2::Socket;

/// The maximum size of a response head in bytes.
const HEAD_LIMIT: usize = 64 << 10;
/// The maximum number of headers in a response.
const MAX_HEADERS: usize = 64;

/// What a client on this host sends first to a server that expects the PROXY protocol. The server then takes the addresses of
/// the connection itself (The PROXY protocol, section 2.1).
pub const PROXY_UNKNOWN: &[u8] = b"PROXY UNKNOWN\r\n";

#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    pub method: Method<'a>,
    pub host: &'a str,
    /// The path, with the query if there is one.
    pub path: &'a str,
    pub headers: &'a [(&'a str, &'a str)],
    /// The maximum number of bytes that are read of the response body. The rest is cut off.
    pub limit: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method<'a> {
    Get,
    /// A request with this JSON body.
    Post(&'a [u8]),
}

impl<'a> Request<'a> {
    /// A GET request to this host that reads up to 64 KiB of the response body.
    pub fn get(path: &'a str) -> Self {
        Self {
            method: Method::Get,
            host: "127.0.0.1",
            path,
            headers: &[],
            limit: 64 << 10,
        }
    }
}

/// A response of any status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    pub status: u16,
    pub reason: String,
    pub location: Option<String>,
    pub body: String,
}

/// Sends the request over `connection`, and reads the response.
///
/// # Errors
/// The server closes the connection early, does not speak HTTP, or has not answered by `deadline`
/// ([`io::ErrorKind::TimedOut`]).
pub fn send(connection: OwnedFd, request: &Request<'_>, deadline: Instant) -> io::Result<Response> {
    let socket = Socket::from(connection);
    exchange(&mut &socket, request, || {
        let left = left(deadline)?;
        socket.set_write_timeout(Some(left))?;
        socket.set_read_timeout(Some(left))
    })
}

/// Sends the request over `stream`, such as a TLS session, and reads the response. `limit_time` is called before each
/// operation on the stream, and limits how long it may take.
///
/// # Errors
/// Those of [`send`], or an error of `limit_time`.
pub fn exchange<S: Read + Write>(
    stream: &mut S,
    request: &Request<'_>,
    limit_time: impl Fn() -> io::Result<()>,
) -> io::Result<Response> {
    limit_time()?;
    stream.write_all(&head(request)?).map_err(timed_out)?;
    if let Method::Post(body) = request.method {
        stream.write_all(body).map_err(timed_out)?;
    }
    stream.flush().map_err(timed_out)?;
    let mut received = vec![];
    let mut chunk = [0; 16 << 10];
    loop {
        if let Some(response) = parse(&received, request.limit)? {
            return Ok(response);
        }
        limit_time()?;
        match stream.read(&mut chunk) {
            Ok(0) => return at_end(&received),
            Ok(count) => received.extend_from_slice(&chunk[..count]),
            // A process that was stopped and continued gets this even if it handles no signal (signal(7)).
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(timed_out(error)),
        }
    }
}

fn head(request: &Request<'_>) -> io::Result<Vec<u8>> {
    let (method, length) = match request.method {
        Method::Get => ("GET", None),
        Method::Post(body) => ("POST", Some(body.len().to_string())),
    };
    let of_body = length
        .iter()
        .flat_map(|length| [("content-length", &**length), ("content-type", "application/json")]);
    let mut head = format!("{method} {} HTTP/1.0\r\n", request.path);
    for (name, value) in [("host", request.host)]
        .into_iter()
        .chain(of_body)
        .chain(request.headers.iter().copied())
    {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    let lines = 1 + 1 + request.headers.len() + 2 * usize::from(length.is_some());
    let is_safe = head.matches("\r\n").count() == lines
        && head.bytes().filter(|byte| byte.is_ascii_control()).count() == 2 * lines;
    if !is_safe {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "a header holds a control character",
        ));
    }
    head.push_str("\r\n");
    Ok(head.into_bytes())
}

/// The response, if its body has been received completely or up to `limit` bytes.
fn parse(received: &[u8], limit: usize) -> io::Result<Option<Response>> {
    let Some((response, start, length)) = parse_head(received)? else {
        return match received.len() > HEAD_LIMIT {
            true => Err(io::Error::other("the head of the response is too long")),
            false => Ok(None),
        };
    };
    let body = &received[start..];
    let wanted = length.map_or(limit, |length| length.min(limit));
    Ok((body.len() >= wanted).then(|| Response {
        body: String::from_utf8_lossy(&body[..wanted]).into_owned(),
        ..response
    }))
}

/// The response after the server has closed the connection.
fn at_end(received: &[u8]) -> io::Result<Response> {
    match parse_head(received)? {
        // Without a content-length, the body ends with the connection.
        Some((response, start, None)) => Ok(Response {
            body: String::from_utf8_lossy(&received[start..]).into_owned(),
            ..response
        }),
        _ => Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "the connection was closed before the end of the response",
        )),
    }
}

/// The response without its body, the offset of the body, and its content-length. `None` if the head is incomplete.
fn parse_head(received: &[u8]) -> io::Result<Option<(Response, usize, Option<usize>)>> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut parsed = httparse::Response::new(&mut headers);
    let not_http = |error: httparse::Error| io::Error::other(format!("the response is not HTTP: {error}"));
    let httparse::Status::Complete(start) = parsed.parse(received).map_err(not_http)? else {
        return Ok(None);
    };
    let header = |name: &str| {
        let found = parsed
            .headers
            .iter()
            .find(|header| header.name.eq_ignore_ascii_case(name));
        found.map(|header| String::from_utf8_lossy(header.value).trim().to_owned())
    };
    let length = header("content-length").map(|length| length.parse());
    let length = length
        .transpose()
        .map_err(|_| io::Error::other("the response has an invalid content-length"))?;
    let response = Response {
        status: parsed.code.unwrap_or_default(),
        reason: parsed.reason.unwrap_or_default().to_owned(),
        location: header("location"),
        body: String::new(),
    };
    Ok(Some((response, start, length)))
}

/// The time until `deadline`.
///
/// # Errors
/// [`io::ErrorKind::TimedOut`] if it has passed.
pub fn left(deadline: Instant) -> io::Result<Duration> {
    match deadline.saturating_duration_since(Instant::now()) {
        Duration::ZERO => Err(io::ErrorKind::TimedOut.into()),
        left => Ok(left),
    }
}

/// Converts `WouldBlock`, by which a socket reports its timeout (socket(7), SO_RCVTIMEO), to `TimedOut`.
fn timed_out(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::WouldBlock => io::ErrorKind::TimedOut.into(),
        _ => error,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    const GET: Request<'_> = Request {
        method: Method::Get,
        host: "links.example",
        path: "/health?a=b",
        headers: &[("secret", "5ec2e7")],
        limit: 10,
    };

    /// Sends `request` to a server that answers `response`, and then closes the connection if `closes`. Returns the result and
    /// the bytes that the server has received.
    fn exchange(request: &Request<'_>, response: &str, closes: bool) -> (io::Result<Response>, String) {
        let (client, mut server) = UnixStream::pair().unwrap();
        server.write_all(response.as_bytes()).unwrap();
        if closes {
            server.shutdown(std::net::Shutdown::Write).unwrap();
        }
        let answer = send(client.into(), request, Instant::now() + Duration::from_millis(200));
        let mut sent = String::new();
        server.read_to_string(&mut sent).unwrap();
        (answer, sent)
    }

    #[test]
    fn requests_are_http_1_0() {
        let (_, sent) = exchange(&GET, "HTTP/1.1 200 OK\r\n\r\n", true);
        assert_eq!(
            sent,
            "GET /health?a=b HTTP/1.0\r\nhost: links.example\r\nsecret: 5ec2e7\r\n\r\n"
        );
        let post = Request {
            method: Method::Post(b"{}"),
            headers: &[],
            ..GET
        };
        let (_, sent) = exchange(&post, "HTTP/1.1 200 OK\r\n\r\n", true);
        assert_eq!(
            sent,
            "POST /health?a=b HTTP/1.0\r\nhost: links.example\r\ncontent-length: 2\r\ncontent-type: application/json\r\n\r\n{}"
        );
    }

    #[test]
    fn a_body_ends_at_its_content_length_or_with_the_connection() {
        for (head, body, closes, expected) in [
            ("Content-Length: 3\r\n", "abc", false, "abc"),
            ("Content-Length: 3\r\n", "abcdef", false, "abc"),
            ("", "abc", true, "abc"),
            ("", "0123456789abcdef", false, "0123456789"),
            ("Content-Length: 0\r\nLocation: https://b.example/\r\n", "", false, ""),
        ] {
            let (answer, _) = exchange(
                &GET,
                &format!("HTTP/1.1 301 Moved Permanently\r\n{head}\r\n{body}"),
                closes,
            );
            let answer = answer.unwrap();
            assert_eq!(
                (answer.status, &*answer.reason, &*answer.body),
                (301, "Moved Permanently", expected)
            );
            assert_eq!(answer.location.is_some(), head.contains("Location"));
        }
    }

    #[test]
    fn an_incomplete_or_invalid_response_is_an_error() {
        for (response, closes, kind) in [
            ("", true, io::ErrorKind::UnexpectedEof),
            ("HTTP/1.1 200 OK\r\n", true, io::ErrorKind::UnexpectedEof),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc",
                true,
                io::ErrorKind::UnexpectedEof,
            ),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
                true,
                io::ErrorKind::Other,
            ),
            ("SSH-2.0-OpenSSH\r\n", true, io::ErrorKind::Other),
            ("HTTP/1.1 200 OK\r\n", false, io::ErrorKind::TimedOut),
        ] {
            let (answer, _) = exchange(&GET, response, closes);
            assert_eq!(answer.unwrap_err().kind(), kind, "{response:?}");
        }
    }

    #[test]
    fn control_characters_are_refused() {
        for request in [
            Request {
                headers: &[("secret", "a\r\nhost: b")],
                ..GET
            },
            Request { path: "/a\tb", ..GET },
        ] {
            let (answer, sent) = exchange(&request, "", true);
            assert_eq!((answer.unwrap_err().kind(), &*sent), (io::ErrorKind::InvalidInput, ""));
        }
    }
}
