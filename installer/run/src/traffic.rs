//! Observes the remaining traffic of an instance: connections in the kernel's tables, and the flags of other instances.

use crate::machine::Traffic;
use links_base::endpoint::Endpoint;
use links_base::layout::Layout;
use links_base::{connections, log, rotation, sockets};

/// Counts the connections to these endpoints, and checks for other instances in rotation.
pub fn observe(layout: &Layout, instance: u16, listen: &[Endpoint]) -> Traffic {
    let others =
        rotation::ready_instances(&layout.ready_dir()).map(|ready| ready.iter().any(|other| *other != instance));
    Traffic {
        connections: count_connections(listen),
        others: others.unwrap_or_else(|error| {
            log::error!("reading {}: {error}", layout.ready_dir().display());
            // nginx cannot read the flags either, and sends requests to all instances.
            false
        }),
    }
}

/// Counts the connections of these endpoints in the kernel's tables.
fn count_connections(listen: &[Endpoint]) -> Result<usize, String> {
    let count = |endpoint: &Endpoint| match endpoint {
        Endpoint::Socket(path) => sockets::count(&sockets::table()?, path),
        Endpoint::Tcp(address) => Ok(connections::count(&connections::sockets()?, *address)),
    };
    listen.iter().map(count).sum()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic fails the test")]
mod tests {
    use std::fs;
    use std::io::{Read as _, Write as _};
    use std::net::{SocketAddr, TcpListener, TcpStream};
    use std::time::{Duration, Instant};

    use super::*;

    /// Polls the kernel's table, which has no events, until it shows `expected` connections.
    fn wait_for_count(expected: usize, server: SocketAddr) {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let found = count_connections(&[Endpoint::Tcp(server)]).unwrap();
            if found == expected {
                return;
            }
            assert!(Instant::now() < deadline, "{found} connections instead of {expected}");
            std::thread::yield_now();
        }
    }

    #[test]
    fn connections_are_counted_until_both_sides_are_done() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = listener.local_addr().unwrap();
        // The listener does not count.
        wait_for_count(0, server);

        let mut clients: Vec<_> = (0..3).map(|_| TcpStream::connect(server).unwrap()).collect();
        // Not accepted yet. The clients' sides of the connections are in the same table, and do not count.
        wait_for_count(3, server);
        let mut served: Vec<_> = (0..3).map(|_| listener.accept().unwrap().0).collect();
        wait_for_count(3, server);

        // A client closes, but may still be answered until the server closes, too.
        drop(clients.pop());
        wait_for_count(3, server);
        drop(served.pop());
        wait_for_count(2, server);

        // The server sends more than the client reads at once, and closes.
        let mut answered = served.pop().unwrap();
        answered.set_nonblocking(true).unwrap();
        let mut sent = 0;
        while let Ok(bytes) = answered.write(&[0; 65536]) {
            sent += bytes;
        }
        drop(answered);
        wait_for_count(2, server);
        let mut client = clients.pop().unwrap();
        assert_eq!(client.read_to_end(&mut vec![]).unwrap(), sent);
        wait_for_count(1, server);

        drop((served, clients));
        wait_for_count(0, server);
    }

    #[test]
    fn the_flags_show_whether_another_instance_is_ready() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::new(root.path());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = listener.local_addr().unwrap();
        let others = || observe(&layout, 1, &[Endpoint::Tcp(server)]).others;
        assert!(!others(), "the directory does not exist");
        fs::create_dir_all(layout.ready_dir()).unwrap();
        fs::write(layout.ready_flag(1), b"").unwrap();
        assert!(!others(), "the only flag is that of the instance itself");
        fs::write(layout.ready_flag(2), b"").unwrap();
        assert!(others());
    }
}
