//! Many rollouts and upgrades in a row under one load, and their effect on latency.
//!
//! This is a test program of its own, so that no other test takes processor time while latencies are measured.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use links_tests::{DEB, Host, RELEASED, RELEASED_DEB, Traffic};

/// The minimum number of requests, and the number of changes during them.
struct Soak {
    requests: u64,
    rollouts: u32,
    upgrades: u32,
}

#[test]
fn a_hundred_thousand_requests_do_not_notice_rollouts_and_upgrades() -> Result<()> {
    Soak {
        requests: 100_000,
        rollouts: 6,
        upgrades: 2,
    }
    .run()
}

#[test]
#[ignore = "takes half an hour: `make soak`"]
fn a_million_requests_do_not_notice_rollouts_and_upgrades() -> Result<()> {
    Soak {
        requests: 1_000_000,
        rollouts: 100,
        upgrades: 10,
    }
    .run()
}

impl Soak {
    fn run(&self) -> Result<()> {
        let host = Host::builder().first_release(RELEASED).serving()?;
        let versions = [host.version()?, RELEASED];
        let debs = [DEB, RELEASED_DEB];

        let traffic = Traffic::start(&host, "soak")?;
        let mut rollouts = vec![];
        let mut upgrades = vec![];
        let changes = self.rollouts + self.upgrades;
        for number in 0..changes {
            // Half of the requests run while nothing changes, spread evenly between the changes.
            traffic.wait_for(self.requests / u64::from(changes) / 2)?;
            let upgrade = (number + 1) * self.upgrades / changes > number * self.upgrades / changes;
            let before = host.invocation_ids(2)?;
            let begin = Instant::now();
            if upgrade {
                let deb = debs[upgrades.len() % 2];
                let apt = traffic.during("upgrade", || host.apt_install_any(deb))?;
                upgrades.push(begin.elapsed());
                ensure!(apt.status == 0, "{apt}");
            } else {
                traffic.during("rollout", || host.ok(["linksctl", "restart"]))?;
                rollouts.push(begin.elapsed());
            }
            host.wait_for_rotation(2)?;
            let after = host.invocation_ids(2)?;
            ensure!(
                before.iter().all(|start| !after.contains(start)),
                "each instance should have restarted"
            );
        }
        traffic.wait_for(self.requests.saturating_sub(traffic.asked()))?;
        let report = traffic.finish(&host)?;
        ensure!(report.requests() >= self.requests, "{report}");
        let wanted = versions[(self.upgrades as usize + 1) % 2];
        for release in host.running_releases(2)? {
            ensure!(
                release.starts_with(&format!("{wanted}-")),
                "{wanted} should run, not {release}"
            );
        }

        println!("rollouts of two instances: {}", seconds(&mut rollouts));
        println!("upgrades by apt: {}", seconds(&mut upgrades));
        let p99 = |phase| {
            report
                .latency(phase)
                .with_context(|| format!("no requests in the phase {phase}"))
                .map(|latency| latency.quantile(0.99))
        };
        let (rest, rollout) = (p99("rest")?, p99("rollout")?);
        println!(
            "p99 during rollouts is {:.1} times the p99 at rest",
            rollout.as_secs_f64() / rest.as_secs_f64()
        );

        // For comparison only: how many requests fail if both instances simply restart at once.
        let traffic = Traffic::start(&host, "plain")?;
        traffic.during("plain", || host.ok(["systemctl", "restart", "links@1", "links@2"]))?;
        let plain = traffic.stop()?;
        println!(
            "a plain restart of both instances at once: {} requests failed",
            plain.failed()
        );
        Ok(())
    }
}

fn seconds(times: &mut [Duration]) -> String {
    times.sort_unstable();
    let at = |index: usize| times.get(index).copied().unwrap_or_default().as_secs_f64();
    let (middle, last) = (times.len() / 2, times.len().saturating_sub(1));
    format!("{}, median {:.1} s, longest {:.1} s", times.len(), at(middle), at(last))
}
