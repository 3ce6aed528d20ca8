//! The apt repository: a host installs from it over HTTP, follows it to a new version, and refuses what somebody has changed.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use links_tests::{Artifacts, Builder, Host, KeyFrom, RELEASED, Repository, Traffic};

const URL: &str = "http://127.0.0.1:8085";
/// The copy of the repository on the host, which nginx serves at [`URL`].
const DIRECTORY: &str = "/srv/apt";
const SUITE: &str = "/srv/apt/dists/stable";
const SOURCES: &str = "/etc/apt/sources.list.d/links.sources";
const PACKAGE: &str = "links-shortener";

#[test]
fn a_host_installs_from_the_repository_and_follows_it_and_refuses_what_was_changed() -> Result<()> {
    follows_the_repository(Host::builder())
}

pub fn follows_the_repository(host: Builder) -> Result<()> {
    let host = host.debian()?;
    host.write(
        "/etc/nginx/conf.d/repository.conf",
        include_str!("repository/nginx.conf"),
    )?;
    host.reload_nginx()?;
    let apt = Apt { host: &host };
    let (old, new) = (Artifacts::released(RELEASED)?, Artifacts::find()?.deb);
    let (old_version, new_version) = (RELEASED, host.version()?);

    let repository = Repository::new(URL, KeyFrom::File)?;
    repository.add(&old)?;
    repository.publish(&host, DIRECTORY, || Ok(()))?;
    host.ok(["curl", "-fsSo", SOURCES, &format!("{URL}/links.sources")])?;
    apt.update()?;
    host.ok(["apt-get", "--yes", "install", PACKAGE])?;
    host.wait_for_rotation(2)?;
    host.runs_version(old_version)?;
    let link = host.shorten("https://example.com/")?;

    repository.add(&new)?;
    repository.publish(&host, DIRECTORY, || {
        // The new indexes are there, but the old signature still vouches for the old ones.
        apt.forget()?;
        apt.update()?;
        apt.offers(old_version).context("while the repository was being copied")
    })?;
    apt.uses_no_changed_index(&repository, old_version)?;
    apt.installs_no_changed_package(&repository, &new)?;
    host.runs_version(old_version)?;

    apt.update()?;
    apt.offers(new_version)?;
    let traffic = Traffic::start(&host, "repository")?;
    traffic.during("upgrade", || host.ok(["apt-get", "--yes", "install", PACKAGE]))?;
    host.wait_for_rotation(2)?;
    host.runs_version(new_version)?;
    traffic.finish(&host)?;
    host.follow(&link)?;

    let log = host.read("/var/log/nginx/repository.log")?;
    let by_digest = |line: &str| line.contains("/by-hash/SHA256/") && line.contains("\" 200 ");
    ensure!(
        log.lines().any(by_digest),
        "apt should find indexes under their digests: {log}"
    );
    let versions = host.ok(["apt-cache", "madison", PACKAGE])?.stdout;
    let is_old = |line: &str| line.contains(URL) && line.contains(&format!(" {old_version} "));
    ensure!(versions.lines().any(is_old), "no {old_version} in {versions}");

    // Without InRelease, apt reads the signature from Release.gpg.
    host.ok(["rm", &format!("{SUITE}/InRelease")])?;
    apt.forget()?;
    apt.update()?;
    ensure!(host.ok(["apt-cache", "madison", PACKAGE])?.stdout == versions);
    Ok(())
}

/// apt on a host, with the repository as a source.
struct Apt<'a> {
    host: &'a Host,
}

