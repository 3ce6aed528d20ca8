//! Upgrades from the released version to this one, and back, with the database, the journal, the snapshots and the
//! configuration that the other version left.

use std::collections::BTreeSet;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use links_tests::{
    Artifacts, Broken, Builder, Crowd, DEB, Fault, Host, LINKS_TOML, RELEASED, RELEASED_DEB, Seed, Traffic, eventually,
    verify,
};

/// Clicks per second, beside the requests of [`Traffic`].
const CLICKS: u32 = 300;

#[test]
fn upgrades_downgrades_and_rollbacks_cost_no_request_and_no_click() -> Result<()> {
    cost_no_request_and_no_click(Host::builder(), 7)
}

/// Makes the first `count` of a row of seven changes, each under load. The first is the upgrade from the released version.
pub fn cost_no_request_and_no_click(builder: Builder, count: usize) -> Result<()> {
    let host = builder.first_release(RELEASED).serving()?;
    let this = host.version()?;
    // Now both conffiles of version 0.1.0 differ from the package's: its linksctl changes links.toml, and the administrator edits
    // both.
    host.ok(["linksctl", "scale", "3"])?;
    host.shell(
        "echo '# edited' >>/etc/links/runtime.toml
        sed -i 's/^#min_healthy = .*/min_healthy = \"1s\"/' /etc/links/links.toml
        grep --quiet ^min_healthy /etc/links/links.toml
        systemctl reload links",
    )?;
    host.wait_for_rotation(3)?;
    let configuration = || host.shell("sha256sum /etc/links/*.toml /etc/needrestart/conf.d/links.conf");
    let configured = configuration()?.stdout;

    let crowd = Crowd::new(&host)?.rate(CLICKS);
    let traffic = Traffic::start(&host, "upgrade")?;
    let (next, released) = (this, RELEASED);
    let steps: [(&str, &[&str], &str); 7] = [
        ("upgrade", &["apt-get", "--yes", "install", DEB], next),
        ("rollback", &["linksctl", "rollback"], released),
        (
            "rollout",
            &["linksctl", "rollout", "--release", "/usr/lib/links/bundle"],
            next,
        ),
        ("downgrade", &["dpkg", "--install", RELEASED_DEB], released),
        ("upgrade", &["dpkg", "--install", DEB], next),
        ("reinstall", &["apt-get", "--yes", "--reinstall", "install", DEB], next),
        (
            "downgrade",
            &["apt-get", "--yes", "--allow-downgrades", "install", RELEASED_DEB],
            released,
        ),
    ];
    crowd.during(&host.http(), Broken::Never, || {
        for (phase, command, version) in steps.into_iter().take(count) {
            let begin = Instant::now();
            let output = traffic.during(phase, || host.ok(command))?;
            println!("{}: {:.1} s", command.join(" "), begin.elapsed().as_secs_f64());
            ensure!(
                !output.stdout.contains("Configuration file"),
                "dpkg asked about a conffile: {output}"
            );
            ensure!(host.package_state()? == "installed", "{output}");
            host.wait_for_rotation(3)?;
            let releases = host.running_releases(3)?;
            let is_expected = |release: &String| release.starts_with(&format!("{version}-"));
            ensure!(
                releases.iter().all(is_expected),
                "{version} should run after {command:?}, not {releases:?}: {output}"
            );
            if version == next && host.is_on_sockets()? {
                host.serve_only_sockets(3, "www-data")
                    .with_context(|| format!("after {command:?}"))?;
            }
            ensure!(
                configuration()?.stdout == configured,
                "{command:?} changed the configuration"
            );
        }
        Ok(())
    })?;
    traffic.finish(&host)?;
    // The last of all seven is a downgrade, after which the released version counts the last clicks.
    crowd.is_counted_once(&host)
}

