//! HTTP/1.1 over one socket, with every byte accounted for.
//!
//! Whether a request may be sent again depends on what had been sent and received on the connection that broke; a library
//! that hides the connection cannot tell.

use std::io::{Read as _, Write as _};
use std::time::{Duration, Instant};

use crate::http::Failure;
use crate::stream::{Address, Stream};

/// More header fields than any answer here has.
const MAX_FIELDS: usize = 64;

/// What the load looks at in an answer.
#[derive(Debug)]
pub(crate) struct Reply {
    pub status: u16,
    /// Empty where there is none.
    pub location: String,
    pub body: Vec<u8>,
    /// The server takes further requests on this connection.
    pub keeps: bool,
}

/// Why no whole answer came.
#[derive(Debug)]
pub(crate) struct Broken {
    pub failure: Failure,
    /// Bytes of the answer that had come.
    pub received: usize,
}

/// A connection from the namespace of the thread that made it.
#[derive(Debug)]
pub(crate) struct Wire {
    stream: Stream,
    deadline: Duration,
}

impl Wire {
    /// `deadline` bounds connecting, and then each exchange.
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

    /// Whether the server has closed the connection, or said something unasked before it does.
    pub fn is_closed(&self) -> bool {
        self.stream.is_closed()
    }

    /// Sends a whole request and takes its whole answer. `to_head`: the request is a HEAD, its answer has no body.
    pub fn exchange(&mut self, request: &[u8], to_head: bool) -> Result<Reply, Broken> {
        let until = Instant::now() + self.deadline;
        self.stream.write_all(request).map_err(|error| Broken {
            failure: Failure::of_io(&error, self.deadline),
            received: 0,
        })?;
        let mut received = Vec::with_capacity(1024);
        loop {
            match parse(&received, to_head) {
                Ok(Parsed::Whole(reply)) => return Ok(reply),
                Ok(Parsed::UntilClosed(reply)) if self.fill(&mut received, until)? == 0 => return Ok(reply),
                Ok(Parsed::UntilClosed(_)) => {}
                Ok(Parsed::Partial) if self.fill(&mut received, until)? == 0 => {
                    return Err(Broken {
                        failure: Failure::Reset,
                        received: received.len(),
                    });
                }
                Ok(Parsed::Partial) => {}
                Err(what) => {
                    return Err(Broken {
                        failure: Failure::Other(format!("{what}: {:?}", String::from_utf8_lossy(&received))),
                        received: received.len(),
                    });
                }
            }
        }
    }

    /// Returns how many bytes came; 0 at the end of the connection.
    fn fill(&mut self, received: &mut Vec<u8>, until: Instant) -> Result<usize, Broken> {
        let mut chunk = [0; 4096];
        let mut read = || {
            // A timeout of zero would mean none.
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
            Err(error) => Err(Broken {
                failure: Failure::of_io(&error, self.deadline),
                received: received.len(),
            }),
        }
    }
}

enum Parsed {
    Partial,
    Whole(Reply),
    /// Whole if the connection ends here.
    UntilClosed(Reply),
}

/// How an answer's body ends (RFC 9112, 6.3).
enum Framing {
    Length(usize),
    Chunked,
    Closing,
}

fn parse(received: &[u8], to_head: bool) -> Result<Parsed, String> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut head = httparse::Response::new(&mut fields);
    let length = match head.parse(received).map_err(|error| format!("no HTTP ({error})"))? {
        httparse::Status::Complete(length) => length,
        httparse::Status::Partial => return Ok(Parsed::Partial),
    };
    let field = |name: &str| {
        let field = head.headers.iter().find(|field| field.name.eq_ignore_ascii_case(name));
        field.map(|field| String::from_utf8_lossy(field.value).into_owned())
    };
    let status = head.code.unwrap_or_default();
    let framing = if to_head || matches!(status, 204 | 304) {
        Framing::Length(0)
    } else if field("transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked")) {
        Framing::Chunked
    } else if let Some(length) = field("content-length") {
        Framing::Length(length.parse().map_err(|_| format!("content-length {length:?}"))?)
    } else {
        Framing::Closing
    };
    let closes = field("connection").is_some_and(|option| option.eq_ignore_ascii_case("close"));
    let mut reply = Reply {
        status,
        location: field("location").unwrap_or_default(),
        body: vec![],
        keeps: head.version == Some(1) && !closes,
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
            reply.keeps = false;
            return Ok(Parsed::UntilClosed(reply));
        }
    };
    if taken < rest.len() {
        return Err(format!("{} bytes after the answer", rest.len() - taken));
    }
    Ok(Parsed::Whole(reply))
}

