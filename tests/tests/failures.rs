//! Failures on a host give a clear error, lose nothing, and leave no process behind.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use links_tests::load::Link;
use links_tests::{Appliance, DEB, Output, Tree, eventually};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// EX_NOPERM of sysexits.h.
const NEEDS_ROOT: i32 = 77;
/// EX_CONFIG of sysexits.h.
const WRONG_CONFIGURATION: i32 = 78;

#[test]
fn a_wrong_configuration_is_refused_with_its_line_and_links_keeps_serving() -> Result<()> {
    let host = Host::serving()?;
    let cases = [
        (
            "links.toml",
            "\ninstnaces = 3\n",
            ":2:1: unknown key `instnaces`; did you mean `instances`?",
        ),
        ("links.toml", "instances = \"three\"\n", ":1:13: "),
        ("links.toml", "# one\n\ninstances = = 3\n", ":3:13: "),
        (
            "runtime.toml",
            "[sqlite_database.default]\ntype = \"spin\"\npaht = \"x.db\"\n",
            ":3:1: ",
        ),
        ("runtime.toml", "[sqlite_database.default]\ntype = 7\n", ":2:8: "),
        ("runtime.toml", "[sqlite_database.default\n", ":1:"),
    ];
    for (file, text, expected) in cases {
        let path = format!("/etc/links/{file}");
        let good = host.appliance.read(&path)?;
        host.appliance.write(&path, text)?;
        let expected = format!("{path}{expected}");

        let check = host.appliance.run(["linksctl", "check"])?;
        assert_eq!(check.status, WRONG_CONFIGURATION, "{check}");
        assert!(check.stdout.contains(&expected), "{expected:?} in {check}");
        let configure = host.appliance.run(["linksctl", "configure"])?;
        assert_eq!(configure.status, WRONG_CONFIGURATION, "{configure}");
        assert!(configure.stderr.contains(&expected), "{expected:?} in {configure}");
        let rollout = host.appliance.run(["linksctl", "rollout"])?;
        assert_eq!(rollout.status, WRONG_CONFIGURATION, "{rollout}");
        assert!(rollout.stderr.contains(&expected), "{expected:?} in {rollout}");
        host.still_serves()?;

        // A restart in the middle of an edit uses the configuration that was applied last.
        host.appliance.ok(["systemctl", "restart", "links@1"])?;
        host.still_serves()?;
        host.appliance.write(&path, good)?;
        host.recovers()?;
    }
    Ok(())
}

#[test]
fn the_journal_names_an_endpoint_in_use() -> Result<()> {
    let host = Host::serving()?;
    let endpoint = host.appliance.first_endpoint()?;
    host.appliance.ok(["systemctl", "stop", "links@1"])?;
    // systemd itself listens on the socket.
    let squatter = [
        "systemd-run",
        "--unit=squatter",
        &format!("--socket-property=ListenStream={endpoint}"),
        "--socket-property=SocketUser=links",
        "cat",
    ];
    host.appliance.ok(squatter)?;
    host.restart_fails(&format!("{endpoint} is in use by another"))?;
    host.still_serves()?;
    host.appliance.ok(["systemctl", "stop", "squatter.socket"])?;
    host.recovers()
}

