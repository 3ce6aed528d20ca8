//! Lets the processes of links.service reach addresses of their own host, beside those of the loopback interface.
//!
//! A rollout that systemd starts runs in the control group of links.service, where `IPAddressDeny=any` drops what it sends to
//! any other address. It asks nginx on the addresses of the site, some of which may be specific ones.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::net::IpAddr;
use std::path::Path;

use crate::exec;
use crate::files::{self, make_directory};
use crate::layout::SERVICE;

/// It is gone after a boot, and has no empty value, which would reset what other drop-ins allow.
const DROP_IN: &str = "/run/systemd/system/links.service.d/20-own-addresses.conf";

/// Where `systemctl set-property` writes (systemd.unit(5)).
const SET_PROPERTY: &str = "/run/systemd/system.control/links.service.d/50-IPAddressAllow.conf";

/// Makes systemd let this process reach these addresses of this host, if it runs in links.service.
///
/// # Errors
/// The drop-in cannot be written, or systemd refuses to reload its units.
pub fn reach(addresses: &[IpAddr]) -> anyhow::Result<()> {
    let Some(text) = drop_in(addresses) else {
        return Ok(());
    };
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    if unit(&groups) != Some(SERVICE) || fs::read_to_string(DROP_IN).is_ok_and(|current| current == text) {
        return Ok(());
    }
    let path = Path::new(DROP_IN);
    make_directory(path.parent().unwrap_or(Path::new("/")), 0o755)?;
    files::replace(path, text.as_bytes(), 0o644)?;
    // systemd adds to the list of a running unit only if it is told to like this. What it writes for that replaces the list,
    // so it must not stay.
    let properties = text.lines().filter(|line| line.contains('=')).map(str::to_owned);
    let set = ["set-property", "--runtime", SERVICE].into_iter().map(str::to_owned);
    exec::run("systemctl", set.chain(properties))?;
    files::remove_if_present(Path::new(SET_PROPERTY))?;
    exec::run("systemctl", ["daemon-reload"])?;
    Ok(())
}

/// `None` if all addresses are of the loopback interface.
fn drop_in(addresses: &[IpAddr]) -> Option<String> {
    let beyond: BTreeSet<_> = addresses.iter().filter(|address| !address.is_loopback()).collect();
    let mut text = "[Service]\n".to_owned();
    for address in &beyond {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "IPAddressAllow={address}");
    }
    (!beyond.is_empty()).then_some(text)
}

/// The service in whose control group a process is (cgroups(7)).
fn unit(groups: &str) -> Option<&str> {
    let path = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
    path.rsplit('/').find(|part| part.ends_with(".service"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_beyond_the_loopback_interface_are_allowed() {
        let ips = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<_>>();
        assert_eq!(drop_in(&ips(&["127.0.0.2", "::1"])), None);
        assert_eq!(
            drop_in(&ips(&["2001:db8::1", "127.0.0.1", "192.0.2.10", "192.0.2.10"])).unwrap(),
            "[Service]\nIPAddressAllow=192.0.2.10\nIPAddressAllow=2001:db8::1\n"
        );
    }

    #[test]
    fn the_unit_is_the_innermost_service() {
        for (groups, found) in [
            ("0::/system.slice/links.service\n", Some(SERVICE)),
            (
                "1:name=systemd:/\n0::/lxc/c1/system.slice/links.service/control\n",
                Some(SERVICE),
            ),
            ("0::/user.slice/user-1000.slice/session-4.scope\n", None),
            (
                "0::/system.slice/system-links.slice/links@1.service\n",
                Some("links@1.service"),
            ),
            ("1:name=systemd:/system.slice/links.service\n", None),
        ] {
            assert_eq!(unit(groups), found, "{groups}");
        }
    }
}