/// The length of a chunked body without trailer fields, which nobody here sends; none where it is not whole yet.
fn chunked(received: &[u8], body: &mut Vec<u8>) -> Result<Option<usize>, String> {
    let mut at = 0;
    loop {
        let (line, size) = match httparse::parse_chunk_size(&received[at..]) {
            Ok(httparse::Status::Complete((line, size))) => (line, usize::try_from(size).unwrap_or(usize::MAX)),
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(_) => return Err("no chunk size".to_owned()),
        };
        let begin = at + line;
        let Some(chunk) = received.get(begin..begin.saturating_add(size).saturating_add(2)) else {
            return Ok(None);
        };
        let (chunk, end) = chunk.split_at(size);
        if end != b"\r\n" {
            return Err("a chunk without an end".to_owned());
        }
        body.extend_from_slice(chunk);
        at = begin + size + 2;
        if size == 0 {
            return Ok(Some(at));
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic, reason = "a test may end at the first surprise")]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    /// Answers one request after the other on one connection, then closes it.
    fn serving(answers: &'static [&'static str]) -> Wire {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            for answer in answers {
                // A request is small enough to come in one piece.
                let _ = stream.read(&mut [0; 1024]).unwrap();
                // Byte by byte: an answer may be cut anywhere.
                for byte in answer.bytes() {
                    stream.write_all(&[byte]).unwrap();
                }
            }
        });
        Wire::connect(&Address::Tcp(address), Duration::from_secs(2)).unwrap()
    }

    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n";

    #[test]
    fn answers_are_taken_whole_whatever_ends_them() {
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
        assert_eq!((&*second.body, second.keeps), (&b"abcde"[..], true));
        assert_eq!(wire.exchange(REQUEST, true).unwrap().status, 404);
        let last = wire.exchange(REQUEST, false).unwrap();
        assert_eq!((&*last.body, last.keeps), (&b"all there is"[..], false));
    }

    #[test]
    fn a_close_is_seen_before_the_next_request() {
        let mut wire = serving(&["HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"]);
        wire.exchange(REQUEST, false).unwrap();
        let begin = Instant::now();
        while !wire.is_closed() {
            assert!(begin.elapsed() < Duration::from_secs(5), "the close is not seen");
        }
    }

    #[test]
    fn a_cut_answer_tells_how_much_of_it_came() {
        for answer in [
            "",
            "HTTP/1.1 200 OK\r\ncont",
            "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc",
        ] {
            let mut wire = serving(Box::leak(Box::new([answer])));
            let broken = wire.exchange(REQUEST, false).unwrap_err();
            assert!(matches!(broken.failure, Failure::Reset), "{broken:?}");
            assert_eq!(broken.received, answer.len());
        }
    }

    #[test]
    fn silence_has_a_deadline() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut wire = Wire::connect(
            &Address::Tcp(listener.local_addr().unwrap()),
            Duration::from_millis(100),
        )
        .unwrap();
        let broken = wire.exchange(REQUEST, false).unwrap_err();
        assert!(matches!(broken.failure, Failure::TimedOut(_)), "{broken:?}");
        assert!(!wire.is_closed());
    }

    #[test]
    fn nonsense_is_no_answer() {
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