/// By the last step, the site leads to sockets only. Before an instance goes back to its port, nginx has to use that port.
#[test]
fn an_upgrade_that_fails_at_its_last_step_costs_no_request() -> Result<()> {
    let host = Host::builder().first_release(RELEASED).serving()?;
    // A non-empty directory, which the symbolic link of that name cannot replace.
    let previous = "/var/lib/links/previous";
    host.ok(["mkdir", "--parents", &format!("{previous}/taken")])?;
    let traffic = Traffic::start(&host, "commit")?;

    let failed = traffic.during("upgrade", || host.apt_install_any(DEB))?;
    ensure!(failed.status != 0 && failed.to_string().contains(previous), "{failed}");
    host.wait_for_rotation(2)?;
    host.runs_version(RELEASED)?;
    let site = host.read("/etc/nginx/sites-enabled/links")?;
    ensure!(site.contains("server 127.0.0.1:7001 "), "{site}");

    host.ok(["rm", "--recursive", previous])?;
    traffic.during("upgrade", || host.ok(["dpkg", "--configure", "--pending"]))?;
    host.wait_for_rotation(2)?;
    host.runs_version(host.version()?)?;
    if host.is_on_sockets()? {
        host.serve_only_sockets(2, "www-data")?;
    }
    traffic.finish(&host)?;
    Ok(())
}

#[test]
fn an_upgrade_of_a_stopped_service_leaves_it_stopped() -> Result<()> {
    let host = Host::builder().first_release(RELEASED).serving()?;
    host.ok(["systemctl", "stop", "links"])?;
    host.wait_until_stopped()?;
    let upgrade = host.apt_install_any(DEB)?;
    assert_eq!(upgrade.status, 0, "{upgrade}");
    assert_eq!(host.processes()?, "", "{upgrade}");
    host.ok(["systemctl", "start", "links"])?;
    host.wait_for_rotation(2)?;
    host.runs_version(host.version()?)
}

#[test]
fn a_broken_package_stays_half_configured_until_a_working_one_is_installed() -> Result<()> {
    let host = Host::builder()
        .first_release(RELEASED)
        .links_toml("[health]\nstart_timeout = \"5s\"\n")
        .serving()?;
    let before = host.running_releases(2)?;
    let broken = host.deb(&host.later_version(1)?, Some(Fault::Instance(2)))?;
    let traffic = Traffic::start(&host, "package")?;

    let failed = traffic.during("upgrade", || host.apt_install_any(&broken))?;
    assert_ne!(failed.status, 0, "{failed}");
    assert!(format!("{failed}").contains("instance 2"), "{failed}");
    assert_eq!(host.package_state()?, "half-configured");
    host.wait_for_rotation(2)?;
    assert_eq!(host.running_releases(2)?, before);

    let again = traffic.during("upgrade", || host.run(["dpkg", "--configure", "--pending"]))?;
    assert_ne!(
        again.status, 0,
        "configuring should fail again while the package is broken: {again}"
    );
    host.wait_for_rotation(2)?;
    assert_eq!(host.running_releases(2)?, before);

    traffic.during("upgrade", || host.apt_installs(DEB, host.version()?))?;
    traffic.finish(&host)?;
    Ok(())
}

#[test]
fn a_host_killed_during_an_upgrade_serves_the_old_or_the_new_release() -> Result<()> {
    kill_the_host_during_upgrades(3)
}

#[test]
#[ignore = "takes a quarter of an hour: `make soak`"]
fn a_host_killed_during_thirty_upgrades_serves_the_old_or_the_new_release() -> Result<()> {
    kill_the_host_during_upgrades(30)
}

