//! The appliance on a Debian host, from `apt install` to `apt purge`.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use links_tests::load::{Link, Load, Mix, Outcome, verify_all};
use links_tests::{Artifacts, Builder, Host, UNPACKED, eventually};
use serde_json::Value;

const URL: &str = "https://example.com/a?b=c#d";

#[test]
fn apt_install_sets_up_nginx_and_the_first_link_redirects() -> Result<()> {
    apt_install_sets_up_nginx(Host::builder())
}

pub fn apt_install_sets_up_nginx(builder: Builder) -> Result<()> {
    let host = builder.without_nginx().uninstalled()?;
    let begin = Instant::now();
    let output = host.apt_install()?;
    let link = host.shorten(URL)?;
    host.follow(&link)?;
    println!(
        "from apt install to the first redirect: {:.1} s",
        begin.elapsed().as_secs_f64()
    );
    host.ok(["systemctl", "start", "links"])?;

    assert_eq!(host.http().head(&format!("/{}", link.slug))?.header("location"), URL);
    let unauthorized = host.http().post("/shorten", r#"{"url": "https://example.com"}"#)?;
    assert_eq!(unauthorized.status, 401, "{unauthorized}");
    // nginx does not expose the health check that the supervisor uses.
    assert_eq!(host.http().get("/.well-known/spin/health")?.status, 404);

    // The GET above counts as a bot, since its client sends no User-Agent. A HEAD request is not a click.
    eventually("the click is counted", Duration::from_secs(20), || {
        let stats: Value = host.ok(["linksctl", "stats", &link.slug, "--json"])?.json()?;
        let counted = (stats["clicks"].as_u64(), stats["bots"].as_u64());
        ensure!(counted.1 <= Some(1) && counted.0 == Some(0), "{stats}");
        Ok((counted.1 == Some(1)).then_some(()))
    })?;

    let token = host.token()?;
    assert!(
        token.len() >= 32 && !output.contains(&token),
        "the token has at least 32 characters, and the installation does not print it"
    );
    let modes = host.shell("stat -c '%a %U:%G %n' /etc/links/credentials{,/*}")?.stdout;
    assert_eq!(
        modes,
        "700 root:root /etc/links/credentials\n600 root:root /etc/links/credentials/admin_token\n"
    );
    Ok(())
}

/// These checks share one installation.
#[test]
fn an_installed_appliance_passes_its_checks_starts_at_boot_and_stops_on_request() -> Result<()> {
    passes_its_checks_starts_at_boot_and_stops_on_request(&mut Host::builder().serving()?)
}

/// `host` is one on which links serves.
pub fn passes_its_checks_starts_at_boot_and_stops_on_request(host: &mut Host) -> Result<()> {
    the_status_line_reports_what_runs(host).context("the status line")?;
    the_units_are_sound_and_sandboxed(host).context("the units")?;
    nginx_accepts_the_site_without_warnings(host).context("nginx")?;
    links_starts_at_boot_and_stops_on_request(host).context("boot and stop")
}

fn the_status_line_reports_what_runs(host: &Host) -> Result<()> {
    let runtime = host.runtime()?;
    let version = host
        .ok(["dpkg-query", "--show", "--showformat=${Version}", "links-shortener"])?
        .stdout;

    let line = host.wait_for_status("2/2")?;
    let expected = [
        format!("release {version},"),
        format!("{} {}", runtime.kind, runtime.version),
    ];
    for part in expected {
        assert!(line.contains(&part), "{part:?} in {line:?}");
    }
    let status = host.ok(["systemctl", "status", "links"])?.stdout;
    assert!(status.contains(&format!("Status: \"{line}\"")), "{status}");
    host.ok(["linksctl", "status"])?;
    // Spin's SQLite can lose commits when it checkpoints, so there the agent does it.
    let checkpoints = if runtime.is_spin() { "agent" } else { "runtime" };
    let mut report = Value::Null;
    eventually("the status reports the SQLite in use", Duration::from_secs(30), || {
        report = host.status()?;
        let sqlite = &report["sqlite"];
        let is_known = sqlite["version"]
            .as_str()
            .is_some_and(|version| version.starts_with("3."));
        Ok((is_known && sqlite["checkpoints"] == checkpoints && sqlite["warning"].is_null()).then_some(()))
    })
    .with_context(|| report.to_string())?;

    host.ok(["systemctl", "stop", "links@2"])?;
    host.wait_for_status("1/2")?;
    assert_eq!(host.run(["linksctl", "status"])?.status, 1);
    host.ok(["systemctl", "start", "links@2"])?;
    host.wait_for_status("2/2")?;
    Ok(())
}

fn links_starts_at_boot_and_stops_on_request(host: &mut Host) -> Result<()> {
    let link = host.shorten(URL)?;

    host.reboot()?;
    host.wait_for_rotation(2)?;
    host.follow(&link)?;

    host.crash()?;
    host.wait_for_rotation(2)?;
    host.follow(&link)?;

    host.ok(["systemctl", "stop", "links"])?;
    // The instances stop after the service, once they have answered their requests. nginx still serves cached redirects.
    host.wait_until_stopped()?;
    let log = host
        .shell("cat /var/lib/links/data/links.db-wal | wc --bytes || true")?
        .stdout;
    ensure!(
        log.trim() == "0",
        "the write-ahead log has {log} bytes that were not checkpointed"
    );
    assert_eq!(host.http().get("/health")?.status, 502);
    host.follow(&link)?;

    host.ok(["systemctl", "start", "links"])?;
    host.follow(&link)?;
    Ok(())
}

#[test]
fn removal_keeps_the_links_and_purge_leaves_nothing() -> Result<()> {
    let host = Host::builder().uninstalled()?;
    let before = host.inventory()?;
    host.apt_install()?;
    removal_keeps_the_links_and_purge_leaves_nothing_but(&before, &host)
}

/// `host` is one on which the package is installed, and `before` its inventory before that.
pub fn removal_keeps_the_links_and_purge_leaves_nothing_but(before: &BTreeSet<String>, host: &Host) -> Result<()> {
    let link = host.shorten(URL)?;
    let token = host.token()?;

    host.ok(["apt-get", "--yes", "remove", "links-shortener"])?;
    assert_eq!(host.processes()?, "");
    assert_default_site(host)?;

    host.apt_install()?;
    host.follow(&link)?;
    assert_eq!(host.token()?, token);

    host.ok(["apt-get", "--yes", "purge", "links-shortener"])?;
    assert_eq!(host.processes()?, "");
    assert_default_site(host)?;
    assert_eq!(difference(before, &host.inventory()?), Vec::<String>::new());
    has_read_the_units(host, &["nginx"])?;
    assert_eq!(
        host.run(["systemctl", "list-unit-files", "--quiet", "--no-legend", "links*"])?
            .stdout,
        ""
    );

    host.apt_install()?;
    assert_eq!(
        host.http().get(&format!("/{}", link.slug))?.status,
        404,
        "purge should have deleted the links"
    );
    Ok(())
}

#[test]
fn the_tarball_installs_and_uninstalls_without_apt() -> Result<()> {
    let host = Host::builder().uninstalled()?;
    host.unpack_tarball()?;
    host.shell("rm -r /usr/bin/apt* /usr/lib/apt")?;
    let before = host.inventory()?;
    let install = [&format!("{UNPACKED}/usr/bin/linksctl"), "install"];

    host.ok(install)?;
    let link = host.shorten(URL)?;
    host.follow(&link)?;
    host.wait_for_rotation(2)?;
    assert_sound_units(&host)?;

    host.ok(["linksctl", "uninstall"])?;
    assert_eq!(host.processes()?, "");
    assert_default_site(&host)?;

    host.ok(install)?;
    host.follow(&link)?;

    host.ok(["linksctl", "uninstall", "--purge"])?;
    assert_default_site(&host)?;
    assert_eq!(difference(&before, &host.inventory()?), Vec::<String>::new());
    Ok(())
}

fn the_units_are_sound_and_sandboxed(host: &Host) -> Result<()> {
    has_read_the_units(host, &["links", "links@1", "links@2", "links-recover", "nginx"])?;
    assert_sound_units(host)?;
    assert!(host.exposure("links@1.service")? <= 1.0);
    assert!(host.exposure("links.service")? <= 1.5);
    Ok(())
}

fn nginx_accepts_the_site_without_warnings(host: &Host) -> Result<()> {
    assert_eq!(host.ok(["nginx", "-t", "-q"])?.stderr, "");
    let enabled = host.ok(["ls", "/etc/nginx/sites-enabled"])?.stdout;
    assert_eq!(enabled, "links\n", "links should have replaced the default site");
    Ok(())
}

/// The limit covers the whole machine: Debian, nginx, apt, the appliance, and the page cache.
#[test]
fn the_appliance_installs_serves_and_rolls_out_in_512_mb_of_memory() -> Result<()> {
    const MEMORY: u64 = 512 << 20;
    let host = Host::builder().without_nginx().memory(MEMORY).uninstalled()?;
    host.apt_install()?;
    host.wait_for_rotation(2)?;
    let link = host.shorten(URL)?;
    host.follow(&link)?;
    let load = Load::through([host.site()?]).workers(20).mix(Mix::Usual);
    let load = load.start();
    eventually("the load has created links", Duration::from_secs(60), || {
        Ok((load.acknowledged() > 1_000).then_some(()))
    })?;
    host.ok(["linksctl", "restart"])?;
    let report = load.stop()?;
    println!("{report}");
    assert_eq!(report.failed(), 0, "{report}");
    host.follow(&link)?;

    let (peak, killed) = host.memory_usage()?;
    println!("peak memory usage: {} of {} MiB", peak >> 20, MEMORY >> 20);
    assert_eq!(killed, 0, "the kernel killed processes because memory ran out");
    // Lower usage would mean that the machine ran outside of its control group.
    assert!(peak > 100 << 20, "peak memory usage was only {peak} bytes");
    Ok(())
}

#[test]
fn lintian_reports_no_errors_or_warnings() -> Result<()> {
    let deb = Artifacts::find()?.deb;
    let output = Command::new("lintian")
        .args(["--allow-root", "--fail-on=error,warning", "--tag-display-limit=0"])
        .arg(deb)
        .output()
        .context("Starting lintian (apt-get install lintian)")?;
    let report = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "lintian: {report}");
    Ok(())
}

