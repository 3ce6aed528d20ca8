//! Health probes of an instance.

use std::time::Duration;

use crate::endpoint::Endpoint;
use crate::http::Request;

/// The component answers this one after it has read from its database.
const READY_PATH: &str = "/health";
/// The listener of the runtime (Spin and links-host) answers this one, without the component.
const ALIVE_PATH: &str = "/.well-known/spin/health";
/// The maximum number of bytes that are read of a response, to quote its first line.
const QUOTE_BYTES: usize = 512;

/// A health probe of one instance.
#[derive(Debug)]
pub struct Probe {
    endpoint: Endpoint,
    timeout: Duration,
}

impl Probe {
    /// `timeout` applies to each request as a whole.
    pub fn new(endpoint: Endpoint, timeout: Duration) -> Self {
        Self { endpoint, timeout }
    }

    /// Checks that the component serves and can read its database.
    ///
    /// # Errors
    /// The reason why it does not.
    pub fn ready(&self) -> Result<(), String> {
        self.get(READY_PATH)
    }

    /// Checks that the runtime's listener answers, whatever the state of the component and its database.
    ///
    /// # Errors
    /// The reason why it does not.
    pub fn alive(&self) -> Result<(), String> {
        self.get(ALIVE_PATH)
    }

    fn get(&self, path: &str) -> Result<(), String> {
        let request = Request {
            limit: QUOTE_BYTES,
            ..Request::get(path)
        };
        let response = self
            .endpoint
            .send(&request, self.timeout)
            .map_err(|error| error.to_string())?;
        if response.status == 200 {
            return Ok(());
        }
        let first_line = response.body.lines().next().unwrap_or_default();
        Err(format!(
            "{path} answered {} {}{}{first_line}",
            response.status,
            response.reason,
            if first_line.is_empty() { "" } else { ": " }
        ))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use std::net::{SocketAddr, TcpListener};

    use super::*;
    use crate::testing::{Response, Server};

    /// A server that gives every request this answer.
    fn answering(status: u16, body: &'static str) -> SocketAddr {
        Server::start(move |_| (status, body.to_owned())).address()
    }

    fn probe(address: SocketAddr) -> Probe {
        Probe::new(Endpoint::Tcp(address), Duration::from_secs(5))
    }

    #[test]
    fn only_200_is_ready() {
        assert_eq!(probe(answering(200, "ok")).ready(), Ok(()));
        // A probe that followed the redirect would get 200.
        let moved = Server::start(|request| match request.path.as_str() {
            READY_PATH => Response::from((302, String::new())).header("location", "/moved"),
            _ => Response::from((200, "ok".to_owned())),
        });
        assert!(probe(moved.address()).ready().unwrap_err().contains("302"));
    }

    #[test]
    fn the_error_quotes_the_first_line_of_the_response() {
        let unhealthy = answering(503, "no database\nxyz");
        let error = probe(unhealthy).ready().unwrap_err();
        assert!(error.contains("503") && error.ends_with("no database"), "{error}");
    }

    #[test]
    fn a_closed_port_is_neither_ready_nor_alive() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        assert!(probe(address).ready().is_err());
        assert!(probe(address).alive().is_err());
    }
}
