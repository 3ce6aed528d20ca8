//! Failures on a host give a clear error, lose nothing, and leave no process behind.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use links_tests::load::Link;
use links_tests::servers::Squatter;
use links_tests::{Check, DEB, Host, eventually, wording};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// The URL of a link that must not be lost.
const PRECIOUS: &str = "https://example.com/precious";
/// EX_NOPERM of sysexits.h.
const NEEDS_ROOT: i32 = 77;
/// EX_CONFIG of sysexits.h.
const WRONG_CONFIGURATION: i32 = 78;

#[test]
fn a_wrong_configuration_is_refused_with_its_line_and_links_keeps_serving() -> Result<()> {
    let host = Host::builder().serving()?;
    let link = host.shorten(PRECIOUS)?;
    // The line, and the column where one is known, of the only error.
    let cases = [
        ("links.toml", "\ninstnaces = 3\n", (2, Some(1))),
        ("links.toml", "instances = \"three\"\n", (1, Some(13))),
        ("links.toml", "# one\n\ninstances = = 3\n", (3, Some(13))),
        (
            "runtime.toml",
            "[sqlite_database.default]\ntype = \"spin\"\npaht = \"x.db\"\n",
            (3, Some(1)),
        ),
        ("runtime.toml", "[sqlite_database.default]\ntype = 7\n", (2, Some(8))),
        ("runtime.toml", "[sqlite_database.default\n", (1, None)),
    ];
    for (file, text, (line, column)) in cases {
        let path = format!("/etc/links/{file}");
        let good = host.read(&path)?;
        host.write(&path, text)?;

        let check = Check::of(&host.run(["linksctl", "check", "--json"])?)?;
        assert_eq!(check.status, WRONG_CONFIGURATION, "{check:?}");
        let errors = check.findings.iter().filter(|finding| finding.severity == "error");
        let [error] = errors.collect::<Vec<_>>()[..] else {
            bail!("one error is expected: {check:?}");
        };
        assert!(
            error.file == path && error.line == Some(line) && (column.is_none() || error.column == column),
            "{path}:{line}:{column:?} in {check:?}"
        );
        let place = match column {
            Some(column) => format!("{path}:{line}:{column}: "),
            None => format!("{path}:{line}:"),
        };
        for command in ["configure", "rollout"] {
            let refused = host.run(["linksctl", command])?;
            assert_eq!(refused.status, WRONG_CONFIGURATION, "{refused}");
            assert!(refused.stderr.contains(&place), "{place:?} in {refused}");
        }
        host.follow(&link)?;

        // A typing error is reported with the key that was meant.
        if text.contains("instnaces") {
            assert!(check.has_finding("error", &["`instances`"]), "{check:?}");
        }

        // A restart in the middle of an edit uses the configuration that was applied last.
        host.ok(["systemctl", "restart", "links@1"])?;
        host.follow(&link)?;
        host.write(&path, good)?;
        recovers(&host, &link)?;
    }
    Ok(())
}

/// People take LimitAS= for a limit on memory, but it limits addresses (systemd.exec(5)).
#[test]
fn too_little_address_space_fails_the_installation_with_that_reason_and_39_bits_are_enough() -> Result<()> {
    let host = Host::builder().uninstalled()?;
    if host.runtime()?.is_spin() {
        // The size of its pool is fixed.
        return Ok(());
    }
    let limit = |bytes: u64| -> Result<()> {
        let drop_in = "/etc/systemd/system/links@.service.d/limit.conf";
        host.write(drop_in, format!("[Service]\nLimitAS={bytes}\n"))?;
        host.ok(["systemctl", "daemon-reload"]).map(drop)
    };
    limit(16 << 30)?;
    let refused = host.run(["apt-get", "--yes", "install", DEB])?;
    ensure!(
        refused.status != 0 && refused.printed().contains("LimitAS="),
        "{refused}"
    );
    assert_eq!(host.package_state()?, "half-configured");

    limit(1 << 39)?;
    host.ok(["dpkg", "--configure", "--pending"])?;
    host.wait_for_rotation(2)?;
    host.follow(&host.shorten(PRECIOUS)?)?;
    let journal = host.journal("links@1")?;
    ensure!(journal.contains(wording::FEWER_INSTANCES), "{journal}");
    Ok(())
}

