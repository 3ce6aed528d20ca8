//! Root's right to do everything, and how it is given up: what user `links` can replace is opened as that user.

use std::fmt;

use anyhow::{Context as _, bail};
use nix::sys::prctl;
use nix::unistd::{User, geteuid, setgroups, setresgid, setresuid};

use crate::layout::{Layout, USER};

/// # Errors
/// It does not exist.
pub fn links() -> anyhow::Result<User> {
    User::from_name(USER)?.with_context(|| format!("there is no user {USER}: `systemd-sysusers links.conf` makes it"))
}

/// True where this process is root on the host, and its database belongs to user `links`.
pub fn are_roots(layout: &Layout) -> bool {
    layout.is_host() && geteuid().is_root()
}

/// Makes this process, with all its threads, one of user `links` for good. Others of that user cannot trace it: it keeps what
/// it has read as root to itself (PR_SET_DUMPABLE, prctl(2)).
///
/// # Errors
/// There is no such user, or the kernel refuses; then this process is to end.
pub fn give_up() -> anyhow::Result<()> {
    let user = links()?;
    let drop = || -> nix::Result<()> {
        setgroups(&[])?;
        setresgid(user.gid, user.gid, user.gid)?;
        setresuid(user.uid, user.uid, user.uid)?;
        prctl::set_no_new_privs()
    };
    drop().with_context(|| format!("Becoming user {USER}"))
}

/// The command needs root; said before anything is done.
#[derive(Debug)]
pub struct NeedsRoot;

impl fmt::Display for NeedsRoot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line: Vec<_> = std::env::args().collect();
        write!(f, "this needs root: `sudo {}`", line.join(" "))
    }
}

impl std::error::Error for NeedsRoot {}

/// # Errors
/// [`NeedsRoot`]
pub fn require_root() -> anyhow::Result<()> {
    if !geteuid().is_root() {
        bail!(NeedsRoot);
    }
    Ok(())
}
