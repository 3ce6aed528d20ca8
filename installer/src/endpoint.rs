//! Where an instance is reached: on a Unix socket, which only nginx, root and links can open, or on a port of loopback,
//! which is open to every user of the machine.

use std::fmt;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use nix::unistd::Uid;
use socket2::Socket;
use ureq::config::Config;
use ureq::unversioned::resolver::DefaultResolver;
use ureq::unversioned::transport::{Buffers, ConnectionDetails, Connector, LazyBuffers, NextTimeout, Transport};
use ureq::{Agent, Error};

use crate::layout::{self, Layout};
use crate::{connections, sockets};

/// Displays as links-host's `--listen` and nginx's `server` take it.
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
    pub fn socket(layout: &Layout, instance: u16) -> Self {
        Self::Socket(layout.instance_socket(instance))
    }

    pub fn tcp(base_port: u16, instance: u16) -> Self {
        Self::Tcp(layout::instance_address(base_port, instance))
    }

    /// Where an instance that runs can be asked: on its socket, if it has one. Without the right to look into the sockets'
    /// directory that is the socket too, which then says so.
    pub fn of_running(layout: &Layout, base_port: u16, instance: u16) -> Self {
        match layout.instance_socket(instance).symlink_metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::tcp(base_port, instance),
            _ => Self::socket(layout, instance),
        }
    }

    /// The URL of `path` there, for [`Self::client`].
    pub fn url(&self, path: &str) -> String {
        match self {
            Self::Socket(_) => format!("http://127.0.0.1{path}"),
            Self::Tcp(address) => format!("http://{address}{path}"),
        }
    }

    /// A client for this endpoint alone; as [`client`].
    pub fn client(&self, timeout: Duration) -> Agent {
        match self {
            Self::Socket(path) => {
                let connector = ToSocket(path.clone(), timeout);
                Agent::with_parts(config(timeout), connector, DefaultResolver::default())
            }
            Self::Tcp(_) => client(timeout),
        }
    }

    /// As [`Self::client`], for requests that hold a secret: whoever took the port of an instance that is stopped does not
    /// get it. `owner`: the user that instances run as.
    pub fn client_for_secrets(&self, timeout: Duration, owner: Uid) -> Agent {
        match self {
            // Connecting to it includes the look at whose it is.
            Self::Socket(_) => self.client(timeout),
            Self::Tcp(address) => {
                let connector = ToPort(*address, timeout, owner);
                Agent::with_parts(config(timeout), connector, DefaultResolver::default())
            }
        }
    }
}

/// For addresses of this host: a new connection for each request, because a kept one would count as traffic while an
/// instance drains. `timeout` bounds each whole request.
pub fn client(timeout: Duration) -> Agent {
    config(timeout).into()
}

fn config(timeout: Duration) -> Config {
    Agent::config_builder()
        .timeout_global(Some(timeout))
        .http_status_as_error(false)
        .max_redirects(0)
        .max_idle_connections(0)
        // The environment's proxy is for other hosts.
        .proxy(None)
        .build()
}

/// Leads every request to one socket.
#[derive(Debug)]
struct ToSocket(PathBuf, Duration);

impl<In: Transport> Connector<In> for ToSocket {
    type Out = Connection;

    fn connect(&self, details: &ConnectionDetails, _: Option<In>) -> Result<Option<Connection>, Error> {
        let Self(path, timeout) = self;
        let stream = sockets::connect(path, *timeout)
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
        Ok(Some(Connection::new(OwnedFd::from(stream), details)))
    }
}

/// Leads every request to one port, if a process of this user listens there.
#[derive(Debug)]
struct ToPort(SocketAddr, Duration, Uid);

impl<In: Transport> Connector<In> for ToPort {
    type Out = Connection;

    fn connect(&self, details: &ConnectionDetails, _: Option<In>) -> Result<Option<Connection>, Error> {
        let Self(address, timeout, owner) = self;
        require_owner(*address, *owner)?;
        let stream = TcpStream::connect_timeout(address, *timeout)?;
        // The port may have changed hands in between. It does not change back as quickly: an instance needs longer to start.
        require_owner(*address, *owner)?;
        Ok(Some(Connection::new(OwnedFd::from(stream), details)))
    }
}

fn require_owner(server: SocketAddr, owner: Uid) -> io::Result<()> {
    let owned = connections::tables().and_then(|tables| {
        let each = tables.iter().map(|table| connections::listeners(table));
        let listeners = each.collect::<Result<Vec<_>, _>>()?.concat();
        connections::require_owner(&listeners, server, owner.as_raw())
    });
    owned.map_err(io::Error::other)
}

#[derive(Debug)]
struct Connection {
    stream: Socket,
    buffers: LazyBuffers,
}

impl Connection {
    fn new(stream: OwnedFd, details: &ConnectionDetails) -> Self {
        let config = details.config;
        Self {
            stream: Socket::from(stream),
            buffers: LazyBuffers::new(config.input_buffer_size(), config.output_buffer_size()),
        }
    }
}

