//! From the released version to this one and back, with the database, the journal, the snapshots and the configuration
//! that it left.

use std::collections::BTreeSet;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use links_tests::{
    Artifacts, Broken, Crowd, DEB, Fault, Host, RELEASED, RELEASED_DEB, Seed, Traffic, eventually, verify,
};

const BROKEN_RUNTIME: &str = env!("CARGO_BIN_EXE_broken-runtime");
/// Clicks per second, beside the requests of [`Traffic`].
const CLICKS: u32 = 300;

#[test]
fn upgrades_downgrades_and_rollbacks_cost_no_request_and_no_click() -> Result<()> {
    let host = Host::released(BROKEN_RUNTIME)?;
    let this = host.releases.version();
    // Both conffiles differ from the package's then: the first by what linksctl does, both by an administrator's hand.
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
        for (phase, command, version) in steps {
            let begin = Instant::now();
            let output = traffic.during(phase, || host.ok(command))?;
            println!("{}: {:.1} s", command.join(" "), begin.elapsed().as_secs_f64());
            ensure!(!output.stdout.contains("Configuration file"), "dpkg asked: {output}");
            ensure!(host.package_state()? == "installed", "{output}");
            host.wait_for_rotation(3)?;
            let releases = host.releases(3)?;
            let right = |release: &String| release.starts_with(&format!("{version}-"));
            ensure!(
                releases.iter().all(right),
                "{version} should run after {command:?}, not {releases:?}: {output}"
            );
            if version == next && host.is_on_sockets()? {
                host.are_on_sockets_alone(3, "www-data")
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
    // The released version counts the last of them.
    crowd.is_counted_once(&host)
}

/// The site leads to sockets alone by then: before an instance goes back to its port, nginx has to look for it there.
#[test]
fn an_upgrade_that_fails_at_its_last_step_costs_no_request() -> Result<()> {
    let host = Host::released(BROKEN_RUNTIME)?;
    // No link can take its place.
    let previous = "/var/lib/links/previous";
    host.ok(["mkdir", "--parents", &format!("{previous}/taken")])?;
    let traffic = Traffic::start(&host, "commit")?;

    let failed = traffic.during("upgrade", || host.apt_install_any(DEB))?;
    ensure!(failed.status != 0 && failed.to_string().contains(previous), "{failed}");
    host.wait_for_rotation(2)?;
    host.runs(RELEASED)?;
    let site = host.read("/etc/nginx/sites-enabled/links")?;
    ensure!(site.contains("server 127.0.0.1:7001 "), "{site}");

    host.ok(["rm", "--recursive", previous])?;
    traffic.during("upgrade", || host.ok(["dpkg", "--configure", "--pending"]))?;
    host.wait_for_rotation(2)?;
    host.runs(host.releases.version())?;
    if host.is_on_sockets()? {
        host.are_on_sockets_alone(2, "www-data")?;
    }
    traffic.finish(&host)?;
    Ok(())
}

#[test]
fn an_upgrade_of_a_stopped_service_leaves_it_stopped() -> Result<()> {
    let host = Host::released(BROKEN_RUNTIME)?;
    host.ok(["systemctl", "stop", "links"])?;
    host.wait_until_stopped()?;
    let said = host.apt_install_any(DEB)?;
    assert_eq!(said.status, 0, "{said}");
    assert_eq!(host.processes()?, "", "{said}");
    host.ok(["systemctl", "start", "links"])?;
    host.wait_for_rotation(2)?;
    host.runs(host.releases.version())
}

#[test]
fn a_broken_package_stays_half_configured_until_a_sound_one_comes() -> Result<()> {
    let host = Host::released(BROKEN_RUNTIME)?;
    host.gives_up_early()?;
    let before = host.releases(2)?;
    let broken = host.deb(&host.releases.later(1), Some(Fault::Instance(2)))?;
    let traffic = Traffic::start(&host, "package")?;

    let failed = traffic.during("upgrade", || host.apt_install_any(&broken))?;
    assert_ne!(failed.status, 0, "{failed}");
    assert!(format!("{failed}").contains("instance 2"), "{failed}");
    assert_eq!(host.package_state()?, "half-configured");
    host.wait_for_rotation(2)?;
    assert_eq!(host.releases(2)?, before);

    let again = traffic.during("upgrade", || host.run(["dpkg", "--configure", "--pending"]))?;
    assert_ne!(again.status, 0, "the cause is still there: {again}");
    host.wait_for_rotation(2)?;
    assert_eq!(host.releases(2)?, before);

    traffic.during("upgrade", || host.apt_installs(DEB, host.releases.version()))?;
    traffic.finish(&host)?;
    Ok(())
}

#[test]
fn a_host_killed_in_an_upgrade_serves_the_old_or_the_new_release() -> Result<()> {
    host_killed_in_an_upgrade(3)
}

#[test]
#[ignore = "takes a quarter of an hour: `make soak`"]
fn a_host_killed_in_an_upgrade_thirty_times() -> Result<()> {
    host_killed_in_an_upgrade(30)
}

fn host_killed_in_an_upgrade(times: u64) -> Result<()> {
    let seed = Seed::of_environment()?;
    let mut host = Host::released(BROKEN_RUNTIME)?;
    let new = host.releases.version().to_owned();
    let versions = [RELEASED, new.as_str()];
    let debs = [RELEASED_DEB, DEB];
    let crowd = Crowd::new(&host)?.rate(CLICKS);
    let begin = Instant::now();
    host.apt_installs(debs[1], versions[1])?;
    let whole = begin.elapsed();

    // What nginx had not written yet when it was killed is lost: a second's worth, and its clock is slow.
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
            // A random moment is what is tested.
            if let Some(first) = moment.checked_sub(unwritten) {
                thread::sleep(first);
                early = crowd.answered();
            }
            thread::sleep(moment.min(unwritten));
            let begin = Instant::now();
            host.appliance.machine.kill_host()?;
            Ok((early, begin))
        })?;
        may_be_lost += crowd.answered() - early;
        eventually(
            "it serves again",
            Duration::from_secs(30).saturating_sub(begin.elapsed()),
            || {
                let answer = host.http().get("/no-such-link");
                Ok(answer.is_ok_and(|answer| answer.status == 404).then_some(()))
            },
        )
        .with_context(|| format!("killed {moment:?} after the start of the upgrade"))?;
        let serving = begin.elapsed();
        // The kill cut requests short; what was acknowledged is there all the same.
        let report = traffic.stop()?;
        verify(&host, &label, &report)?;
        host.wait_for_rotation(2)?;
        let after_boot: BTreeSet<_> = host.releases(2)?.into_iter().collect();
        let ours = |release: &String| {
            versions
                .iter()
                .any(|version| release.starts_with(&format!("{version}-")))
        };
        assert!(after_boot.iter().all(ours), "{after_boot:?}");

        let configured = host.run(["dpkg", "--configure", "--pending"])?;
        host.wait_for_rotation(2)?;
        let after_configure: BTreeSet<_> = host.releases(2)?.into_iter().collect();
        println!(
            "killed {:.1} s after the start of the upgrade, served after {:.1} s: {after_boot:?}, then {after_configure:?}",
            moment.as_secs_f64(),
            serving.as_secs_f64()
        );
        // dpkg may have been killed before it had unpacked all, and then wants the package again.
        let wants_it_again = configured
            .stderr
            .contains("reinstall it before attempting configuration");
        ensure!(configured.status == 0 || wants_it_again, "{configured}");
        assert_eq!(after_configure.len(), 1, "no mixture: {after_configure:?}");
        // Not from apt, which refuses to go on without an archive of the version that was there.
        host.ok(["dpkg", "--install", debs[to]])?;
        host.wait_for_rotation(2)?;
        host.runs(versions[to])?;
    }

    // Each worker may have been answered without having got it, at each kill.
    let unseen = times * Crowd::WORKERS as u64;
    let answered = crowd.answered();
    let within = (answered - may_be_lost)..=(answered + unseen);
    let counted = crowd.settled(&host, |counted| within.contains(&counted.values().sum::<u64>()))?;
    println!(
        "{answered} answered, {may_be_lost} of them around a kill, counted {}",
        counted.values().sum::<u64>()
    );
    for (slug, answers) in crowd.answers() {
        let count = counted.get(&slug).copied().unwrap_or_default();
        ensure!(count <= answers + unseen, "{slug}: {answers} answered, {count} counted");
    }
    Ok(())
}

/// dpkg asks about a conffile only when the package's own differs from the one before.
#[test]
fn the_packages_have_the_same_conffiles() -> Result<()> {
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
    let (old, new) = (conffiles(&Artifacts::released()?)?, conffiles(&Artifacts::find()?.deb)?);
    let names = |files: &[(String, Vec<u8>)]| files.iter().map(|(path, _)| path.clone()).collect::<Vec<_>>();
    assert_eq!(names(&old), names(&new));
    for ((path, old), (_, new)) in old.iter().zip(&new) {
        ensure!(
            old == new,
            "{path} differs from that of {RELEASED}: whoever edited it is asked by dpkg"
        );
    }
    Ok(())
}