#[test]
fn the_journal_names_a_read_only_database_directory() -> Result<()> {
    let host = Host::serving()?;
    let data = "/var/lib/links/data";
    host.appliance
        .shell(&format!("mount --bind {data} {data}; mount -o remount,bind,ro {data}"))?;
    host.restart_fails("the database directory /var/lib/links/data has to be writable by user links")?;
    // Sandboxes that were created meanwhile hold the mount as long as they exist, so only a lazy unmount succeeds.
    host.appliance.ok(["umount", "--lazy", data])?;
    host.recovers()
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
    let mut appliance = Appliance::installed()?;
    appliance.ok(["linksctl", "scale", "1"])?;
    let library = std::fs::read(links_tests::power_cut()?)?;
    appliance.write("/usr/lib/links-power-cut.so", library)?;
    appliance.write("/etc/systemd/system/power-cut.service", POWER_CUT)?;
    appliance.write(
        "/etc/systemd/system/links@.service.d/power-cut.conf",
        "[Service]\nEnvironment=LD_PRELOAD=/usr/lib/links-power-cut.so\n",
    )?;
    appliance
        .shell("systemctl daemon-reload; systemctl enable power-cut.service; systemctl restart links@1.service")?;
    let data = "/var/lib/links/data";
    let mut acknowledged = vec![];
    for round in 0..4 {
        for number in 0..20 {
            acknowledged.push(appliance.shorten(&format!("https://example.com/{round}/{number}"))?);
        }
        // Syncs fail for a moment, or for so long that the process may exit.
        let attempts = [1, 3, 10, 1][round];
        appliance.ok(["touch", &format!("{data}/sync-fails")])?;
        let site = appliance.site()?;
        for number in 0..attempts {
            let url = format!("https://example.com/{round}/{number}/fails");
            let answer = site.post("/shorten", serde_json::json!({ "url": url }))?;
            ensure!(
                answer.status.is_server_error(),
                "acknowledged although syncs fail: {answer}"
            );
        }
        appliance.ok(["rm", &format!("{data}/sync-fails")])?;
        eventually("links are created again", Duration::from_secs(60), || {
            let answer = site.post("/shorten", r#"{"url": "https://example.com/again"}"#)?;
            Ok((answer.status == 200).then_some(()))
        })?;
    }
    for number in 0..20 {
        acknowledged.push(appliance.shorten(&format!("https://example.com/last/{number}"))?);
    }
    let kept = appliance.shell(&format!("ls {data}"))?.stdout;
    ensure!(
        kept.contains("links.db-wal.durable"),
        "there is no copy of the synced state: {kept}"
    );

    appliance.machine.kill_host()?;
    appliance.wait_for_rotation(1)?;
    let cut = appliance.ok([
        "systemctl",
        "show",
        "--property=Result,ExecMainStatus",
        "power-cut.service",
    ])?;
    ensure!(cut.stdout.contains("ExecMainStatus=0"), "{cut}");
    for link in &acknowledged {
        appliance.follow(link)?;
    }
    Ok(())
}

#[test]
fn the_journal_names_a_damaged_file_and_the_other_instance_serves() -> Result<()> {
    let host = Host::serving()?;
    let release = host.release_of_instance_1()?;
    for file in [
        "components/redirect.wasm",
        "components/api.wasm",
        &host.manifest(&release)?.runtime_path()?,
    ] {
        let path = format!("{release}/{file}");
        let kept = format!("{path}.kept");
        host.appliance.ok(["cp", "--preserve", &path, &kept])?;

        host.appliance.ok(["rm", &path])?;
        host.restart_fails(&path)?;
        host.still_serves()?;

        host.appliance
            .shell(&format!("tr '\\0' '\\1' <{kept} >{path}; chmod 755 {path}"))?;
        host.restart_fails(&format!("{path} differs from the manifest"))?;
        host.still_serves()?;

        host.appliance.ok(["mv", &kept, &path])?;
        host.recovers()?;
    }
    Ok(())
}

#[test]
fn a_runtime_of_another_version_is_refused() -> Result<()> {
    let host = Host::serving()?;
    let good = host.release_of_instance_1()?;
    let mut manifest = host.manifest(&good)?;
    manifest.0["runtime"]["version"] = "0.0.9".into();
    host.run_another_release(&good, &manifest)?;
    host.restart_fails("0.0.9`")?;
    host.still_serves()?;
    host.run_release(&good)?;
    host.recovers()
}

#[test]
fn a_runtime_that_exits_at_once_is_logged_with_its_status() -> Result<()> {
    let host = Host::serving()?;
    let good = host.release_of_instance_1()?;
    let mut manifest = host.manifest(&good)?;
    let app = manifest.0["app"].as_str().context("app")?.to_owned();
    let nonsense = "spin_manifest_version = 99\n";
    manifest.0["files"][&app]["size"] = nonsense.len().into();
    manifest.0["files"][&app]["sha256"] = sha256(nonsense).into();
    let bad = host.run_another_release(&good, &manifest)?;
    host.appliance.write(&format!("{bad}/{app}"), nonsense)?;

    host.restart_fails("instance 1: the runtime exited with status")?;
    host.still_serves()?;
    host.run_release(&good)?;
    host.recovers()
}

#[test]
fn a_second_supervisor_of_an_instance_is_refused() -> Result<()> {
    let host = Host::serving()?;
    let before = host.appliance.processes()?;
    let second = host.appliance.run(["linksctl", "run", "1"])?;
    assert_eq!(second.status, 1, "{second}");
    assert!(
        second.stderr.contains("instance 1 is already run by process"),
        "{second}"
    );
    assert_eq!(host.appliance.processes()?, before);
    host.appliance.wait_for_status("2/2 instances ready")?;
    host.still_serves()
}

#[test]
fn policy_rc_d_keeps_the_installation_from_starting_links() -> Result<()> {
    let appliance = Appliance::prepared(&Tree::with_nginx()?)?;
    appliance.write("/usr/sbin/policy-rc.d", "#!/bin/sh\nexit 101\n")?;
    appliance.ok(["chmod", "755", "/usr/sbin/policy-rc.d"])?;

    let output = appliance.apt_install()?;
    assert!(
        output.contains("not started, by policy: run `systemctl start links.service`"),
        "{output}"
    );
    assert_eq!(appliance.processes()?, "");
    assert_eq!(appliance.run(["systemctl", "is-enabled", "links"])?.stdout, "enabled\n");

    appliance.ok(["systemctl", "start", "links"])?;
    appliance.wait_for_status("2/2 instances ready")?;
    assert!(
        output.contains("nginx was not reloaded, by policy: `systemctl reload nginx`"),
        "{output}"
    );
    appliance.reload_nginx()?;
    appliance.follow(&appliance.shorten("https://example.com/allowed")?)
}

#[test]
fn an_installation_that_a_full_disk_stopped_can_be_completed() -> Result<()> {
    let appliance = Appliance::prepared(&Tree::with_nginx()?)?;
    // The release does not fit into the store.
    appliance.shell("mkdir /var/lib/links; mount -t tmpfs -o size=1m,mode=755 tmpfs /var/lib/links")?;
    let failed = appliance.run(["apt-get", "--yes", "install", DEB])?;
    assert_ne!(failed.status, 0, "{failed}");
    assert!(
        (failed.stdout + &failed.stderr).contains("No space left on device"),
        "the error should name the full disk"
    );
    assert_eq!(
        appliance
            .ok(["find", "/var/lib/links/releases", "-mindepth", "1"])?
            .stdout,
        "",
        "the store should have no partial release"
    );
    assert_eq!(appliance.processes()?, "");
    let page = appliance.http().get("/")?;
    assert!(page.text().contains("Welcome to nginx"), "{page}");

    appliance.ok(["umount", "/var/lib/links"])?;
    appliance.ok(["dpkg", "--configure", "--pending"])?;
    appliance.wait_for_status("2/2 instances ready")?;
    appliance.follow(&appliance.shorten("https://example.com/room")?)
}

#[test]
fn an_ordinary_user_is_asked_to_use_sudo() -> Result<()> {
    let host = Host::serving()?;
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
        let output = host.appliance.run(line)?;
        assert_eq!(output.status, NEEDS_ROOT, "{command:?}: {output}");
        assert!(
            output.stderr.contains("needs root") && output.stderr.contains("sudo"),
            "{command:?}: {output}"
        );
        assert_eq!(output.stdout, "");
    }
    host.still_serves()
}

