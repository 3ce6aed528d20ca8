//! The package of links on a host, and other versions of it.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::Host;
use crate::artifacts::{Artifacts, RELEASED, Runtime};
use crate::machine::commands::Output;
use crate::releases::{Fault, Releases};
use crate::suite::Suite;

/// The path of the package under test, on a host that has it.
pub const DEB: &str = "/var/tmp/links-shortener.deb";
/// The path of the released version's package, on a host that started with that version.
pub const RELEASED_DEB: &str = "/var/tmp/links-shortener_released.deb";
/// The directory to which [`Host::unpack_tarball`] unpacks, without the tarball's top directory.
pub const UNPACKED: &str = "/var/tmp/links";

impl Host {
    /// The runtime in the package under test.
    ///
    /// # Errors
    /// Fails if there is no package.
    pub fn runtime(&self) -> Result<Runtime> {
        Artifacts::find()?.runtime()
    }

    /// The version of the package under test.
    ///
    /// # Errors
    /// Fails if there is no package.
    pub fn version(&self) -> Result<&str> {
        Ok(self.releases()?.version())
    }

    /// A later version than the one under test: its last number plus `by`.
    ///
    /// # Errors
    /// Fails if there is no package.
    pub fn later_version(&self, by: u32) -> Result<String> {
        Ok(self.releases()?.later(by))
    }

    fn releases(&self) -> Result<&Releases> {
        if let Some(releases) = self.releases.get() {
            return Ok(releases);
        }
        let releases = Releases::of(&Artifacts::find()?)?;
        Ok(self.releases.get_or_init(|| releases))
    }

    /// Unpacks the tarball to [`UNPACKED`].
    ///
    /// # Errors
    /// Fails if the disk of the machine is full.
    pub fn unpack_tarball(&self) -> Result<()> {
        self.copy_in(&Artifacts::find()?.tarball, "/var/tmp/links.tar.gz")?;
        let unpack = "tar --extract --file /var/tmp/links.tar.gz --strip-components=1 --directory";
        self.shell(&format!("mkdir {UNPACKED}; {unpack} {UNPACKED}"))?;
        Ok(())
    }

    /// Installs the package with apt and returns apt's output.
    ///
    /// # Errors
    /// Fails if apt fails.
    pub fn apt_install(&self) -> Result<String> {
        let output = self.ok(["apt-get", "--yes", "install", DEB])?;
        Ok(output.stdout + &output.stderr)
    }

    /// Installs a package inside with apt, whatever its version: an older one and the installed one are fine too.
    ///
    /// # Errors
    /// Fails if apt takes more than five minutes. A failure of apt itself is not an error but in the [`Output`].
    pub fn apt_install_any(&self, deb: &str) -> Result<Output> {
        let apt = ["apt-get", "--yes", "--allow-downgrades", "--reinstall", "install", deb];
        self.run_within(Duration::from_secs(300), apt)
    }

    /// Installs a package with apt and checks that both instances then run this version.
    ///
    /// # Errors
    /// Fails if apt fails, or if the instances run something else.
    pub fn apt_installs(&self, deb: &str, version: &str) -> Result<()> {
        let apt = self.apt_install_any(deb)?;
        ensure!(apt.status == 0, "apt install of {deb}: {apt}");
        ensure!(self.package_state()? == "installed", "{apt}");
        self.wait_for_rotation(2)?;
        self.runs_version(version)
    }

    /// Upgrades Debian itself to the release that the builder was told, as its release notes describe: with apt and new
    /// sources.
    ///
    /// # Errors
    /// Fails if apt fails or takes more than ten minutes, or if the host has another release afterwards.
    pub fn upgrade_debian(&self, to: Suite) -> Result<Output> {
        let sources = "/etc/apt/sources.list";
        self.ok(["mv", &format!("{sources}.{}", to.name()), sources])?;
        let upgraded = self.run_within(Duration::from_secs(600), ["apt-get", "--yes", "full-upgrade"])?;
        ensure!(upgraded.status == 0, "apt full-upgrade: {upgraded}");
        let version = self.read("/etc/debian_version")?;
        ensure!(version.starts_with(to.version()), "Debian {version} after {upgraded}");
        Ok(upgraded)
    }

    /// The state of the package by dpkg, such as `installed` or `half-configured`.
    ///
    /// # Errors
    /// Fails if dpkg does not know the package.
    pub fn package_state(&self) -> Result<String> {
        let query = [
            "dpkg-query",
            "--show",
            "--showformat=${db:Status-Status}",
            "links-shortener",
        ];
        Ok(self.ok(query)?.stdout)
    }

    /// Copies a package with this version into the machine, and returns its path there.
    ///
    /// # Errors
    /// Fails as [`Releases::deb`] does.
    pub fn deb(&self, version: &str, fault: Option<Fault>) -> Result<String> {
        let deb = self.releases()?.deb(version, fault)?;
        let inside = format!("/var/tmp/{}", deb.file_name().unwrap_or_default().to_string_lossy());
        if !self.exists(&inside)? {
            self.copy_in(&deb, &inside)?;
        }
        Ok(inside)
    }

    /// Unpacks a bundle with this version inside the machine, and returns its path there.
    ///
    /// # Errors
    /// Fails as [`Releases::deb`] does.
    pub fn bundle(&self, version: &str, fault: Option<Fault>) -> Result<String> {
        self.unpacked(&self.deb(version, fault)?)
    }

    /// Unpacks the released version's bundle inside the machine, and returns its path there.
    ///
    /// # Errors
    /// Fails if the released package is missing.
    pub fn released_bundle(&self) -> Result<String> {
        if !self.exists(RELEASED_DEB)? {
            self.copy_in(&Artifacts::released(RELEASED)?, RELEASED_DEB)?;
        }
        self.unpacked(RELEASED_DEB)
    }

    fn unpacked(&self, deb: &str) -> Result<String> {
        let directory = format!("{deb}.unpacked");
        self.ok(["dpkg-deb", "--extract", deb, &directory])?;
        Ok(format!("{directory}/usr/lib/links/bundle"))
    }
}
