//! Changes of what runs: no client notices those that succeed, nor those that fail.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use links_tests::load::{Connections, Load, Report, verify_all};
use links_tests::{Appliance, DEB, Output, eventually};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

const BUNDLE: &str = "/usr/lib/links/bundle";

#[test]
fn releases_move_forward_and_back_and_fewer_or_more_serve() -> Result<()> {
    let host = Host::serving()?;
    let old = host.release_of(1)?;
    let next = host.another_release("9.9.9")?;

    let rolled = host.under_load("rollout", || {
        host.appliance.ok(["linksctl", "rollout", "--release", &next])
    })?;
    ensure!(rolled.stdout.contains("instance 2: stays healthy"), "{rolled}");
    let new = host.release_of(1)?;
    ensure!(new.starts_with("9.9.9-") && host.release_of(2)? == new, "{new}");
    host.appliance.wait_for_status("2/2 instances ready, release 9.9.9,")?;

    let again = host.appliance.ok(["linksctl", "rollout", "--json"])?;
    let events = events(&again)?;
    assert_eq!(events[0]["instances"], serde_json::json!([]), "{again}");

    let listed = host.appliance.ok(["linksctl", "releases"])?.stdout;
    ensure!(
        listed.contains("instance 1, 2, current") && listed.contains("previous, installed"),
        "{listed}"
    );
    host.under_load("rollback", || host.appliance.ok(["linksctl", "rollback"]))?;
    assert_eq!([host.release_of(1)?, host.release_of(2)?], [old.clone(), old.clone()]);

    let before = host.main_pids()?;
    host.under_load("restart", || host.appliance.ok(["linksctl", "restart"]))?;
    let after = host.main_pids()?;
    ensure!(before[0] != after[0] && before[1] != after[1], "{before:?} {after:?}");
    assert_eq!(host.main_pids()?, after);
    Ok(())
}

#[test]
fn scale_adds_and_removes_instances() -> Result<()> {
    let host = Host::serving()?;
    let toml = host.appliance.read("/etc/links/links.toml")?;
    for count in ["5", "3", "1", "2"] {
        // The site changes, and an nginx that reloads closes kept-alive connections, now and then under a request.
        let scaled = host.under(&[Connections::Fresh], &format!("scale-{count}"), || {
            host.appliance.ok(["linksctl", "scale", count])
        })?;
        let ready = host.appliance.ok(["ls", "/run/links/ready"])?.stdout.lines().count();
        assert_eq!(ready.to_string(), count, "{scaled}");
        let site = host.appliance.read("/etc/nginx/sites-available/links")?;
        let pool = site
            .split("upstream links_all")
            .nth(1)
            .and_then(|rest| rest.split('}').next());
        assert_eq!(pool.unwrap_or_default().matches("server ").count().to_string(), count);
        host.appliance
            .wait_for_status(&format!("{count}/{count} instances ready"))?;
        host.still_serves()?;
    }
    assert_eq!(
        host.appliance.read("/etc/links/links.toml")?,
        toml.replacen("#instances = 2", "instances = 2", 1)
    );
    let units = host
        .appliance
        .ok(["systemctl", "list-units", "--all", "--plain", "--no-legend", "links@*"])?;
    ensure!(!units.stdout.contains("failed"), "{units}");
    Ok(())
}

#[test]
fn a_release_that_fails_leaves_the_old_one_serving() -> Result<()> {
    let host = Host::serving()?;
    let old = host.release_of(1)?;
    let next = host.another_release("9.9.9")?;
    // Its runtime ends at once.
    let app = host.manifest(&next)?["app"].as_str().context("app")?.to_owned();
    host.replace(&next, &app, "spin_manifest_version = 99\n")?;

    let failed = host.under_load("broken", || {
        host.appliance.run(["linksctl", "rollout", "--release", &next])
    })?;
    assert_eq!(failed.status, 1, "{failed}");
    ensure!(
        failed.stderr.contains("instance 1 does not serve with release 9.9.9-"),
        "{failed}"
    );
    ensure!(failed.stderr.contains("the runtime exited with status"), "{failed}");
    ensure!(
        failed.stderr.contains("every instance is back on what it ran before"),
        "{failed}"
    );
    assert_eq!([host.release_of(1)?, host.release_of(2)?], [old.clone(), old]);
    ensure!(
        !host.appliance.exists("/var/lib/links/rollout.json")?,
        "the journal is gone"
    );
    host.appliance.wait_for_status("2/2 instances ready")?;
    host.appliance.ok(["linksctl", "status"])?;
    Ok(())
}

