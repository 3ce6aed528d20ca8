//! An HTTP client with time limits, for the programs that linksctl runs. Its errors are reasons for people.

use std::time::Duration;

use ureq::http::{self, HeaderMap};
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::{Agent, Timeout};

use links_base::duration;

/// The maximum size of an answer, in bytes.
const LONGEST: u64 = 64 * 1024 * 1024;

#[derive(Debug)]
pub struct Client {
    agent: Agent,
    limits: Limits,
}

/// How long a client waits.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// For a connection, with TLS.
    pub connect: Duration,
    /// For the server to take or send anything at all.
    pub silence: Duration,
    /// For the whole request.
    pub whole: Duration,
}

/// A request of any method.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    pub method: &'a str,
    pub url: &'a str,
    pub headers: &'a [(&'a str, &'a str)],
    /// `None` for a request without a body. An empty body has a length of its own.
    pub body: Option<&'a [u8]>,
}

/// A response of any status.
#[derive(Clone, Debug)]
pub struct Response {
    pub status: u16,
    headers: HeaderMap,
    pub body: Vec<u8>,
}

impl Response {
    /// The value of a header field. `None` if it is missing or not plain text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// An answer of any status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub body: String,
}

impl Client {
    /// `limit` bounds each whole request.
    pub fn new(limit: Duration) -> Self {
        Self::with(Limits {
            connect: limit,
            silence: limit,
            whole: limit,
        })
    }

    pub fn with(limits: Limits) -> Self {
        let config = Agent::config_builder()
            .timeout_global(Some(limits.whole))
            .timeout_connect(Some(limits.connect))
            .timeout_per_read(Some(limits.silence))
            .timeout_per_write(Some(limits.silence))
            .http_status_as_error(false)
            .max_redirects(0)
            // The instances use no proxy either.
            .proxy(None)
            .tls_config(TlsConfig::builder().root_certs(roots()).build())
            .build();
        Self {
            agent: config.into(),
            limits,
        }
    }

    /// Sends a request and returns the response, whose body is in memory.
    ///
    /// # Errors
    /// There is no response. The reason never contains the URL, which may be a secret.
    pub fn send(&self, request: &Request<'_>) -> Result<Response, String> {
        let builder = http::Request::builder().method(request.method).uri(request.url);
        let builder = request
            .headers
            .iter()
            .fold(builder, |builder, (name, value)| builder.header(*name, *value));
        let sent = match request.body {
            Some(body) => builder
                .body(body)
                .map_err(Into::into)
                .and_then(|built| self.agent.run(built)),
            None => builder
                .body(())
                .map_err(Into::into)
                .and_then(|built| self.agent.run(built)),
        };
        let read = sent.and_then(|mut response| {
            let body = response.body_mut().with_config().limit(LONGEST).read_to_vec()?;
            Ok(Response {
                status: response.status().as_u16(),
                headers: response.headers().clone(),
                body,
            })
        });
        read.map_err(|error| reason(&error, self.limits))
    }

    /// Sends a GET request.
    ///
    /// # Errors
    /// There is no answer. The reason never contains the URL, which may be a secret.
    pub fn get(&self, url: &str, headers: &[(&str, &str)]) -> Result<Answer, String> {
        let request = self.agent.get(url);
        let request = headers
            .iter()
            .fold(request, |request, (name, value)| request.header(*name, *value));
        self.answer(request.call())
    }

    /// Sends a POST request with a JSON body.
    ///
    /// # Errors
    /// As for [`Self::get`].
    pub fn post_json(&self, url: &str, headers: &[(&str, &str)], body: &str) -> Result<Answer, String> {
        let request = self.agent.post(url).header("content-type", "application/json");
        let request = headers
            .iter()
            .fold(request, |request, (name, value)| request.header(*name, *value));
        self.answer(request.send(body))
    }

    fn answer(&self, response: Result<http::Response<ureq::Body>, ureq::Error>) -> Result<Answer, String> {
        let read = response.and_then(|mut response| {
            let body = response.body_mut().with_config().limit(LONGEST).read_to_string()?;
            Ok(Answer {
                status: response.status().as_u16(),
                body,
            })
        });
        read.map_err(|error| reason(&error, self.limits))
    }
}

