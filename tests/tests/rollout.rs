//! Restarts, rollouts and rollbacks, which no client notices.

use std::io;
use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use links_tests::load::{Method, Outcome};
use links_tests::{DEB, Fault, Host, LINKS_TOML, RELEASED, Seed, Traffic, eventually, verify, wording};

/// An unhealthy release is given up after five seconds.
const SHORT_START_TIMEOUT: &str = "[health]\nstart_timeout = \"5s\"\n";

#[test]
fn no_request_fails_while_nothing_changes() -> Result<()> {
    let host = Host::builder().serving()?;
    let traffic = Traffic::start(&host, "rest")?;
    traffic.wait_for(20_000)?;
    let report = traffic.finish(&host)?;
    let share = report.acknowledged.len() as f64 / report.requests() as f64;
    assert!(
        (0.24..0.26).contains(&share),
        "a quarter of the requests should be POSTs: {report}"
    );
    // The only closed connections are those on which nginx has served its limit of a thousand requests.
    assert_eq!(report.retries, 0, "{report}");
    Ok(())
}

#[test]
fn clients_do_not_notice_the_restart_of_an_instance() -> Result<()> {
    let host = Host::builder().serving()?;
    let traffic = Traffic::start(&host, "restart")?;
    for unit in ["links@1", "links@2", "links@1", "links@2"] {
        traffic.during("restart", || host.restarted(|| host.ok(["systemctl", "restart", unit])))?;
    }
    traffic.finish(&host)?;
    Ok(())
}

#[test]
fn clients_do_not_notice_a_restart_or_reload_of_the_service() -> Result<()> {
    let host = Host::builder().serving()?;
    let traffic = Traffic::start(&host, "reload")?;
    host.write(LINKS_TOML, "[health]\ninterval = \"900ms\"\n")?;
    let before = host.invocation_ids(2)?;
    traffic.during("reload", || host.ok(["systemctl", "reload", "links"]))?;
    host.wait_for_rotation(2)?;
    let after = host.invocation_ids(2)?;
    assert!(
        before.iter().all(|start| !after.contains(start)),
        "each instance should have restarted"
    );

    traffic.during("reload", || host.ok(["systemctl", "reload", "links"]))?;
    assert_eq!(host.invocation_ids(2)?, after, "there was nothing to do");

    host.write(LINKS_TOML, "[health]\ninterval = \"800ms\"\n")?;
    traffic.during("restart", || host.ok(["systemctl", "restart", "links"]))?;
    host.wait_for_rotation(2)?;
    let last = host.invocation_ids(2)?;
    assert!(
        after.iter().all(|start| !last.contains(start)),
        "each instance should run the new configuration"
    );

    // An invalid configuration is refused before anything changes.
    host.write(LINKS_TOML, "instnaces = 3\n")?;
    let refused = traffic.during("reload", || host.run(["systemctl", "reload", "links"]))?;
    assert_ne!(refused.status, 0, "{refused}");
    assert_eq!(host.invocation_ids(2)?, last);
    traffic.finish(&host)?;
    Ok(())
}

#[test]
fn clients_do_not_notice_a_rollout_rollback_or_restart_by_linksctl() -> Result<()> {
    let host = Host::builder().serving()?;
    let (first, next) = (host.version()?, RELEASED);
    let bundle = host.released_bundle()?;
    let traffic = Traffic::start(&host, "rollout")?;
    let linksctl = |arguments: &[&str]| {
        let begin = Instant::now();
        traffic.during("rollout", || host.ok([&["linksctl"], arguments].concat()))?;
        println!("linksctl {}: {:.1} s", arguments[0], begin.elapsed().as_secs_f64());
        host.wait_for_rotation(2)
    };

    linksctl(&["rollout", "--release", &bundle])?;
    host.runs_version(next)?;
    linksctl(&["rollback"])?;
    host.runs_version(first)?;

    let before = host.invocation_ids(2)?;
    linksctl(&["rollout"])?;
    assert_eq!(host.invocation_ids(2)?, before, "there was nothing to do");
    host.restarted(|| linksctl(&["restart"]))?;
    host.restarted(|| linksctl(&["rollout", "--force"]))?;
    let after = host.invocation_ids(2)?;
    assert!(
        before.iter().all(|start| !after.contains(start)),
        "each instance should have restarted"
    );
    traffic.finish(&host)?;
    Ok(())
}

#[test]
fn a_second_concurrent_change_waits_or_reports_who_holds_the_lock() -> Result<()> {
    let host = Host::builder().first_release(RELEASED).serving()?;
    let traffic = Traffic::start(&host, "both")?;
    let (restart, upgrade) = traffic.during("both", || {
        thread::scope(|scope| {
            let restart = scope.spawn(|| host.run(["linksctl", "restart"]));
            eventually("the first change has begun", Duration::from_secs(10), || {
                Ok((host.in_rotation()?.len() < 2).then_some(()))
            })?;
            let second = host.run(["linksctl", "restart"])?;
            ensure!(second.status != 0, "the second change should be refused: {second}");
            ensure!(
                second.stderr.contains("linksctl restart"),
                "the error should name the command that holds the lock: {second}"
            );
            let upgrade = host.apt_install_any(DEB)?;
            let restart = restart.join().ok().context("the thread panicked")??;
            Ok((restart, upgrade))
        })
    })?;
    assert_eq!(restart.status, 0, "{restart}");
    // apt has either waited for the lock or failed with the reason. In that case a retry completes the upgrade.
    if upgrade.status != 0 {
        traffic.during("both", || host.ok(["dpkg", "--configure", "--pending"]))?;
    }
    host.wait_for_rotation(2)?;
    host.runs_version(host.version()?)?;
    traffic.finish(&host)?;
    Ok(())
}

