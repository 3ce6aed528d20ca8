//! Rollouts, scaling, configuration changes and upgrades: no client notices them, whether they succeed or fail.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use links_store::schema::SCHEMA;
use links_tests::{DATABASE, Events, Fault, Host, LINKS_TOML, Output, RELEASED, Traffic, eventually, wording};
use rusqlite::Connection;
use serde_json::{Value, json};

/// The URL of a link that must not be lost.
const PRECIOUS: &str = "https://example.com/precious";

#[test]
fn a_rollout_and_a_rollback_change_the_release_and_no_request_fails() -> Result<()> {
    let host = Host::builder().serving()?;
    let old = host.chosen_release(1)?;
    let next = host.released_bundle()?;

    let rollout = ["linksctl", "rollout", "--json", "--release", &next];
    let rolled = under_load(&host, "rollout", || host.ok(rollout))?;
    ensure!(
        Events::of(&rolled)?.step("settle", 2).is_some(),
        "instance 2 should be watched after its restart: {rolled}"
    );
    let new = host.chosen_release(1)?;
    ensure!(
        new.starts_with(&format!("{RELEASED}-")) && host.chosen_release(2)? == new,
        "{new}"
    );
    host.wait_for_rotation(2)?;
    host.runs_version(RELEASED)?;
    host.wait_for_version_in_status(RELEASED)?;

    let again = host.ok(["linksctl", "rollout", "--json"])?;
    let planned = Events::of(&again)?;
    assert_eq!(planned.first("planned")?["instances"], json!([]), "{again}");

    let listed: Value = host.ok(["linksctl", "releases", "--json"])?.json()?;
    let listed = listed.as_array().context("a list of releases")?;
    let is_new = |release: &Value| {
        release["release"] == new && release["instances"] == json!([1, 2]) && release["current"] == true
    };
    let is_old =
        |release: &Value| release["release"] == old && release["previous"] == true && release["installed"] == true;
    ensure!(listed.iter().any(is_new) && listed.iter().any(is_old), "{listed:?}");
    under_load(&host, "rollback", || host.ok(["linksctl", "rollback"]))?;
    assert_eq!(chosen(&host)?, [old.clone(), old.clone()]);
    Ok(())
}

#[test]
fn scale_adds_and_removes_instances() -> Result<()> {
    let host = Host::builder().serving()?;
    let link = host.shorten(PRECIOUS)?;
    let toml = host.read(LINKS_TOML)?;
    for count in [5_u16, 3, 1, 2] {
        let scaled = under_load(&host, &format!("scale-{count}"), || {
            host.ok(["linksctl", "scale", &count.to_string()])
        })?;
        assert_eq!(host.in_rotation()?.len(), usize::from(count), "{scaled}");
        let site = host.read("/etc/nginx/sites-available/links")?;
        let pool = site
            .split("upstream links_all")
            .nth(1)
            .and_then(|rest| rest.split('}').next());
        let second_round = pool.unwrap_or_default().matches(" backup;").count();
        assert_eq!(second_round, usize::from(count));
        host.wait_for_rotation(count)?;
        host.wait_for_status(&format!("{count}/{count} "))?;
        host.follow(&link)?;
    }
    assert_eq!(host.read(LINKS_TOML)?, toml);
    let units = host.ok(["systemctl", "list-units", "--all", "--plain", "--no-legend", "links@*"])?;
    ensure!(!units.stdout.contains("failed"), "{units}");
    Ok(())
}

#[test]
fn a_configuration_takes_effect_when_it_is_applied() -> Result<()> {
    let host = Host::builder().serving()?;
    let config = |instance: u16| host.ok(["readlink", &format!("/var/lib/links/instances/{instance}.config")]);
    let before = config(1)?.stdout;
    let good = host.read(LINKS_TOML)?;

    // A restart in the middle of an edit uses the configuration that was applied last.
    host.write(LINKS_TOML, "instnaces = 3\n")?;
    host.ok(["systemctl", "restart", "links@1"])?;
    host.ok(["systemctl", "restart", "links"])?;
    let reload = host.run(["systemctl", "reload", "links"])?;
    assert_ne!(reload.status, 0);
    host.wait_for_rotation(2)?;
    assert_eq!(config(1)?.stdout, before);

    host.write(LINKS_TOML, format!("public_url = \"https://s.example\"\n{good}"))?;
    under_load(&host, "reload", || host.ok(["systemctl", "reload", "links"]))?;
    let reloaded = config(1)?.stdout;
    ensure!(reloaded != before && config(2)?.stdout == reloaded, "{reloaded}");

    // A restart of the service applies the configuration too, and never stops two instances at once.
    host.write(LINKS_TOML, &good)?;
    under_load(&host, "service", || host.ok(["systemctl", "restart", "links"]))?;
    assert_eq!([config(1)?.stdout, config(2)?.stdout], [before.clone(), before]);
    let kept = host.ok(["ls", "/var/lib/links/applied"])?.stdout;
    assert_eq!(kept.lines().count(), 1, "{kept}");
    Ok(())
}