#[test]
fn the_journal_names_an_endpoint_in_use() -> Result<()> {
    let host = Host::builder().serving()?;
    let link = host.shorten(PRECIOUS)?;
    let endpoint = host.first_endpoint()?;
    host.ok(["systemctl", "stop", "links@1"])?;
    let squatter = Squatter::take(&host, endpoint, "links")?;
    restart_fails(&host, &[endpoint, squatter.ss()])?;
    host.follow(&link)?;
    squatter.leave()?;
    recovers(&host, &link)
}

#[test]
fn the_journal_names_a_read_only_database_directory() -> Result<()> {
    let host = Host::builder().serving()?;
    let link = host.shorten(PRECIOUS)?;
    let data = "/var/lib/links/data";
    host.shell(&format!("mount --bind {data} {data}; mount -o remount,bind,ro {data}"))?;
    restart_fails(&host, &[data, &format!("`findmnt -T {data}`")])?;
    // Sandboxes that were created meanwhile hold the mount as long as they exist, so only a lazy unmount succeeds.
    host.ok(["umount", "--lazy", data])?;
    recovers(&host, &link)
}

/// A unit that starts before links and discards everything that was not synced.
const POWER_CUT: &str = "[Unit]
Before=links-recover.service links.service links@1.service
[Service]
Type=oneshot
ExecStart=bash -euc 'cd /var/lib/links/data; for file in *.durable; do mv $file $$(basename $file .durable); done; rm -f links.db-shm'
[Install]
WantedBy=multi-user.target
";

