//! The appliance at work, with other releases that can take its place.

use std::ops::Deref;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::{Appliance, Artifacts, Fault, RELEASED, Releases, Tree, eventually};

/// Where the package of the released version lies inside, on a host that started with it.
pub const RELEASED_DEB: &str = "/var/tmp/links-shortener_released.deb";

/// The appliance at work, and what other releases can be made of it.
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
    /// `broken_runtime` as for [`Releases::of`].
    ///
    /// # Errors
    /// It cannot be installed, or does not serve.
    pub fn serving(broken_runtime: &str) -> Result<Self> {
        Self::serving_on(&Tree::with_nginx()?, broken_runtime)
    }

    /// As [`Self::serving`], on a tree that holds nginx.
    ///
    /// # Errors
    /// As [`Self::serving`].
    pub fn serving_on(tree: &Tree, broken_runtime: &str) -> Result<Self> {
        let appliance = Appliance::installed_on(tree)?;
        appliance.wait_for_rotation(2)?;
        let releases = Releases::of(&appliance.artifacts, Path::new(broken_runtime))?;
        Ok(Self { appliance, releases })
    }

    /// A host on which the released version ([`RELEASED`]) was installed and serves. The package under test lies at
    /// [`DEB`], and the releases made of it have its version or a later one.
    ///
    /// # Errors
    /// As [`Self::serving`], or the released package is missing.
    pub fn released(broken_runtime: &str) -> Result<Self> {
        let appliance = Appliance::prepared(&Tree::with_nginx()?)?;
        appliance.copy_in(&Artifacts::released()?, RELEASED_DEB)?;
        let releases = Releases::of(&appliance.artifacts, Path::new(broken_runtime))?;
        let host = Self { appliance, releases };
        host.apt_installs(RELEASED_DEB, RELEASED)?;
        Ok(host)
    }

    /// The path inside of a package with that version.
    ///
    /// # Errors
    /// As [`Releases::deb`].
    pub fn deb(&self, version: &str, fault: Option<Fault>) -> Result<String> {
        let deb = self.releases.deb(version, fault)?;
        let inside = format!("/var/tmp/{}", deb.file_name().unwrap_or_default().to_string_lossy());
        if !self.exists(&inside)? {
            self.copy_in(&deb, &inside)?;
        }
        Ok(inside)
    }

    /// The path inside of a bundle with that version.
    ///
    /// # Errors
    /// As [`Releases::deb`].
    pub fn bundle(&self, version: &str, fault: Option<Fault>) -> Result<String> {
        self.unpacked(&self.deb(version, fault)?)
    }

    /// The path inside of the released version's bundle.
    ///
    /// # Errors
    /// The released package is missing.
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

    /// The version of the package is what runs then.
    ///
    /// # Errors
    /// apt failed, or something else runs.
    pub fn apt_installs(&self, deb: &str, version: &str) -> Result<()> {
        let apt = self.apt_install_any(deb)?;
        ensure!(apt.status == 0, "apt install of {deb}: {apt}");
        ensure!(self.package_state()? == "installed", "{apt}");
        self.wait_for_rotation(2)?;
        self.runs(version)
    }

    /// As dpkg has it: `installed`, `half-configured`.
    ///
    /// # Errors
    /// dpkg does not know the package.
    pub fn package_state(&self) -> Result<String> {
        let query = [
            "dpkg-query",
            "--show",
            "--showformat=${db:Status-Status}",
            "links-shortener",
        ];
        Ok(self.ok(query)?.stdout)
    }

    /// Both instances run the release of that version.
    ///
    /// # Errors
    /// They run something else.
    pub fn runs(&self, version: &str) -> Result<()> {
        let releases = self.releases(2)?;
        let right = |release: &String| release.starts_with(&format!("{version}-"));
        ensure!(releases.iter().all(right), "{version} should run, not {releases:?}");
        Ok(())
    }

    /// What is done restarts an instance, and both are there again.
    ///
    /// # Errors
    /// None is restarted within 30 s.
    pub fn restarted<T>(&self, change: impl FnOnce() -> Result<T>) -> Result<T> {
        self.restarted_of(2, change)
    }

    /// As [`Self::restarted`] where the instances 1 to `count` serve.
    ///
    /// # Errors
    /// As [`Self::restarted`].
    pub fn restarted_of<T>(&self, count: u16, change: impl FnOnce() -> Result<T>) -> Result<T> {
        let before = self.starts(count)?;
        let changed = change()?;
        eventually("an instance is started again", Duration::from_secs(30), || {
            Ok((self.starts(count)? != before).then_some(()))
        })?;
        self.wait_for_rotation(count)?;
        Ok(changed)
    }

    /// A release that does not become healthy fails after five seconds.
    ///
    /// # Errors
    /// The configuration cannot be applied.
    pub fn gives_up_early(&self) -> Result<()> {
        self.write("/etc/links/links.toml", "[health]\nstart_timeout = \"5s\"\n")?;
        self.ok(["systemctl", "reload", "links"])?;
        self.wait_for_rotation(2)
    }
}
