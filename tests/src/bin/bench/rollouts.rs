//! What clients notice of rollouts: the tests' standard load on the whole appliance, with nginx and systemd, on a machine of
//! the lab.

use std::time::Instant;

use anyhow::{Context as _, Result};
use links_tests::load::{Latency, Report};
use links_tests::{Host, Traffic};
use serde::Serialize;

const ROUNDS: usize = 6;
/// The requests before each rollout. They make about as many requests at rest as during rollouts.
const REQUESTS_AT_REST: u64 = 6_000;

/// The figures of rolling restarts of two instances, and of a plain restart of both at once.
#[derive(Clone, Debug, Serialize)]
pub struct Figures {
    /// The median time for a rollout of both instances.
    rollout_seconds: f64,
    requests: u64,
    failed: u64,
    at_rest: Milliseconds,
    in_rollouts: Milliseconds,
    /// Failed requests in a `systemctl restart` of both instances.
    failed_in_plain_restart: u64,
}

#[derive(Clone, Debug, Serialize)]
struct Milliseconds {
    p50: f64,
    p99: f64,
}

impl Milliseconds {
    fn of(report: &Report, phase: &str) -> Result<Self> {
        let latency = report
            .latency(phase)
            .with_context(|| format!("no requests in {phase}"))?;
        let at = |share| Latency::quantile(latency, share).as_secs_f64() * 1000.0;
        Ok(Self {
            p50: at(0.5),
            p99: at(0.99),
        })
    }
}

/// # Errors
/// Fails if the lab does not work here, or if a rollout fails. Failed requests are not errors but figures.
pub fn measure() -> Result<Figures> {
    let host = Host::builder().real_syncs().serving()?;
    let traffic = Traffic::start(&host, "bench")?;
    let mut seconds = vec![];
    for _ in 0..ROUNDS {
        traffic.wait_for(REQUESTS_AT_REST)?;
        let begin = Instant::now();
        traffic.during("rollout", || host.ok(["linksctl", "restart"]))?;
        seconds.push(begin.elapsed().as_secs_f64());
    }
    let report = traffic.stop()?;

    let traffic = Traffic::start(&host, "plain")?;
    traffic.during("plain", || host.ok(["systemctl", "restart", "links@1", "links@2"]))?;
    let plain = traffic.stop()?;
    Ok(Figures {
        rollout_seconds: super::median(seconds),
        requests: report.requests(),
        failed: report.failed(),
        at_rest: Milliseconds::of(&report, "rest")?,
        in_rollouts: Milliseconds::of(&report, "rollout")?,
        failed_in_plain_restart: plain.failed(),
    })
}

impl Figures {
    pub fn print(&self) {
        println!(
            "\n{:<12} {:>10} {:>8} {:>8} {:>8}",
            "rollouts", "requests", "failed", "p50 ms", "p99 ms"
        );
        let row = |name: &str, requests: &str, failed: &str, latency: &Milliseconds| {
            println!(
                "{name:<12} {requests:>10} {failed:>8} {:>8.2} {:>8.2}",
                latency.p50, latency.p99
            );
        };
        row("at rest", "", "", &self.at_rest);
        row(
            "rolling",
            &self.requests.to_string(),
            &self.failed.to_string(),
            &self.in_rollouts,
        );
        println!("{:<12} {:>10} {:>8}", "plain", "", self.failed_in_plain_restart);
        println!(
            "\n{:.1} s for a rollout of two instances; plain: `systemctl restart` of both at once",
            self.rollout_seconds
        );
    }
}
