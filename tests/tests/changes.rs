//! Rollouts, scaling, configuration changes and upgrades: no client notices them, whether they succeed or fail.

use std::time::Duration;

use anyhow::{Result, ensure};
use links_tests::load::Link;
use links_tests::{DATABASE, Fault, Host, Output, RELEASED, Traffic, eventually};
use rusqlite::{Connection, OpenFlags};
use serde_json::Value;

#[test]
fn a_rollout_and_a_rollback_change_the_release_and_no_request_fails() -> Result<()> {
    let host = HostWithLink::new()?;
    let old = host.release_of(1)?;
    let next = host.released_bundle()?;

    let rolled = host.under_load("rollout", || host.ok(["linksctl", "rollout", "--release", &next]))?;
    ensure!(rolled.stdout.contains("instance 2: stays healthy"), "{rolled}");
    let new = host.release_of(1)?;
    ensure!(
        new.starts_with(&format!("{RELEASED}-")) && host.release_of(2)? == new,
        "{new}"
    );
    host.wait_for_status(&format!("2/2 instances ready, release {RELEASED},"))?;

    let again = host.ok(["linksctl", "rollout", "--json"])?;
    let events = events(&again)?;
    assert_eq!(events[0]["instances"], serde_json::json!([]), "{again}");

    let listed = host.ok(["linksctl", "releases"])?.stdout;
    ensure!(
        listed.contains("instance 1, 2, current") && listed.contains("previous, installed"),
        "{listed}"
    );
    host.under_load("rollback", || host.ok(["linksctl", "rollback"]))?;
    assert_eq!([host.release_of(1)?, host.release_of(2)?], [old.clone(), old.clone()]);
    Ok(())
}

#[test]
fn scale_adds_and_removes_instances() -> Result<()> {
    let host = HostWithLink::new()?;
    let toml = host.read("/etc/links/links.toml")?;
    for count in ["5", "3", "1", "2"] {
        let scaled = host.under_load(&format!("scale-{count}"), || host.ok(["linksctl", "scale", count]))?;
        let ready = host.ok(["ls", "/run/links/ready"])?.stdout.lines().count();
        assert_eq!(ready.to_string(), count, "{scaled}");
        let site = host.read("/etc/nginx/sites-available/links")?;
        let pool = site
            .split("upstream links_all")
            .nth(1)
            .and_then(|rest| rest.split('}').next());
        let second_round = pool.unwrap_or_default().matches(" backup;").count();
        assert_eq!(second_round.to_string(), count);
        host.appliance
            .wait_for_status(&format!("{count}/{count} instances ready"))?;
        host.still_serves()?;
    }
    assert_eq!(
        host.read("/etc/links/links.toml")?,
        toml.replacen("#instances = 2", "instances = 2", 1)
    );
    let units = host
        .appliance
        .ok(["systemctl", "list-units", "--all", "--plain", "--no-legend", "links@*"])?;
    ensure!(!units.stdout.contains("failed"), "{units}");
    Ok(())
}

#[test]
fn a_configuration_takes_effect_when_it_is_applied() -> Result<()> {
    let host = HostWithLink::new()?;
    let config = |instance: u16| {
        host.appliance
            .ok(["readlink", &format!("/var/lib/links/instances/{instance}.config")])
    };
    let before = config(1)?.stdout;
    let path = "/etc/links/links.toml";
    let good = host.read(path)?;

    // A restart in the middle of an edit uses the configuration that was applied last.
    host.write(path, "instnaces = 3\n")?;
    host.ok(["systemctl", "restart", "links@1"])?;
    host.ok(["systemctl", "restart", "links"])?;
    let reload = host.run(["systemctl", "reload", "links"])?;
    assert_ne!(reload.status, 0);
    host.wait_for_status("2/2 instances ready")?;
    assert_eq!(config(1)?.stdout, before);

    host.appliance
        .write(path, format!("public_url = \"https://s.example\"\n{good}"))?;
    host.under_load("reload", || host.ok(["systemctl", "reload", "links"]))?;
    let reloaded = config(1)?.stdout;
    ensure!(reloaded != before && config(2)?.stdout == reloaded, "{reloaded}");

    // A restart of the service applies the configuration too, and never stops two instances at once.
    host.write(path, &good)?;
    host.under_load("service", || host.ok(["systemctl", "restart", "links"]))?;
    assert_eq!([config(1)?.stdout, config(2)?.stdout], [before.clone(), before]);
    let kept = host.ok(["ls", "/var/lib/links/applied"])?.stdout;
    assert_eq!(kept.lines().count(), 1, "{kept}");
    Ok(())
}

