//! The lab itself: what the other tests rely on.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use links_tests::http::Failure;
use links_tests::load::{Connections, Load, Outcome, verify_all};
use links_tests::{Host, Suite, eventually};

#[test]
fn a_host_runs_the_debian_that_it_is_built_for() -> Result<()> {
    let default = Suite::of_environment()?;
    let builder = Host::builder().without_nginx();
    for (suite, builder) in [
        (default, builder.clone()),
        (default.other(), builder.suite(default.other())),
    ] {
        let host = builder.debian()?;
        let version = host.read("/etc/debian_version")?;
        assert!(
            version.starts_with(&format!("{}.", suite.version())),
            "{suite}: {version}"
        );
    }
    Ok(())
}

#[test]
fn a_command_runs_inside_and_its_outcome_is_returned() -> Result<()> {
    let host = Host::builder().without_nginx().debian()?;

    assert_eq!(host.ok(["cat", "/proc/1/comm"])?.stdout, "systemd\n");
    assert_eq!(host.ok(["hostname"])?.stdout, "links-lab\n");
    assert_eq!(host.shell("ls /sys/class/net")?.stdout, "lo\n");

    let failing = host.run(["bash", "-c", "echo out; echo err >&2; exit 7"])?;
    assert_eq!(
        (failing.status, &*failing.stdout, &*failing.stderr),
        (7, "out\n", "err\n")
    );

    let error = host.ok(["ls", "/nowhere"]).unwrap_err().to_string();
    assert!(error.contains("`ls /nowhere` failed: exit status 2"), "{error}");
    assert!(error.contains("No such file or directory"), "{error}");

    let begin = Instant::now();
    let error = host
        .run_within(Duration::from_secs(1), ["sleep", "100"])
        .unwrap_err()
        .to_string();
    assert!(error.contains("`sleep 100` did not end within 1s"), "{error}");
    assert!(begin.elapsed() < Duration::from_secs(10));
    assert_eq!(
        host.run(["pgrep", "sleep"])?.stdout,
        "",
        "the command should have been ended inside"
    );
    Ok(())
}

#[test]
fn files_are_written_and_read_inside_and_never_reach_this_computer() -> Result<()> {
    let host = Host::builder().without_nginx().debian()?;

    host.write("/srv/new/directory/file", "text")?;
    assert_eq!(host.read("/srv/new/directory/file")?, "text");
    assert_eq!(
        host.shell("stat -c '%a %U' /srv/new/directory/file")?.stdout,
        "644 root\n"
    );

    // The target of an absolute link is below the root of the host.
    host.ok(["ln", "-s", "/etc/hostname-of-nobody", "/srv/link"])?;
    host.write("/srv/link", "inside")?;
    assert_eq!(host.read("/etc/hostname-of-nobody")?, "inside");
    assert!(!fs::exists("/etc/hostname-of-nobody")?);

    host.copy_in("/usr/bin/true".as_ref(), "/srv/bin/truth")?;
    host.ok(["/srv/bin/truth"])?;

    host.ok(["ln", "-s", "/nowhere", "/srv/dangling"])?;
    assert!(host.exists("/srv/dangling")?);
    assert!(!host.exists("/srv/nothing")?);
    Ok(())
}

#[test]
fn a_sandboxed_unit_gets_its_credentials_and_directories() -> Result<()> {
    let host = Host::builder().without_nginx().debian()?;
    host.write("/srv/trial/run", include_str!("trial/run"))?;
    host.write(
        "/etc/systemd/system/trial@.service",
        include_str!("trial/trial@.service"),
    )?;
    host.write("/etc/trial/credentials/token", "secret")?;
    host.shell("chmod 700 /etc/trial/credentials; chmod 600 /etc/trial/credentials/token; useradd --system trial")?;

    host.ok(["systemctl", "daemon-reload"])?;
    host.ok(["systemctl", "start", "trial@1"])?;

    let status = host.ok(["systemctl", "status", "trial@1"])?.stdout;
    assert!(status.contains("Active: active (running)"), "{status}");
    assert!(status.contains("Status: \"ready as instance 1\""), "{status}");
    let journal = host.journal("trial@1")?;
    assert!(journal.contains("credential: secret\n"), "{journal}");
    // From version 256 on, systemd gives the user the right to read by an access control list.
    let mode = match host.suite() {
        Suite::Bookworm => "400 trial",
        Suite::Trixie => "440 root",
    };
    assert!(journal.contains(&format!("credential mode: {mode}\n")), "{journal}");
    assert!(journal.contains("runtime directory mode: 700 trial\n"), "{journal}");
    assert!(journal.contains("cache directory: /var/cache/trial\n"), "{journal}");
    Ok(())
}