#[test]
fn a_configuration_counts_when_it_is_applied() -> Result<()> {
    let host = Host::serving()?;
    let config = |instance: u16| {
        host.appliance
            .ok(["readlink", &format!("/var/lib/links/instances/{instance}.config")])
    };
    let before = config(1)?.stdout;
    let path = "/etc/links/links.toml";
    let good = host.appliance.read(path)?;

    // Somebody is in the middle of editing: whoever restarts gets what was applied.
    host.appliance.write(path, "instnaces = 3\n")?;
    host.appliance.ok(["systemctl", "restart", "links@1"])?;
    host.appliance.ok(["systemctl", "restart", "links"])?;
    let reload = host.appliance.run(["systemctl", "reload", "links"])?;
    assert_ne!(reload.status, 0);
    host.appliance.wait_for_status("2/2 instances ready")?;
    assert_eq!(config(1)?.stdout, before);

    host.appliance
        .write(path, format!("public_url = \"https://s.example\"\n{good}"))?;
    host.under_load("reload", || host.appliance.ok(["systemctl", "reload", "links"]))?;
    let reloaded = config(1)?.stdout;
    ensure!(reloaded != before && config(2)?.stdout == reloaded, "{reloaded}");

    // A restart of the service applies it too, and takes nobody down together with another.
    host.appliance.write(path, &good)?;
    host.under_load("service", || host.appliance.ok(["systemctl", "restart", "links"]))?;
    assert_eq!([config(1)?.stdout, config(2)?.stdout], [before.clone(), before]);
    let kept = host.appliance.ok(["ls", "/var/lib/links/applied"])?.stdout;
    assert_eq!(kept.lines().count(), 1, "{kept}");
    Ok(())
}

#[test]
fn one_at_a_time_and_back_after_an_interruption() -> Result<()> {
    let mut host = Host::serving()?;
    let old = host.release_of(1)?;
    let next = host.another_release("9.9.9")?;
    let rollout = format!("linksctl rollout --release {next} >/root/rollout.log 2>&1; echo $? >/root/rollout.status");
    let start = |host: &Host| -> Result<String> {
        host.appliance.ok(["rm", "-f", "/root/rollout.status"])?;
        host.appliance.ok([
            "systemd-run",
            "--quiet",
            "--unit=rollout",
            "--collect",
            "sh",
            "-c",
            &rollout,
        ])?;
        eventually("instance 1 has moved", Duration::from_secs(20), || {
            Ok((host.release_of(1)? != old).then_some(()))
        })?;
        Ok(host
            .appliance
            .ok(["pgrep", "-f", "^linksctl rollout"])?
            .stdout
            .trim()
            .to_owned())
    };

    let pid = start(&host)?;
    let second = host.appliance.run(["linksctl", "rollout"])?;
    assert_eq!(second.status, 1, "{second}");
    ensure!(
        second.stderr.contains(&format!("by process {pid} (`linksctl rollout")),
        "{second}"
    );
    let status = host.appliance.run(["linksctl", "status"])?.stdout;
    ensure!(status.contains("under way, by process"), "{status}");
    host.appliance.ok(["kill", "-INT", &pid])?;
    eventually("the rollout has ended", Duration::from_secs(60), || {
        Ok(host.appliance.exists("/root/rollout.status")?.then_some(()))
    })?;
    let log = host.appliance.read("/root/rollout.log")?;
    assert_eq!(host.appliance.read("/root/rollout.status")?.trim(), "130", "{log}");
    ensure!(log.contains("interrupted: every instance is back"), "{log}");
    assert_eq!([host.release_of(1)?, host.release_of(2)?], [old.clone(), old.clone()]);
    host.appliance.wait_for_status("2/2 instances ready")?;
    host.still_serves()?;

    // Killed, and made good by the next one.
    let pid = start(&host)?;
    host.appliance.ok(["kill", "-KILL", &pid])?;
    let status = host.appliance.run(["linksctl", "status"])?.stdout;
    ensure!(status.contains("interrupted: `linksctl rollout`"), "{status}");
    let next_one = host.appliance.ok(["linksctl", "rollout"])?;
    ensure!(next_one.stdout.contains("was cut off"), "{next_one}");
    assert_eq!([host.release_of(1)?, host.release_of(2)?], [old.clone(), old.clone()]);
    host.appliance.ok(["linksctl", "status"])?;

    // And by a boot, after the power has failed.
    start(&host)?;
    host.appliance.machine.kill_host()?;
    host.appliance.wait_for_status("2/2 instances ready")?;
    assert_eq!([host.release_of(1)?, host.release_of(2)?], [old.clone(), old]);
    ensure!(
        !host.appliance.exists("/var/lib/links/rollout.json")?,
        "the journal is gone"
    );
    host.still_serves()
}