#[test]
fn a_second_rollout_is_refused_and_an_interrupted_one_is_undone() -> Result<()> {
    let mut host = HostWithLink::new()?;
    let old = host.release_of(1)?;
    let next = host.released_bundle()?;
    let rollout =
        format!("linksctl rollout --release {next} >/var/tmp/rollout.log 2>&1; echo $? >/var/tmp/rollout.status");
    let start = |host: &HostWithLink| -> Result<String> {
        host.ok(["rm", "-f", "/var/tmp/rollout.status"])?;
        host.ok([
            "systemd-run",
            "--quiet",
            "--unit=rollout",
            "--collect",
            "sh",
            "-c",
            &rollout,
        ])?;
        eventually("instance 1 has the new release", Duration::from_secs(20), || {
            Ok((host.release_of(1)? != old).then_some(()))
        })?;
        // `--oldest` excludes its children, which have the same command line until they call exec.
        Ok(host
            .appliance
            .ok(["pgrep", "--oldest", "--full", "^linksctl rollout"])?
            .stdout
            .trim()
            .to_owned())
    };

    let pid = start(&host)?;
    let second = host.run(["linksctl", "rollout"])?;
    assert_eq!(second.status, 1, "{second}");
    ensure!(
        second.stderr.contains(&format!("by process {pid} (`linksctl rollout")),
        "{second}"
    );
    let status = host.run(["linksctl", "status"])?.stdout;
    ensure!(status.contains("under way, by process"), "{status}");
    host.ok(["kill", "-INT", &pid])?;
    eventually("the rollout has ended", Duration::from_secs(60), || {
        Ok(host.exists("/var/tmp/rollout.status")?.then_some(()))
    })?;
    let log = host.read("/var/tmp/rollout.log")?;
    assert_eq!(host.read("/var/tmp/rollout.status")?.trim(), "130", "{log}");
    ensure!(log.contains("interrupted: every instance is back"), "{log}");
    assert_eq!([host.release_of(1)?, host.release_of(2)?], [old.clone(), old.clone()]);
    host.wait_for_status("2/2 instances ready")?;
    host.still_serves()?;

    // After a kill, the next command undoes the rollout.
    let pid = start(&host)?;
    host.ok(["kill", "-KILL", &pid])?;
    eventually("status reports the interruption", Duration::from_secs(10), || {
        let status = host.run(["linksctl", "status"])?.stdout;
        Ok(status.contains("interrupted: `linksctl rollout`").then_some(()))
    })?;
    let recovery = host.ok(["linksctl", "rollout"])?;
    ensure!(recovery.stdout.contains("was cut off"), "{recovery}");
    assert_eq!([host.release_of(1)?, host.release_of(2)?], [old.clone(), old.clone()]);
    host.ok(["linksctl", "status"])?;

    // So does the boot after a power failure.
    start(&host)?;
    host.host.appliance.machine.kill_host()?;
    host.wait_for_status("2/2 instances ready")?;
    assert_eq!([host.release_of(1)?, host.release_of(2)?], [old.clone(), old]);
    ensure!(
        !host.exists("/var/lib/links/rollout.json")?,
        "the journal should be gone"
    );
    host.still_serves()
}

#[test]
fn a_rollout_does_not_start_a_stopped_service() -> Result<()> {
    let host = HostWithLink::new()?;
    let next = host.released_bundle()?;
    host.ok(["systemctl", "stop", "links"])?;
    host.ok(["linksctl", "rollout", "--release", &next])?;
    assert_eq!(host.processes()?, "");
    host.ok(["systemctl", "start", "links"])?;
    host.wait_for_status(&format!("2/2 instances ready, release {RELEASED},"))?;
    Ok(())
}

#[test]
fn the_database_is_copied_before_its_schema_changes() -> Result<()> {
    let host = HostWithLink::new()?;
    let next = host.bundle("9.9.9", None)?;
    host.ok(["systemctl", "stop", "links"])?;
    host.wait_until_stopped()?;
    // The tables of version 1, which had neither request IDs nor click limits.
    let old_tables = "DROP INDEX links_request_id; ALTER TABLE links DROP COLUMN request_id;
                      ALTER TABLE links DROP COLUMN max_clicks; ALTER TABLE links DROP COLUMN clicks_left;
                      ALTER TABLE links DROP COLUMN limited_until;
                      DROP TRIGGER links_made_with_a_new_id; DROP TRIGGER links_deleted_for_good;
                      DROP TRIGGER click_batches_calendar; DROP TABLE link_ids; DROP TABLE link_deletions;
                      DROP TRIGGER links_deleted_leave_the_slug; DROP TRIGGER links_made_with_an_old_slug;
                      DROP TABLE deleted_slugs; DROP TABLE slug_reuses;
                      DELETE FROM schema_version WHERE version > 1";
    host.inside(|| Ok(Connection::open(DATABASE)?.execute_batch(old_tables)?))?;

    let planned = host
        .ok(["linksctl", "rollout", "--release", &next, "--dry-run"])?
        .stdout;
    ensure!(planned.contains("whose tables change from version 1 to 5"), "{planned}");
    let rolled = host.ok(["linksctl", "rollout", "--release", &next])?;
    let release = host.release_of(1)?;
    let copy = format!("/var/lib/links/backups/schema-1-before-{release}.db");
    ensure!(rolled.stdout.contains(&copy), "{rolled}");

    host.ok(["systemctl", "start", "links"])?;
    host.still_serves()?;
    assert_eq!((host.schema(DATABASE)?, host.schema(&copy)?), (5, 1));
    host.shorten("https://example.com/later")?;
    let again = host.ok(["linksctl", "rollout", "--force"])?;
    ensure!(!again.stdout.contains("copy the database"), "{again}");

    // While links is stopped, the copy can replace the database.
    host.ok(["systemctl", "stop", "links"])?;
    host.wait_until_stopped()?;
    host.shell(&format!(
        "rm -f {DATABASE}-wal {DATABASE}-shm && cp --preserve {copy} {DATABASE}"
    ))?;
    host.ok(["systemctl", "start", "links"])?;
    host.still_serves()
}

