//! What the units let the instances reach: a drop-in beside links@.service opens more than that has.

use std::fs;
use std::path::Path;

use anyhow::Context as _;

use super::{Services, make_directory};
use crate::config::network::Network;
use crate::files;
use crate::layout::Layout;

const OPEN: &str = include_str!("../../../systemd/links@.service.d/10-network.conf");

/// As the units are on the disk.
pub fn of_units(layout: &Layout) -> Network {
    match layout.network_drop_in().exists() {
        true => Network::Open,
        false => Network::Loopback,
    }
}

/// Counts at once, also for instances that run: after a reload systemd applies what a unit may reach to its processes.
///
/// # Errors
/// The drop-in cannot be written or removed, or systemd refuses.
pub fn set(layout: &Layout, network: Network, services: Services) -> anyhow::Result<()> {
    let path = layout.network_drop_in();
    let directory = path.parent().unwrap_or(Path::new("/"));
    match network {
        Network::Open => {
            if !directory.is_dir() {
                make_directory(directory, 0o755)?;
            }
            files::replace(&path, OPEN.as_bytes(), 0o644)?;
        }
        Network::Loopback if !path.exists() => return Ok(()),
        Network::Loopback => {
            files::remove_if_present(&path).with_context(|| format!("Removing {}", path.display()))?;
            // It stays where an administrator has files of his own in it.
            let _ = fs::remove_dir(directory);
        }
    }
    services.reload_units()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use super::*;

    #[test]
    fn the_drop_in_comes_and_goes_and_leaves_others_alone() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::new(root.path());
        let services = Services::nowhere();
        let path = layout.network_drop_in();
        let directory = path.parent().unwrap();
        set(&layout, Network::Loopback, services).unwrap();
        assert_eq!(of_units(&layout), Network::Loopback);
        set(&layout, Network::Open, services).unwrap();
        assert_eq!(of_units(&layout), Network::Open);
        set(&layout, Network::Loopback, services).unwrap();
        assert_eq!(of_units(&layout), Network::Loopback);
        assert!(!directory.exists());

        set(&layout, Network::Open, services).unwrap();
        let own = directory.join("override.conf");
        fs::write(&own, "[Service]\n").unwrap();
        set(&layout, Network::Loopback, services).unwrap();
        assert!(own.exists() && !path.exists());
    }

    /// What one has, the other takes back (systemd.resource-control(5): an empty value resets the list).
    #[test]
    fn the_drop_in_takes_back_what_the_unit_says() {
        let unit = include_str!("../../../systemd/links@.service");
        for (key, value) in [("IPAddressDeny", "any"), ("IPAddressAllow", "localhost")] {
            assert!(unit.lines().any(|line| line == format!("{key}={value}")), "{key}");
            assert!(OPEN.lines().any(|line| line == format!("{key}=")), "{key}");
        }
        let last = OPEN.lines().rfind(|line| line.contains('=') && !line.starts_with('#'));
        assert_eq!(last, Some("IPAddressAllow=any"));
    }
}
