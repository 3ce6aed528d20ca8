//! Delivers an instance's credentials if systemd cannot, because a container's drop-in empties `LoadCredential=` or the mount
//! does not propagate. The copies are equally private: they are on a tmpfs, root can write them, and group `links` can read
//! them.

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::Path;

use anyhow::Context as _;

use links_base::layout::Layout;
use links_base::{files, privileges};
use links_config::credentials::{self, is_name};

/// Copies the credentials of `instance` if systemd has not delivered them. Runs before the instance, outside its sandbox.
///
/// # Errors
/// There is no user `links`, or /run is full.
pub fn deliver(layout: &Layout, instance: u16) -> anyhow::Result<()> {
    let group = privileges::links()?.gid.as_raw();
    let from = layout.instance_config(instance).join("credentials");
    let systemd = std::env::var_os("CREDENTIALS_DIRECTORY");
    let to = layout.fallback_credentials_dir(instance);
    copy(systemd.as_deref(), &from, &to, group).with_context(|| format!("Copying the credentials to {}", to.display()))
}

fn copy(systemd: Option<&OsStr>, from: &Path, to: &Path, group: u32) -> io::Result<()> {
    files::remove_directory_if_present(to)?;
    if systemd.is_some_and(|directory| credentials::are_in(Path::new(directory))) {
        return Ok(());
    }
    let names = files::list(from)?;
    // Both directories belong to root. Nobody else may open this one until the files have their owners and modes.
    fs::create_dir(to)?;
    fs::set_permissions(to, Permissions::from_mode(0o700))?;
    for name in names.iter().filter(|name| is_name(name)) {
        let file = to.join(name);
        fs::copy(from.join(name), &file)?;
        chown(&file, None, Some(group))?;
        fs::set_permissions(&file, Permissions::from_mode(0o440))?;
    }
    chown(to, None, Some(group))?;
    fs::set_permissions(to, Permissions::from_mode(0o750))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn credentials_that_systemd_has_not_delivered_are_copied_and_private() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        for directory in ["from", "empty", "systemd"] {
            fs::create_dir(at(directory)).unwrap();
        }
        fs::write(at("from/admin_token"), "s3cret\n").unwrap();
        fs::write(at("from/.hidden"), "").unwrap();
        fs::write(at("systemd/links_admin_token"), "s3cret\n").unwrap();
        let group = nix::unistd::getgid().as_raw();
        let deliver = |systemd: Option<&str>| {
            let directory = systemd.map(at);
            copy(directory.as_deref().map(Path::as_os_str), &at("from"), &at("to"), group).unwrap();
        };
        for systemd in [None, Some("empty"), Some("missing")] {
            deliver(systemd);
            deliver(systemd);
            assert_eq!(files::list(&at("to")).unwrap(), ["admin_token"]);
            let mode = |name: &str| fs::metadata(at(name)).unwrap().mode() & 0o7777;
            assert_eq!((mode("to"), mode("to/admin_token")), (0o750, 0o440));
            assert_eq!(fs::read(at("to/admin_token")).unwrap(), b"s3cret\n");
        }
        deliver(Some("systemd"));
        assert!(!at("to").exists());
    }
}