/// A serving appliance with a link that must not be lost.
struct Host {
    appliance: Appliance,
    link: Link,
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

    /// Asserts that a restart of instance 1 fails, that its journal contains `expected`, and that no process of it is left.
    fn restart_fails(&self, expected: &str) -> Result<()> {
        let logged_before = self.appliance.journal("links@1")?.len();
        let restart: Output = self.appliance.run(["systemctl", "restart", "links@1"])?;
        ensure!(restart.status != 0, "links@1 should not have started");
        // systemd may be waiting for the next attempt.
        self.appliance.ok(["systemctl", "stop", "links@1"])?;
        let journal = self.appliance.journal("links@1")?;
        let logged = &journal[logged_before..];
        ensure!(
            logged.contains(expected),
            "{expected:?} should be in the journal of links@1:\n{logged}"
        );
        let left = self
            .appliance
            .run(["systemctl", "show", "--property=MainPID,ControlGroup", "links@1"])?
            .stdout;
        ensure!(
            left == "MainPID=0\nControlGroup=\n",
            "links@1 should have no process: {left}"
        );
        ensure!(
            !self.appliance.exists("/run/links/ready/1")?,
            "instance 1 should be out of rotation"
        );
        Ok(())
    }

    fn recovers(&self) -> Result<()> {
        // Failed starts count against the start limit of the unit.
        self.appliance.ok(["systemctl", "reset-failed", "links@1"])?;
        self.appliance.ok(["systemctl", "start", "links@1"])?;
        self.appliance.wait_for_status("2/2 instances ready")?;
        self.still_serves()
    }

    fn release_of_instance_1(&self) -> Result<String> {
        Ok(self
            .appliance
            .ok(["readlink", "-f", "/var/lib/links/instances/1"])?
            .stdout
            .trim()
            .to_owned())
    }

    fn manifest(&self, release: &str) -> Result<Manifest> {
        let text = self.appliance.read(&format!("{release}/manifest.json"))?;
        Ok(Manifest(serde_json::from_str(&text)?))
    }

    /// Points instance 1 to a copy of `release` with another manifest. Returns the path of the copy.
    fn run_another_release(&self, release: &str, manifest: &Manifest) -> Result<String> {
        let bad = format!("{release}-bad");
        self.appliance.ok(["cp", "--archive", release, &bad])?;
        self.appliance
            .write(&format!("{bad}/manifest.json"), manifest.0.to_string())?;
        self.run_release(&bad)?;
        Ok(bad)
    }

    fn run_release(&self, release: &str) -> Result<()> {
        self.appliance
            .ok(["ln", "-sfn", release, "/var/lib/links/instances/1"])?;
        Ok(())
    }
}

struct Manifest(Value);

impl Manifest {
    fn runtime_path(&self) -> Result<String> {
        Ok(self.0["runtime"]["path"].as_str().context("runtime.path")?.to_owned())
    }
}

fn sha256(text: &str) -> String {
    Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}
