//! Unix sockets on which instances listen: connecting to one, and the kernel's table of connections (proc_pid_net(5)).

use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};
use nix::fcntl::OFlag;
use socket2::{Domain, SockAddr, Socket, Type};

use crate::layout;

/// The longest path that bind(2) takes (sun_path of unix(7), with its final zero byte).
const LONGEST_PATH: usize = 107;

/// Whether a socket can be made with this path.
pub fn fits(path: &Path) -> bool {
    path.as_os_str().len() <= LONGEST_PATH
}

/// Connects to the socket at `path` itself: the user links could put a symbolic link there, which would lead root to a
/// socket of somebody else's. `timeout` counts while the server's queue is full.
///
/// # Errors
/// Nobody listens, or what is there is no socket of the directory's owner.
pub fn connect(path: &Path, timeout: Duration) -> io::Result<UnixStream> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags((OFlag::O_PATH | OFlag::O_NOFOLLOW).bits())
        .open(path)?;
    let found = file.metadata()?;
    let directory = fs::metadata(path.parent().unwrap_or(Path::new("/")))?;
    if !found.file_type().is_socket() || found.uid() != directory.uid() {
        return Err(io::Error::other(format!(
            "{} is not a socket of the owner of its directory",
            path.display()
        )));
    }
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // Counts for connect(2), too (socket(7)).
    socket.set_write_timeout(Some(timeout))?;
    socket.connect(&SockAddr::unix(format!("/proc/self/fd/{}", file.as_raw_fd()))?)?;
    Ok(UnixStream::from(OwnedFd::from(socket)))
}

/// Removes a socket that a killed process has left. The caller is the one who may listen there.
///
/// # Errors
/// Somebody listens there, or it cannot be removed.
pub fn remove_stale(path: &Path) -> anyhow::Result<()> {
    match connect(path, Duration::from_secs(1)) {
        Ok(_) => bail!(
            "{} is in use by another process; `ss -lxp src {}` as root shows which. End it",
            path.display(),
            path.display()
        ),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(_) => fs::remove_file(path).with_context(|| format!("Removing {}", path.display())),
    }
}

