//! Changes of what runs, which no client notices.

use std::io;
use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use links_tests::load::{Method, Outcome};
use links_tests::{DEB, Fault, Host, Output, RELEASED, Seed, Traffic, eventually, verify};

const BROKEN_RUNTIME: &str = env!("CARGO_BIN_EXE_broken-runtime");

#[test]
fn nothing_fails_at_rest() -> Result<()> {
    let host = Host::serving(BROKEN_RUNTIME)?;
    let traffic = Traffic::start(&host, "rest")?;
    traffic.wait_for(20_000)?;
    let report = traffic.finish(&host)?;
    let share = report.acknowledged.len() as f64 / report.requests() as f64;
    assert!((0.24..0.26).contains(&share), "a quarter is POST: {report}");
    // Nobody closed a connection but nginx, after the thousand requests that it takes on one.
    assert_eq!(report.retries, 0, "{report}");
    Ok(())
}

#[test]
fn an_instance_restarts_unnoticed() -> Result<()> {
    let host = Host::serving(BROKEN_RUNTIME)?;
    let traffic = Traffic::start(&host, "restart")?;
    for unit in ["links@1", "links@2", "links@1", "links@2"] {
        traffic.during("restart", || host.restarted(|| host.ok(["systemctl", "restart", unit])))?;
    }
    traffic.finish(&host)?;
    Ok(())
}

#[test]
fn the_service_restarts_and_reloads_unnoticed() -> Result<()> {
    let host = Host::serving(BROKEN_RUNTIME)?;
    let traffic = Traffic::start(&host, "reload")?;
    host.write("/etc/links/links.toml", "[health]\ninterval = \"900ms\"\n")?;
    let before = host.starts(2)?;
    traffic.during("reload", || host.ok(["systemctl", "reload", "links"]))?;
    host.wait_for_rotation(2)?;
    let after = host.starts(2)?;
    assert!(before.iter().all(|start| !after.contains(start)), "each was restarted");

    traffic.during("reload", || host.ok(["systemctl", "reload", "links"]))?;
    assert_eq!(host.starts(2)?, after, "nothing to do");

    host.write("/etc/links/links.toml", "[health]\ninterval = \"800ms\"\n")?;
    traffic.during("restart", || host.ok(["systemctl", "restart", "links"]))?;
    host.wait_for_rotation(2)?;
    let last = host.starts(2)?;
    assert!(
        after.iter().all(|start| !last.contains(start)),
        "each runs the wanted configuration"
    );

    // What is wrong is refused before anything is touched.
    host.write("/etc/links/links.toml", "instnaces = 3\n")?;
    let refused = traffic.during("reload", || host.run(["systemctl", "reload", "links"]))?;
    assert_ne!(refused.status, 0, "{refused}");
    assert_eq!(host.starts(2)?, last);
    traffic.finish(&host)?;
    Ok(())
}

#[test]
fn linksctl_rolls_out_back_and_anew_unnoticed() -> Result<()> {
    let host = Host::serving(BROKEN_RUNTIME)?;
    let (first, next) = (host.releases.version(), RELEASED);
    let bundle = host.released_bundle()?;
    let traffic = Traffic::start(&host, "rollout")?;
    let linksctl = |arguments: &[&str]| {
        let begin = Instant::now();
        traffic.during("rollout", || host.ok([&["linksctl"], arguments].concat()))?;
        println!("linksctl {}: {:.1} s", arguments[0], begin.elapsed().as_secs_f64());
        host.wait_for_rotation(2)
    };

    linksctl(&["rollout", "--release", &bundle])?;
    host.runs(next)?;
    linksctl(&["rollback"])?;
    host.runs(first)?;

    let before = host.starts(2)?;
    linksctl(&["rollout"])?;
    assert_eq!(host.starts(2)?, before, "nothing to do");
    host.restarted(|| linksctl(&["restart"]))?;
    host.restarted(|| linksctl(&["rollout", "--force"]))?;
    let after = host.starts(2)?;
    assert!(before.iter().all(|start| !after.contains(start)), "each was restarted");
    traffic.finish(&host)?;
    Ok(())
}

#[test]
fn two_changes_at_once_take_turns_or_the_second_is_told_who_is_first() -> Result<()> {
    let host = Host::released(BROKEN_RUNTIME)?;
    let traffic = Traffic::start(&host, "both")?;
    let (restart, upgrade) = traffic.during("both", || {
        thread::scope(|scope| {
            let restart = scope.spawn(|| host.run(["linksctl", "restart"]));
            eventually("the first has begun", Duration::from_secs(10), || {
                Ok((host.in_rotation()?.len() < 2).then_some(()))
            })?;
            let second = host.run(["linksctl", "restart"])?;
            ensure!(second.status != 0, "the second should be refused: {second}");
            ensure!(said(&second).contains("linksctl"), "who holds the lock: {second}");
            let upgrade = host.apt_install_any(DEB)?;
            let restart = restart.join().ok().context("the thread panicked")??;
            Ok((restart, upgrade))
        })
    })?;
    assert_eq!(restart.status, 0, "{restart}");
    // apt may have waited, or failed with the reason; then a retry completes it.
    if upgrade.status != 0 {
        traffic.during("both", || host.ok(["dpkg", "--configure", "--pending"]))?;
    }
    host.wait_for_rotation(2)?;
    host.runs(host.releases.version())?;
    traffic.finish(&host)?;
    Ok(())
}

