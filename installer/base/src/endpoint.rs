//! The endpoint of an instance: a Unix socket, which only nginx, root and user links can open, or a TCP port on loopback,
//! which every user of the machine can connect to.

use std::fmt;
use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use nix::unistd::Uid;

use crate::http::{self, Request, Response};
use crate::layout;
use crate::{connections, sockets};

/// Where an instance listens. Displayed in the form of links-host's `--listen` and of nginx's `server`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Endpoint {
    Socket(PathBuf),
    Tcp(SocketAddr),
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => write!(f, "{address}"),
        }
    }
}

impl Endpoint {
    /// The socket of an instance in the directory of the sockets.
    pub fn socket(sockets: &Path, instance: u16) -> Self {
        Self::Socket(sockets.join(layout::socket_name(instance)))
    }

    pub fn tcp(base_port: u16, instance: u16) -> Self {
        Self::Tcp(layout::instance_address(base_port, instance))
    }

    /// The endpoint of a running instance: its socket if that exists, otherwise its port. Also the socket if this user may not
    /// look into its directory; connecting then reports the missing permission.
    pub fn of_running(sockets: &Path, base_port: u16, instance: u16) -> Self {
        match sockets.join(layout::socket_name(instance)).symlink_metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::tcp(base_port, instance),
            _ => Self::socket(sockets, instance),
        }
    }

    /// Sends a request on a new connection. `timeout` applies to the whole exchange.
    ///
    /// # Errors
    /// Nobody listens there, or one of the errors of [`http::send`].
    pub fn send(&self, request: &Request<'_>, timeout: Duration) -> io::Result<Response> {
        let deadline = Instant::now() + timeout;
        http::send(self.connect(timeout)?, request, deadline)
    }

    /// Like [`Self::send`], for requests that hold a secret. Nothing is sent if another user than `owner`, the user of the
    /// instances, listens on the port of a stopped instance.
    ///
    /// # Errors
    /// Those of [`Self::send`], or another user listens there.
    pub fn send_secret(&self, request: &Request<'_>, timeout: Duration, owner: Uid) -> io::Result<Response> {
        let deadline = Instant::now() + timeout;
        let connection = match self {
            // Connecting to a socket checks its owner.
            Self::Socket(_) => self.connect(timeout)?,
            Self::Tcp(address) => {
                require_owner(*address, owner)?;
                let connection = self.connect(timeout)?;
                // Another user may have taken the port in between. If so, this check sees it: an instance cannot start fast
                // enough to take the port back.
                require_owner(*address, owner)?;
                connection
            }
        };
        http::send(connection, request, deadline)
    }

    fn connect(&self, timeout: Duration) -> io::Result<OwnedFd> {
        match self {
            Self::Socket(path) => {
                let connected = sockets::connect(path, timeout);
                connected
                    .map(OwnedFd::from)
                    .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
            }
            Self::Tcp(address) => TcpStream::connect_timeout(address, timeout).map(OwnedFd::from),
        }
    }
}

fn require_owner(server: SocketAddr, owner: Uid) -> io::Result<()> {
    let owned = connections::sockets().and_then(|sockets| {
        let listeners = connections::listeners(&sockets);
        connections::require_owner(&listeners, server, owner.as_raw())
    });
    owned.map_err(io::Error::other)
}

/// Checks that an instance can listen on an address. Its runtime would report the problem too, but not the remedy.
///
/// # Errors
/// Another program listens there, or the address does not belong to this host.
pub fn check_free(address: SocketAddr) -> anyhow::Result<()> {
    match TcpListener::bind(address) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => bail!(
            "{address} is in use by another program; `ss -ltnp 'sport = :{}'` as root shows which. \
             Stop it, or choose another base_port in links.toml",
            address.port()
        ),
        Err(error) => Err(error).with_context(|| format!("Listening on {address}")),
        Ok(_) => Ok(()),
    }
}

/// The text of links' site, from every place where nginx may read it at its next start
/// ([`layout::Layout::nginx_site_places`]). Empty if there is no site yet.
pub fn site_text(places: &[PathBuf]) -> String {
    // A dangling link, or a file that is not UTF-8, names no endpoint.
    places
        .iter()
        .map(|path| fs::read_to_string(path).unwrap_or_default())
        .collect()
}

/// The endpoints on which an instance listens, at least one. Probes use the first.
///
/// * `can_listen_on_socket`: whether the runtime supports sockets and the path is short enough.
/// * `site`: the text of links' site that nginx serves, empty if there is none yet. `None` if the administrator maintains the
///   site, so that links does not know which endpoints nginx uses.
///
/// An instance listens on its port only for a site that may name the port and not the socket: one that the administrator
/// maintains, one of a release before sockets, or one that could not be updated. A site that does not exist yet will name the
/// socket.
pub fn listen(socket: &Endpoint, tcp: &Endpoint, can_listen_on_socket: bool, site: Option<&str>) -> Vec<Endpoint> {
    if !can_listen_on_socket {
        return vec![tcp.clone()];
    }
    let may_need_port = match site {
        None => true,
        Some(site) => names(site, tcp) && !names(site, socket),
    };
    match may_need_port {
        true => vec![socket.clone(), tcp.clone()],
        false => vec![socket.clone()],
    }
}

