//! The kernel's tables of TCP connections, `/proc/PID/net/tcp` and `tcp6` (proc_pid_net(5)). They show how many connections of
//! a server are still in use, which clients are connected, and which user owns a server.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::{fs, io};

use procfs::net::{TcpNetEntries, TcpNetEntry, TcpState};
use procfs::{FromReadSI as _, ProcError, current_system_info};

use crate::layout;

/// The TCP sockets of this host. A kernel without IPv6 has only the table of IPv4.
///
/// # Errors
/// A table cannot be read, or is not in the kernel's format.
pub fn sockets() -> Result<Vec<TcpNetEntry>, String> {
    let mut sockets = vec![];
    for path in layout::CONNECTION_TABLES {
        match fs::read(path) {
            Ok(table) => sockets.extend(parse(&table)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound && path.ends_with('6') => {}
            Err(error) => return Err(format!("{path}: {error}")),
        }
    }
    Ok(sockets)
}

fn parse(table: &[u8]) -> Result<Vec<TcpNetEntry>, String> {
    let parsed = TcpNetEntries::from_read(table, current_system_info());
    parsed.map(|table| table.0).map_err(|error| {
        let reason = match error {
            ProcError::InternalError(error) => error.msg,
            error => error.to_string(),
        };
        format!("the connection table has an unreadable line: {reason}")
    })
}

/// The number of connections whose server end is `server` and that are still in use: a request may be served on them, or a
/// response is still being sent. Connections that both sides have finished do not count, nor does the listening socket.
pub fn count(sockets: &[TcpNetEntry], server: SocketAddr) -> usize {
    let of_server = sockets.iter().filter(|socket| is_same(socket.local_address, server));
    of_server.filter(|socket| is_in_use(socket)).count()
}

/// The client addresses of all open connections to servers on one of `ports`.
pub fn clients(sockets: &[TcpNetEntry], ports: &[u16]) -> BTreeSet<SocketAddr> {
    let open = sockets.iter().filter(|socket| socket.state == TcpState::Established);
    open.filter(|socket| ports.contains(&socket.local_address.port()))
        .map(|socket| socket.remote_address)
        .collect()
}

/// A listening socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    pub address: SocketAddr,
    /// User ID of the process that created the socket.
    pub uid: u32,
    pub inode: u64,
}

/// The listening sockets.
pub fn listeners(sockets: &[TcpNetEntry]) -> Vec<Listener> {
    let listening = sockets.iter().filter(|socket| socket.state == TcpState::Listen);
    listening
        .map(|socket| Listener {
            address: socket.local_address,
            uid: socket.uid,
            inode: socket.inode,
        })
        .collect()
}

/// Checks that a connection to `server` reaches a process of the user `owner`. Every user of the machine can listen on a free
/// port on loopback.
///
/// Only sockets that are bound to exactly this address count. The kernel prefers such a socket to one that another user has
/// bound to the same port of all addresses.
///
/// # Errors
/// Nobody listens there, or another user does.
pub fn require_owner(listeners: &[Listener], server: SocketAddr, owner: u32) -> Result<(), String> {
    let mut servers = listeners
        .iter()
        .filter(|listener| is_same(listener.address, server))
        .peekable();
    if servers.peek().is_none() {
        return Err(format!("nobody listens on {server}"));
    }
    match servers.find(|listener| listener.uid != owner) {
        None => Ok(()),
        Some(stranger) => Err(format!(
            "a program of user {} listens on {server}, and instances run as user {owner}; `ss -ltnp 'sport = :{}'` as root \
             shows which. Stop it",
            stranger.uid,
            server.port()
        )),
    }
}

/// Whether both are the same address. An IPv6 socket with an IPv4 client has the mapped form (RFC 4291, 2.5.5.2).
fn is_same(a: SocketAddr, b: SocketAddr) -> bool {
    (a.ip().to_canonical(), a.port()) == (b.ip().to_canonical(), b.port())
}