#[test]
fn the_client_reaches_servers_inside() -> Result<()> {
    let host = Host::builder().debian()?;
    let page = host.http().get("/")?;
    assert_eq!((page.status.as_u16(), page.header("content-type")), (200, "text/html"));
    assert!(page.text().contains("Welcome to nginx"), "{page}");
    assert_eq!(host.http().head("/")?.body.len(), 0);
    assert_eq!(host.http().get("/nothing")?.status, 404);
    assert!(matches!(host.http_at(9).get("/"), Err(Failure::Refused)));

    host.write("/etc/nginx/conf.d/trial.conf", include_str!("trial/nginx.conf"))?;
    host.ok(["systemctl", "restart", "nginx"])?;
    let trial = host.http_at(8080).header("x-trial", "one");
    assert_eq!(trial.get("/redirect")?.header("location"), "https://example.com/one");
    assert_eq!(
        trial.post("/mirror", r#"{"a": 1}"#)?.text(),
        "POST application/json 8 links.example"
    );
    assert!(matches!(trial.get("/close"), Err(Failure::Reset)));
    let impatient = trial.deadline(Duration::from_millis(300));
    assert!(matches!(impatient.get("/never"), Err(Failure::TimedOut(_))));

    let mut connection = host.http_at(8080).connect()?;
    let first = connection.get("/connection")?.text();
    assert_eq!(
        connection.get("/connection")?.text(),
        first,
        "both requests should use one connection"
    );
    assert_ne!(
        host.http_at(8080).get("/connection")?.text(),
        first,
        "another client should get another connection"
    );
    Ok(())
}

#[test]
fn the_load_reports_every_outcome_and_every_lost_link() -> Result<()> {
    let host = Host::builder().debian()?;
    host.write("/etc/nginx/conf.d/load.conf", include_str!("trial/load.conf"))?;
    host.ok(["systemctl", "restart", "nginx"])?;
    let second = Duration::from_secs(1);

    for connections in [Connections::KeptAlive, Connections::Fresh, Connections::Both] {
        let load = Load::through([host.http_at(8090)]).workers(3).connections(connections);
        let report = load.run(second)?;
        assert_eq!(report.failed(), 0, "{report}");
        assert!(report.acknowledged.len() > 100, "{report}");
        assert_eq!(report.requests(), report.acknowledged.len() as u64, "{report}");

        let mut lost = verify_all(&host.http_at(8090), &report.acknowledged)?;
        assert_eq!(
            lost.len(),
            report.acknowledged.len() - 1,
            "all links but one should be lost"
        );
        assert_eq!(lost.pop().unwrap().found, "302 https://load.example/load/0/3");
    }

    let refusing = Load::through([host.http_at(8091)]).run(second)?;
    assert!(refusing.of(Outcome::Status(503)) > 10, "{refusing}");

    let cut = Load::through([host.http_at(8090), host.http_at(8090)]).start();
    host.ok(["systemctl", "kill", "--signal=KILL", "nginx"])?;
    eventually("requests fail", Duration::from_secs(10), || {
        Ok((cut.failed() > 0).then_some(()))
    })?;
    let cut = cut.stop()?;
    assert!(cut.failed() > 0, "{cut}");
    assert_eq!(cut.failed(), cut.of(Outcome::Refused) + cut.of(Outcome::Reset), "{cut}");
    Ok(())
}

#[test]
fn apt_installs_nginx_without_a_network() -> Result<()> {
    let host = Host::builder().without_nginx().debian()?;
    assert!(!host.exists("/usr/sbin/nginx")?);
    host.ok(["apt-get", "--yes", "install", "nginx"])?;
    assert_eq!(host.http().get("/")?.status, 200);
    host.ok(["apt-get", "--yes", "purge", "nginx", "nginx-common"])?;
    host.ok(["apt", "--yes", "install", "nginx"])?;
    host.ok(["apt", "--yes", "reinstall", "nginx"])?;
    Ok(())
}

#[test]
fn files_survive_a_reboot_and_a_power_failure() -> Result<()> {
    let mut host = Host::builder().without_nginx().debian()?;
    let boot_id = |host: &Host| host.read("/proc/sys/kernel/random/boot_id");
    let first = boot_id(&host)?;
    host.write("/var/lib/kept", "kept")?;
    host.write("/run/lost", "lost")?;

    host.crash()?;
    let second = boot_id(&host)?;
    assert_ne!(first, second);
    assert_eq!(host.read("/var/lib/kept")?, "kept");
    assert!(!host.exists("/run/lost")?);

    host.reboot()?;
    assert_ne!(second, boot_id(&host)?);
    assert_eq!(host.read("/var/lib/kept")?, "kept");

    host.shutdown()?;
    assert!(host.run(["true"]).unwrap_err().to_string().contains("shut down"));
    Ok(())
}

#[test]
fn a_dropped_host_leaves_nothing_behind() -> Result<()> {
    let host = Host::builder().without_nginx().debian()?;
    host.shell("setsid sleep 1000 >/dev/null 2>&1 </dev/null & systemd-run --quiet sleep 1000")?;
    let traces = Traces::of(&host)?;
    assert!(traces.processes()?.len() > 5, "{:?}", traces.processes()?);
    assert!(fs::exists(&traces.directory)?);
    assert!(fs::exists(&traces.cgroup)?);

    drop(host);
    assert_eq!(traces.processes()?, Vec::<u32>::new());
    assert!(!fs::exists(&traces.directory)?);
    assert!(!fs::exists(&traces.cgroup)?);
    Ok(())
}

#[test]
fn a_host_leaves_nothing_behind_when_its_test_is_killed() -> Result<()> {
    const NAME: &str = "lab::a_host_leaves_nothing_behind_when_its_test_is_killed";
    const VICTIM: &str = "LINKS_LAB_VICTIM";
    if std::env::var_os(VICTIM).is_some() {
        let host = Host::builder().without_nginx().debian()?;
        let traces = Traces::of(&host)?;
        println!("\ntraces {} {}", traces.directory, traces.cgroup);
        std::io::stdin().read_to_end(&mut Vec::new())?;
        return Ok(());
    }

    let mut victim = Command::new(std::env::current_exe()?)
        .args(["--exact", NAME, "--nocapture"])
        .env(VICTIM, "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let lines = BufReader::new(victim.stdout.take().unwrap()).lines();
    let line = lines.map_while(Result::ok).find(|line| line.starts_with("traces "));
    let words: Vec<_> = line.as_deref().unwrap_or_default().split(' ').collect();
    let [_, directory, cgroup] = words[..] else {
        anyhow::bail!("the victim did not boot: {:?}", victim.wait_with_output()?);
    };
    let traces = Traces {
        directory: directory.to_owned(),
        cgroup: cgroup.to_owned(),
    };
    assert!(!traces.processes()?.is_empty());

    victim.kill()?;
    victim.wait()?;
    eventually("the processes of the host end", Duration::from_secs(10), || {
        Ok(traces.processes()?.is_empty().then_some(()))
    })?;
    // The next machine removes the files.
    drop(Host::builder().without_nginx().debian()?);
    assert!(!fs::exists(&traces.directory)?);
    assert!(!fs::exists(&traces.cgroup)?);
    Ok(())
}

/// Where a host is visible on this computer.
struct Traces {
    directory: String,
    cgroup: String,
}

impl Traces {
    fn of(host: &Host) -> Result<Self> {
        let upper = host.ok(["findmnt", "--noheadings", "--output=OPTIONS", "/"])?.stdout;
        let upper = upper.split("upperdir=").nth(1).and_then(|rest| rest.split(',').next());
        let directory = upper
            .and_then(|upper| upper.strip_suffix("/upper"))
            .context("the root is not an overlay")?;
        let name = directory.rsplit('/').next().unwrap_or_default();
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        let cgroup = mounts
            .lines()
            .find(|line| line.contains(" cgroup2 "))
            .and_then(|line| line.split(' ').nth(1));
        Ok(Self {
            directory: directory.to_owned(),
            cgroup: format!("{}/links-lab-{name}", cgroup.context("cgroup2 is not mounted")?),
        })
    }

    /// The processes that have the file system of the host mounted.
    fn processes(&self) -> Result<Vec<u32>> {
        let mut found = Vec::new();
        for process in fs::read_dir("/proc")? {
            let process = process?;
            let Ok(pid) = process.file_name().to_string_lossy().parse() else {
                continue;
            };
            // The process may have ended since.
            let mounts = fs::read_to_string(process.path().join("mountinfo")).unwrap_or_default();
            if mounts.contains(&self.directory) {
                found.push(pid);
            }
        }
        Ok(found)
    }
}
