//! How much memory the appliance uses on a small machine: after its installation, and after redirects of many different
//! links.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use links_tests::{DATABASE, Host};
use rusqlite::Connection;
use serde::Serialize;

use crate::edge::{self, fill};
use crate::load::Wrk;

/// The memory of the machine, in bytes.
const MEMORY: u64 = 512 << 20;
const LINKS: u32 = 1_000_000;
/// The number of redirects for each of the two instances.
const REDIRECTS_PER_INSTANCE: f64 = 1_000_000.0;
const CONNECTIONS: u32 = 64;
const SECONDS_PER_RUN: u32 = 10;
/// The maximum number of runs for the redirects.
const MAX_RUNS: u32 = 180;
/// The process names of the runtimes.
const RUNTIMES: [&str; 2] = ["links-host", "spin"];
/// Longer than an instance keeps unused memory.
const SETTLING_TIME: Duration = Duration::from_secs(5);

/// Limits in MiB. A figure without one is only printed.
struct Limits {
    instance_pss: Option<f64>,
    instance_rss: Option<f64>,
    appliance_pss: Option<f64>,
}

const AFTER_INSTALLATION: Limits = Limits {
    instance_pss: Some(30.0),
    instance_rss: None,
    appliance_pss: Some(150.0),
};
const AFTER_REDIRECTS: Limits = Limits {
    instance_pss: Some(60.0),
    instance_rss: Some(150.0),
    appliance_pss: None,
};

/// Memory in MiB.
#[derive(Clone, Debug, Serialize)]
pub struct Figures {
    after_installation: Snapshot,
    after_redirects: Snapshot,
    redirects: f64,
    /// The highest usage of the whole machine, page cache and wrk included.
    machine_at_most: f64,
    /// The number of processes that the kernel killed for lack of memory.
    killed_processes: u64,
}

#[derive(Clone, Debug, Serialize, PartialEq)]
struct Snapshot {
    /// The PSS of the larger instance's runtime, without its supervisor.
    instance_pss: f64,
    /// The RSS of the larger instance's runtime, without its supervisor.
    instance_rss: f64,
    /// The PSS of all processes together, nginx included.
    appliance_pss: f64,
}

/// # Errors
/// Fails if the lab does not work here, or if an answer is an error.
pub fn measure() -> Result<Figures> {
    let host = Host::builder()
        .real_syncs()
        .packages(&["wrk"])
        .memory(MEMORY)
        .serving()?;
    // After a fixed time, instances free what only their start needed. There is no event to wait for.
    std::thread::sleep(SETTLING_TIME);
    let after_installation = snapshot(&host)?;
    host.inside(|| fill(&Connection::open(DATABASE)?, LINKS))?;
    host.copy_in(Path::new(edge::GENERATOR), "/var/tmp/links.lua")?;
    let site = host.read(edge::SITE)?;
    host.write("/etc/nginx/sites-enabled/zz-bench", edge::sites(&site)?)?;
    host.reload_nginx()?;
    let mut redirects = 0.0;
    for run in 0..MAX_RUNS {
        let command = format!(
            "wrk --latency -t1 -c{CONNECTIONS} -d{SECONDS_PER_RUN}s -s /var/tmp/links.lua http://127.0.0.1:{}/ -- uniform {LINKS} {run}",
            edge::NO_CACHE
        );
        let load = Wrk::parse(&host.shell(&command)?.stdout)?;
        redirects += load.per_second * f64::from(SECONDS_PER_RUN);
        if redirects >= 2.0 * REDIRECTS_PER_INSTANCE {
            break;
        }
    }
    ensure!(
        redirects >= 2.0 * REDIRECTS_PER_INSTANCE,
        "only {redirects} redirects within the maximum number of runs"
    );
    // The same is true of memory that they have not used for a while.
    std::thread::sleep(SETTLING_TIME);
    let after_redirects = snapshot(&host)?;
    let (most, killed_processes) = host.memory_usage()?;
    Ok(Figures {
        after_installation,
        after_redirects,
        redirects,
        machine_at_most: most as f64 / f64::from(1 << 20),
        killed_processes,
    })
}