/// Whether a connection is still in use by its server.
fn is_in_use(connection: &TcpNetEntry) -> bool {
    match connection.state {
        // This includes connections that are not accepted yet, because the client may already have sent its request.
        TcpState::Established => true,
        // The client may have finished the handshake, while its last packet waits for room in the accept queue.
        TcpState::SynRecv => true,
        // The client has stopped sending but may wait for the response. The server has not closed yet.
        TcpState::CloseWait => true,
        // The server has closed, and the kernel is still sending. The FIN itself counts as one byte. If the server still holds
        // the socket and has unread data in it, its exit would discard the rest of the response.
        TcpState::FinWait1 | TcpState::Closing | TcpState::LastAck => connection.tx_queue > 1,
        _ => false,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use super::*;

    const HEAD: &str =
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode";

    /// The count for rows that hold the columns from the local address to the queues, as a little-endian kernel prints them.
    #[cfg(target_endian = "little")]
    fn counted(server: &str, rows: &[&str]) -> usize {
        count(&sockets_of(&table(rows)), server.parse().unwrap())
    }

    fn sockets_of(table: &str) -> Vec<TcpNetEntry> {
        parse(table.as_bytes()).unwrap()
    }

    fn table(rows: &[&str]) -> String {
        let rows = rows.iter().enumerate().map(|(index, row)| {
            format!("{index:4}: {row} 00:00000000 00000000     0        0 1147840 2 00000000536116be 20 0 0 10 -1")
        });
        let table: Vec<_> = std::iter::once(HEAD.to_owned()).chain(rows).collect();
        table.join("\n")
    }

    #[cfg(target_endian = "little")]
    #[test]
    fn clients_are_identified_by_their_addresses() {
        let table = table(&[
            "00000000:0050 00000000:0000 0A 00000000:00000000",
            "0100007F:0050 0100007F:D25A 01 00000000:00000000",
            "0100007F:0050 0100007F:D25B 06 00000000:00000000",
            "0100007F:D25A 0100007F:0050 01 00000000:00000000",
            "0100007F:01BB 0100007F:D25C 01 00000000:00000000",
        ]);
        let found = |ports: &[u16]| {
            let clients = clients(&sockets_of(&table), ports);
            clients.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(found(&[80]), ["127.0.0.1:53850"]);
        assert_eq!(found(&[80, 443]), ["127.0.0.1:53850", "127.0.0.1:53852"]);
    }

    #[test]
    fn listeners_have_an_address_and_an_inode() {
        for listen in ["127.0.0.1:0", "[::1]:0"] {
            let listener = std::net::TcpListener::bind(listen).unwrap();
            let taken = listener.local_addr().unwrap();
            let found = listeners(&sockets().unwrap());
            let own = nix::unistd::geteuid().as_raw();
            assert_eq!(require_owner(&found, taken, own), Ok(()));
            let refused = require_owner(&found, taken, own + 1).unwrap_err();
            assert!(refused.contains(&format!("user {own} listens on {taken}")), "{refused}");
            let found = found.iter().find(|listener| listener.address == taken).unwrap();
            assert_ne!(found.inode, 0);
        }
    }

    /// The rows are as a little-endian kernel prints them.
    #[cfg(target_endian = "little")]
    #[test]
    fn a_listener_belongs_to_a_user() {
        let row = |local: &str, uid: u32| {
            format!(
                "   0: {local} 00000000:0000 0A 00000000:00000000 00:00000000 00000000 {uid:5}        0 4711 1 0 100 0 0 10 0"
            )
        };
        let mapped = "0000000000000000FFFF00000100007F:1B59";
        let every_v6 = "00000000000000000000000000000000:1B59";
        let nobody = "nobody listens on 127.0.0.1:7001";
        let stranger = "a program of user 65534 listens on 127.0.0.1:7001";
        for (rows, expected) in [
            (vec![row("0100007F:1B59", 990)], ""),
            (vec![row("0100007F:1B59", 65534)], stranger),
            (vec![row("0100007F:1B59", 0)], "a program of user 0 listens"),
            (vec![row(mapped, 65534)], stranger),
            (vec![], nobody),
            // Only on another port, or on another address.
            (vec![row("0100007F:1B5A", 990), row("0200007F:1B59", 990)], nobody),
            // A stranger on all addresses gets connections only while the instance does not listen.
            (
                vec![
                    row("00000000:1B59", 65534),
                    row("0100007F:1B59", 990),
                    row(every_v6, 65534),
                ],
                "",
            ),
            (vec![row("00000000:1B59", 990)], nobody),
            (vec![row("0100007F:1B59", 990), row(mapped, 65534)], stranger),
        ] {
            let table = [vec![HEAD.to_owned()], rows].concat().join("\n");
            let found = require_owner(&listeners(&sockets_of(&table)), "127.0.0.1:7001".parse().unwrap(), 990);
            let refused = found.err().unwrap_or_default();
            let is_expected = refused.starts_with(expected) && refused.is_empty() == expected.is_empty();
            assert!(is_expected, "{refused:?} instead of {expected:?} with {table}");
        }
        let cut = format!("{HEAD}\n   0: 0100007F:1B59 00000000:0000 0A 00000000:00000000 00:00000000 00000000");
        assert!(parse(cut.as_bytes()).unwrap_err().contains("uid"), "without a user");
    }

    #[test]
    fn only_the_server_ends_of_its_own_connections_count() {
        let rows = [
            "0100007F:1B59 00000000:0000 0A 00000000:00000000",
            "0100007F:1B59 0100007F:D25A 01 00000000:00000000",
            "0100007F:1B59 0100007F:D25B 01 00000000:00000000",
            "0100007F:D25A 0100007F:1B59 01 00000000:00000000",
            "0100007F:1B5A 0100007F:D25C 01 00000000:00000000",
            "0200007F:1B59 0100007F:D25D 01 00000000:00000000",
        ];
        assert_eq!(counted("127.0.0.1:7001", &rows), 2);
        assert_eq!(counted("127.0.0.1:7002", &rows), 1);
        assert_eq!(counted("127.0.0.1:7003", &rows), 0);
    }

    #[test]
    fn ipv6_and_mapped_addresses_are_counted_too() {
        let rows = [
            "00000000000000000000000000000000:93AF 00000000000000000000000000000000:0000 0A 00000000:00000000",
            "0000000000000000FFFF00000100007F:93AF 0000000000000000FFFF00000100007F:D25A 01 00000000:00000000",
            "00000000000000000000000001000000:93AF 00000000000000000000000001000000:A9D4 01 00000000:00000000",
            "00000000000000000000000001000000:93AF 00000000000000000000000001000000:A9D5 01 00000000:00000000",
            "00000000000000000000000001000000:A9D4 00000000000000000000000001000000:93AF 01 00000000:00000000",
        ];
        assert_eq!(counted("127.0.0.1:37807", &rows), 1);
        assert_eq!(counted("[::ffff:127.0.0.1]:37807", &rows), 1);
        assert_eq!(counted("[::1]:37807", &rows), 2);
    }

    #[test]
    fn connections_count_while_a_request_or_a_response_is_in_flight() {
        let expected = [
            ("01", "00000000", 1, "established"),
            ("02", "00000000", 0, "an outgoing connection"),
            ("03", "00000000", 1, "not accepted yet"),
            ("04", "003B2C01", 1, "closed with a response unsent"),
            ("04", "00000001", 0, "closed, only the FIN is unsent"),
            ("05", "00000000", 0, "everything is sent"),
            ("06", "00000000", 0, "both sides have finished"),
            ("07", "00000000", 0, "closed"),
            ("08", "00000000", 1, "the client may still wait"),
            ("09", "00000001", 0, "both have closed"),
            ("09", "00000002", 1, "both have closed, a response is unsent"),
            ("0A", "00000000", 0, "listens"),
            ("0B", "00000001", 0, "both have closed at once"),
            ("0B", "00000400", 1, "both have closed at once, a response is unsent"),
        ];
        for (state, unsent, count, what) in expected {
            let row = format!("0100007F:1B59 0100007F:D25A {state} {unsent}:00000000");
            assert_eq!(counted("127.0.0.1:7001", &[&row]), count, "{what}");
        }
    }

    #[test]
    fn an_unknown_format_is_an_error_and_not_an_empty_table() {
        for empty in ["", HEAD] {
            assert_eq!(count(&sockets_of(empty), "127.0.0.1:7001".parse().unwrap()), 0);
        }
        assert!(parse(b"head\n0: 0100007F:1B59").is_err());
        let row = table(&["0100007F:1B59 0100007F:D25A 01 00000000:00000000"]);
        assert!(parse(row.as_bytes()).is_ok());
        let error = parse(row.replace(" 01 ", " ZZ ").as_bytes()).unwrap_err();
        assert!(
            error.starts_with("the connection table has an unreadable line: "),
            "{error}"
        );
        assert!(error.contains("ZZ"), "{error}");
    }
}