/// Whether the site has a `server` line for this endpoint.
pub fn names(site: &str, endpoint: &Endpoint) -> bool {
    let endpoint = endpoint.to_string();
    site.lines().any(|line| {
        let mut words = line.split([' ', '\t', ';']).filter(|word| !word.is_empty());
        words.next() == Some("server") && words.next() == Some(&endpoint)
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use std::net::TcpListener;
    use std::os::unix::net::UnixListener;

    use super::*;
    use crate::layout::{Layout, temporary};

    fn endpoints() -> (Endpoint, Endpoint) {
        (
            Endpoint::socket(&Layout::new("/").sockets_dir(), 1),
            Endpoint::tcp(7000, 1),
        )
    }

    #[test]
    fn a_port_is_opened_only_for_a_site_that_names_no_socket() {
        let (socket, tcp) = endpoints();
        let both = vec![socket.clone(), tcp.clone()];
        let on_socket = vec![socket.clone()];
        let old = "upstream links_all {\n    server 127.0.0.1:7001 max_fails=0;\n}\n";
        let transitional = format!("{old}    server unix:/run/links/sockets/1.sock max_fails=0;\n");
        let new = "    server unix:/run/links/sockets/1.sock max_fails=0 backup;\n";
        let of_others = "server 127.0.0.1:17001;\nserver 127.0.0.1:70011;\n# server 127.0.0.1:7001;\nserver_name x;\n";
        for (site, expected) in [
            (None, &both),
            (Some(""), &on_socket),
            (Some(old), &both),
            (Some(transitional.as_str()), &on_socket),
            (Some(new), &on_socket),
            (Some(of_others), &on_socket),
        ] {
            assert_eq!(&listen(&socket, &tcp, true, site), expected, "{site:?}");
            assert_eq!(
                listen(&socket, &tcp, false, site),
                std::slice::from_ref(&tcp),
                "{site:?}"
            );
        }
    }

    /// Answers a request with `ok`, and returns the request.
    fn answer(stream: &mut (impl io::Read + io::Write)) -> String {
        let mut request = [0; 1024];
        let length = stream.read(&mut request).unwrap();
        let response = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok";
        stream.write_all(response).unwrap();
        String::from_utf8_lossy(&request[..length]).into_owned()
    }

    #[test]
    fn a_running_instance_is_reached_on_its_socket_if_it_has_one() {
        let (_root, layout) = temporary(&[Layout::sockets_dir]);
        assert_eq!(
            Endpoint::of_running(&layout.sockets_dir(), 7000, 1),
            Endpoint::tcp(7000, 1)
        );
        let listener = UnixListener::bind(layout.instance_socket(1)).unwrap();
        let endpoint = Endpoint::of_running(&layout.sockets_dir(), 7000, 1);
        assert_eq!(endpoint, Endpoint::socket(&layout.sockets_dir(), 1));

        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            answer(&mut stream)
        });
        let answer = endpoint.send(&Request::get("/health"), Duration::from_secs(5)).unwrap();
        assert_eq!(answer.body, "ok");
        assert!(server.join().unwrap().starts_with("GET /health HTTP/1.0\r\n"));
    }

    #[test]
    fn a_secret_is_sent_to_a_port_only_while_its_owner_listens_there() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let endpoint = Endpoint::Tcp(address);
        let own = nix::unistd::geteuid();
        let request = Request {
            headers: &[("secret", "5ec2e7")],
            ..Request::get("/")
        };
        let ask = |owner| endpoint.send_secret(&request, Duration::from_secs(5), owner);
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            answer(&mut stream)
        });
        let refused = ask(Uid::from_raw(own.as_raw() + 1)).unwrap_err().to_string();
        assert!(
            refused.contains(&format!("user {own} listens on {address}")),
            "{refused}"
        );
        // The refused request has not even connected: this is the first connection that the server accepts.
        assert_eq!(ask(own).unwrap().status, 200);
        assert!(server.join().unwrap().contains("secret: 5ec2e7\r\n"));
        let refused = ask(own).unwrap_err().to_string();
        assert!(refused.contains(&format!("nobody listens on {address}")), "{refused}");
    }

    #[test]
    fn a_silent_server_causes_a_timeout() {
        let (_root, layout) = temporary(&[Layout::sockets_dir]);
        let _listener = UnixListener::bind(layout.instance_socket(1)).unwrap();
        let endpoint = Endpoint::socket(&layout.sockets_dir(), 1);
        let error = endpoint
            .send(&Request::get("/"), Duration::from_millis(50))
            .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{error}");
    }
}
