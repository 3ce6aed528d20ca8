//! HTTP/1.1 over one socket, with every byte accounted for.
//!
//! Whether a request may be sent again depends on the bytes that were sent and received on the connection that broke. An HTTP
//! library hides its connections, so it cannot answer that.

use std::io::{Read as _, Write as _};
use std::time::{Duration, Instant};

use crate::failure::Failure;
use crate::stream::{Address, Stream};

/// The maximum number of header fields in an answer. No server here sends this many.
const MAX_FIELDS: usize = 64;

/// The parts of an answer that the load checks.
#[derive(Debug)]
pub(crate) struct Reply {
    pub status: u16,
    /// Empty if the answer has no `Location`.
    pub location: String,
    pub body: Vec<u8>,
    /// Whether the server accepts further requests on this connection.
    pub keep_alive: bool,
}

/// Why an answer is missing or incomplete.
#[derive(Debug)]
pub(crate) struct ExchangeError {
    pub failure: Failure,
    /// The number of bytes of the answer that arrived.
    pub received: usize,
}

/// A connection, made in the network namespace of the calling thread.
#[derive(Debug)]
pub(crate) struct Wire {
    stream: Stream,
    deadline: Duration,
}

impl Wire {
    /// Connects. `deadline` limits connecting, and then each exchange.
    pub fn connect(address: &Address, deadline: Duration) -> Result<Self, Failure> {
        let open = || {
            let stream = Stream::connect(address, deadline)?;
            stream.set_write_timeout(deadline)?;
            Ok(stream)
        };
        open()
            .map(|stream| Self { stream, deadline })
            .map_err(|error| Failure::of_io(&error, deadline))
    }

    /// Whether the server has closed the connection, or has sent something without a request.
    pub fn is_closed(&self) -> bool {
        self.stream.is_closed()
    }

    /// Sends a request and reads the whole answer. `is_head`: the request is a `HEAD`, so the answer has no body.
    pub fn exchange(&mut self, request: &[u8], is_head: bool) -> Result<Reply, ExchangeError> {
        let until = Instant::now() + self.deadline;
        self.stream.write_all(request).map_err(|error| ExchangeError {
            failure: Failure::of_io(&error, self.deadline),
            received: 0,
        })?;
        let mut received = Vec::with_capacity(1024);
        loop {
            match parse(&received, is_head) {
                Ok(Parsed::Whole(reply)) => return Ok(reply),
                Ok(Parsed::UntilClosed(reply)) if self.fill(&mut received, until)? == 0 => return Ok(reply),
                Ok(Parsed::UntilClosed(_)) => {}
                Ok(Parsed::Partial) if self.fill(&mut received, until)? == 0 => {
                    return Err(ExchangeError {
                        failure: Failure::Reset,
                        received: received.len(),
                    });
                }
                Ok(Parsed::Partial) => {}
                Err(what) => {
                    return Err(ExchangeError {
                        failure: Failure::Other(format!("{what}: {:?}", String::from_utf8_lossy(&received))),
                        received: received.len(),
                    });
                }
            }
        }
    }

    /// Returns the number of bytes read, which is 0 at the end of the connection.
    fn fill(&mut self, received: &mut Vec<u8>, until: Instant) -> Result<usize, ExchangeError> {
        let mut chunk = [0; 4096];
        let mut read = || {
            // A timeout of zero is an error.
            let left = until
                .saturating_duration_since(Instant::now())
                .max(Duration::from_millis(1));
            self.stream.set_read_timeout(left)?;
            self.stream.read(&mut chunk)
        };
        match read() {
            Ok(length) => {
                received.extend_from_slice(&chunk[..length]);
                Ok(length)
            }
            Err(error) => Err(ExchangeError {
                failure: Failure::of_io(&error, self.deadline),
                received: received.len(),
            }),
        }
    }
}

enum Parsed {
    Partial,
    Whole(Reply),
    /// Complete if the connection ends here.
    UntilClosed(Reply),
}

/// How an answer's body ends (RFC 9112, 6.3).
enum Framing {
    Length(usize),
    Chunked,
    Closing,
}

