//! The group of the instances' sockets is that of nginx's workers, whom nginx's configuration names: Debian's are www-data,
//! those of nginx.org are nginx, and an administrator may have chosen others. Who else is in it can ask the instances too.
//!
//! The directory belongs to user `links`, so root changes what is in it through descriptors, without following links.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context as _, bail};
use nix::unistd::Group;
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, chownat, fstat, openat};
use rustix::io::Errno;

use super::Conf;
use crate::exec;
use crate::layout::{Layout, MAX_INSTANCES};

/// Of nginx's workers, by a configuration that nginx accepts.
///
/// # Errors
/// It does not exist, or nginx does not tell.
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
        "the workers of nginx have the group {}, which does not exist: set `user` in {}",
        names.join(" or "),
        conf.main().display()
    )
}

/// What nginx was built with, by `nginx -V`. Without a word of it the group is nobody, or nogroup where that is missing
/// (auto/unix of nginx).
fn built_in(about: &str) -> Vec<String> {
    let argument = |name: &str| about.split_whitespace().find_map(|word| word.strip_prefix(name));
    match argument("--group=").or_else(|| argument("--user=")) {
        Some(group) => vec![group.to_owned()],
        None => vec!["nobody".to_owned(), "nogroup".to_owned()],
    }
}

fn resolve(name: &str) -> anyhow::Result<Option<Gid>> {
    let group = Group::from_name(name).with_context(|| format!("Looking up the group {name}"))?;
    Ok(group.map(|group| Gid::from_raw(group.gid.as_raw())))
}

/// Gives the directory and the sockets in it to that group.
///
/// # Errors
/// There is no such group, or the file system refuses.
pub fn give(layout: &Layout, group: &str) -> anyhow::Result<()> {
    let gid = resolve(group)?.with_context(|| format!("there is no group {group}"))?;
    give_to(layout, gid).with_context(|| format!("Giving {} to the group {group}", layout.sockets_dir().display()))
}

fn give_to(layout: &Layout, gid: Gid) -> io::Result<()> {
    let Some(directory) = open_directory(layout)? else {
        return Ok(());
    };
    // First the directory: a socket that is made from now on has the group already.
    change(&directory, gid)?;
    let owner = fstat(&directory)?.st_uid;
    for instance in 1..=MAX_INSTANCES {
        let path = layout.instance_socket(instance);
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let socket = match openat(&directory, path.file_name().unwrap_or_default(), flags, Mode::empty()) {
            Err(Errno::NOENT) => continue,
            socket => socket?,
        };
        let found = fstat(&socket)?;
        let is_socket = FileType::from_raw_mode(found.st_mode) == FileType::Socket;
        // Anything else is not an instance's.
        if is_socket && found.st_uid == owner && found.st_nlink == 1 {
            change(&socket, gid)?;
        }
    }
    Ok(())
}

/// The directory alone, before any instance runs: as root without its rights over files but CAP_CHOWN.
///
/// # Errors
/// As [`give`].
pub fn give_directory(layout: &Layout, group: &str) -> anyhow::Result<()> {
    let gid = resolve(group)?.with_context(|| format!("there is no group {group}"))?;
    let given = open_directory(layout).and_then(|directory| match directory {
        Some(directory) => change(&directory, gid),
        None => Ok(()),
    });
    given.with_context(|| format!("Giving {} to the group {group}", layout.sockets_dir().display()))
}

/// /run/links is root's: nobody else can put something in the place of the directory.
fn open_directory(layout: &Layout) -> io::Result<Option<OwnedFd>> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match openat(CWD, layout.sockets_dir(), flags, Mode::empty()) {
        Err(Errno::NOENT) => Ok(None),
        opened => Ok(Some(opened?)),
    }
}

/// Of a file that was opened with O_PATH. The kernel leaves the mode of a directory alone, its setgid bit too.
fn change(file: impl AsFd, gid: Gid) -> io::Result<()> {
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
    use crate::layout::temporary;

    #[test]
    fn the_group_is_what_nginx_was_built_with_where_no_directive_names_it() {
        let about = |arguments: &str| format!("nginx version: nginx/1.30.0\nconfigure arguments: {arguments}\n");
        assert_eq!(built_in(&about("--user=nginx --group=web --with-compat")), ["web"]);
        assert_eq!(built_in(&about("--prefix=/x --user=nginx")), ["nginx"]);
        assert_eq!(built_in(&about("--prefix=/x")), ["nobody", "nogroup"]);
    }

    #[test]
    fn only_the_sockets_of_the_directory_s_owner_change_hands() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let (root, layout) = temporary(&[Layout::sockets_dir]);
        let of = |path: &std::path::Path| fs::symlink_metadata(path).unwrap().gid();
        let target = root.path().join("target");
        fs::write(&target, b"").unwrap();
        let before = of(&target);
        let _listeners = [1, 2, 5].map(|instance| UnixListener::bind(layout.instance_socket(instance)).unwrap());
        symlink(&target, layout.instance_socket(3)).unwrap();
        fs::write(layout.instance_socket(4), b"").unwrap();
        std::os::unix::fs::chown(layout.instance_socket(2), Some(65534), None).unwrap();
        fs::hard_link(layout.instance_socket(5), layout.sockets_dir().join("other")).unwrap();
        fs::set_permissions(layout.sockets_dir(), fs::Permissions::from_mode(0o2710)).unwrap();

        give_to(&layout, Gid::from_raw(65533)).unwrap();
        let directory = fs::metadata(layout.sockets_dir()).unwrap();
        assert_eq!((directory.gid(), directory.mode() & 0o7777), (65533, 0o2710));
        let groups = [1, 2, 3, 4, 5].map(|instance| of(&layout.instance_socket(instance)));
        assert_eq!(groups, [65533, before, before, before, before]);
        assert_eq!(of(&target), before);
        // A new one needs no help.
        let _new = UnixListener::bind(layout.instance_socket(6)).unwrap();
        assert_eq!(of(&layout.instance_socket(6)), 65533);
    }

    #[test]
    fn a_link_in_the_place_of_the_directory_is_not_followed() {
        let (root, layout) = temporary(&[Layout::run_dir]);
        give_to(&layout, Gid::from_raw(0)).unwrap();
        symlink(root.path(), layout.sockets_dir()).unwrap();
        give_to(&layout, Gid::from_raw(0)).unwrap_err();
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