#[test]
fn a_stopped_service_stays_stopped() -> Result<()> {
    let host = Host::serving()?;
    let next = host.another_release("9.9.9")?;
    host.appliance.ok(["systemctl", "stop", "links"])?;
    host.appliance.ok(["linksctl", "rollout", "--release", &next])?;
    assert_eq!(host.appliance.processes()?, "");
    host.appliance.ok(["systemctl", "start", "links"])?;
    host.appliance.wait_for_status("2/2 instances ready, release 9.9.9,")?;
    Ok(())
}

struct Host {
    appliance: Appliance,
    link: links_tests::load::Link,
}

impl Host {
    fn serving() -> Result<Self> {
        let appliance = Appliance::installed()?;
        let link = appliance.shorten("https://example.com/precious")?;
        Ok(Self { appliance, link })
    }

    fn still_serves(&self) -> Result<()> {
        self.appliance.follow(&self.link)
    }

    /// Nobody notices, and nothing that was acknowledged is lost.
    fn under_load(&self, label: &str, act: impl FnOnce() -> Result<Output>) -> Result<Output> {
        self.under(&[Connections::KeptAlive, Connections::Fresh], label, act)
    }

    fn under(&self, kinds: &[Connections], label: &str, act: impl FnOnce() -> Result<Output>) -> Result<Output> {
        let site = self.appliance.site()?;
        let start = |connections: &Connections| {
            Load::through([site.clone(), site.clone()])
                .connections(*connections)
                .label(&format!("{label}-{connections:?}"))
                .start()
        };
        let running: Vec<_> = kinds.iter().map(start).collect();
        eventually("the load is felt", Duration::from_secs(20), || {
            Ok(running.iter().all(|running| running.acknowledged() > 20).then_some(()))
        })?;
        let output = act().with_context(|| self.appliance.journal("links").unwrap_or_default());
        for running in running {
            let report: Report = running.stop()?;
            println!("{label}: {report}");
            ensure!(report.failed() == 0, "{label}: {report}");
            let lost = verify_all(&site, &report.acknowledged)?;
            ensure!(lost.is_empty(), "{label}: {} lost", lost.len());
        }
        output
    }

    fn release_of(&self, instance: u16) -> Result<String> {
        let link = format!("/var/lib/links/instances/{instance}");
        let target = self.appliance.ok(["readlink", &link])?.stdout;
        Ok(target.trim().trim_start_matches("../releases/").to_owned())
    }