/// The certificates that this machine trusts or, if it has none, those that browsers trust.
fn roots() -> RootCerts {
    let own: Vec<_> = rustls_native_certs::load_native_certs()
        .certs
        .iter()
        .map(|certificate| Certificate::from_der(certificate).to_owned())
        .collect();
    match own.is_empty() {
        true => RootCerts::WebPki,
        false => own.into(),
    }
}

/// The reason for a server that did not answer within `limit`.
pub fn too_late(limit: Duration) -> String {
    format!("no answer within {}", duration::show(limit))
}

fn reason(error: &ureq::Error, limits: Limits) -> String {
    match error {
        ureq::Error::Timeout(Timeout::Connect | Timeout::Resolve) => too_late(limits.connect),
        ureq::Error::Timeout(Timeout::PerRead | Timeout::PerWrite) => too_late(limits.silence),
        ureq::Error::Timeout(_) => too_late(limits.whole),
        ureq::Error::HostNotFound => "its name cannot be resolved".to_owned(),
        ureq::Error::ConnectionFailed => "the connection failed".to_owned(),
        ureq::Error::Io(error) => error.to_string(),
        ureq::Error::Rustls(error) => format!("the TLS connection failed: {error}"),
        ureq::Error::BodyExceedsLimit(_) => "its answer is too long".to_owned(),
        // Some of the other errors quote their input, which may be a secret.
        _ => "it does not speak HTTP".to_owned(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use std::net::TcpListener;
    use std::time::Instant;

    use super::*;
    use links_base::testing::Server;

    #[test]
    fn every_status_is_an_answer() {
        let server = Server::start(|request| match request.method.as_str() {
            "GET" => (503, format!("{} {:?}", request.path, request.header("x-a"))),
            _ => (200, request.body.clone()),
        });
        let client = Client::new(Duration::from_secs(5));
        let answer = client.get(&server.url("/p?q"), &[("x-a", "1")]).unwrap();
        assert_eq!((answer.status, answer.body.as_str()), (503, "/p?q Some(\"1\")"));
        let answer = client.post_json(&server.url("/"), &[], "{\"a\": 1}").unwrap();
        assert_eq!((answer.status, answer.body.as_str()), (200, "{\"a\": 1}"));
    }

    #[test]
    fn a_request_of_any_method_gets_its_response() {
        let server = Server::start(|request| {
            let body = format!("{} {} {}", request.method, request.path, request.body);
            links_base::testing::Response::from((201, body)).header("x-b", "2")
        });
        let client = Client::new(Duration::from_secs(5));
        for (method, body, text) in [
            ("PUT", Some(&b"abc"[..]), "PUT /k?q abc"),
            ("PUT", Some(b""), "PUT /k?q "),
            ("DELETE", None, "DELETE /k?q "),
        ] {
            let request = Request {
                method,
                url: &server.url("/k?q"),
                headers: &[("x-a", "1")],
                body,
            };
            let response = client.send(&request).unwrap();
            assert_eq!((response.status, response.text().as_str()), (201, text));
            assert_eq!(response.header("x-b"), Some("2"));
        }
    }

    #[test]
    fn a_silent_server_is_abandoned_in_time() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let begun = Instant::now();
        let error = Client::new(Duration::from_millis(200)).get(&url, &[]).unwrap_err();
        assert_eq!(error, "no answer within 200ms");
        assert!(begun.elapsed() < Duration::from_secs(5));
        drop(listener);
        let error = Client::new(Duration::from_secs(5)).get(&url, &[]).unwrap_err();
        assert!(error.contains("refused") || error.contains("connection"), "{error}");
    }

    #[test]
    fn a_reason_never_quotes_a_secret() {
        let client = Client::new(Duration::from_secs(1));
        let error = client.get("gopher://HUSH", &[]).unwrap_err();
        assert!(!error.contains("HUSH"), "{error}");
        let error = client.get("http://127.0.0.1:1/", &[("x", "HUSH\n")]).unwrap_err();
        assert!(!error.contains("HUSH"), "{error}");
    }
}