/// A host with a link that must not be lost.
struct HostWithLink {
    host: Host,
    link: Link,
}

impl std::ops::Deref for HostWithLink {
    type Target = Host;

    fn deref(&self) -> &Host {
        &self.host
    }
}

impl HostWithLink {
    fn new() -> Result<Self> {
        Self::on(Host::serving(env!("CARGO_BIN_EXE_broken-runtime"))?)
    }

    fn on(host: Host) -> Result<Self> {
        let link = host.shorten("https://example.com/precious")?;
        Ok(Self { host, link })
    }

    fn still_serves(&self) -> Result<()> {
        self.follow(&self.link)
    }

    /// Runs `act` under load. No request may fail, and no acknowledged link may be lost.
    fn under_load(&self, label: &str, act: impl FnOnce() -> Result<Output>) -> Result<Output> {
        let traffic = Traffic::start(&self.host, label)?;
        let output = traffic.during(label, act)?;
        traffic.finish(&self.host)?;
        Ok(output)
    }

    /// The schema version of a database.
    fn schema(&self, database: &str) -> Result<u32> {
        self.inside(|| {
            let database = Connection::open_with_flags(database, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
            Ok(database.query_row("SELECT max(version) FROM schema_version", [], |row| row.get(0))?)
        })
    }

    fn release_of(&self, instance: u16) -> Result<String> {
        let link = format!("/var/lib/links/instances/{instance}");
        let target = self.host.ok(["readlink", &link])?.stdout;
        Ok(target.trim().trim_start_matches("../releases/").to_owned())
    }
}

fn events(output: &Output) -> Result<Vec<Value>> {
    let lines = output.stdout.lines().map(serde_json::from_str);
    Ok(lines.collect::<Result<_, _>>()?)
}

#[test]
fn a_failed_upgrade_leaves_the_old_release_serving_and_a_retry_works() -> Result<()> {
    let host = HostWithLink::on(Host::released(env!("CARGO_BIN_EXE_broken-runtime"))?)?;
    let old = host.release_of(1)?;
    let broken = host.deb("9.9.8", Some(Fault::Exits))?;
    let failed = host.under_load("broken", || host.run(["apt-get", "--yes", "install", &broken]))?;
    assert_ne!(failed.status, 0, "{failed}");
    let output = failed.stdout + &failed.stderr;
    ensure!(
        output.contains("every instance is back on what it ran before"),
        "{output}"
    );
    ensure!(output.contains("the runtime exited with status"), "{output}");
    assert_eq!(host.package_state()?, "half-configured");
    assert_eq!([host.release_of(1)?, host.release_of(2)?], [old.clone(), old.clone()]);
    host.ok(["linksctl", "status"])?;

    // Here the cause lies outside the package. Once it is gone, the same package installs.
    let next = host.deb("9.9.9", None)?;
    let path = "/etc/links/links.toml";
    let good = host.read(path)?;
    host.write(path, "instnaces = 3\n")?;
    let failed = host.run(["apt-get", "--yes", "install", &next])?;
    assert_ne!(failed.status, 0, "{failed}");
    assert_eq!(host.package_state()?, "half-configured");
    assert_eq!([host.release_of(1)?, host.release_of(2)?], [old.clone(), old]);
    host.still_serves()?;
    host.write(path, good)?;
    host.under_load("retry", || host.ok(["dpkg", "--configure", "--pending"]))?;
    assert_eq!(host.package_state()?, "installed");
    host.wait_for_status("2/2 instances ready, release 9.9.9,")?;

    let postinst = "/var/lib/dpkg/info/links-shortener.postinst";
    for arguments in [
        "abort-upgrade 1",
        "abort-remove",
        "abort-deconfigure in-favour x 1",
        "configure 9.9.9",
    ] {
        host.shell(&format!("{postinst} {arguments}"))?;
    }
    host.ok(["linksctl", "status"])?;
    Ok(())
}
