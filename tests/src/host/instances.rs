//! The instances of links on a host: which are in rotation, and which release they run.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::Host;
use crate::process::eventually;

impl Host {
    /// The numbers of the instances in rotation.
    ///
    /// # Errors
    /// Fails if their flags cannot be read.
    pub fn in_rotation(&self) -> Result<BTreeSet<u16>> {
        let flags = self.ok(["ls", "/run/links/ready"])?.stdout;
        flags.lines().map(|flag| Ok(flag.parse()?)).collect()
    }

    /// Waits until the instances 1 to `count`, and no others, are in rotation and healthy.
    ///
    /// # Errors
    /// Fails if they are not within 30 s.
    pub fn wait_for_rotation(&self, count: u16) -> Result<()> {
        let wanted: BTreeSet<_> = (1..=count).collect();
        let mut last = BTreeSet::new();
        eventually(
            &format!("instances {wanted:?} are in rotation"),
            Duration::from_secs(30),
            || {
                last = self.in_rotation()?;
                Ok((last == wanted).then_some(()))
            },
        )
        .with_context(|| format!("in rotation are {last:?}"))?;
        wanted
            .into_iter()
            .try_for_each(|instance| self.wait_until_healthy(instance))
    }

    /// Waits until an instance reports itself healthy.
    ///
    /// # Errors
    /// Fails if it does not within 20 s.
    pub fn wait_until_healthy(&self, instance: u16) -> Result<()> {
        let client = self.instance_without_token(instance);
        eventually(
            &format!("instance {instance} is healthy"),
            Duration::from_secs(20),
            || {
                Ok(client
                    .get("/health")
                    .is_ok_and(|answer| answer.status == 200)
                    .then_some(()))
            },
        )
    }

    /// The names of the releases that the instances 1 to `count` run, in order.
    ///
    /// # Errors
    /// Fails if an instance has no release, or runs another release than its symbolic link names.
    pub fn running_releases(&self, count: u16) -> Result<Vec<String>> {
        (1..=count)
            .map(|instance| {
                let link = format!("/var/lib/links/instances/{instance}");
                let release = self.ok(["readlink", "--canonicalize-existing", &link])?.stdout;
                let release = release.trim();
                let pid = self.main_pid(&format!("links@{instance}"))?;
                // The runtime is a child of the supervisor, and its path is in the release with which it was started.
                let line = self.shell(&format!("pgrep --list-full --parent {pid}"))?.stdout;
                ensure!(
                    line.contains(release),
                    "instance {instance} should run {release} but runs: {line}"
                );
                let name = release.rsplit('/').next().unwrap_or_default();
                Ok(name.to_owned())
            })
            .collect()
    }

    /// Checks that both instances run a release of this version.
    ///
    /// # Errors
    /// Fails if they run something else.
    pub fn runs_version(&self, version: &str) -> Result<()> {
        let releases = self.running_releases(2)?;
        let right = |release: &String| release.starts_with(&format!("{version}-"));
        ensure!(releases.iter().all(right), "{version} should run, not {releases:?}");
        Ok(())
    }

    /// systemd's invocation IDs of the instances 1 to `count`. Each start of an instance has a new one.
    ///
    /// # Errors
    /// Fails if systemctl fails.
    pub fn invocation_ids(&self, count: u16) -> Result<Vec<String>> {
        let units: Vec<_> = (1..=count).map(|instance| format!("links@{instance}")).collect();
        let show = ["systemctl", "show", "--property=InvocationID", "--value"].map(str::to_owned);
        let shown = self.ok(show.into_iter().chain(units))?.stdout;
        Ok(shown.split_whitespace().map(str::to_owned).collect())
    }

    /// The release to which instance `number` is set, by the name of its directory. It may not have started with it yet.
    ///
    /// # Errors
    /// Fails if the instance has none.
    pub fn chosen_release(&self, number: u16) -> Result<String> {
        let link = format!("/var/lib/links/instances/{number}");
        let target = self.ok(["readlink", &link])?.stdout;
        Ok(target.trim().trim_start_matches("../releases/").to_owned())
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

    /// Everything that the instances have logged, over all boots.
    ///
    /// # Errors
    /// Fails if journalctl fails.
    pub fn instances_journal(&self) -> Result<String> {
        self.journal("links@*")
    }
}