impl Transport for Connection {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        self.stream.set_write_timeout(timeout.not_zero().map(|left| *left))?;
        let output = &self.buffers.output()[..amount];
        self.stream.write_all(output).map_err(|error| timed(error, timeout))
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        self.stream.set_read_timeout(timeout.not_zero().map(|left| *left))?;
        let read = self.stream.read(self.buffers.input_append_buf());
        let amount = read.map_err(|error| timed(error, timeout))?;
        self.buffers.input_appended(amount);
        Ok(amount > 0)
    }

    fn is_open(&mut self) -> bool {
        // Kept for no other request.
        false
    }
}

/// A timeout of the socket is one of the request.
fn timed(error: io::Error, timeout: NextTimeout) -> Error {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Error::Timeout(timeout.reason),
        _ => error.into(),
    }
}

/// Where an instance listens, the endpoint that probes use first; at least one.
///
/// `can_listen_on_socket`: the runtime can, and the path fits. `site`: the site of links that nginx runs, empty before there
/// is one; None where a person keeps it, so that nobody knows where nginx looks for the instances.
///
/// An instance opens its port only for a site that names the port and not the socket: that of a release before sockets, or
/// one that could not be brought in line. Where there is no site yet, the next one will name the socket.
pub fn listen(socket: &Endpoint, tcp: &Endpoint, can_listen_on_socket: bool, site: Option<&str>) -> Vec<Endpoint> {
    if !can_listen_on_socket {
        return vec![tcp.clone()];
    }
    let looks_for_port_only = match site {
        None => true,
        Some(site) => names(site, tcp) && !names(site, socket),
    };
    match looks_for_port_only {
        true => vec![socket.clone(), tcp.clone()],
        false => vec![socket.clone()],
    }
}

/// Whether a `server` of the site is this endpoint.
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
    use crate::layout::temporary;

    fn endpoints() -> (Endpoint, Endpoint) {
        (Endpoint::socket(&Layout::new("/"), 1), Endpoint::tcp(7000, 1))
    }

    #[test]
    fn a_port_is_open_only_for_a_site_that_knows_no_socket() {
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

    /// Answers a request with `ok`, and returns it.
    fn answer(stream: &mut (impl io::Read + io::Write)) -> String {
        let mut request = [0; 1024];
        let length = stream.read(&mut request).unwrap();
        let response = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok";
        stream.write_all(response).unwrap();
        String::from_utf8_lossy(&request[..length]).into_owned()
    }

    #[test]
    fn an_instance_is_asked_on_its_socket_if_it_has_one() {
        let (_root, layout) = temporary(&[Layout::sockets_dir]);
        assert_eq!(Endpoint::of_running(&layout, 7000, 1), Endpoint::tcp(7000, 1));
        let listener = UnixListener::bind(layout.instance_socket(1)).unwrap();
        let endpoint = Endpoint::of_running(&layout, 7000, 1);
        assert_eq!(endpoint, Endpoint::socket(&layout, 1));

        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            answer(&mut stream)
        });
        let client = endpoint.client(Duration::from_secs(5));
        let mut answer = client.get(endpoint.url("/health")).call().unwrap();
        assert_eq!(answer.body_mut().read_to_string().unwrap(), "ok");
        assert!(server.join().unwrap().starts_with("GET /health HTTP/1.1\r\n"));
    }

    #[test]
    fn a_port_gets_a_secret_only_while_the_right_user_listens_there() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let endpoint = Endpoint::Tcp(address);
        let own = nix::unistd::geteuid();
        let ask = |owner| {
            let client = endpoint.client_for_secrets(Duration::from_secs(5), owner);
            client.get(endpoint.url("/")).header("secret", "5ec2e7").call()
        };
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            answer(&mut stream)
        });
        let refused = ask(Uid::from_raw(own.as_raw() + 1)).unwrap_err().to_string();
        assert!(
            refused.contains(&format!("user {own} listens on {address}")),
            "{refused}"
        );
        // The refused one has not even connected: this is the first that the server gets.
        assert_eq!(ask(own).unwrap().status(), 200);
        assert!(server.join().unwrap().contains("secret: 5ec2e7\r\n"));
        let refused = ask(own).unwrap_err().to_string();
        assert!(refused.contains(&format!("nobody listens on {address}")), "{refused}");
    }

    #[test]
    fn a_silent_server_is_waited_for_no_longer_than_the_timeout() {
        let (_root, layout) = temporary(&[Layout::sockets_dir]);
        let _listener = UnixListener::bind(layout.instance_socket(1)).unwrap();
        let endpoint = Endpoint::socket(&layout, 1);
        let asked = endpoint.client(Duration::from_millis(50)).get(endpoint.url("/")).call();
        assert!(matches!(asked, Err(Error::Timeout(_))), "{asked:?}");
    }
}
