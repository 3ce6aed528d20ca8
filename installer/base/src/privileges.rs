//! Root's privileges, and how to drop them. Files that user `links` can replace are opened as that user.

use std::fmt;

use anyhow::{Context as _, bail};
use nix::sys::prctl;
use nix::unistd::{User, geteuid, setgroups, setresgid, setresuid};

use crate::layout::{ACME_USER, Layout, USER};

/// The system user `links`.
///
/// # Errors
/// The user does not exist.
pub fn links() -> anyhow::Result<User> {
    user(USER)
}

fn user(name: &str) -> anyhow::Result<User> {
    User::from_name(name)?
        .with_context(|| format!("user {name} does not exist; `systemd-sysusers links.conf` creates it"))
}

/// Whether this process has root's privileges on the host, where the database belongs to user `links`.
pub fn are_roots(layout: &Layout) -> bool {
    layout.is_host() && geteuid().is_root()
}

/// Turns this process, with all its threads, irrevocably into one of user `links`. Other processes of that user cannot trace
/// it, so they cannot see what it read as root (PR_SET_DUMPABLE, prctl(2)).
///
/// # Errors
/// The user does not exist, or the kernel refuses. The process must then end, because it may have kept some privileges.
pub fn give_up() -> anyhow::Result<()> {
    become_user(links()?)
}

/// Like [`give_up`], but the process becomes one of user `links-acme`, who owns nothing: not even the database.
///
/// # Errors
/// Those of [`give_up`].
pub fn give_up_for_network() -> anyhow::Result<()> {
    become_user(user(ACME_USER)?)
}

fn become_user(user: User) -> anyhow::Result<()> {
    let drop = || -> nix::Result<()> {
        setgroups(&[])?;
        setresgid(user.gid, user.gid, user.gid)?;
        setresuid(user.uid, user.uid, user.uid)?;
        prctl::set_no_new_privs()
    };
    drop().with_context(|| format!("Becoming user {}", user.name))
}

/// The command needs root. This error is returned before the command has changed anything.
#[derive(Debug)]
pub struct NeedsRoot;

impl fmt::Display for NeedsRoot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line: Vec<_> = std::env::args().collect();
        write!(f, "this needs root: `sudo {}`", line.join(" "))
    }
}

impl std::error::Error for NeedsRoot {}

/// Checks that this process runs as root.
///
/// # Errors
/// [`NeedsRoot`]
pub fn require_root() -> anyhow::Result<()> {
    if !geteuid().is_root() {
        bail!(NeedsRoot);
    }
    Ok(())
}
