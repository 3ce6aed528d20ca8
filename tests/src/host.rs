//! An appliance that serves, and other releases to replace the one that it runs.

use std::ops::Deref;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::appliance::Appliance;
use crate::artifacts::{Artifacts, RELEASED};
use crate::process::eventually;
use crate::releases::{Fault, Releases};
use crate::tree::Tree;

/// The path inside the machine of the released version's package, on a host that started with that version.
pub const RELEASED_DEB: &str = "/var/tmp/links-shortener_released.deb";

/// An appliance that serves, with the means to make other releases. It dereferences to its [`Appliance`].
#[derive(Debug)]
pub struct Host {
    pub appliance: Appliance,
    pub releases: Releases,
}

impl Deref for Host {
    type Target = Appliance;

    fn deref(&self) -> &Appliance {
        &self.appliance
    }
}

impl Host {
    /// An appliance with two instances in rotation. For `broken_runtime` see [`Releases::of`].
    ///
    /// # Errors
    /// Fails if the appliance cannot be installed or does not serve.
    pub fn serving(broken_runtime: &str) -> Result<Self> {
        Self::serving_on(&Tree::with_nginx()?, broken_runtime)
    }

    /// Like [`Self::serving`], on a tree that contains nginx.
    ///
    /// # Errors
    /// Fails as [`Self::serving`] does.
    pub fn serving_on(tree: &Tree, broken_runtime: &str) -> Result<Self> {
        let appliance = Appliance::installed_on(tree)?;
        appliance.wait_for_rotation(2)?;
        let releases = Releases::of(&appliance.artifacts, Path::new(broken_runtime))?;
        Ok(Self { appliance, releases })
    }

    /// A host on which the released version ([`RELEASED`]) is installed and serves. The package under test is at
    /// [`DEB`](crate::DEB), and the releases made from it have its version or a later one.
    ///
    /// # Errors
    /// Fails as [`Self::serving`] does, or if the released package is missing.
    pub fn released(broken_runtime: &str) -> Result<Self> {
        let appliance = Appliance::prepared(&Tree::with_nginx()?)?;
        appliance.copy_in(&Artifacts::released()?, RELEASED_DEB)?;
        let releases = Releases::of(&appliance.artifacts, Path::new(broken_runtime))?;
        let host = Self { appliance, releases };
        host.apt_installs(RELEASED_DEB, RELEASED)?;
        Ok(host)
    }

    /// Copies a package with this version into the machine, and returns its path there.
    ///
    /// # Errors
    /// Fails as [`Releases::deb`] does.
    pub fn deb(&self, version: &str, fault: Option<Fault>) -> Result<String> {
        let deb = self.releases.deb(version, fault)?;
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
            self.copy_in(&Artifacts::released()?, RELEASED_DEB)?;
        }
        self.unpacked(RELEASED_DEB)
    }

    fn unpacked(&self, deb: &str) -> Result<String> {
        let directory = format!("{deb}.unpacked");
        self.ok(["dpkg-deb", "--extract", deb, &directory])?;
        Ok(format!("{directory}/usr/lib/links/bundle"))
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
        self.runs(version)
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

    /// Checks that both instances run a release of this version.
    ///
    /// # Errors
    /// Fails if they run something else.
    pub fn runs(&self, version: &str) -> Result<()> {
        let releases = self.releases(2)?;
        let right = |release: &String| release.starts_with(&format!("{version}-"));
        ensure!(releases.iter().all(right), "{version} should run, not {releases:?}");
        Ok(())
    }

    /// Makes a change that restarts an instance, and waits until both instances are in rotation again.
    ///
    /// # Errors
    /// Fails if no instance is restarted within 30 s.
    pub fn restarted<T>(&self, change: impl FnOnce() -> Result<T>) -> Result<T> {
        self.restarted_of(2, change)
    }

    /// Like [`Self::restarted`], for an appliance with `count` instances.
    ///
    /// # Errors
    /// Fails as [`Self::restarted`] does.
    pub fn restarted_of<T>(&self, count: u16, change: impl FnOnce() -> Result<T>) -> Result<T> {
        let before = self.invocation_ids(count)?;
        let changed = change()?;
        eventually("an instance is started again", Duration::from_secs(30), || {
            Ok((self.invocation_ids(count)? != before).then_some(()))
        })?;
        self.wait_for_rotation(count)?;
        Ok(changed)
    }

    /// Sets the time after which an unhealthy release is given up to five seconds.
    ///
    /// # Errors
    /// Fails if the configuration cannot be applied.
    pub fn shorten_start_timeout(&self) -> Result<()> {
        self.write("/etc/links/links.toml", "[health]\nstart_timeout = \"5s\"\n")?;
        self.ok(["systemctl", "reload", "links"])?;
        self.wait_for_rotation(2)
    }
}