    fn main_pids(&self) -> Result<[String; 2]> {
        let pid = |unit: &str| -> Result<String> {
            Ok(self
                .appliance
                .ok(["systemctl", "show", "--property=MainPID", unit])?
                .stdout)
        };
        Ok([pid("links@1")?, pid("links@2")?])
    }

    /// The installed bundle under another version; returns its directory.
    fn another_release(&self, version: &str) -> Result<String> {
        let directory = format!("/root/{version}");
        self.appliance.ok(["cp", "--archive", BUNDLE, &directory])?;
        let mut manifest = self.manifest(&directory)?;
        manifest["version"] = version.into();
        self.write_manifest(&directory, &manifest)?;
        Ok(directory)
    }

    fn manifest(&self, directory: &str) -> Result<Value> {
        Ok(serde_json::from_str(
            &self.appliance.read(&format!("{directory}/manifest.json"))?,
        )?)
    }

    fn write_manifest(&self, directory: &str, manifest: &Value) -> Result<()> {
        self.appliance.write(
            &format!("{directory}/manifest.json"),
            serde_json::to_string_pretty(manifest)?,
        )
    }

    /// Another content for one file of a bundle, as its manifest has it too.
    fn replace(&self, directory: &str, file: &str, text: &str) -> Result<()> {
        let path = format!("{directory}/{file}");
        self.appliance.write(&path, text)?;
        let sum = self.appliance.ok(["sha256sum", &path])?.stdout;
        let mut manifest = self.manifest(directory)?;
        manifest["files"][file]["size"] = text.len().into();
        manifest["files"][file]["sha256"] = sum.split_whitespace().next().context("sha256sum")?.into();
        self.write_manifest(directory, &manifest)
    }
}

fn events(output: &Output) -> Result<Vec<Value>> {
    let lines = output.stdout.lines().map(serde_json::from_str);
    Ok(lines.collect::<Result<_, _>>()?)
}

#[test]
fn apt_upgrades_and_downgrades_while_nobody_notices() -> Result<()> {
    let host = Host::serving()?;
    let package = Package::unpack(&host)?;
    let next = package.build(&host, "9.9.9", |_| Ok(()))?;
    let install = |deb: &str| {
        let words = ["apt-get", "--yes", "--allow-downgrades", "--reinstall", "install", deb];
        host.appliance.ok(words)
    };
    host.under_load("upgrade", || install(&next))?;
    host.appliance.wait_for_status("2/2 instances ready, release 9.9.9,")?;
    host.under_load("again", || install(&next))?;
    host.under_load("downgrade", || install(DEB))?;
    let version = host.appliance.wait_for_status("2/2 instances ready, release ")?;
    ensure!(!version.contains("9.9.9"), "{version}");

    host.appliance.ok(["systemctl", "stop", "links"])?;
    install(&next)?;
    assert_eq!(host.appliance.processes()?, "");
    host.appliance.ok(["systemctl", "start", "links"])?;
    host.appliance.wait_for_status("2/2 instances ready, release 9.9.9,")?;
    host.still_serves()
}