/// The kernel's table as it is now.
///
/// # Errors
/// It cannot be read.
pub fn table() -> Result<String, String> {
    let path = layout::UNIX_SOCKET_TABLE;
    let bytes = fs::read(path).map_err(|error| format!("{path}: {error}"))?;
    // Anybody can give a socket any name.
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Flag of a socket that listens (__SO_ACCEPTCON of include/linux/net.h).
const LISTENS: u32 = 1 << 16;
const COLUMNS: [&str; 8] = ["Num", "RefCount", "Protocol", "Flags", "Type", "St", "Inode", "Path"];
/// States of a connection: waits to be accepted, and accepted (include/uapi/linux/net.h).
const CONNECTING: u8 = 2;
const CONNECTED: u8 = 3;

/// How many connections of the server on `path` are in `table`. What a server has sent before it closes is the client's to
/// read, so a closed connection does not count.
///
/// A socket's name may hold line feeds, so lines of another form are somebody's attempt and do not count.
///
/// # Errors
/// The columns are not those of the kernel.
pub fn count(table: &str, path: &Path) -> Result<usize, String> {
    let head = table.lines().next().unwrap_or_default();
    if !head.split_ascii_whitespace().eq(COLUMNS) {
        return Err(format!("the table of Unix sockets has the columns `{head}`"));
    }
    let path = path.to_string_lossy();
    let is_connection = |line: &&str| {
        connection(line).is_some_and(|(flags, state, name)| {
            flags & LISTENS == 0 && matches!(state, CONNECTING | CONNECTED) && name == path
        })
    };
    Ok(table.lines().skip(1).filter(is_connection).count())
}

/// Flags, state and path of a socket.
fn connection(line: &str) -> Option<(u32, u8, &str)> {
    let mut rest = line;
    let columns: Vec<_> = std::iter::from_fn(|| column(&mut rest))
        .take(COLUMNS.len() - 1)
        .collect();
    let [_address, _references, _protocol, flags, _type, state, _inode] = columns.as_slice() else {
        return None;
    };
    let flags = u32::from_str_radix(flags, 16).ok()?;
    // What is left is the path, whatever it holds.
    Some((flags, u8::from_str_radix(state, 16).ok()?, rest.trim_start()))
}

/// The next column, taken off `rest`.
fn column<'a>(rest: &mut &'a str) -> Option<&'a str> {
    let text = rest.trim_start();
    let end = text.find(char::is_whitespace).unwrap_or(text.len());
    let (column, left) = text.split_at(end);
    *rest = left;
    (!column.is_empty()).then_some(column)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;
    use std::time::Instant;

    use super::*;

    /// The kernel announces no change of its table: looks until it shows `expected`.
    fn comes_to(expected: usize, path: &Path) {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let found = count(&table().unwrap(), path).unwrap();
            if found == expected {
                return;
            }
            assert!(Instant::now() < deadline, "{found} connections instead of {expected}");
            std::thread::yield_now();
        }
    }

    fn call(path: &Path) -> UnixStream {
        connect(path, Duration::from_secs(5)).unwrap()
    }

    #[test]
    fn connections_count_until_the_server_closes_them() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a socket");
        let listener = UnixListener::bind(&path).unwrap();
        let _other = UnixListener::bind(directory.path().join("other")).unwrap();
        comes_to(0, &path);

        let mut clients = vec![call(&path), call(&path)];
        // Not accepted yet.
        comes_to(2, &path);
        let mut served: Vec<_> = (0..2).map(|_| listener.accept().unwrap().0).collect();
        comes_to(2, &path);

        // The client has closed; the server may still be at its request.
        drop(clients.pop());
        comes_to(2, &path);
        drop(served.pop());
        comes_to(1, &path);

        // What was sent before the end reaches the client.
        let mut last = served.pop().unwrap();
        last.write_all(b"answer").unwrap();
        drop(last);
        comes_to(0, &path);
        let mut answer = String::new();
        clients.pop().unwrap().read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "answer");
    }

    #[test]
    fn only_a_socket_of_the_directory_s_owner_is_connected_to() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let _listener = UnixListener::bind(at("real")).unwrap();
        call(&at("real"));
        symlink(at("real"), at("link")).unwrap();
        fs::write(at("file"), b"").unwrap();
        for name in ["link", "file"] {
            let error = connect(&at(name), Duration::from_secs(1)).unwrap_err().to_string();
            assert!(error.contains("is not a socket of the owner"), "{error}");
        }
        let missing = connect(&at("missing"), Duration::from_secs(1)).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
        let foreign = UnixListener::bind(at("foreign")).unwrap();
        if nix::unistd::geteuid().is_root() {
            std::os::unix::fs::chown(at("foreign"), Some(65534), None).unwrap();
            connect(&at("foreign"), Duration::from_secs(1)).unwrap_err();
        }
        drop(foreign);
    }

    #[test]
    fn a_left_socket_goes_and_one_in_use_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("1.sock");
        remove_stale(&path).unwrap();
        let listener = UnixListener::bind(&path).unwrap();
        let error = remove_stale(&path).unwrap_err().to_string();
        assert!(error.contains("in use") && path.exists(), "{error}");
        drop(listener);
        remove_stale(&path).unwrap();
        assert!(!path.exists());
        // Whatever else takes the place of the socket.
        symlink("/nowhere", &path).unwrap();
        remove_stale(&path).unwrap();
        assert!(path.symlink_metadata().is_err());
    }

    #[test]
    fn another_format_is_an_error_and_not_an_empty_table() {
        let head = "Num       RefCount Protocol Flags    Type St Inode Path";
        let path = Path::new("/run/1.sock");
        assert_eq!(count(head, path), Ok(0));
        let row = |flags: &str, state: &str| {
            count(
                &format!("{head}\n0000000000024513: 00000003 00000000 {flags} 0001 {state} 24513 /run/1.sock"),
                path,
            )
        };
        assert_eq!(row("00000000", "03"), Ok(1));
        assert_eq!(row("00000000", "02"), Ok(1));
        assert_eq!(row("00000000", "01"), Ok(0), "bound, and does not listen yet");
        assert_eq!(row("00010000", "01"), Ok(0), "listens");
        assert_eq!(row("0000zz00", "03"), Ok(0), "a name with a line feed in it");
        for head in ["", "Num RefCount Path"] {
            assert!(count(head, path).unwrap_err().contains("columns"), "{head}");
        }
    }
}
