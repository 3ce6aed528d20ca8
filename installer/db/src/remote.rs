//! An HTTP client with a time limit. Its errors are reasons for people.

use std::time::Duration;

use ureq::Agent;
use ureq::tls::{Certificate, RootCerts, TlsConfig};

use links_base::duration;

/// The maximum size of an answer, in bytes.
const LONGEST: u64 = 64 * 1024 * 1024;

#[derive(Debug)]
pub struct Client {
    agent: Agent,
    limit: Duration,
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
        let config = Agent::config_builder()
            .timeout_global(Some(limit))
            .http_status_as_error(false)
            .max_redirects(0)
            // The instances use no proxy either.
            .proxy(None)
            .tls_config(TlsConfig::builder().root_certs(roots()).build())
            .build();
        Self {
            agent: config.into(),
            limit,
        }
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

    fn answer(&self, response: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Result<Answer, String> {
        let read = response.and_then(|mut response| {
            let body = response.body_mut().with_config().limit(LONGEST).read_to_string()?;
            Ok(Answer {
                status: response.status().as_u16(),
                body,
            })
        });
        read.map_err(|error| reason(&error, self.limit))
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

fn reason(error: &ureq::Error, limit: Duration) -> String {
    match error {
        ureq::Error::Timeout(_) => too_late(limit),
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