fn snapshot(host: &Host) -> Result<Snapshot> {
    let names = RUNTIMES.join("|");
    let script = format!(
        "for process in /proc/[0-9]*; do
            name=$(cat $process/comm 2>/dev/null) || continue
            case $name in {names}|linksctl|links-run|links-agent|nginx) ;; *) continue ;; esac
            awk -v name=$name '/^Rss:/ {{ rss = $2 }} /^Pss:/ {{ pss = $2 }} END {{ print name, pss, rss }}' $process/smaps_rollup
        done"
    );
    Snapshot::parse(&host.shell(&script)?.stdout)
}

impl Snapshot {
    /// Parses lines with a name, a PSS and an RSS, both in KiB (proc(5), smaps_rollup).
    fn parse(text: &str) -> Result<Self> {
        let mut all = Self {
            instance_pss: 0.0,
            instance_rss: 0.0,
            appliance_pss: 0.0,
        };
        for line in text.lines() {
            let words: Vec<_> = line.split_whitespace().collect();
            let [name, pss, rss] = words[..] else {
                anyhow::bail!("the figures of a process are missing: {line:?}");
            };
            let mib =
                |kib: &str| Ok::<_, anyhow::Error>(kib.parse::<f64>().context("Parsing a number of KiB")? / 1024.0);
            let (pss, rss) = (mib(pss)?, mib(rss)?);
            all.appliance_pss += pss;
            // Spin runs as two processes; the larger one serves.
            if RUNTIMES.contains(&name) {
                all.instance_pss = all.instance_pss.max(pss);
                all.instance_rss = all.instance_rss.max(rss);
            }
        }
        ensure!(all.instance_pss > 0.0, "no instance among:\n{text}");
        Ok(all)
    }
}

impl Figures {
    pub fn print(&self) {
        println!(
            "\n{:<34} {:>18} {:>18} {:>18}",
            "memory, MiB (limit)", "instance PSS", "instance RSS", "host PSS"
        );
        let redirects = format!("after {:.1} million redirects", self.redirects / 1e6);
        for (name, snapshot, limits) in [
            ("after the installation", &self.after_installation, &AFTER_INSTALLATION),
            (redirects.as_str(), &self.after_redirects, &AFTER_REDIRECTS),
        ] {
            println!(
                "{name:<34} {:>18} {:>18} {:>18}",
                with_limit(snapshot.instance_pss, limits.instance_pss),
                with_limit(snapshot.instance_rss, limits.instance_rss),
                with_limit(snapshot.appliance_pss, limits.appliance_pss)
            );
        }
        println!(
            "{:<34} {:>18}; {} processes killed for lack of memory",
            "the machine at most",
            with_limit(self.machine_at_most, Some(MEMORY as f64 / f64::from(1 << 20))),
            self.killed_processes
        );
        println!(
            "\ninstance: the larger of two; redirects: of {LINKS} links, each about equally often; host: the instances,\n\
             supervisors, agent and nginx; machine: all of its processes, and its page cache, which the kernel frees as needed"
        );
    }
}

/// Formats a figure with its limit, and marks it if it is over the limit.
fn with_limit(figure: f64, limit: Option<f64>) -> String {
    match limit {
        Some(limit) if figure > limit => format!("OVER {figure:.1} ({limit})"),
        Some(limit) => format!("{figure:.1} ({limit})"),
        None => format!("{figure:.1}"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    #[test]
    fn a_figure_over_its_limit_stands_out() {
        assert_eq!(with_limit(29.96, Some(30.0)), "30.0 (30)");
        assert_eq!(with_limit(30.1, Some(30.0)), "OVER 30.1 (30)");
        assert_eq!(with_limit(30.1, None), "30.1");
    }

    #[test]
    fn processes_are_summed_up() {
        let text = "nginx 1024 2048\nlinks-host 2048 4096\nlinks-host 3072 8192\nlinksctl 1024 1024\n";
        let expected = Snapshot {
            instance_pss: 3.0,
            instance_rss: 8.0,
            appliance_pss: 7.0,
        };
        assert_eq!(Snapshot::parse(text).unwrap(), expected);
        assert!(Snapshot::parse("nginx 1 1\n").is_err());
    }
}