#[test]
fn a_second_rollout_is_refused_and_an_interrupted_one_is_undone() -> Result<()> {
    let mut host = Host::builder().serving()?;
    let link = host.shorten(PRECIOUS)?;
    let old = host.chosen_release(1)?;
    let next = host.released_bundle()?;
    let rollout =
        format!("linksctl rollout --release {next} >/var/tmp/rollout.log 2>&1; echo $? >/var/tmp/rollout.status");
    let start = |host: &Host| -> Result<String> {
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
            Ok((host.chosen_release(1)? != old).then_some(()))
        })?;
        // `--oldest` excludes its children, which have the same command line until they call exec.
        Ok(host
            .ok(["pgrep", "--oldest", "--full", "^linksctl rollout"])?
            .stdout
            .trim()
            .to_owned())
    };

    let pid = start(&host)?;
    // The number of a process, and its command.
    let holder = |pid: &str| format!(" {pid} (`linksctl rollout");
    let second = host.run(["linksctl", "rollout"])?;
    assert_eq!(second.status, 1, "{second}");
    ensure!(
        second.stderr.contains(&holder(&pid)),
        "the error should name the process that is at work: {second}"
    );
    ensure!(
        unfinished(&host)?.is_some_and(|rollout| rollout.contains(&holder(&pid))),
        "the status should name the process that is at work"
    );
    host.ok(["kill", "-INT", &pid])?;
    eventually("the rollout has ended", Duration::from_secs(60), || {
        Ok(host.exists("/var/tmp/rollout.status")?.then_some(()))
    })?;
    let log = host.read("/var/tmp/rollout.log")?;
    assert_eq!(host.read("/var/tmp/rollout.status")?.trim(), "130", "{log}");
    ensure!(log.contains(wording::UNDONE), "{log}");
    assert_eq!(chosen(&host)?, [old.clone(), old.clone()]);
    host.wait_for_rotation(2)?;
    host.follow(&link)?;

    // After a kill, the next command undoes the rollout.
    let pid = start(&host)?;
    host.ok(["kill", "-KILL", &pid])?;
    eventually("status reports the interruption", Duration::from_secs(10), || {
        let is_interrupted =
            |rollout: String| rollout.contains("`linksctl rollout`") && !rollout.contains(&holder(&pid));
        Ok(unfinished(&host)?.is_some_and(is_interrupted).then_some(()))
    })?;
    let recovery = host.ok(["linksctl", "rollout", "--json"])?;
    Events::of(&recovery)?.first("recovered")?;
    assert_eq!(chosen(&host)?, [old.clone(), old.clone()]);
    host.ok(["linksctl", "status"])?;

    // So does the boot after a power failure.
    start(&host)?;
    host.crash()?;
    host.wait_for_rotation(2)?;
    assert_eq!(chosen(&host)?, [old.clone(), old]);
    ensure!(
        !host.exists("/var/lib/links/rollout.json")?,
        "the journal should be gone"
    );
    host.follow(&link)
}

#[test]
fn a_rollout_does_not_start_a_stopped_service() -> Result<()> {
    let host = Host::builder().serving()?;
    let next = host.released_bundle()?;
    host.ok(["systemctl", "stop", "links"])?;
    host.ok(["linksctl", "rollout", "--release", &next])?;
    assert_eq!(host.processes()?, "");
    host.ok(["systemctl", "start", "links"])?;
    host.wait_for_rotation(2)?;
    host.runs_version(RELEASED)?;
    host.wait_for_version_in_status(RELEASED)
}

/// Replaces all tables by those of version 1, with the same links.
fn make_version_1(database: &Connection) -> Result<()> {
    let mut tables = database.prepare("SELECT name FROM sqlite_schema WHERE type = 'table'")?;
    let tables: Vec<String> = tables.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
    database.execute_batch("CREATE TEMP TABLE kept AS SELECT slug, url, created_at FROM links")?;
    for table in tables {
        database.execute_batch(&format!("DROP TABLE main.{table}"))?;
    }
    for statement in SCHEMA[0] {
        database.execute(statement, [])?;
    }
    Ok(database.execute_batch("INSERT INTO links (slug, url, created_at) SELECT * FROM kept")?)
}