/// Twenty writers run undisturbed for half a minute. Then both instances are killed while the writers go on.
#[test]
fn acknowledged_links_survive_kill_9() -> Result<()> {
    let host = Host::builder().serving()?;
    let both = [host.instance(1)?, host.instance(2)?];
    let assert_resolves = |links: &[Link]| -> Result<()> {
        for client in &both {
            let lost = verify_all(client, links)?;
            ensure!(
                lost.is_empty(),
                "{} of {} links are lost, for example {:?}",
                lost.len(),
                links.len(),
                lost[0]
            );
        }
        Ok(())
    };

    let load = Load::through(both.clone()).workers(20);
    let calm = load.run(Duration::from_secs(30))?;
    println!("{calm}");
    assert_eq!(calm.failed(), 0, "{calm}");
    assert_resolves(&calm.acknowledged)?;

    // The label makes the URLs new. Known URLs would get their old slugs, and the kill could lose nothing.
    let writing = load.label("killed").start();
    eventually("the writers have created links", Duration::from_secs(10), || {
        Ok((writing.acknowledged() > 500).then_some(()))
    })?;
    host.ok(["systemctl", "kill", "--signal=KILL", "links@1", "links@2"])?;
    let killed = writing.stop()?;
    println!("{killed}");
    assert!(
        killed.of(Outcome::Reset) + killed.of(Outcome::Refused) > 0,
        "the kill should have broken connections: {killed}"
    );
    assert_eq!(killed.server_errors(), 0, "{killed}");

    for instance in [1, 2] {
        host.wait_until_healthy(instance)?;
    }
    assert_resolves(&calm.acknowledged)?;
    assert_resolves(&killed.acknowledged)?;
    host.wait_for_rotation(2)?;
    Ok(())
}

