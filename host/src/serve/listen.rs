//! Listens on endpoints and accepts connections.

use std::io;
use std::net::SocketAddr;
use std::task::{Context, Poll, ready};

use anyhow::{Result, anyhow};
use http::HeaderValue;
use tokio::net::{TcpListener, TcpSocket, UnixListener, UnixSocket};

use super::endpoint::{Endpoint, UNIX};
use super::socket_file::{SocketFile, remove_stale};
use super::stream::Stream;

/// How many connections the kernel queues before they are accepted.
const BACKLOG: u32 = 1024;
/// The `spin-client-addr` of requests that arrive through a Unix socket, whose clients have no address. Components may parse
/// this header as an address and a port.
const LOCAL_CLIENT: HeaderValue = HeaderValue::from_static("127.0.0.1:0");

/// An endpoint that is bound but does not accept connections yet, so that a conflict is reported before anything is compiled.
#[derive(Debug)]
pub enum Bound {
    Tcp(TcpSocket, SocketAddr),
    Unix(UnixSocket, SocketFile),
}

impl Bound {
    /// Binds the endpoint.
    ///
    /// # Errors
    /// The endpoint cannot be bound. The error names it.
    pub fn new(endpoint: &Endpoint) -> Result<Self> {
        match endpoint {
            Endpoint::Tcp(address) => {
                let socket = if address.is_ipv4() {
                    TcpSocket::new_v4()
                } else {
                    TcpSocket::new_v6()
                };
                let bound = socket.and_then(|socket| {
                    socket.set_reuseaddr(true)?;
                    socket.bind(*address)?;
                    Ok(socket)
                });
                let socket = bound.map_err(|error| unable(endpoint, &error))?;
                Ok(Self::Tcp(socket, *address))
            }
            Endpoint::Unix(path) => {
                remove_stale(path)?;
                let socket = UnixSocket::new_stream()
                    .and_then(|socket| socket.bind(path).map(|()| socket))
                    .map_err(|error| unable(endpoint, &error))?;
                let file = SocketFile::open_to_group(path).map_err(|error| unable(endpoint, &error))?;
                Ok(Self::Unix(socket, file))
            }
        }
    }

    /// Starts to accept connections.
    ///
    /// # Errors
    /// The endpoint cannot be listened on. The error names it.
    pub fn listen(self) -> Result<Listener> {
        match self {
            Self::Tcp(socket, address) => {
                let listener = socket.listen(BACKLOG);
                let listener = listener.map_err(|error| unable(&Endpoint::Tcp(address), &error))?;
                Ok(Listener::Tcp(listener))
            }
            Self::Unix(socket, file) => {
                let listener = socket.listen(BACKLOG);
                let listener = listener.map_err(|error| unable(&Endpoint::Unix(file.path().to_owned()), &error))?;
                Ok(Listener::Unix(listener, file))
            }
        }
    }
}

fn unable(endpoint: &Endpoint, error: &io::Error) -> anyhow::Error {
    if error.kind() == io::ErrorKind::AddrInUse {
        anyhow!("{endpoint} is already in use: stop what listens there, or choose another address with --listen")
    } else {
        anyhow!("cannot listen on {endpoint}: {error}")
    }
}

/// An endpoint that accepts connections.
#[derive(Debug)]
pub enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener, SocketFile),
}

impl Listener {
    /// The URL that is printed at startup. A Unix socket has the form that nginx's `proxy_pass` takes.
    ///
    /// # Errors
    /// The kernel does not report the local address.
    pub fn url(&self) -> io::Result<String> {
        Ok(match self {
            Self::Tcp(listener) => format!("http://{}", listener.local_addr()?),
            Self::Unix(_, file) => format!("http://{UNIX}{}:", file.path().display()),
        })
    }

    pub fn poll_accept(&self, task: &mut Context<'_>) -> Poll<io::Result<(Stream, Peer)>> {
        Poll::Ready(match self {
            Self::Tcp(listener) => ready!(listener.poll_accept(task)).map(|(stream, address)| {
                // A failure only makes responses slower.
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!("{address}: {error}");
                }
                (Stream::Tcp(stream), Peer::tcp(address))
            }),
            Self::Unix(listener, _) => {
                ready!(listener.poll_accept(task)).map(|(stream, _)| (Stream::Unix(stream), Peer::unix()))
            }
        })
    }

    /// Removes a Unix socket from the file system, so that no new client connects. Its backlog can still be accepted.
    pub fn hide(&self) {
        if let Self::Unix(_, file) = self {
            file.remove();
        }
    }
}

/// The client of a connection.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its address and port, as a header value.
    pub address: HeaderValue,
    /// Whether its trace context is used. Any local user can connect by TCP, but only authorized users to the Unix socket.
    pub is_trusted: bool,
}

impl Peer {
    fn tcp(address: SocketAddr) -> Self {
        Self {
            // An address and a port are always a header value.
            address: HeaderValue::from_str(&address.to_string()).unwrap_or(LOCAL_CLIENT),
            is_trusted: false,
        }
    }

    fn unix() -> Self {
        Self {
            address: LOCAL_CLIENT,
            is_trusted: true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_clients_of_a_unix_socket_are_trusted_with_trace_context() {
        let tcp = Peer::tcp(SocketAddr::from(([127, 0, 0, 1], 4711)));
        assert_eq!(
            (tcp.address.as_bytes(), tcp.is_trusted),
            (&b"127.0.0.1:4711"[..], false)
        );
        let unix = Peer::unix();
        assert!(unix.is_trusted);
        assert!(
            unix.address
                .to_str()
                .is_ok_and(|address| address.parse::<SocketAddr>().is_ok())
        );
    }
}