#[test]
fn the_database_is_copied_before_its_schema_changes() -> Result<()> {
    let host = Host::builder().serving()?;
    let link = host.shorten(PRECIOUS)?;
    let next = host.bundle("9.9.9", None)?;
    host.ok(["systemctl", "stop", "links"])?;
    host.wait_until_stopped()?;
    host.change_database(DATABASE, make_version_1)?;

    let planned = host.ok(["linksctl", "rollout", "--json", "--release", &next, "--dry-run"])?;
    ensure!(Events::of(&planned)?.has_step("back_up"), "{planned}");
    let rolled = host.ok(["linksctl", "rollout", "--release", &next])?;
    let release = host.chosen_release(1)?;
    let copy = format!("/var/lib/links/backups/schema-1-before-{release}.db");
    ensure!(rolled.stdout.contains(&copy), "{rolled}");

    host.ok(["systemctl", "start", "links"])?;
    host.follow(&link)?;
    let newest = u32::try_from(SCHEMA.len())?;
    assert_eq!((host.schema(DATABASE)?, host.schema(&copy)?), (newest, 1));
    host.shorten("https://example.com/later")?;
    let again = host.ok(["linksctl", "rollout", "--json", "--force"])?;
    let again = Events::of(&again)?;
    ensure!(again.has_step("restart") && !again.has_step("back_up"), "{again:?}");

    // While links is stopped, the copy can replace the database.
    host.ok(["systemctl", "stop", "links"])?;
    host.wait_until_stopped()?;
    host.shell(&format!(
        "rm -f {DATABASE}-wal {DATABASE}-shm && cp --preserve {copy} {DATABASE}"
    ))?;
    host.ok(["systemctl", "start", "links"])?;
    host.follow(&link)
}

/// Runs `act` under load. No request may fail, and no acknowledged link may be lost.
fn under_load(host: &Host, label: &str, act: impl FnOnce() -> Result<Output>) -> Result<Output> {
    let traffic = Traffic::start(host, label)?;
    let output = traffic.during(label, act)?;
    traffic.finish(host)?;
    Ok(output)
}

/// The rollout that is running or was interrupted, by `linksctl status`.
fn unfinished(host: &Host) -> Result<Option<String>> {
    Ok(host.status()?["rollout"].as_str().map(str::to_owned))
}

/// The releases to which both instances are set.
fn chosen(host: &Host) -> Result<[String; 2]> {
    Ok([host.chosen_release(1)?, host.chosen_release(2)?])
}

#[test]
fn a_failed_upgrade_leaves_the_old_release_serving_and_a_retry_works() -> Result<()> {
    let host = Host::builder().first_release(RELEASED).serving()?;
    let link = host.shorten(PRECIOUS)?;
    let old = host.chosen_release(1)?;
    let broken = host.deb("9.9.8", Some(Fault::Exits))?;
    let failed = under_load(&host, "broken", || host.run(["apt-get", "--yes", "install", &broken]))?;
    assert_ne!(failed.status, 0, "{failed}");
    ensure!(
        failed.printed().contains("exited with status 3"),
        "the error should name the exit status of the runtime: {failed}"
    );
    ensure!(failed.printed().contains(wording::UNDONE), "{failed}");
    assert_eq!(host.package_state()?, "half-configured");
    assert_eq!(chosen(&host)?, [old.clone(), old.clone()]);
    host.ok(["linksctl", "status"])?;

    // Here the cause lies outside the package. Once it is gone, the same package installs.
    let next = host.deb("9.9.9", None)?;
    let good = host.read(LINKS_TOML)?;
    host.write(LINKS_TOML, "instnaces = 3\n")?;
    let failed = host.run(["apt-get", "--yes", "install", &next])?;
    assert_ne!(failed.status, 0, "{failed}");
    assert_eq!(host.package_state()?, "half-configured");
    assert_eq!(chosen(&host)?, [old.clone(), old]);
    host.follow(&link)?;
    host.write(LINKS_TOML, good)?;
    under_load(&host, "retry", || host.ok(["dpkg", "--configure", "--pending"]))?;
    assert_eq!(host.package_state()?, "installed");
    host.wait_for_rotation(2)?;
    host.runs_version("9.9.9")?;
    host.wait_for_version_in_status("9.9.9")?;

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