#[test]
fn no_acknowledged_link_is_lost_when_syncs_fail_before_a_power_failure() -> Result<()> {
    let mut host = Host::builder().serving()?;
    host.ok(["linksctl", "scale", "1"])?;
    let library = std::fs::read(links_tests::power_cut()?)?;
    host.write("/usr/lib/links-power-cut.so", library)?;
    host.write("/etc/systemd/system/power-cut.service", POWER_CUT)?;
    host.write(
        "/etc/systemd/system/links@.service.d/power-cut.conf",
        "[Service]\nEnvironment=LD_PRELOAD=/usr/lib/links-power-cut.so\n",
    )?;
    host.shell("systemctl daemon-reload; systemctl enable power-cut.service; systemctl restart links@1.service")?;
    let data = "/var/lib/links/data";
    let mut acknowledged = vec![];
    for round in 0..4 {
        for number in 0..20 {
            acknowledged.push(host.shorten(&format!("https://example.com/{round}/{number}"))?);
        }
        // Syncs fail for a moment, or for so long that the process may exit.
        let attempts = [1, 3, 10, 1][round];
        host.ok(["touch", &format!("{data}/sync-fails")])?;
        let site = host.site()?;
        for number in 0..attempts {
            let url = format!("https://example.com/{round}/{number}/fails");
            let answer = site.post("/shorten", serde_json::json!({ "url": url }))?;
            ensure!(
                answer.status.is_server_error(),
                "acknowledged although syncs fail: {answer}"
            );
        }
        host.ok(["rm", &format!("{data}/sync-fails")])?;
        eventually("links are created again", Duration::from_secs(60), || {
            let answer = site.post("/shorten", r#"{"url": "https://example.com/again"}"#)?;
            Ok((answer.status == 200).then_some(()))
        })?;
    }
    for number in 0..20 {
        acknowledged.push(host.shorten(&format!("https://example.com/last/{number}"))?);
    }
    let kept = host.shell(&format!("ls {data}"))?.stdout;
    ensure!(
        kept.contains("links.db-wal.durable"),
        "there is no copy of the synced state: {kept}"
    );

    host.crash()?;
    host.wait_for_rotation(1)?;
    let cut = host.ok([
        "systemctl",
        "show",
        "--property=Result,ExecMainStatus",
        "power-cut.service",
    ])?;
    ensure!(cut.stdout.contains("ExecMainStatus=0"), "{cut}");
    for link in &acknowledged {
        host.follow(link)?;
    }
    Ok(())
}

#[test]
fn the_journal_names_a_damaged_file_and_the_other_instance_serves() -> Result<()> {
    let host = Host::builder().serving()?;
    let link = host.shorten(PRECIOUS)?;
    let release = release_of_instance_1(&host)?;
    let manifest = manifest(&host, &release)?;
    for file in [
        "components/redirect.wasm",
        "components/api.wasm",
        manifest["runtime"]["path"].as_str().context("runtime.path")?,
    ] {
        let path = format!("{release}/{file}");
        let kept = format!("{path}.kept");
        host.ok(["cp", "--preserve", &path, &kept])?;

        host.ok(["rm", &path])?;
        restart_fails(&host, &[&path])?;
        host.follow(&link)?;

        host.shell(&format!("tr '\\0' '\\1' <{kept} >{path}; chmod 755 {path}"))?;
        restart_fails(&host, &[&wording::damaged(&path)])?;
        host.follow(&link)?;

        host.ok(["mv", &kept, &path])?;
        recovers(&host, &link)?;
    }
    Ok(())
}

#[test]
fn a_runtime_of_another_version_is_refused() -> Result<()> {
    let host = Host::builder().serving()?;
    let link = host.shorten(PRECIOUS)?;
    let good = release_of_instance_1(&host)?;
    let mut manifest = manifest(&host, &good)?;
    manifest["runtime"]["version"] = "0.0.9".into();
    run_another_release(&host, &good, &manifest)?;
    restart_fails(&host, &["0.0.9`"])?;
    host.follow(&link)?;
    run_release(&host, &good)?;
    recovers(&host, &link)
}

#[test]
fn a_runtime_that_exits_at_once_is_logged_with_its_status() -> Result<()> {
    let host = Host::builder().serving()?;
    let link = host.shorten(PRECIOUS)?;
    let good = release_of_instance_1(&host)?;
    let mut manifest = manifest(&host, &good)?;
    let app = manifest["app"].as_str().context("app")?.to_owned();
    let nonsense = "spin_manifest_version = 99\n";
    manifest["files"][&app]["size"] = nonsense.len().into();
    manifest["files"][&app]["sha256"] = sha256(nonsense).into();
    let bad = run_another_release(&host, &good, &manifest)?;
    host.write(&format!("{bad}/{app}"), nonsense)?;

    let exited = "exited with status ";
    let logged = restart_fails(&host, &[exited])?;
    let mut statuses = logged.split(exited).skip(1);
    ensure!(
        statuses.any(|rest| rest.starts_with(|character: char| matches!(character, '1'..='9'))),
        "no exit status of a failure in:\n{logged}"
    );
    host.follow(&link)?;
    run_release(&host, &good)?;
    recovers(&host, &link)
}

#[test]
fn a_second_supervisor_of_an_instance_is_refused() -> Result<()> {
    let host = Host::builder().serving()?;
    let link = host.shorten(PRECIOUS)?;
    let before = host.processes()?;
    let first = format!("process {}", host.main_pid("links@1")?);
    let second = host.run(["linksctl", "run", "1"])?;
    assert_eq!(second.status, 1, "{second}");
    assert!(
        second.stderr.contains(&first),
        "the error should name {first}: {second}"
    );
    assert_eq!(host.processes()?, before);
    host.wait_for_rotation(2)?;
    host.follow(&link)
}

#[test]
fn policy_rc_d_keeps_the_installation_from_starting_links() -> Result<()> {
    let host = Host::builder().uninstalled()?;
    host.write("/usr/sbin/policy-rc.d", "#!/bin/sh\nexit 101\n")?;
    host.ok(["chmod", "755", "/usr/sbin/policy-rc.d"])?;

    let output = host.apt_install()?;
    assert!(output.contains("`systemctl start links.service`"), "{output}");
    assert_eq!(host.processes()?, "");
    assert_eq!(host.run(["systemctl", "is-enabled", "links"])?.stdout, "enabled\n");

    host.ok(["systemctl", "start", "links"])?;
    host.wait_for_rotation(2)?;
    assert!(output.contains("`systemctl reload nginx`"), "{output}");
    host.reload_nginx()?;
    host.follow(&host.shorten("https://example.com/allowed")?)
}

#[test]
fn an_installation_that_a_full_disk_stopped_can_be_completed() -> Result<()> {
    // The release does not fit into the store.
    let host = Host::builder().disk("/var/lib/links", 1 << 20).uninstalled()?;
    let failed = host.run(["apt-get", "--yes", "install", DEB])?;
    assert_ne!(failed.status, 0, "{failed}");
    assert!(
        (failed.stdout + &failed.stderr).contains("No space left on device"),
        "the error should name the full disk"
    );
    assert_eq!(
        host.ok(["find", "/var/lib/links/releases", "-mindepth", "1"])?.stdout,
        "",
        "the store should have no partial release"
    );
    assert_eq!(host.processes()?, "");
    let page = host.http().get("/")?;
    assert!(page.text().contains("Welcome to nginx"), "{page}");

    host.ok(["umount", "/var/lib/links"])?;
    host.ok(["dpkg", "--configure", "--pending"])?;
    host.wait_for_rotation(2)?;
    host.follow(&host.shorten("https://example.com/room")?)
}

#[test]
fn an_ordinary_user_is_asked_to_use_sudo() -> Result<()> {
    let host = Host::builder().serving()?;
    let link = host.shorten(PRECIOUS)?;
    let commands: [&[&str]; 8] = [
        &["token"],
        &["token", "--rotate"],
        &["configure"],
        &["deconfigure"],
        &["rollout"],
        &["rollback"],
        &["restart"],
        &["scale", "3"],
    ];
    for command in commands {
        let line = [&["runuser", "-u", "nobody", "--", "linksctl"], command].concat();
        let output = host.run(line)?;
        assert_eq!(output.status, NEEDS_ROOT, "{command:?}: {output}");
        assert!(output.stderr.contains("sudo"), "{command:?}: {output}");
        assert_eq!(output.stdout, "");
    }
    host.follow(&link)
}

/// Fails unless a restart of instance 1 fails, its journal then contains all of `expected`, and no process of it is left.
/// Returns what it has logged.
fn restart_fails(host: &Host, expected: &[&str]) -> Result<String> {
    let logged_before = host.journal("links@1")?.len();
    let restart = host.run(["systemctl", "restart", "links@1"])?;
    ensure!(restart.status != 0, "links@1 should not have started");
    // systemd may be waiting for the next attempt.
    host.ok(["systemctl", "stop", "links@1"])?;
    let journal = host.journal("links@1")?;
    let logged = &journal[logged_before..];
    for expected in expected {
        ensure!(
            logged.contains(expected),
            "{expected:?} should be in the journal of links@1:\n{logged}"
        );
    }
    let left = host
        .run(["systemctl", "show", "--property=MainPID,ControlGroup", "links@1"])?
        .stdout;
    ensure!(
        left == "MainPID=0\nControlGroup=\n",
        "links@1 should have no process: {left}"
    );
    ensure!(
        !host.exists("/run/links/ready/1")?,
        "instance 1 should be out of rotation"
    );
    Ok(logged.to_owned())
}

/// Starts instance 1 again, after its failed starts, and follows the link.
fn recovers(host: &Host, link: &Link) -> Result<()> {
    // Failed starts count against the start limit of the unit.
    host.ok(["systemctl", "reset-failed", "links@1"])?;
    host.ok(["systemctl", "start", "links@1"])?;
    host.wait_for_rotation(2)?;
    host.follow(link)
}

/// The directory of the release that instance 1 runs.
fn release_of_instance_1(host: &Host) -> Result<String> {
    let release = host.ok(["readlink", "-f", "/var/lib/links/instances/1"])?.stdout;
    Ok(release.trim().to_owned())
}

fn manifest(host: &Host, release: &str) -> Result<Value> {
    Ok(serde_json::from_str(&host.read(&format!("{release}/manifest.json"))?)?)
}

/// Points instance 1 to a copy of `release` with another manifest. Returns the path of the copy.
fn run_another_release(host: &Host, release: &str, manifest: &Value) -> Result<String> {
    let bad = format!("{release}-bad");
    host.ok(["cp", "--archive", release, &bad])?;
    host.write(&format!("{bad}/manifest.json"), manifest.to_string())?;
    run_release(host, &bad)?;
    Ok(bad)
}

fn run_release(host: &Host, release: &str) -> Result<()> {
    host.ok(["ln", "-sfn", release, "/var/lib/links/instances/1"])?;
    Ok(())
}

fn sha256(text: &str) -> String {
    Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}