#[test]
fn clients_do_not_notice_the_rollback_of_a_broken_release() -> Result<()> {
    let host = Host::builder().links_toml(SHORT_START_TIMEOUT).serving()?;
    let before = host.running_releases(2)?;
    let damaged = wording::damaged("components/api.wasm");
    // What the error has to name at least: a status, a time limit, an instance, a signal or a file. systemd's own lines, such
    // as "Consumed 1.345s CPU time", must not match.
    let cases = [
        (Fault::Exits, "exited with status 3"),
        (Fault::Hangs, "within 5s"),
        (Fault::Deaf, "within 5s"),
        (Fault::Sick, "answered 500"),
        (Fault::Instance(2), "instance 2"),
        (Fault::DiesYoung, "SIGALRM"),
        (Fault::CorruptWasm, "exited with status"),
        (Fault::Migration, "answered 503"),
        (Fault::Digest, damaged.as_str()),
    ];
    let traffic = Traffic::start(&host, "broken")?;
    for (fault, reason) in cases {
        let bundle = host.bundle(&host.later_version(1)?, Some(fault))?;
        let begin = Instant::now();
        let rollout = ["linksctl", "rollout", "--release", &bundle];
        let output = traffic
            .during("rollout", || host.run(rollout))
            .with_context(|| format!("{fault:?}"))?;
        println!(
            "{fault:?}: {:.1} s: {}",
            begin.elapsed().as_secs_f64(),
            output.printed().trim_end()
        );
        assert_ne!(output.status, 0, "{fault:?}: {output}");
        assert!(
            output.printed().contains(reason),
            "{fault:?} should be reported as {reason:?}: {output}"
        );
        host.wait_for_rotation(2)
            .with_context(|| format!("{fault:?}: {output}"))?;
        assert_eq!(host.running_releases(2)?, before, "{fault:?}: {output}");
    }
    traffic.finish(&host)?;
    Ok(())
}

#[test]
fn a_foreign_process_on_the_port_of_an_instance_costs_no_request() -> Result<()> {
    let host = Host::builder().serving()?;
    let bundle = host.bundle(&host.later_version(1)?, None)?;
    let before = host.running_releases(2)?;
    let traffic = Traffic::start(&host, "stranger")?;
    let (network, done) = (host.network(), AtomicBool::new(false));
    let (output, stranger) = thread::scope(|scope| {
        // The stranger takes the port as soon as no instance listens there: at once, or while the instance restarts.
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
        assert!(!got_a_connection, "something connected to the stranger");
        assert_eq!(output.status, 0, "{output}");
        assert_ne!(host.running_releases(2)?, before, "{output}");
    } else {
        // The agent may have connected to the stranger: see docs/security.md.
        assert_ne!(output.status, 0, "{output}");
        assert!(output.printed().contains("`ss -ltnp 'sport = :7001'`"), "{output}");
        // The instance starts again once the port is free.
        host.run(["systemctl", "reset-failed", "links@1"])?;
        host.run(["systemctl", "start", "links@1"])?;
        host.wait_for_rotation(2)?;
        assert_eq!(host.running_releases(2)?, before, "{output}");
    }
    traffic.finish(&host)?;
    Ok(())
}

#[test]
fn kill_9_costs_no_request() -> Result<()> {
    kill_at_random_moments(12)
}

#[test]
#[ignore = "takes minutes: `make soak`"]
fn kill_9_costs_no_request_fifty_times() -> Result<()> {
    kill_at_random_moments(50)
}

fn kill_at_random_moments(times: u64) -> Result<()> {
    let seed = Seed::of_environment()?;
    let host = Host::builder().serving()?;
    let traffic = Traffic::start(&host, "killed")?;
    for number in 0..times {
        let unit = ["links@1", "links@2"][number as usize % 2];
        // systemd's start limit is meant for releases that cannot start, not for these kills.
        host.ok(["systemctl", "reset-failed", "links@1", "links@2"])?;
        // This sleep is not synchronisation: the random moment is what the test is about.
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

/// A reload of nginx closes idle keep-alive connections, and a POST that is sent at that moment fails. Therefore no rollout
/// or restart may reload nginx unless it has to.
#[test]
fn no_get_or_head_fails_during_a_reload_of_nginx() -> Result<()> {
    let host = Host::builder().serving()?;
    let traffic = Traffic::start(&host, "nginx")?;
    for _ in 0..5 {
        traffic.during("reload", || host.reload_nginx())?;
    }
    let report = traffic.stop()?;
    let reads = report.count(|method, outcome| method != Method::Post && outcome != Outcome::Right);
    assert_eq!(reads, 0, "{report}");
    // Only POSTs fail, on connections that nginx was closing.
    assert_eq!(report.failed(), report.of(Outcome::Reset), "{report}");
    verify(&host, "nginx", &report)
}