fn parse(received: &[u8], is_head: bool) -> Result<Parsed, String> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut head = httparse::Response::new(&mut fields);
    let length = match head
        .parse(received)
        .map_err(|error| format!("the answer is not HTTP ({error})"))?
    {
        httparse::Status::Complete(length) => length,
        httparse::Status::Partial => return Ok(Parsed::Partial),
    };
    let field = |name: &str| {
        let field = head.headers.iter().find(|field| field.name.eq_ignore_ascii_case(name));
        field.map(|field| String::from_utf8_lossy(field.value).into_owned())
    };
    let status = head.code.unwrap_or_default();
    let framing = if is_head || matches!(status, 204 | 304) {
        Framing::Length(0)
    } else if field("transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked")) {
        Framing::Chunked
    } else if let Some(length) = field("content-length") {
        Framing::Length(
            length
                .parse()
                .map_err(|_| format!("invalid content-length {length:?}"))?,
        )
    } else {
        Framing::Closing
    };
    let closes = field("connection").is_some_and(|option| option.eq_ignore_ascii_case("close"));
    let mut reply = Reply {
        status,
        location: field("location").unwrap_or_default(),
        body: vec![],
        keep_alive: head.version == Some(1) && !closes,
    };
    let rest = &received[length..];
    let taken = match framing {
        Framing::Length(length) if rest.len() < length => return Ok(Parsed::Partial),
        Framing::Length(length) => {
            reply.body = rest[..length].to_vec();
            length
        }
        Framing::Chunked => match chunked(rest, &mut reply.body)? {
            Some(taken) => taken,
            None => return Ok(Parsed::Partial),
        },
        Framing::Closing => {
            reply.body = rest.to_vec();
            reply.keep_alive = false;
            return Ok(Parsed::UntilClosed(reply));
        }
    };
    if taken < rest.len() {
        return Err(format!("{} bytes follow the answer", rest.len() - taken));
    }
    Ok(Parsed::Whole(reply))
}

/// Decodes a chunked body and returns its encoded length, or `None` if it is incomplete. Trailer fields are not supported;
/// no server here sends any.
fn chunked(received: &[u8], body: &mut Vec<u8>) -> Result<Option<usize>, String> {
    let mut at = 0;
    loop {
        let (line, size) = match httparse::parse_chunk_size(&received[at..]) {
            Ok(httparse::Status::Complete((line, size))) => (line, usize::try_from(size).unwrap_or(usize::MAX)),
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(_) => return Err("invalid chunk size".to_owned()),
        };
        let begin = at + line;
        let Some(chunk) = received.get(begin..begin.saturating_add(size).saturating_add(2)) else {
            return Ok(None);
        };
        let (chunk, end) = chunk.split_at(size);
        if end != b"\r\n" {
            return Err("a chunk does not end with CRLF".to_owned());
        }
        body.extend_from_slice(chunk);
        at = begin + size + 2;
        if size == 0 {
            return Ok(Some(at));
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic, reason = "a test may end at the first failure")]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    /// Answers requests one after the other on one connection, then closes it.
    fn serving(answers: &'static [&'static str]) -> Wire {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            for answer in answers {
                // The request is small enough to arrive in one piece.
                let _ = stream.read(&mut [0; 1024]).unwrap();
                // Byte by byte, so that the client has to parse incomplete answers.
                for byte in answer.bytes() {
                    stream.write_all(&[byte]).unwrap();
                }
            }
        });
        Wire::connect(&Address::Tcp(address), Duration::from_secs(2)).unwrap()
    }

    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n";

    #[test]
    fn every_kind_of_body_is_read_to_its_end() {
        let mut wire = serving(&[
            "HTTP/1.1 302 Found\r\nLocation: https://a.example/\r\nContent-Length: 2\r\n\r\nok",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n",
            "HTTP/1.1 404 Not Found\r\nContent-Length: 9\r\n\r\n",
            "HTTP/1.1 200 OK\r\n\r\nall there is",
        ]);
        let first = wire.exchange(REQUEST, false).unwrap();
        assert_eq!(
            (first.status, &*first.location, &*first.body),
            (302, "https://a.example/", &b"ok"[..])
        );
        let second = wire.exchange(REQUEST, false).unwrap();
        assert_eq!((&*second.body, second.keep_alive), (&b"abcde"[..], true));
        assert_eq!(wire.exchange(REQUEST, true).unwrap().status, 404);
        let last = wire.exchange(REQUEST, false).unwrap();
        assert_eq!((&*last.body, last.keep_alive), (&b"all there is"[..], false));
    }

    #[test]
    fn a_close_is_noticed_before_the_next_request() {
        let mut wire = serving(&["HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"]);
        wire.exchange(REQUEST, false).unwrap();
        let begin = Instant::now();
        while !wire.is_closed() {
            assert!(begin.elapsed() < Duration::from_secs(5), "the close is not noticed");
        }
    }

    #[test]
    fn a_truncated_answer_reports_how_much_arrived() {
        for answer in [
            "",
            "HTTP/1.1 200 OK\r\ncont",
            "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc",
        ] {
            let mut wire = serving(Box::leak(Box::new([answer])));
            let error = wire.exchange(REQUEST, false).unwrap_err();
            assert!(matches!(error.failure, Failure::Reset), "{error:?}");
            assert_eq!(error.received, answer.len());
        }
    }

    #[test]
    fn an_exchange_times_out() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut wire = Wire::connect(
            &Address::Tcp(listener.local_addr().unwrap()),
            Duration::from_millis(100),
        )
        .unwrap();
        let error = wire.exchange(REQUEST, false).unwrap_err();
        assert!(matches!(error.failure, Failure::TimedOut(_)), "{error:?}");
        assert!(!wire.is_closed());
    }

    #[test]
    fn malformed_answers_are_rejected() {
        for answer in [
            "hello\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nab",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nabc",
        ] {
            let received = answer.as_bytes();
            assert!(parse(received, false).is_err(), "{answer:?}");
        }
    }
}
