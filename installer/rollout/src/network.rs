//! Which networks the units let the appliance reach: the loopback interface only, unless a drop-in opens more.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use links_base::files::{self, make_directory};
use links_base::layout::Layout;
use links_base::services::Services;
use links_config::network::{Network, Reach};

const OPEN: &str = include_str!("../../../systemd/10-network.conf");

/// The drop-ins of the units that let the appliance reach other machines.
#[derive(Clone, Debug)]
pub struct DropIns {
    instances: PathBuf,
    agent: PathBuf,
}

impl DropIns {
    pub fn new(layout: &Layout) -> Self {
        Self {
            instances: layout.instances_network(),
            agent: layout.agent_network(),
        }
    }

    /// What the units on the disk let the appliance reach.
    pub fn network(&self) -> Network {
        let reach = |drop_in: &Path| match drop_in.exists() {
            true => Reach::Open,
            false => Reach::Loopback,
        };
        Network {
            instances: reach(&self.instances),
            agent: reach(&self.agent),
        }
    }

    /// Sets what the units let the appliance reach. The change takes effect at once: systemd applies it to running processes
    /// when it reloads its units.
    ///
    /// # Errors
    /// A drop-in cannot be written or removed, or systemd refuses to reload its units.
    pub fn set(&self, network: Network, services: Services) -> anyhow::Result<()> {
        if network == self.network() {
            return Ok(());
        }
        set_unit(&self.instances, network.instances)?;
        set_unit(&self.agent, network.agent)?;
        services.reload_units()
    }

    /// The existing drop-ins that another version wrote.
    ///
    /// # Errors
    /// A drop-in cannot be read.
    pub fn outdated(&self) -> anyhow::Result<Vec<PathBuf>> {
        let mut outdated = vec![];
        for drop_in in [&self.instances, &self.agent] {
            match fs::read(drop_in) {
                Ok(text) if text != OPEN.as_bytes() => outdated.push(drop_in.clone()),
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("Reading {}", drop_in.display()));
                }
                _ => {}
            }
        }
        Ok(outdated)
    }

    /// Brings existing drop-ins up to this version. The caller has to make systemd reload its units.
    ///
    /// # Errors
    /// A drop-in cannot be read or written.
    pub fn refresh(&self) -> anyhow::Result<()> {
        let outdated = self.outdated()?;
        outdated
            .iter()
            .try_for_each(|drop_in| files::replace(drop_in, OPEN.as_bytes(), 0o644))
    }
}

fn set_unit(drop_in: &Path, reach: Reach) -> anyhow::Result<()> {
    let directory = drop_in.parent().unwrap_or(Path::new("/"));
    match reach {
        Reach::Open => {
            if !directory.is_dir() {
                make_directory(directory, 0o755)?;
            }
            files::replace(drop_in, OPEN.as_bytes(), 0o644)
        }
        Reach::Loopback => {
            files::remove_if_present(drop_in).with_context(|| format!("Removing {}", drop_in.display()))?;
            // This fails, as it should, if the administrator has other files in the directory.
            let _ = fs::remove_dir(directory);
            Ok(())
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use super::*;
    use links_base::layout::temporary;

    const CLOSED: Network = Network {
        instances: Reach::Loopback,
        agent: Reach::Loopback,
    };
    const INSTANCES: Network = Network {
        instances: Reach::Open,
        ..CLOSED
    };

    #[test]
    fn drop_ins_are_added_and_removed_without_touching_others() {
        let (_root, layout) = temporary(&[]);
        let drop_ins = DropIns::new(&layout);
        let services = Services::nowhere();
        let agent = Network {
            agent: Reach::Open,
            ..CLOSED
        };
        for network in [CLOSED, INSTANCES, agent, INSTANCES.widened(agent), CLOSED] {
            drop_ins.set(network, services).unwrap();
            assert_eq!(drop_ins.network(), network);
        }
        let path = layout.instances_network();
        let directory = path.parent().unwrap();
        assert!(!directory.exists());

        drop_ins.set(INSTANCES, services).unwrap();
        let own = directory.join("override.conf");
        fs::write(&own, "[Service]\n").unwrap();
        drop_ins.set(CLOSED, services).unwrap();
        assert!(own.exists() && !path.exists());
    }

    /// An empty value resets the list (systemd.resource-control(5)).
    #[test]
    fn the_drop_in_resets_what_the_units_set() {
        for unit in [
            include_str!("../../../systemd/links@.service"),
            include_str!("../../../systemd/links.service"),
        ] {
            for (key, value) in [("IPAddressDeny", "any"), ("IPAddressAllow", "localhost")] {
                assert!(unit.lines().any(|line| line == format!("{key}={value}")), "{key}");
                assert!(OPEN.lines().any(|line| line == format!("{key}=")), "{key}");
            }
        }
        let last = OPEN.lines().rfind(|line| line.contains('=') && !line.starts_with('#'));
        assert_eq!(last, Some("IPAddressAllow=any"));
    }

    #[test]
    fn an_upgrade_renews_existing_drop_ins() {
        let (_root, layout) = temporary(&[Layout::instances_dir]);
        let drop_ins = DropIns::new(&layout);
        drop_ins.refresh().unwrap();
        assert!(!layout.agent_network().exists());
        drop_ins.set(INSTANCES, Services::nowhere()).unwrap();
        fs::write(layout.instances_network(), "[Service]\n# as 0.1.0 wrote it\n").unwrap();
        assert_eq!(drop_ins.outdated().unwrap(), [layout.instances_network()]);
        drop_ins.refresh().unwrap();
        assert!(drop_ins.outdated().unwrap().is_empty());
        let text = fs::read_to_string(layout.instances_network()).unwrap();
        assert!(text.contains("After=network-online.target"), "{text}");
        assert_eq!(drop_ins.network(), INSTANCES);
    }
}
