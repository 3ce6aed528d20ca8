//! How much processor time and memory the agent uses while the appliance serves.

use std::time::Duration;

use anyhow::{Context as _, Result};
use links_tests::Host;
use serde::Serialize;

use crate::load::Wrk;
use crate::ticks;

const SECONDS: u64 = 30;

#[derive(Clone, Debug, Serialize)]
pub struct Figures {
    requests_per_second: f64,
    /// The share of one processor, in percent.
    cpu_percent: f64,
    /// The same share, scaled to 10,000 requests per second.
    cpu_percent_of_10_000: f64,
    resident_mib: f64,
}

/// Measures the agent under load through nginx, with one scrape of the metrics per second.
///
/// # Errors
/// Fails if the lab does not work here, or if an answer is an error.
pub fn measure() -> Result<Figures> {
    let host = Host::builder().real_syncs().packages(&["wrk"]).serving()?;
    let link = host.shorten("https://example.com/agent")?;
    let pid = host.main_pid("links")?;
    let stat = || host.read(&format!("/proc/{pid}/stat"));
    let before = ticks(&stat()?)?;
    let load = format!(
        "for second in $(seq {SECONDS}); do curl --silent --output /dev/null http://127.0.0.1:9464/metrics; sleep 1; done & \
         wrk --latency -t1 -c32 -d{SECONDS}s http://127.0.0.1:80/{}; wait",
        link.slug
    );
    let output = host.shell(&load)?;
    let load = Wrk::parse(&output.stdout)?;
    host.wait_until_counted(Duration::from_secs(60))?;
    // USER_HZ is 100 on every architecture that Debian supports (proc(5), sysconf(3)).
    let cpu_percent = (ticks(&stat()?)? - before) / SECONDS as f64;
    let status = host.read(&format!("/proc/{pid}/status"))?;
    let resident = crate::resident_kib(&status).context("/proc has no VmRSS of the agent")?;
    Ok(Figures {
        requests_per_second: load.per_second,
        cpu_percent,
        cpu_percent_of_10_000: cpu_percent / load.per_second * 10_000.0,
        resident_mib: resident as f64 / 1024.0,
    })
}

impl Figures {
    pub fn print(&self) {
        println!(
            "\nagent: {:.1} % of a processor, {:.1} MiB resident, at {:.0} redirects/s through nginx and one scrape per second; \
             {:.1} % at 10,000 redirects/s",
            self.cpu_percent, self.resident_mib, self.requests_per_second, self.cpu_percent_of_10_000
        );
    }
}
