//! The endpoints that accept connections: TCP addresses and Unix sockets.

use std::fmt;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::str::FromStr;
use std::task::{Context, Poll, ready};

use anyhow::{Context as _, Result, anyhow, bail};
use http::HeaderValue;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixListener, UnixSocket, UnixStream};

/// How many connections the kernel queues before they are accepted.
const BACKLOG: u32 = 1024;
/// The permissions of a socket: only its owner and its group may connect.
const SOCKET_MODE: u32 = 0o660;
/// The prefix that distinguishes a path from an address.
const UNIX: &str = "unix:";
/// The `spin-client-addr` of requests that arrive through a Unix socket, whose clients have no address. Components may parse
/// this header as an address and a port.
const LOCAL_CLIENT: HeaderValue = HeaderValue::from_static("127.0.0.1:0");

/// The value of `--listen`.
#[derive(Clone, Debug, PartialEq)]
pub enum Endpoint {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl FromStr for Endpoint {
    type Err = String;

    /// Accepts `unix:/PATH`, `ADDRESS:PORT` or `NAME:PORT`. Of several addresses of a name, 127.0.0.1 is preferred, as in Spin.
    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix(UNIX) {
            let path = PathBuf::from(path);
            return if path.is_absolute() {
                Ok(Self::Unix(path))
            } else {
                Err("the path of a Unix socket must be absolute, as in unix:/run/app.sock".to_owned())
            };
        }
        let addresses: Vec<SocketAddr> = text.to_socket_addrs().map_err(|error| error.to_string())?.collect();
        let local = addresses
            .iter()
            .find(|address| address.ip() == std::net::Ipv4Addr::LOCALHOST);
        let address = local.or(addresses.first()).copied();
        address
            .map(Self::Tcp)
            .ok_or_else(|| "the host name has no address".to_owned())
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Unix(path) => write!(f, "{UNIX}{}", path.display()),
        }
    }
}

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
                let listener = listener.map_err(|error| unable(&Endpoint::Unix(file.path.clone()), &error))?;
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

/// Removes the socket that a killed process left behind. Anything else at this path is left alone.
fn remove_stale(path: &Path) -> Result<()> {
    let shown = path.display();
    let metadata = match path.symlink_metadata() {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("Checking for a stale socket at {shown}")),
    };
    if !metadata.file_type().is_socket() {
        bail!("{shown} exists and is not a socket: remove it, or choose another path with --listen");
    }
    let user = nix::unistd::geteuid().as_raw();
    if metadata.uid() != user {
        bail!(
            "the socket {shown} belongs to user {}, not to {user}: remove it, or choose another path with --listen",
            metadata.uid()
        );
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        // A full backlog is reported as WouldBlock: such a socket is in use, too.
        _ => bail!("{UNIX}{shown} is already in use: stop what listens there, or choose another path with --listen"),
    }
    std::fs::remove_file(path).with_context(|| format!("Removing the stale socket {shown}"))
}

/// The file of a Unix socket. Dropping this value removes the file, unless another socket has replaced it.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    /// The device and inode of the file.
    id: (u64, u64),
}

impl SocketFile {
    /// Opens the socket to its group. Nobody can connect before it listens, so it is never open to anybody else.
    fn open_to_group(path: &Path) -> io::Result<Self> {
        let metadata = path.symlink_metadata()?;
        let file = Self {
            path: path.to_owned(),
            id: (metadata.dev(), metadata.ino()),
        };
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(SOCKET_MODE))?;
        Ok(file)
    }

    fn remove(&self) {
        let metadata = self.path.symlink_metadata();
        if metadata.is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == self.id)
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::warn!("the socket {} could not be removed: {error}", self.path.display());
        }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        self.remove();
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
            Self::Unix(_, file) => format!("http://{UNIX}{}:", file.path.display()),
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

/// An accepted connection.
#[derive(Debug)]
pub enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, task: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(task, buffer),
            Self::Unix(stream) => Pin::new(stream).poll_read(task, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, task: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(task, bytes),
            Self::Unix(stream) => Pin::new(stream).poll_write(task, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        task: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write_vectored(task, pieces),
            Self::Unix(stream) => Pin::new(stream).poll_write_vectored(task, pieces),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Tcp(stream) => stream.is_write_vectored(),
            Self::Unix(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(task),
            Self::Unix(stream) => Pin::new(stream).poll_flush(task),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(task),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(task),
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
