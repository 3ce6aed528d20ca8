//! The usual load on an appliance, and what has to hold when it ends.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use crate::Appliance;
use crate::load::{Connections, Load, Mix, Report, Running, verify_all};

/// Requests that have to pass after a change, before the next one: what it broke shows in them.
const AFTERMATH: u64 = 300;

/// Reads and writes through nginx, over kept and over fresh connections at once, until it is finished.
#[derive(Debug)]
pub struct Traffic {
    running: Running,
    label: String,
}

impl Traffic {
    /// Enough to keep connections open at every moment, with time left for what the test does meanwhile.
    const WORKERS: usize = 16;
    const RATE: u32 = 1500;

    /// Starts, and waits until it is in full swing. `label` tells its URLs from those of others on this appliance.
    ///
    /// # Errors
    /// There is no token, or next to nothing is answered within 30 s.
    pub fn start(appliance: &Appliance, label: &str) -> Result<Self> {
        let load = Load::through([appliance.site()?])
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

    /// Does something meanwhile; latencies count for the phase of that name until the aftermath is over too.
    ///
    /// # Errors
    /// What was done failed, or next to nothing is answered for 30 s.
    pub fn during<T>(&self, phase: &str, change: impl FnOnce() -> Result<T>) -> Result<T> {
        self.running.phase(phase);
        let changed = change().with_context(|| format!("under load, after {} requests", self.running.asked()))?;
        self.wait_for(AFTERMATH)?;
        self.running.phase("rest");
        Ok(changed)
    }

    /// Requests so far.
    pub fn asked(&self) -> u64 {
        self.running.asked()
    }

    /// Requests so far that ended in anything but the right answer.
    pub fn failed(&self) -> u64 {
        self.running.failed()
    }

    /// Waits for that many more requests.
    ///
    /// # Errors
    /// They take more than 30 s and 10 ms each.
    pub fn wait_for(&self, requests: u64) -> Result<()> {
        let deadline = Duration::from_secs(30) + Duration::from_millis(10) * u32::try_from(requests)?;
        self.running.wait_for(self.running.asked() + requests, deadline)
    }

    /// Ends it, and holds it to all that was promised: no request failed, each acknowledged link is there, and no URL
    /// was made twice.
    ///
    /// # Errors
    /// One of these does not hold. After failed requests the error tells what was written around the first of them.
    pub fn finish(self, appliance: &Appliance) -> Result<Report> {
        let label = self.label.clone();
        let report = self.stop()?;
        let kept = verify(appliance, &label, &report);
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
            circumstances(appliance, &report)
        )
    }

    /// Ends it whatever it saw, and prints that.
    ///
    /// # Errors
    /// A worker could not enter the machine.
    pub fn stop(self) -> Result<Report> {
        let report = self.running.stop()?;
        println!("{}: {report}", self.label);
        Ok(report)
    }
}

/// Every link that was acknowledged is there, and only once.
///
/// # Errors
/// One is not, or the machine cannot be asked.
pub fn verify(appliance: &Appliance, label: &str, report: &Report) -> Result<()> {
    let lost = verify_all(&appliance.http(), &report.acknowledged)?;
    let few = &lost[..lost.len().min(3)];
    ensure!(
        lost.is_empty(),
        "{} of {} links lost, e.g. {few:?}",
        lost.len(),
        report.acknowledged.len()
    );
    let twice = appliance.made_twice(&format!("https://load.example/{label}/"))?;
    ensure!(twice.is_empty(), "made more than once: {twice:?}");
    Ok(())
}

/// What was written around the first failure.
fn circumstances(appliance: &Appliance, report: &Report) -> String {
    let Some(first) = report.examples.first() else {
        return String::new();
    };
    let (from, to) = (first.time.as_secs().saturating_sub(5), first.time.as_secs() + 5);
    // nginx gives whole seconds; of its lines the first few tell all.
    let script = format!(
        r#"journalctl --sync
        journalctl --quiet --output=short-unix --since=@{from} --until=@{to}
        from=$(date --date=@{from} +'%Y/%m/%d %T') to=$(date --date=@{to} +'%Y/%m/%d %T')
        awk -v from="$from" -v to="$to" '{{ at = $1 " " $2 }} at >= from && at <= to && ++n <= 20' /var/log/nginx/error.log"#
    );
    match appliance.shell(&script) {
        Ok(output) => output.stdout,
        Err(error) => format!("(no journal: {error:#})"),
    }
}
