//! The instances' sockets belong to the group of nginx's workers, so that nginx can connect to them. nginx's configuration
//! names that group: www-data on Debian, nginx in the packages of nginx.org, or whatever the administrator chose. Every other
//! member of the group can connect to the instances too.
//!
//! The directory belongs to user `links`, so root changes its contents through descriptors, without following symbolic links.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use anyhow::{Context as _, bail};
use nix::unistd::Group;
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, chownat, fstat, openat};
use rustix::io::Errno;

use super::conf::Conf;
use links_base::exec;
use links_base::layout::{self, MAX_INSTANCES};

/// The group of nginx's workers, according to a configuration that nginx accepts.
///
/// # Errors
/// The group does not exist or cannot be looked up, or `nginx -V` does not run.
pub fn of_workers(conf: &Conf) -> anyhow::Result<String> {
    let names = match conf.worker_group() {
        Some(name) => vec![name],
        None => built_in(&exec::finish("nginx", ["-V"])?.stderr),
    };
    for name in &names {
        if resolve(name)?.is_some() {
            return Ok(name.clone());
        }
    }
    bail!(
        "nginx's workers run as group {}, which does not exist: set `user` in {}",
        names.join(" or "),
        conf.main().display()
    )
}

/// The group that nginx was built with, from the output of `nginx -V`. If nginx was built without these options, the group is
/// nobody, or nogroup if nobody does not exist (auto/unix in nginx's source).
fn built_in(output: &str) -> Vec<String> {
    let argument = |name: &str| output.split_whitespace().find_map(|word| word.strip_prefix(name));
    match argument("--group=").or_else(|| argument("--user=")) {
        Some(group) => vec![group.to_owned()],
        None => vec!["nobody".to_owned(), "nogroup".to_owned()],
    }
}

fn resolve(name: &str) -> anyhow::Result<Option<Gid>> {
    let group = Group::from_name(name).with_context(|| format!("Looking up the group {name}"))?;
    Ok(group.map(|group| Gid::from_raw(group.gid.as_raw())))
}

/// Gives the directory of the sockets and the sockets in it to the group.
///
/// # Errors
/// The group does not exist, or the file system refuses the change.
pub fn give(sockets: &Path, group: &str) -> anyhow::Result<()> {
    let gid = resolve(group)?.with_context(|| format!("there is no group {group}"))?;
    give_to(sockets, gid).with_context(|| format!("Giving {} to the group {group}", sockets.display()))
}

fn give_to(sockets: &Path, gid: Gid) -> io::Result<()> {
    let Some(directory) = open_directory(sockets)? else {
        return Ok(());
    };
    // The directory comes first: its setgid bit passes the group on to every socket that is created from now on.
    set_group(&directory, gid)?;
    let owner = fstat(&directory)?.st_uid;
    for instance in 1..=MAX_INSTANCES {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let socket = match openat(&directory, layout::socket_name(instance), flags, Mode::empty()) {
            Err(Errno::NOENT) => continue,
            socket => socket?,
        };
        let found = fstat(&socket)?;
        let is_socket = FileType::from_raw_mode(found.st_mode) == FileType::Socket;
        // No instance created anything else.
        if is_socket && found.st_uid == owner && found.st_nlink == 1 {
            set_group(&socket, gid)?;
        }
    }
    Ok(())
}

/// Gives only the directory to the group, before any instance runs. Of root's capabilities over files, this needs CAP_CHOWN
/// alone.
///
/// # Errors
/// The same as [`give`].
pub fn give_directory(sockets: &Path, group: &str) -> anyhow::Result<()> {
    let gid = resolve(group)?.with_context(|| format!("there is no group {group}"))?;
    let given = open_directory(sockets).and_then(|directory| match directory {
        Some(directory) => set_group(&directory, gid),
        None => Ok(()),
    });
    given.with_context(|| format!("Giving {} to the group {group}", sockets.display()))
}

/// Opens the socket directory; `None` if it does not exist. Its parent, /run/links, belongs to root, so nobody else can replace
/// it.
fn open_directory(sockets: &Path) -> io::Result<Option<OwnedFd>> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match openat(CWD, sockets, flags, Mode::empty()) {
        Err(Errno::NOENT) => Ok(None),
        opened => Ok(Some(opened?)),
    }
}

/// Changes the group of a file that was opened with O_PATH. The kernel keeps a directory's mode, including its setgid bit.
fn set_group(file: impl AsFd, gid: Gid) -> io::Result<()> {
    if fstat(&file)?.st_gid != gid.as_raw() {
        chownat(&file, "", None, Some(gid), AtFlags::EMPTY_PATH)?;
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
    use std::os::unix::net::UnixListener;

    use super::*;
    use links_base::layout::{Layout, temporary};

    #[test]
    fn without_a_user_directive_the_group_is_the_one_nginx_was_built_with() {
        let output = |arguments: &str| format!("nginx version: nginx/1.30.0\nconfigure arguments: {arguments}\n");
        assert_eq!(built_in(&output("--user=nginx --group=web --with-compat")), ["web"]);
        assert_eq!(built_in(&output("--prefix=/x --user=nginx")), ["nginx"]);
        assert_eq!(built_in(&output("--prefix=/x")), ["nobody", "nogroup"]);
    }

    #[test]
    fn only_sockets_of_the_directory_s_owner_change_their_group() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let (root, layout) = temporary(&[Layout::sockets_dir]);
        let group_of = |path: &Path| fs::symlink_metadata(path).unwrap().gid();
        let target = root.path().join("target");
        fs::write(&target, b"").unwrap();
        let before = group_of(&target);
        let _listeners = [1, 2, 5].map(|instance| UnixListener::bind(layout.instance_socket(instance)).unwrap());
        symlink(&target, layout.instance_socket(3)).unwrap();
        fs::write(layout.instance_socket(4), b"").unwrap();
        std::os::unix::fs::chown(layout.instance_socket(2), Some(65534), None).unwrap();
        fs::hard_link(layout.instance_socket(5), layout.sockets_dir().join("other")).unwrap();
        fs::set_permissions(layout.sockets_dir(), fs::Permissions::from_mode(0o2710)).unwrap();

        give_to(&layout.sockets_dir(), Gid::from_raw(65533)).unwrap();
        let directory = fs::metadata(layout.sockets_dir()).unwrap();
        assert_eq!((directory.gid(), directory.mode() & 0o7777), (65533, 0o2710));
        let groups = [1, 2, 3, 4, 5].map(|instance| group_of(&layout.instance_socket(instance)));
        assert_eq!(groups, [65533, before, before, before, before]);
        assert_eq!(group_of(&target), before);
        // A new socket inherits the group from the directory.
        let _new = UnixListener::bind(layout.instance_socket(6)).unwrap();
        assert_eq!(group_of(&layout.instance_socket(6)), 65533);
    }

    #[test]
    fn a_symbolic_link_in_place_of_the_directory_is_not_followed() {
        let (root, layout) = temporary(&[Layout::run_dir]);
        give_to(&layout.sockets_dir(), Gid::from_raw(0)).unwrap();
        symlink(root.path(), layout.sockets_dir()).unwrap();
        give_to(&layout.sockets_dir(), Gid::from_raw(0)).unwrap_err();
    }

    #[test]
    fn tmpfiles_d_leaves_the_group_alone() {
        let tmpfiles = include_str!("../../../packaging/tmpfiles.d/links.conf");
        assert!(
            tmpfiles
                .lines()
                .any(|line| line == "d /run/links/sockets 2710 links - -")
        );
    }
}