impl Apt<'_> {
    /// Reads the index of this repository only: the host reaches no other.
    fn update(&self) -> Result<()> {
        let update = [
            "apt-get",
            "update",
            "--error-on=any",
            "-o",
            "APT::Get::List-Cleanup=false",
            "-o",
            "Dir::Etc::SourceParts=/dev/null",
            "-o",
            &format!("Dir::Etc::SourceList={SOURCES}"),
        ];
        self.host.ok(update).map(drop)
    }

    /// Removes what apt has read from the repository.
    fn forget(&self) -> Result<()> {
        self.host.shell("rm /var/lib/apt/lists/127.0.0.1:8085_*").map(drop)
    }

    /// Checks which version apt would install.
    fn offers(&self, version: &str) -> Result<()> {
        let policy = self.host.ok(["apt-cache", "policy", PACKAGE])?.stdout;
        let candidate = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate: "));
        ensure!(
            candidate == Some(version),
            "{version} should be the candidate: {policy}"
        );
        Ok(())
    }

    /// apt keeps to what it knew if an index or a signature is not right, whether or not it starts from nothing.
    fn uses_no_changed_index(&self, repository: &Repository, known: &str) -> Result<()> {
        let other = Repository::new(URL, KeyFrom::Keyring)?;
        other.add(&Artifacts::find()?.deb)?;
        let find = "find /srv/apt/dists -type f";
        let changes: [(&str, &dyn Fn() -> Result<()>); 4] = [
            ("InRelease", &|| {
                self.change(&[format!("{SUITE}/InRelease")], b"Components: m")
            }),
            ("Release", &|| {
                self.host.ok(["rm", &format!("{SUITE}/InRelease")])?;
                self.change(&[format!("{SUITE}/Release")], b"Components: m")
            }),
            ("Packages", &|| {
                // The compressed ones too, so that apt finds none that is right.
                let indexes = self.host.shell(&format!("{find} ! -name '*Release*'"))?.stdout;
                let indexes: Vec<_> = indexes.lines().map(str::to_owned).collect();
                self.change(&indexes, b"")
            }),
            ("the key", &|| other.publish(self.host, DIRECTORY, || Ok(()))),
        ];
        for (time, (what, change)) in (1_000_000_000_u32..).zip(changes) {
            change().with_context(|| format!("Changing {what}"))?;
            // apt keeps what it has, also from an update that failed, if the server's file has the same time, in seconds.
            self.host.shell(&format!(
                "find {SUITE} -name '*Release*' -exec touch --date=@{time} {{}} +"
            ))?;
            ensure!(self.update().is_err(), "apt should report that {what} has changed");
            self.offers(known).with_context(|| format!("{what} has changed"))?;
            self.host.ok(["rm", "--recursive", SUITE])?;
            repository.publish(self.host, DIRECTORY, || Ok(()))?;
        }
        Ok(())
    }

    /// Only the .deb differs, so apt finds out after the download.
    fn installs_no_changed_package(&self, repository: &Repository, deb: &Path) -> Result<()> {
        let name = deb.file_name().unwrap_or_default().to_string_lossy();
        self.change(&[format!("{DIRECTORY}/pool/main/l/{PACKAGE}/{name}")], b"")?;
        self.update()?;
        let install = self.host.run(["apt-get", "--yes", "install", PACKAGE])?;
        ensure!(install.status != 0, "apt should refuse the changed package: {install}");
        ensure!(self.host.package_state()? == "installed", "{install}");
        repository.publish(self.host, DIRECTORY, || Ok(()))
    }

    /// Changes one byte in each of the files: the one after the text `after`, or else the one in the middle.
    fn change(&self, paths: &[String], after: &[u8]) -> Result<()> {
        ensure!(!paths.is_empty(), "there is nothing to change");
        for path in paths {
            let path = self.host.path_outside(path);
            let mut bytes = fs::read(&path).with_context(|| format!("Reading {}", path.display()))?;
            let at = match after {
                [] => Some(bytes.len() / 2),
                after => bytes
                    .windows(after.len())
                    .position(|part| part == after)
                    .map(|at| at + after.len()),
            };
            let byte = at.and_then(|at| bytes.get_mut(at));
            *byte.with_context(|| format!("there is no byte to change in {}", path.display()))? ^= 1;
            fs::write(&path, bytes)?;
        }
        Ok(())
    }
}
