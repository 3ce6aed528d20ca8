//! Checks that no other program holds an address before nginx is made to listen on it.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, TcpListener};

use anyhow::bail;
use procfs::process::{FDTarget, Process, all_processes};

use links_base::connections::{self, Listener};

/// Another program's socket that overlaps with an address of the site.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Conflict {
    wanted: SocketAddr,
    held: SocketAddr,
    /// The inode of the other program's socket.
    inode: u64,
}

/// Checks that every wanted address is free or held by nginx, whose master process is `master`.
///
/// # Errors
/// Another program holds one of the addresses, or the kernel's socket tables cannot be read. The error names the program.
pub fn check(wanted: &[SocketAddr], master: Option<u32>) -> anyhow::Result<()> {
    let listeners = connections::listeners(&connections::sockets().map_err(anyhow::Error::msg)?);
    let master = master.and_then(|pid| Process::new(pid.cast_signed()).ok());
    let own = master.as_ref().map(sockets).unwrap_or_default();
    let free = |address: SocketAddr| TcpListener::bind(address).is_ok();
    let Some(conflict) = conflict(wanted, &listeners, &own, free) else {
        return Ok(());
    };
    let held = conflict.held;
    bail!(
        "{} is needed for nginx, but {} listens on {held}; `ss -ltnp 'sport = :{}'` shows it. Stop that program, or choose \
         another address in links.toml ({})",
        conflict.wanted,
        holder(conflict.inode).unwrap_or_else(|| "another program".to_owned()),
        held.port(),
        match conflict.wanted.ip().is_loopback() {
            true => "base_port, or listen in [nginx]",
            false => "listen in [nginx]",
        }
    )
}

/// Finds the first conflict. `own` holds the inodes of nginx's sockets. `free` tries to listen on an address; it is only called
/// when the tables leave the question open.
fn conflict(
    wanted: &[SocketAddr],
    listeners: &[Listener],
    own: &BTreeSet<u64>,
    free: impl Fn(SocketAddr) -> bool,
) -> Option<Conflict> {
    wanted.iter().find_map(|wanted| {
        // nginx keeps a socket that it already holds, even if another program listens beside it.
        let has_it = |listener: &Listener| listener.address == *wanted && own.contains(&listener.inode);
        if listeners.iter().any(has_it) {
            return None;
        }
        let strangers = listeners.iter().filter(|listener| !own.contains(&listener.inode));
        strangers
            .filter(|listener| match overlap(*wanted, listener.address) {
                Overlap::None => false,
                Overlap::Certain => true,
                Overlap::Possible => !free(*wanted),
            })
            .map(|listener| Conflict {
                wanted: *wanted,
                held: listener.address,
                inode: listener.inode,
            })
            .next()
    })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overlap {
    None,
    /// The kernel refuses the second socket.
    Certain,
    /// A socket on `[::]` takes IPv4 too unless it has IPV6_V6ONLY, which the kernel's table does not show (ipv6(7)).
    Possible,
}

pub fn overlap(wanted: SocketAddr, held: SocketAddr) -> Overlap {
    let any = |ip: IpAddr| ip.is_unspecified();
    let (a, b) = (wanted.ip(), held.ip());
    if wanted.port() != held.port() {
        return Overlap::None;
    }
    match (a, b) {
        (IpAddr::V4(_), IpAddr::V4(_)) | (IpAddr::V6(_), IpAddr::V6(_)) if a == b || any(a) || any(b) => {
            Overlap::Certain
        }
        (IpAddr::V4(_), IpAddr::V6(_)) if any(b) => Overlap::Possible,
        _ => Overlap::None,
    }
}

/// The inodes of a process's sockets. Empty if they cannot be read.
fn sockets(process: &Process) -> BTreeSet<u64> {
    let files = process.fd().into_iter().flatten().flatten();
    files
        .filter_map(|file| match file.target {
            FDTarget::Socket(inode) => Some(inode),
            _ => None,
        })
        .collect()
}

/// The name and id of the process that holds the socket. `None` if that is not visible, for example from inside a container.
fn holder(inode: u64) -> Option<String> {
    let mut processes = all_processes().ok()?.flatten();
    let process = processes.find(|process| sockets(process).contains(&inode))?;
    let name = process.stat().ok()?.comm;
    Some(format!("{name} (process {})", process.pid))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    /// The held address that conflicts, if any. nginx holds the sockets with inodes below 10.
    fn found(wanted: &[&str], listeners: &[(&str, u64)], free: bool) -> Option<String> {
        let wanted: Vec<_> = wanted.iter().map(|text| address(text)).collect();
        let listeners: Vec<_> = listeners
            .iter()
            .map(|(text, inode)| Listener {
                address: address(text),
                uid: 0,
                inode: *inode,
            })
            .collect();
        conflict(&wanted, &listeners, &(1..10).collect(), |_| free).map(|conflict| conflict.held.to_string())
    }

    #[test]
    fn nginx_s_own_sockets_and_other_addresses_are_no_conflict() {
        let wanted = ["0.0.0.0:80", "[::]:80", "127.0.0.1:7000"];
        assert_eq!(found(&wanted, &[], true), None);
        assert_eq!(found(&wanted, &[("0.0.0.0:80", 1), ("[::]:80", 2)], false), None);
        assert_eq!(
            found(&wanted, &[("0.0.0.0:81", 11), ("127.0.0.1:7001", 12)], false),
            None
        );
        assert_eq!(found(&["192.0.2.1:80"], &[("192.0.2.2:80", 11)], false), None);
        // nginx already holds one address of the port and is to listen on all: no other program is involved.
        assert_eq!(found(&wanted, &[("127.0.0.1:80", 1)], false), None);
    }

    #[test]
    fn another_program_on_the_port_is_a_conflict() {
        let wanted = ["0.0.0.0:80", "127.0.0.1:7000"];
        for held in ["0.0.0.0:80", "127.0.0.1:80", "127.0.0.1:7000", "0.0.0.0:7000"] {
            assert_eq!(found(&wanted, &[(held, 11)], false).as_deref(), Some(held));
        }
        assert_eq!(
            found(&["[::]:80"], &[("[::1]:80", 11)], true).as_deref(),
            Some("[::1]:80")
        );
    }

    #[test]
    fn an_ipv6_socket_may_take_ipv4_too() {
        let apache = [("[::]:80", 11)];
        assert_eq!(found(&["0.0.0.0:80"], &apache, false).as_deref(), Some("[::]:80"));
        assert_eq!(found(&["0.0.0.0:80"], &apache, true), None);
        assert_eq!(
            found(&["0.0.0.0:80"], &[("[::]:80", 11), ("0.0.0.0:80", 1)], false),
            None
        );
    }

    #[test]
    fn the_error_names_the_program_that_holds_the_socket() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let taken = listener.local_addr().unwrap();
        let error = check(&[taken], None).unwrap_err().to_string();
        assert!(error.contains(&format!("(process {})", std::process::id())), "{error}");
        assert!(error.contains(&format!("sport = :{}", taken.port())), "{error}");
        assert!(check(&[taken], Some(std::process::id())).is_ok());
        drop(listener);
        assert!(check(&[taken], None).is_ok());
    }
}