#[test]
fn a_failed_upgrade_leaves_the_old_release_serving_and_a_retry_works() -> Result<()> {
    let host = Host::serving()?;
    let old = host.release_of(1)?;
    let package = Package::unpack(&host)?;
    let state = || -> Result<String> {
        let words = [
            "dpkg-query",
            "--show",
            "--showformat=${db:Status-Status}",
            "links-shortener",
        ];
        Ok(host.appliance.ok(words)?.stdout)
    };

    // A release that does not start: the next one mends it.
    let broken = package.build(&host, "9.9.8", |root| {
        let path = root.join("usr/lib/links/bundle/manifest.json");
        let mut manifest: Value = serde_json::from_slice(&std::fs::read(&path)?)?;
        let app = manifest["app"].as_str().context("app")?.to_owned();
        let nonsense = "spin_manifest_version = 99\n";
        std::fs::write(root.join("usr/lib/links/bundle").join(&app), nonsense)?;
        manifest["files"][&app]["size"] = nonsense.len().into();
        let digest = Sha256::digest(nonsense);
        manifest["files"][&app]["sha256"] = digest
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect::<String>()
            .into();
        Ok(std::fs::write(&path, manifest.to_string())?)
    })?;
    let failed = host.under_load("broken", || {
        host.appliance.run(["apt-get", "--yes", "install", &broken])
    })?;
    assert_ne!(failed.status, 0, "{failed}");
    let said = failed.stdout + &failed.stderr;
    ensure!(said.contains("every instance is back on what it ran before"), "{said}");
    ensure!(said.contains("the runtime exited with status"), "{said}");
    assert_eq!(state()?, "half-configured");
    assert_eq!([host.release_of(1)?, host.release_of(2)?], [old.clone(), old.clone()]);
    host.appliance.ok(["linksctl", "status"])?;

    // A cause outside of the package: once it is gone, the same package goes in.
    let next = package.build(&host, "9.9.9", |_| Ok(()))?;
    let path = "/etc/links/links.toml";
    let good = host.appliance.read(path)?;
    host.appliance.write(path, "instnaces = 3\n")?;
    let failed = host.appliance.run(["apt-get", "--yes", "install", &next])?;
    assert_ne!(failed.status, 0, "{failed}");
    assert_eq!(state()?, "half-configured");
    assert_eq!([host.release_of(1)?, host.release_of(2)?], [old.clone(), old]);
    host.still_serves()?;
    host.appliance.write(path, good)?;
    host.under_load("retry", || host.appliance.ok(["dpkg", "--configure", "--pending"]))?;
    assert_eq!(state()?, "installed");
    host.appliance.wait_for_status("2/2 instances ready, release 9.9.9,")?;

    let postinst = "/var/lib/dpkg/info/links-shortener.postinst";
    for arguments in [
        "abort-upgrade 1",
        "abort-remove",
        "abort-deconfigure in-favour x 1",
        "configure 9.9.9",
    ] {
        host.appliance.shell(&format!("{postinst} {arguments}"))?;
    }
    host.appliance.ok(["linksctl", "status"])?;
    Ok(())
}

/// The package under test, to be built anew with changes.
struct Package {
    directory: tempfile::TempDir,
}

impl Package {
    fn unpack(host: &Host) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let deb = &host.appliance.artifacts.deb;
        run(Command::new("dpkg-deb")
            .arg("--raw-extract")
            .arg(deb)
            .arg(directory.path().join("tree")))?;
        Ok(Self { directory })
    }

    /// Returns the path inside of the machine.
    fn build(&self, host: &Host, version: &str, change: impl FnOnce(&Path) -> Result<()>) -> Result<String> {
        let tree = self.directory.path().join(version);
        run(Command::new("cp")
            .arg("--archive")
            .arg(self.directory.path().join("tree"))
            .arg(&tree))?;
        let control = tree.join("DEBIAN/control");
        let text = std::fs::read_to_string(&control)?;
        let lines: Vec<_> = text
            .lines()
            .map(|line| match line.starts_with("Version:") {
                true => format!("Version: {version}"),
                false => line.to_owned(),
            })
            .collect();
        std::fs::write(&control, lines.join("\n") + "\n")?;
        let manifest = tree.join("usr/lib/links/bundle/manifest.json");
        let mut json: Value = serde_json::from_slice(&std::fs::read(&manifest)?)?;
        json["version"] = version.into();
        std::fs::write(&manifest, serde_json::to_string_pretty(&json)?)?;
        change(&tree)?;
        let deb = self.directory.path().join(format!("{version}.deb"));
        run(Command::new("dpkg-deb")
            .args(["-Znone", "--root-owner-group", "--build"])
            .arg(&tree)
            .arg(&deb))?;
        let inside = format!("/root/links-shortener_{version}.deb");
        host.appliance.copy_in(&deb, &inside)?;
        Ok(inside)
    }
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("Starting {command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
