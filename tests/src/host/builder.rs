//! What a host is.

use std::sync::OnceLock;

use anyhow::Result;

use super::Host;
use super::packages::{DEB, RELEASED_DEB};
use crate::artifacts::Artifacts;
use crate::machine::{Machine, Syncs};
use crate::servers::libsql::LibSql;
use crate::suite::Suite;
use crate::tree::Tree;

/// Describes a host and boots it. By default: Debian with nginx, two instances of the package under test, and the database in
/// a file.
///
/// ```no_run
/// # fn main() -> anyhow::Result<()> {
/// use links_tests::{Host, RELEASED};
///
/// let host = Host::builder()
///     .packages(&["logrotate"])
///     .first_release(RELEASED)
///     .links_toml("[drain]\ntimeout = \"2s\"\n")
///     .serving()?;
/// host.follow(&host.shorten("https://example.com/")?)?;
/// # Ok(())
/// # }
/// ```
///
/// A host's only network is its own loopback interface, and the runtime of links is the one in the packages.
#[derive(Clone, Debug)]
#[must_use = "call `debian`, `uninstalled` or `serving` to boot the host"]
pub struct Builder {
    /// By default the suite of [`Suite::of_environment`].
    suite: Option<Suite>,
    upgrade_to: Option<Suite>,
    nginx: bool,
    packages: Vec<String>,
    memory: Option<u64>,
    syncs: Syncs,
    /// A directory with a file system of its own, and its size in bytes.
    disk: Option<(String, u64)>,
    first_release: Option<String>,
    links_toml: Option<String>,
    libsql_token: Option<String>,
}

impl Host {
    pub fn builder() -> Builder {
        Builder {
            suite: None,
            upgrade_to: None,
            nginx: true,
            packages: vec![],
            memory: None,
            syncs: Syncs::Ignored,
            disk: None,
            first_release: None,
            links_toml: None,
            libsql_token: None,
        }
    }
}

impl Builder {
    /// The release of Debian, for a test that is about this one.
    pub fn suite(mut self, suite: Suite) -> Self {
        self.suite = Some(suite);
        self
    }

    /// apt can upgrade the host to this release of Debian without a network: see [`Host::upgrade_debian`].
    pub fn upgradable_to(mut self, suite: Suite) -> Self {
        self.upgrade_to = Some(suite);
        self
    }

    /// nginx is not installed. apt can install it without a network.
    pub fn without_nginx(mut self) -> Self {
        self.nginx = false;
        self
    }

    /// Debian packages that are installed, besides those of a minimal system.
    pub fn packages(mut self, names: &[&str]) -> Self {
        self.packages.extend(names.iter().map(|name| (*name).to_owned()));
        self
    }

    /// The memory of the whole host in bytes, page cache included. Otherwise it is not limited.
    pub fn memory(mut self, bytes: u64) -> Self {
        self.memory = Some(bytes);
        self
    }

    /// Syncs to the disk take as long as they do on this computer. By default they are ignored, and a host that is killed loses
    /// nothing all the same.
    pub fn real_syncs(mut self) -> Self {
        self.syncs = Syncs::Real;
        self
    }

    /// Gives this directory a file system of its own with this size, until it is unmounted or the host boots again.
    pub fn disk(mut self, directory: &str, bytes: u64) -> Self {
        self.disk = Some((directory.to_owned(), bytes));
        self
    }

    /// The released version that is installed and serves. The package under test is ready at [`DEB`].
    pub fn first_release(mut self, version: &str) -> Self {
        self.first_release = Some(version.to_owned());
        self
    }

    /// The contents of links.toml.
    pub fn links_toml(mut self, text: &str) -> Self {
        self.links_toml = Some(text.to_owned());
        self
    }

    /// The database is on a libSQL server on the host, which accepts this token: see [`Host::libsql`].
    pub fn libsql(mut self, token: &str) -> Self {
        self.libsql_token = Some(token.to_owned());
        self
    }

    /// Boots the host, without anything of links.
    ///
    /// # Errors
    /// Fails if the caller is not root, if Debian's tree cannot be made, or if systemd does not come up.
    pub fn debian(self) -> Result<Host> {
        let suite = self.suite.map_or_else(Suite::of_environment, Ok)?;
        let mut tree = Tree::plain(suite)?;
        if self.nginx {
            tree = tree.with_nginx()?;
        }
        let packages: Vec<_> = self.packages.iter().map(String::as_str).collect();
        if !packages.is_empty() {
            tree = tree.with_packages(&packages)?;
        }
        if let Some(to) = self.upgrade_to {
            tree = tree.with_upgrade(to)?;
        }
        let machine = Machine::boot(&tree, self.memory, self.syncs)?;
        if let Some((directory, bytes)) = &self.disk {
            machine.shell(&format!(
                "mkdir --parents {directory}; mount -t tmpfs -o size={bytes},mode=755 tmpfs {directory}"
            ))?;
        }
        Ok(Host {
            suite,
            machine,
            releases: OnceLock::new(),
        })
    }

    /// Boots the host with the package under test at [`DEB`], not installed.
    ///
    /// # Errors
    /// Fails as [`Self::debian`] does, or if there are no packages (`make deb` builds them).
    pub fn uninstalled(self) -> Result<Host> {
        let artifacts = Artifacts::find()?;
        let runtime = artifacts.runtime()?;
        println!("the packages hold {} {}", runtime.kind, runtime.version);
        let host = self.debian()?;
        host.copy_in(&artifacts.deb, DEB)?;
        Ok(host)
    }

    /// Boots the host, installs links with apt, starts it, and waits until both instances are in rotation.
    ///
    /// # Errors
    /// Fails as [`Self::uninstalled`] does, if there is no package of the first release, or if links does not serve.
    pub fn serving(self) -> Result<Host> {
        let host = self.clone().uninstalled()?;
        match &self.first_release {
            Some(version) => {
                host.copy_in(&Artifacts::released(version)?, RELEASED_DEB)?;
                host.apt_installs(RELEASED_DEB, version)?;
            }
            None => {
                host.apt_install()?;
                host.ok(["systemctl", "start", "links"])?;
                host.wait_for_rotation(2)?;
            }
        }
        if let Some(token) = &self.libsql_token {
            LibSql::start_in(&host, token)?;
            host.credential("turso_token", token)?;
            host.configure(self.links_toml.as_deref().unwrap_or_default(), &LibSql::runtime_toml())?;
        } else if let Some(links_toml) = &self.links_toml {
            host.configure_links(links_toml)?;
        }
        Ok(host)
    }
}
