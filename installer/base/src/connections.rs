//! The kernel's tables of TCP connections, `/proc/PID/net/tcp` and `tcp6` (proc_pid_net(5)). They show how many connections of
//! a server are still in use, which clients are connected, and which user owns a server.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::{fs, io};

use crate::layout;

/// The kernel's numbers of the states (include/net/tcp_states.h).
mod state {
    pub const ESTABLISHED: u8 = 0x01;
    pub const SYN_RECV: u8 = 0x03;
    pub const FIN_WAIT1: u8 = 0x04;
    pub const CLOSE_WAIT: u8 = 0x08;
    pub const LAST_ACK: u8 = 0x09;
    pub const LISTEN: u8 = 0x0A;
    pub const CLOSING: u8 = 0x0B;
}

/// The current contents of the tables. A kernel without IPv6 has only one.
///
/// # Errors
/// A table cannot be read.
pub fn tables() -> Result<Vec<String>, String> {
    let mut tables = vec![];
    for path in layout::CONNECTION_TABLES {
        match fs::read_to_string(path) {
            Ok(table) => tables.push(table),
            Err(error) if error.kind() == io::ErrorKind::NotFound && path.ends_with('6') => {}
            Err(error) => return Err(format!("{path}: {error}")),
        }
    }
    Ok(tables)
}

/// The number of connections in `table` whose server end is `server` and that are still in use: a request may be served on
/// them, or a response is still being sent. Connections that both sides have finished do not count, nor does the listening
/// socket.
///
/// # Errors
/// A line is not in the kernel's format. The error quotes it.
pub fn count(table: &str, server: SocketAddr) -> Result<usize, String> {
    let names = names(server);
    let mut count = 0;
    for row in rows(table) {
        let row = row?;
        count += usize::from(names.iter().any(|name| name == row.local) && matters(row.state, row.unsent));
    }
    Ok(count)
}

/// The client addresses, as the kernel prints them, of all open connections to servers on one of `ports`.
///
/// # Errors
/// Those of [`count`].
pub fn clients(table: &str, ports: &[u16]) -> Result<BTreeSet<String>, String> {
    let ports: Vec<_> = ports.iter().map(|port| format!(":{port:04X}")).collect();
    let mut clients = BTreeSet::new();
    for row in rows(table) {
        let row = row?;
        if row.state == state::ESTABLISHED && ports.iter().any(|port| row.local.ends_with(port)) {
            clients.insert(row.remote.to_owned());
        }
    }
    Ok(clients)
}

/// A listening socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    pub address: SocketAddr,
    /// User ID of the process that created the socket.
    pub uid: u32,
    pub inode: u64,
}

/// The listening sockets in a table.
///
/// # Errors
/// Those of [`count`].
pub fn listeners(table: &str) -> Result<Vec<Listener>, String> {
    let mut listeners = vec![];
    for row in rows(table) {
        let row = row?;
        if row.state == state::LISTEN {
            let read = || {
                Some(Listener {
                    address: address(row.local)?,
                    uid: row.uid?.parse().ok()?,
                    inode: row.inode?.parse().ok()?,
                })
            };
            listeners.push(
                read().ok_or_else(|| format!("the connection table has an unreadable listener at `{}`", row.local))?,
            );
        }
    }
    Ok(listeners)
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
    let is_server = |listener: &&Listener| {
        let address = listener.address;
        (address.ip().to_canonical(), address.port()) == (server.ip().to_canonical(), server.port())
    };
    let mut servers = listeners.iter().filter(is_server).peekable();
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

struct Row<'a> {
    local: &'a str,
    remote: &'a str,
    state: u8,
    /// The number of bytes that the other side has not acknowledged.
    unsent: u64,
    uid: Option<&'a str>,
    inode: Option<&'a str>,
}

fn rows(table: &str) -> impl Iterator<Item = Result<Row<'_>, String>> {
    // The first line names the columns.
    table.lines().skip(1).map(|line| {
        let read = || {
            let mut columns = line.split_ascii_whitespace().skip(1);
            let (local, remote) = (columns.next()?, columns.next()?);
            let state = u8::from_str_radix(columns.next()?, 16).ok()?;
            let unsent = columns.next()?.split(':').next()?;
            let unsent = u64::from_str_radix(unsent, 16).ok()?;
            let (uid, inode) = (columns.nth(2), columns.nth(1));
            Some(Row {
                local,
                remote,
                state,
                unsent,
                uid,
                inode,
            })
        };
        read().ok_or_else(|| format!("the connection table has the unreadable line `{line}`"))
    })
}