fn kill_the_host_during_upgrades(times: u64) -> Result<()> {
    let seed = Seed::of_environment()?;
    let mut host = Host::builder().first_release(RELEASED).serving()?;
    let new = host.version()?.to_owned();
    let versions = [RELEASED, new.as_str()];
    let debs = [RELEASED_DEB, DEB];
    let crowd = Crowd::new(&host)?.rate(CLICKS);
    let begin = Instant::now();
    host.apt_installs(debs[1], versions[1])?;
    let whole = begin.elapsed();

    // nginx buffers its log for a second, so a kill loses that much. The extra half second allows for its coarse clock.
    let unwritten = Duration::from_millis(1500);
    let mut may_be_lost = 0;
    for number in 0..times {
        let to = usize::try_from(number % 2)?;
        let (label, moment) = (format!("power{number}"), seed.moment(number, whole));
        let traffic = Traffic::start(&host, &label)?;
        let network = host.http();
        let (early, begin) = crowd.during(&network, Broken::ByTheKill, || {
            let mut early = crowd.answered();
            host.ok([
                "systemd-run",
                "--unit=upgrade",
                "--setenv=DEBIAN_FRONTEND=noninteractive",
                "apt-get",
                "--yes",
                "--allow-downgrades",
                "install",
                debs[to],
            ])?;
            // These sleeps are not synchronisation: the random moment is what the test is about.
            if let Some(first) = moment.checked_sub(unwritten) {
                thread::sleep(first);
                early = crowd.answered();
            }
            thread::sleep(moment.min(unwritten));
            let begin = Instant::now();
            host.crash()?;
            Ok((early, begin))
        })?;
        may_be_lost += crowd.answered() - early;
        eventually(
            "the host serves again",
            Duration::from_secs(30).saturating_sub(begin.elapsed()),
            || {
                let answer = host.http().get("/no-such-link");
                Ok(answer.is_ok_and(|answer| answer.status == 404).then_some(()))
            },
        )
        .with_context(|| format!("killed {moment:?} after the start of the upgrade"))?;
        let serving = begin.elapsed();
        // Requests that the kill interrupted may fail, but every acknowledged link has to exist.
        let report = traffic.stop()?;
        verify(&host, &label, &report)?;
        host.wait_for_rotation(2)?;
        let after_boot: BTreeSet<_> = host.running_releases(2)?.into_iter().collect();
        let is_known = |release: &String| {
            versions
                .iter()
                .any(|version| release.starts_with(&format!("{version}-")))
        };
        assert!(after_boot.iter().all(is_known), "{after_boot:?}");

        let configured = host.run(["dpkg", "--configure", "--pending"])?;
        host.wait_for_rotation(2)?;
        let after_configure: BTreeSet<_> = host.running_releases(2)?.into_iter().collect();
        println!(
            "killed {:.1} s after the start of the upgrade, served after {:.1} s: {after_boot:?}, then {after_configure:?}",
            moment.as_secs_f64(),
            serving.as_secs_f64()
        );
        // If dpkg was killed before it had unpacked everything, it asks for the package to be reinstalled.
        let needs_reinstall = configured
            .stderr
            .contains("reinstall it before attempting configuration");
        ensure!(configured.status == 0 || needs_reinstall, "{configured}");
        assert_eq!(
            after_configure.len(),
            1,
            "all instances should run one release: {after_configure:?}"
        );
        // dpkg instead of apt: apt refuses to continue without an archive of the version that was installed.
        host.ok(["dpkg", "--install", debs[to]])?;
        host.wait_for_rotation(2)?;
        host.runs_version(versions[to])?;
    }

    // At each kill, every worker may have one click that was counted although its answer never arrived.
    let unanswered = times * Crowd::WORKERS as u64;
    let answered = crowd.answered();
    let within = (answered - may_be_lost)..=(answered + unanswered);
    let counted = crowd.settled(&host, |counted| within.contains(&counted.values().sum::<u64>()))?;
    println!(
        "{answered} answered, {may_be_lost} of them around a kill, counted {}",
        counted.values().sum::<u64>()
    );
    for (slug, answers) in crowd.answers() {
        let count = counted.get(&slug).copied().unwrap_or_default();
        ensure!(
            count <= answers + unanswered,
            "{slug}: {answers} answered, {count} counted"
        );
    }
    Ok(())
}

/// dpkg asks about a conffile only when the package's own differs from the one before. It keeps links.toml, which was a conffile in
/// the released version.
#[test]
fn the_new_package_has_the_conffiles_of_the_released_one_without_links_toml() -> Result<()> {
    let conffiles = |deb: &std::path::Path| -> Result<Vec<(String, Vec<u8>)>> {
        let directory = tempfile::tempdir()?;
        let mut unpack = Command::new("dpkg-deb");
        let unpacked = unpack.arg("--raw-extract").arg(deb).arg(directory.path()).output()?;
        ensure!(unpacked.status.success(), "{unpacked:?}");
        let list = std::fs::read_to_string(directory.path().join("DEBIAN/conffiles"))?;
        let read = |path: &str| {
            let contents = std::fs::read(directory.path().join(path.trim_start_matches('/')))?;
            Ok((path.to_owned(), contents))
        };
        list.lines().map(read).collect()
    };
    let (mut old, new) = (
        conffiles(&Artifacts::released(RELEASED)?)?,
        conffiles(&Artifacts::find()?.deb)?,
    );
    old.retain(|(path, _)| path != LINKS_TOML);
    let names = |files: &[(String, Vec<u8>)]| files.iter().map(|(path, _)| path.clone()).collect::<Vec<_>>();
    assert_eq!(names(&old), names(&new));
    for ((path, old), (_, new)) in old.iter().zip(&new) {
        ensure!(
            old == new,
            "{path} differs from that of {RELEASED}: dpkg will ask every administrator who has edited it"
        );
    }
    Ok(())
}
