//! The Unix sockets of the instances: connecting to one, and counting its connections in the kernel's table (proc_pid_net(5)).

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

/// The maximum length of a path for bind(2), in bytes: sun_path of unix(7) without its final zero byte.
const LONGEST_PATH: usize = 107;

/// Whether the path is short enough for a socket.
pub fn fits(path: &Path) -> bool {
    path.as_os_str().len() <= LONGEST_PATH
}

/// Connects to the socket at `path` without following a symbolic link, by which user links could lead root to somebody else's
/// socket. Waits up to `timeout` while the server's queue is full.
///
/// # Errors
/// Nobody listens, or the file is not a socket of the directory's owner.
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
    // The timeout applies to connect(2), too (socket(7)).
    socket.set_write_timeout(Some(timeout))?;
    socket.connect(&SockAddr::unix(format!("/proc/self/fd/{}", file.as_raw_fd()))?)?;
    Ok(UnixStream::from(OwnedFd::from(socket)))
}

/// Removes a socket that a killed process has left behind. Only the instance that is about to listen there may call this.
///
/// # Errors
/// Somebody listens there, or the socket cannot be removed.
pub fn remove_stale(path: &Path) -> anyhow::Result<()> {
    match connect(path, Duration::from_secs(1)) {
        Ok(_) => bail!(
            "{} is in use by another process; `ss -lxp src {}` as root shows which. Stop it",
            path.display(),
            path.display()
        ),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(_) => fs::remove_file(path).with_context(|| format!("Removing {}", path.display())),
    }
}

/// The current contents of the kernel's table.
///
/// # Errors
/// The table cannot be read.
pub fn table() -> Result<String, String> {
    let path = layout::UNIX_SOCKET_TABLE;
    let bytes = fs::read(path).map_err(|error| format!("{path}: {error}"))?;
    // Any user can give a socket a name that is not UTF-8.
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The flag of a listening socket (__SO_ACCEPTCON of include/linux/net.h).
const LISTENS: u32 = 1 << 16;
const COLUMNS: [&str; 8] = ["Num", "RefCount", "Protocol", "Flags", "Type", "St", "Inode", "Path"];
/// The state of a connection that is not accepted yet (include/uapi/linux/net.h).
const CONNECTING: u8 = 2;
/// The state of an accepted connection.
const CONNECTED: u8 = 3;

/// The number of connections in `table` to the server on `path`. Closed connections do not count, because the client can still
/// read all that the server has sent.
///
/// Any user can forge lines, because the name of a socket may hold line feeds. Lines in another format are therefore ignored.
///
/// # Errors
/// The table does not have the expected columns.
pub fn count(table: &str, path: &Path) -> Result<usize, String> {
    let head = table.lines().next().unwrap_or_default();
    if !head.split_ascii_whitespace().eq(COLUMNS) {
        return Err(format!("the table of Unix sockets has unknown columns: `{head}`"));
    }
    let path = path.to_string_lossy();
    let is_connection = |line: &&str| {
        connection(line).is_some_and(|(flags, state, name)| {
            flags & LISTENS == 0 && matches!(state, CONNECTING | CONNECTED) && name == path
        })
    };
    Ok(table.lines().skip(1).filter(is_connection).count())
}

/// The flags, the state and the path of a socket.
fn connection(line: &str) -> Option<(u32, u8, &str)> {
    let mut rest = line;
    let columns: Vec<_> = std::iter::from_fn(|| column(&mut rest))
        .take(COLUMNS.len() - 1)
        .collect();
    let [_address, _references, _protocol, flags, _type, state, _inode] = columns.as_slice() else {
        return None;
    };
    let flags = u32::from_str_radix(flags, 16).ok()?;
    // The rest of the line is the path, which may hold blanks.
    Some((flags, u8::from_str_radix(state, 16).ok()?, rest.trim_start()))
}

/// Takes the next column off `rest`.
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

    /// Polls the table, because the kernel does not announce changes of it.
    fn await_count(expected: usize, path: &Path) {
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

    fn dial(path: &Path) -> UnixStream {
        connect(path, Duration::from_secs(5)).unwrap()
    }

    #[test]
    fn connections_count_until_the_server_closes_them() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a socket");
        let listener = UnixListener::bind(&path).unwrap();
        let _other = UnixListener::bind(directory.path().join("other")).unwrap();
        await_count(0, &path);

        let mut clients = vec![dial(&path), dial(&path)];
        // Not accepted yet.
        await_count(2, &path);
        let mut served: Vec<_> = (0..2).map(|_| listener.accept().unwrap().0).collect();
        await_count(2, &path);

        // The client has closed, but the server may still be working on its request.
        drop(clients.pop());
        await_count(2, &path);
        drop(served.pop());
        await_count(1, &path);

        // Data that was sent before the close reaches the client.
        let mut last = served.pop().unwrap();
        last.write_all(b"answer").unwrap();
        drop(last);
        await_count(0, &path);
        let mut answer = String::new();
        clients.pop().unwrap().read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "answer");
    }

    #[test]
    fn connects_only_to_a_socket_of_the_directory_owner() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let _listener = UnixListener::bind(at("real")).unwrap();
        dial(&at("real"));
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
    fn a_stale_socket_is_removed_and_one_in_use_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("1.sock");
        remove_stale(&path).unwrap();
        let listener = UnixListener::bind(&path).unwrap();
        let error = remove_stale(&path).unwrap_err().to_string();
        assert!(error.contains("in use") && path.exists(), "{error}");
        drop(listener);
        remove_stale(&path).unwrap();
        assert!(!path.exists());
        // Anything else in the place of the socket is removed too.
        symlink("/nowhere", &path).unwrap();
        remove_stale(&path).unwrap();
        assert!(path.symlink_metadata().is_err());
    }

    #[test]
    fn unknown_columns_are_an_error_and_not_an_empty_table() {
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
        assert_eq!(row("00000000", "01"), Ok(0), "bound, not listening yet");
        assert_eq!(row("00010000", "01"), Ok(0), "listens");
        assert_eq!(row("0000zz00", "03"), Ok(0), "a name with a line feed in it");
        for head in ["", "Num RefCount Path"] {
            assert!(count(head, path).unwrap_err().contains("columns"), "{head}");
        }
    }
}