/// Whether a connection is still in use by its server.
fn matters(state: u8, unsent: u64) -> bool {
    match state {
        // This includes connections that are not accepted yet, because the client may already have sent its request.
        state::ESTABLISHED => true,
        // The client may have finished the handshake, while its last packet waits for room in the accept queue.
        state::SYN_RECV => true,
        // The client has stopped sending but may wait for the response. The server has not closed yet.
        state::CLOSE_WAIT => true,
        // The server has closed, and the kernel is still sending. The FIN itself counts as one byte. If the server still holds
        // the socket and has unread data in it, its exit would discard the rest of the response.
        state::FIN_WAIT1 | state::CLOSING | state::LAST_ACK => unsent > 1,
        _ => false,
    }
}

/// The forms in which the kernel prints an address: words of four bytes, each a number in the machine's byte order. An IPv6
/// socket with an IPv4 client has the mapped form (RFC 4291, 2.5.5.2).
fn names(server: SocketAddr) -> Vec<String> {
    let port = server.port();
    match server.ip().to_canonical() {
        IpAddr::V4(v4) => vec![
            format!("{}:{port:04X}", words(&v4.octets())),
            format!("{}:{port:04X}", words(&v4.to_ipv6_mapped().octets())),
        ],
        IpAddr::V6(v6) => vec![format!("{}:{port:04X}", words(&v6.octets()))],
    }
}

fn words(address: &[u8]) -> String {
    let (words, _) = address.as_chunks::<4>();
    words
        .iter()
        .map(|word| format!("{:08X}", u32::from_ne_bytes(*word)))
        .collect()
}

/// The reverse of [`names`].
fn address(name: &str) -> Option<SocketAddr> {
    let (words, port) = name.split_once(':')?;
    let mut bytes = vec![];
    for word in words.as_bytes().chunks(8) {
        let word = u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok()?;
        bytes.extend(word.to_ne_bytes());
    }
    let ip = match <[u8; 4]>::try_from(bytes.as_slice()) {
        Ok(v4) => IpAddr::from(v4),
        Err(_) => IpAddr::from(<[u8; 16]>::try_from(bytes.as_slice()).ok()?),
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
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
        count(&table(rows), server.parse().unwrap()).unwrap()
    }

    fn table(rows: &[&str]) -> String {
        let rows = rows.iter().enumerate().map(|(index, row)| {
            format!("{index:4}: {row} 00:00000000 00000000     0        0 1147840 2 00000000536116be 20 0 0 10 -1")
        });
        let table: Vec<_> = std::iter::once(HEAD.to_owned()).chain(rows).collect();
        table.join("\n")
    }

    #[test]
    fn clients_are_identified_by_their_addresses() {
        let table = table(&[
            "00000000:0050 00000000:0000 0A 00000000:00000000",
            "0100007F:0050 0100007F:D25A 01 00000000:00000000",
            "0100007F:0050 0100007F:D25B 06 00000000:00000000",
            "0100007F:D25A 0100007F:0050 01 00000000:00000000",
            "0100007F:01BB 0100007F:D25C 01 00000000:00000000",
        ]);
        let found = |ports: &[u16]| clients(&table, ports).unwrap().into_iter().collect::<Vec<_>>();
        assert_eq!(found(&[80]), ["0100007F:D25A"]);
        assert_eq!(found(&[80, 443]), ["0100007F:D25A", "0100007F:D25C"]);
    }

    #[test]
    fn listeners_have_an_address_and_an_inode() {
        for listen in ["127.0.0.1:0", "[::1]:0"] {
            let listener = std::net::TcpListener::bind(listen).unwrap();
            let taken = listener.local_addr().unwrap();
            let found: Vec<_> = tables()
                .unwrap()
                .iter()
                .flat_map(|table| listeners(table).unwrap())
                .collect();
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
            let found = require_owner(&listeners(&table).unwrap(), "127.0.0.1:7001".parse().unwrap(), 990);
            let refused = found.err().unwrap_or_default();
            let is_expected = refused.starts_with(expected) && refused.is_empty() == expected.is_empty();
            assert!(is_expected, "{refused:?} instead of {expected:?} with {table}");
        }
        let cut = format!("{HEAD}\n   0: 0100007F:1B59 00000000:0000 0A 00000000:00000000 00:00000000 00000000");
        assert!(
            listeners(&cut).unwrap_err().contains("unreadable listener"),
            "without a user"
        );
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
        let server = "127.0.0.1:7001".parse().unwrap();
        assert_eq!(count("", server), Ok(0));
        assert_eq!(count(HEAD, server), Ok(0));
        assert!(count("head\n0: 0100007F:1B59", server).unwrap_err().contains("1B59"));
        let name = &names(server)[0];
        assert!(count(&format!("head\n0: {name} x ZZ 0:0"), server).is_err());
    }
}
