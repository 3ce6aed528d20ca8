//! The endpoints to listen on: TCP addresses and Unix sockets.

use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::PathBuf;
use std::str::FromStr;

/// The prefix that distinguishes a path from an address.
pub const UNIX: &str = "unix:";

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
