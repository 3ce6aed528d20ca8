//! Asking a server by HTTP: within a time, and with the reason in words where it does not answer.

use std::time::Duration;

use nix::unistd::Uid;
use ureq::Agent;
use ureq::tls::{Certificate, RootCerts, TlsConfig};

use crate::config::duration;
use crate::endpoint::Endpoint;

/// More than this of an answer is not read, in bytes.
const LONGEST: u64 = 64 * 1024 * 1024;

#[derive(Debug)]
pub struct Client {
    agent: Agent,
    limit: Duration,
}

/// Whatever its status is.
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
            // The instances have no proxy either.
            .proxy(None)
            .tls_config(TlsConfig::builder().root_certs(roots()).build())
            .build();
        Self {
            agent: config.into(),
            limit,
        }
    }

    /// For one instance of this host, which runs as the user `owner`; requests may hold a secret.
    pub fn of_instance(endpoint: &Endpoint, limit: Duration, owner: Uid) -> Self {
        Self {
            agent: endpoint.client_for_secrets(limit, owner),
            limit,
        }
    }

    /// # Errors
    /// Why there is no answer, in words without the URL, which may be a secret.
    pub fn get(&self, url: &str, headers: &[(&str, &str)]) -> Result<Answer, String> {
        let request = self.agent.get(url);
        let request = headers
            .iter()
            .fold(request, |request, (name, value)| request.header(*name, *value));
        self.answer(request.call())
    }

    /// # Errors
    /// As [`Self::get`].
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

/// What this machine trusts; where it has no list of its own, what browsers do.
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

/// For a server that did not answer in time.
pub fn too_late(limit: Duration) -> String {
    format!("no answer within {}", duration::show(limit))
}

fn reason(error: &ureq::Error, limit: Duration) -> String {
    match error {
        ureq::Error::Timeout(_) => too_late(limit),
        ureq::Error::HostNotFound => "no DNS server knows its name".to_owned(),
        ureq::Error::ConnectionFailed => "no connection to it can be made".to_owned(),
        ureq::Error::Io(error) => error.to_string(),
        ureq::Error::Rustls(error) => format!("no TLS connection to it can be made: {error}"),
        ureq::Error::BodyExceedsLimit(_) => "its answer is too long".to_owned(),
        // Some of the others repeat what they were given.
        _ => "it does not answer as HTTP servers do".to_owned(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use std::net::TcpListener;
    use std::time::Instant;

    use super::*;
    use crate::testing::Server;

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
    fn who_is_silent_is_given_up_in_time() {
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
    fn a_reason_does_not_repeat_what_may_be_a_secret() {
        let client = Client::new(Duration::from_secs(1));
        let error = client.get("gopher://HUSH", &[]).unwrap_err();
        assert!(!error.contains("HUSH"), "{error}");
        let error = client.get("http://127.0.0.1:1/", &[("x", "HUSH\n")]).unwrap_err();
        assert!(!error.contains("HUSH"), "{error}");
    }
}