#[test]
fn broken_releases_are_undone_unnoticed() -> Result<()> {
    let host = Host::serving(BROKEN_RUNTIME)?;
    host.gives_up_early()?;
    let before = host.releases(2)?;
    let cases = [
        (Fault::Exits, "exited with status 3"),
        (Fault::Hangs, "did not become healthy within"),
        (Fault::Deaf, "did not become healthy within"),
        (Fault::Sick, "500"),
        (Fault::Instance(2), "instance 2"),
        (Fault::DiesYoung, "SIGALRM"),
        (Fault::CorruptWasm, "exited with status"),
        (Fault::Migration, "503"),
        (Fault::Digest, "differs from the manifest"),
    ];
    let traffic = Traffic::start(&host, "broken")?;
    for (fault, reason) in cases {
        let bundle = host.bundle(&host.releases.later(1), Some(fault))?;
        let begin = Instant::now();
        let rollout = ["linksctl", "rollout", "--release", &bundle];
        let output = traffic
            .during("rollout", || host.run(rollout))
            .with_context(|| format!("{fault:?}"))?;
        println!(
            "{fault:?}: {:.1} s: {}",
            begin.elapsed().as_secs_f64(),
            said(&output).trim_end()
        );
        assert_ne!(output.status, 0, "{fault:?}: {output}");
        assert!(
            said(&output).contains(reason),
            "{reason:?} is the reason, {fault:?}: {output}"
        );
        host.wait_for_rotation(2)
            .with_context(|| format!("{fault:?}: {output}"))?;
        assert_eq!(host.releases(2)?, before, "{fault:?}: {output}");
    }
    traffic.finish(&host)?;
    Ok(())
}

#[test]
fn a_stranger_on_a_port_costs_no_request() -> Result<()> {
    let host = Host::serving(BROKEN_RUNTIME)?;
    let bundle = host.bundle(&host.releases.later(1), None)?;
    let before = host.releases(2)?;
    let traffic = Traffic::start(&host, "stranger")?;
    let (network, done) = (host.network(), AtomicBool::new(false));
    let (output, stranger) = thread::scope(|scope| {
        // Takes the port as soon as no instance listens there: at once, or while the instance is being restarted.
        let stranger = scope.spawn(|| -> Result<bool> {
            network.enter()?;
            let taken = eventually("the port is free", Duration::from_secs(60), || {
                Ok(TcpListener::bind("127.0.0.1:7001").ok())
            })?;
            eventually("the rollout has ended", Duration::from_secs(120), || {
                Ok(done.load(Ordering::Relaxed).then_some(()))
            })?;
            taken.set_nonblocking(true)?;
            match taken.accept() {
                Ok(_) => Ok(true),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
                Err(error) => Err(error.into()),
            }
        });
        let output = traffic.during("rollout", || host.run(["linksctl", "rollout", "--release", &bundle]));
        done.store(true, Ordering::Relaxed);
        (output, stranger.join())
    });
    let output = output?;
    let got_a_connection = stranger.map_err(|_| anyhow!("the stranger panicked"))??;
    if host.is_on_sockets()? {
        assert!(!got_a_connection);
        assert_eq!(output.status, 0, "{output}");
        assert_ne!(host.releases(2)?, before, "{output}");
    } else {
        // The agent asks the port about its instance all the same: see docs/security.md.
        assert_ne!(output.status, 0, "{output}");
        assert!(said(&output).contains("127.0.0.1:7001 is in use"), "{output}");
        // Nothing else kept it from coming back.
        host.run(["systemctl", "reset-failed", "links@1"])?;
        host.run(["systemctl", "start", "links@1"])?;
        host.wait_for_rotation(2)?;
        assert_eq!(host.releases(2)?, before, "{output}");
    }
    traffic.finish(&host)?;
    Ok(())
}

#[test]
fn kill_9_costs_no_request() -> Result<()> {
    killed_at_random_moments(12)
}

#[test]
#[ignore = "takes minutes: `make soak`"]
fn kill_9_costs_no_request_fifty_times() -> Result<()> {
    killed_at_random_moments(50)
}

fn killed_at_random_moments(times: u64) -> Result<()> {
    let seed = Seed::of_environment()?;
    let host = Host::serving(BROKEN_RUNTIME)?;
    let traffic = Traffic::start(&host, "killed")?;
    for number in 0..times {
        let unit = ["links@1", "links@2"][number as usize % 2];
        // The limit is for a release that cannot start, not for kills.
        host.ok(["systemctl", "reset-failed", "links@1", "links@2"])?;
        // A random moment is what is tested.
        thread::sleep(seed.moment(number, Duration::from_millis(800)));
        traffic.during("killed", || {
            host.restarted(|| {
                let supervisor = host.main_pid(unit)?;
                let victim = if number / 2 % 2 == 0 {
                    format!("pkill -KILL --parent {supervisor}")
                } else {
                    format!("kill -KILL {supervisor}")
                };
                host.shell(&victim)
            })
        })?;
    }
    traffic.finish(&host)?;
    Ok(())
}

/// What the strict rules of the load are about: a reload closes kept connections, and a POST that crosses the close fails.
/// So no change of what runs may reload nginx while it can do without.
#[test]
fn a_reload_of_nginx_costs_no_get_and_no_head() -> Result<()> {
    let host = Host::serving(BROKEN_RUNTIME)?;
    let traffic = Traffic::start(&host, "nginx")?;
    for _ in 0..5 {
        traffic.during("reload", || host.reload_nginx())?;
    }
    let report = traffic.stop()?;
    let reads = report.count(|method, outcome| method != Method::Post && outcome != Outcome::Right);
    assert_eq!(reads, 0, "{report}");
    // Nothing but the crossing.
    assert_eq!(report.failed(), report.of(Outcome::Reset), "{report}");
    verify(&host, "nginx", &report)
}

fn said(output: &Output) -> String {
    format!("{}{}", output.stdout, output.stderr)
}
