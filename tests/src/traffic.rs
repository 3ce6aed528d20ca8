//! The standard load on a host, and the checks when it ends.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use crate::host::Host;
use crate::load::{Connections, Load, Mix, Report, Running, verify_all};

/// The number of requests that must follow a change before the next one, so that they show whether the change broke anything.
const AFTERMATH: u64 = 300;

/// Reads and writes through nginx, half of them over kept connections and half over fresh ones.
#[derive(Debug)]
pub struct Traffic {
    running: Running,
    label: String,
}

impl Traffic {
    /// Enough workers to keep connections open at every moment, with processor time left for the test itself.
    const WORKERS: usize = 16;
    const RATE: u32 = 1500;

    /// Starts the load and waits until it is in full swing. `label` distinguishes its URLs from those of other loads on this
    /// host.
    ///
    /// # Errors
    /// Fails if there is no token, or if the first requests take longer than [`Self::wait_for`] allows.
    pub fn start(host: &Host, label: &str) -> Result<Self> {
        let load = Load::through([host.site()?])
            .workers(Self::WORKERS)
            .connections(Connections::Both)
            .mix(Mix::Usual)
            .rate(Self::RATE)
            .label(label);
        let traffic = Self {
            running: load.start(),
            label: label.to_owned(),
        };
        traffic.wait_for(AFTERMATH)?;
        Ok(traffic)
    }

    /// Runs `change` under load. Latencies count towards `phase` until the requests that follow the change are done too.
    ///
    /// # Errors
    /// Fails if `change` fails, or if the requests after it take longer than [`Self::wait_for`] allows.
    pub fn during<T>(&self, phase: &str, change: impl FnOnce() -> Result<T>) -> Result<T> {
        self.running.phase(phase);
        let changed = change().with_context(|| format!("under load, after {} requests", self.running.asked()))?;
        self.wait_for(AFTERMATH)?;
        self.running.phase("rest");
        Ok(changed)
    }

    /// The number of requests so far.
    pub fn asked(&self) -> u64 {
        self.running.asked()
    }

    /// The number of requests so far that got anything but the right answer.
    pub fn failed(&self) -> u64 {
        self.running.failed()
    }

    /// Waits for this many more requests.
    ///
    /// # Errors
    /// Fails if they take longer than 30 s plus 10 ms per request.
    pub fn wait_for(&self, requests: u64) -> Result<()> {
        let deadline = Duration::from_secs(30) + Duration::from_millis(10) * u32::try_from(requests)?;
        self.running.wait_for(self.running.asked() + requests, deadline)
    }

    /// Stops the load and checks that no request failed, that every acknowledged link exists, and that no URL was shortened
    /// twice.
    ///
    /// # Errors
    /// Fails if a check fails. If requests failed, the error holds the logs around the first failure.
    pub fn finish(self, host: &Host) -> Result<Report> {
        let label = self.label.clone();
        let report = self.stop()?;
        let kept = verify(host, &label, &report);
        if report.failed() == 0 {
            kept?;
            return Ok(report);
        }
        let kept = kept.map_or_else(
            |error| format!("{error:#}"),
            |()| "no link lost or made twice".to_owned(),
        );
        bail!(
            "{} requests failed, the first{}; {kept}\n{}",
            report.failed(),
            report
                .examples
                .first()
                .map(|first| format!(" {first}"))
                .unwrap_or_default(),
            circumstances(host, &report)
        )
    }

    /// Stops the load without any checks, and prints the report.
    ///
    /// # Errors
    /// Fails if a worker could not enter the machine's network.
    pub fn stop(self) -> Result<Report> {
        let report = self.running.stop()?;
        println!("{}: {report}", self.label);
        Ok(report)
    }
}

/// Checks that every acknowledged link exists, and only once.
///
/// # Errors
/// Fails if a link is missing or exists twice, or if the machine cannot be queried.
pub fn verify(host: &Host, label: &str, report: &Report) -> Result<()> {
    let lost = verify_all(&host.http(), &report.acknowledged)?;
    let few = &lost[..lost.len().min(3)];
    ensure!(
        lost.is_empty(),
        "{} of {} links lost, e.g. {few:?}",
        lost.len(),
        report.acknowledged.len()
    );
    let twice = host.duplicates(&format!("https://load.example/{label}/"))?;
    ensure!(twice.is_empty(), "made more than once: {twice:?}");
    Ok(())
}

/// The journal and nginx's error log around the first failure.
fn circumstances(host: &Host, report: &Report) -> String {
    let Some(first) = report.examples.first() else {
        return String::new();
    };
    let (from, to) = (first.time.as_secs().saturating_sub(5), first.time.as_secs() + 5);
    // nginx logs whole seconds. The first few of its lines are enough.
    let script = format!(
        r#"journalctl --sync
        journalctl --quiet --output=short-unix --since=@{from} --until=@{to}
        from=$(date --date=@{from} +'%Y/%m/%d %T') to=$(date --date=@{to} +'%Y/%m/%d %T')
        awk -v from="$from" -v to="$to" '{{ at = $1 " " $2 }} at >= from && at <= to && ++n <= 20' /var/log/nginx/error.log"#
    );
    match host.shell(&script) {
        Ok(output) => output.stdout,
        Err(error) => format!("(no journal: {error:#})"),
    }
}
