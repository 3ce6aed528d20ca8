//! Asking an instance whether it serves.

use std::net::SocketAddr;
use std::time::Duration;

use ureq::Agent;

/// Answers after a read of the database, by the component.
const READY_PATH: &str = "/health";
/// Answers before routing, by the runtime's listener (Spin and links-host).
const ALIVE_PATH: &str = "/.well-known/spin/health";
/// More than this of an answer is not quoted.
const QUOTE_BYTES: u64 = 512;

/// For instances on this host: a new connection for each request, because a kept one would count as traffic while the
/// instance drains. `timeout` bounds each whole request.
pub fn client(timeout: Duration) -> Agent {
    let config = Agent::config_builder()
        .timeout_global(Some(timeout))
        .http_status_as_error(false)
        .max_redirects(0)
        .max_idle_connections(0)
        // The environment's proxy is for other hosts.
        .proxy(None)
        .build();
    config.into()
}

/// Asks one instance.
#[derive(Debug)]
pub struct Probe {
    agent: Agent,
    address: SocketAddr,
}

impl Probe {
    /// `timeout` bounds each whole request.
    pub fn new(address: SocketAddr, timeout: Duration) -> Self {
        Self {
            agent: client(timeout),
            address,
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
        let url = format!("http://{}{path}", self.address);
        let mut response = self
            .agent
            .get(&url)
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
    use std::net::TcpListener;

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
        Probe::new(address, Duration::from_secs(5))
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