fn assert_default_site(host: &Host) -> Result<()> {
    let page = host.http().get("/")?;
    ensure!(
        page.text().contains("Welcome to nginx"),
        "the default site should be back: {page}"
    );
    Ok(())
}

/// Checks that systemd has read the files of these units as they are, so that systemctl does not warn of a change on the disk.
fn has_read_the_units(host: &Host, units: &[&str]) -> Result<()> {
    for unit in units {
        let outdated = host.ok(["systemctl", "show", "--property=NeedDaemonReload", "--value", unit])?;
        ensure!(outdated.stdout == "no\n", "{unit} needs a daemon-reload: {outdated}");
    }
    Ok(())
}

/// Asserts that `systemd-analyze verify` prints nothing.
fn assert_sound_units(host: &Host) -> Result<()> {
    // The lab has no `man`, so `verify` cannot check the manual page that the units name.
    host.shell("test -e /usr/share/man/man1/linksctl.1.gz")?;
    let output = host.ok([
        "systemd-analyze",
        "verify",
        "--man=no",
        "links.service",
        "links@1.service",
    ])?;
    ensure!(
        output.stdout.is_empty() && output.stderr.is_empty(),
        "systemd-analyze verify: {output}"
    );
    Ok(())
}

/// The lines that only one of the two sets has.
fn difference(before: &BTreeSet<String>, after: &BTreeSet<String>) -> Vec<String> {
    before.symmetric_difference(after).cloned().collect()
}
