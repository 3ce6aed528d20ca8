//! Asking an instance whether it serves.

use std::time::Duration;

use ureq::Agent;

use crate::endpoint::Endpoint;

/// Answers after a read of the database, by the component.
const READY_PATH: &str = "/health";
/// Answers before routing, by the runtime's listener (Spin and links-host).
const ALIVE_PATH: &str = "/.well-known/spin/health";
/// More than this of an answer is not quoted.
const QUOTE_BYTES: u64 = 512;

/// Asks one instance.
#[derive(Debug)]
pub struct Probe {
    agent: Agent,
    endpoint: Endpoint,
}

impl Probe {
    /// `timeout` bounds each whole request.
    pub fn new(endpoint: Endpoint, timeout: Duration) -> Self {
        Self {
            agent: endpoint.client(timeout),
            endpoint,
        }
    }

    /// Whether the component serves: it read its database.
    ///
    /// # Errors
    /// Why not, in words.
    pub fn ready(&self) -> Result<(), String> {
        self.get(READY_PATH)
    }

    /// Whether the runtime's listener answers, whatever the component and its database do.
    ///
    /// # Errors
    /// Why not, in words.
    pub fn alive(&self) -> Result<(), String> {
        self.get(ALIVE_PATH)
    }

    fn get(&self, path: &str) -> Result<(), String> {
        let mut response = self
            .agent
            .get(self.endpoint.url(path))
            .header("connection", "close")
            .call()
            .map_err(|e| e.to_string())?;
        if response.status().as_u16() == 200 {
            return Ok(());
        }
        let body = response
            .body_mut()
            .with_config()
            .limit(QUOTE_BYTES)
            .read_to_string()
            .unwrap_or_default();
        let said = body.lines().next().unwrap_or_default();
        Err(format!(
            "{path} answered {}{}{said}",
            response.status(),
            if said.is_empty() { "" } else { ": " }
        ))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{SocketAddr, TcpListener};

    use super::*;

    fn answering(response: &'static str) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 1024]);
            stream.write_all(response.as_bytes()).unwrap();
        });
        address
    }

    fn probe(address: SocketAddr) -> Probe {
        Probe::new(Endpoint::Tcp(address), Duration::from_secs(5))
    }

    #[test]
    fn only_200_is_ready() {
        let ok = answering("HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok");
        assert_eq!(probe(ok).ready(), Ok(()));
        let moved = answering("HTTP/1.1 302 Found\r\nlocation: /\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        assert!(probe(moved).ready().unwrap_err().contains("302"));
    }

    #[test]
    fn a_refusal_is_quoted() {
        let sick = answering(
            "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 15\r\nconnection: close\r\n\r\nno database\nxyz",
        );
        let said = probe(sick).ready().unwrap_err();
        assert!(said.contains("503") && said.ends_with("no database"), "{said}");
    }

    #[test]
    fn nobody_there_is_not_ready() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        assert!(probe(address).ready().is_err());
        assert!(probe(address).alive().is_err());
    }
}
