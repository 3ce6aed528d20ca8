//! What the appliance takes of memory on a small machine: after its installation, and after many different links were
//! followed.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use links_tests::{Appliance, DATABASE, Machine, Tree};
use rusqlite::Connection;
use serde::Serialize;

use crate::edge::{self, fill};
use crate::load::Wrk;

/// Of the machine, in bytes.
const MEMORY: u64 = 512 << 20;
const LINKS: u32 = 1_000_000;
/// Of each of the two instances.
const REDIRECTS: f64 = 1_000_000.0;
const CONNECTIONS: u32 = 64;
const SECONDS_PER_RUN: u32 = 10;
/// The redirects have to be done by then.
const RUNS: u32 = 180;
/// The runtimes, as processes are named.
const RUNTIMES: [&str; 2] = ["links-host", "spin"];
/// Longer than an instance keeps what it does not use.
const SETTLES: Duration = Duration::from_secs(5);

/// In MiB; none where the figure is only shown.
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

/// In MiB.
#[derive(Clone, Debug, Serialize)]
pub struct Figures {
    after_installation: Snapshot,
    after_redirects: Snapshot,
    redirects: f64,
    /// Of the whole machine, page cache and wrk included.
    machine_at_most: f64,
    /// For want of memory.
    killed_processes: u64,
}

#[derive(Clone, Debug, Serialize, PartialEq)]
struct Snapshot {
    /// Of the larger instance: the runtime, without its supervisor.
    instance_pss: f64,
    instance_rss: f64,
    /// Of all processes, nginx included.
    appliance_pss: f64,
}

/// # Errors
/// The lab does not work here, or an answer was an error.
pub fn measure() -> Result<Figures> {
    let tree = Tree::with_nginx_and(&["wrk"])?;
    let appliance = Appliance::prepared_on(|| Machine::boot_with_memory(&tree, MEMORY))?;
    appliance.apt_install()?;
    appliance.ok(["systemctl", "start", "links"])?;
    appliance.wait_for_rotation(2)?;
    // What was needed for the start only is given back by the clock.
    std::thread::sleep(SETTLES);
    let after_installation = snapshot(&appliance)?;
    appliance.inside(|| fill(&Connection::open(DATABASE)?, LINKS))?;
    appliance.copy_in(Path::new(edge::GENERATOR), "/var/tmp/links.lua")?;
    let site = appliance.read(edge::SITE)?;
    appliance.write("/etc/nginx/sites-enabled/zz-bench", edge::sites(&site)?)?;
    appliance.reload_nginx()?;
    let mut redirects = 0.0;
    for run in 0..RUNS {
        let command = format!(
            "wrk --latency -t1 -c{CONNECTIONS} -d{SECONDS_PER_RUN}s -s /var/tmp/links.lua http://127.0.0.1:{}/ -- uniform {LINKS} {run}",
            edge::NO_CACHE
        );
        let load = Wrk::parse(&appliance.shell(&command)?.stdout)?;
        redirects += load.per_second * f64::from(SECONDS_PER_RUN);
        if redirects >= 2.0 * REDIRECTS {
            break;
        }
    }
    ensure!(redirects >= 2.0 * REDIRECTS, "only {redirects} redirects in time");
    // What an instance frees after a while it frees by the clock: there is nothing to wait for.
    std::thread::sleep(SETTLES);
    let after_redirects = snapshot(&appliance)?;
    let (most, killed_processes) = appliance.memory_usage()?;
    Ok(Figures {
        after_installation,
        after_redirects,
        redirects,
        machine_at_most: most as f64 / f64::from(1 << 20),
        killed_processes,
    })
}

fn snapshot(appliance: &Appliance) -> Result<Snapshot> {
    let names = RUNTIMES.join("|");
    let script = format!(
        "for process in /proc/[0-9]*; do
            name=$(cat $process/comm 2>/dev/null) || continue
            case $name in {names}|linksctl|nginx) ;; *) continue ;; esac
            awk -v name=$name '/^Rss:/ {{ rss = $2 }} /^Pss:/ {{ pss = $2 }} END {{ print name, pss, rss }}' $process/smaps_rollup
        done"
    );
    Snapshot::parse(&appliance.shell(&script)?.stdout)
}

impl Snapshot {
    /// From lines of a name, PSS and RSS in KiB (proc(5), smaps_rollup).
    fn parse(text: &str) -> Result<Self> {
        let mut all = Self {
            instance_pss: 0.0,
            instance_rss: 0.0,
            appliance_pss: 0.0,
        };
        for line in text.lines() {
            let words: Vec<_> = line.split_whitespace().collect();
            let [name, pss, rss] = words[..] else {
                anyhow::bail!("a process without figures: {line:?}");
            };
            let mib = |kib: &str| Ok::<_, anyhow::Error>(kib.parse::<f64>().context("no number of KiB")? / 1024.0);
            let (pss, rss) = (mib(pss)?, mib(rss)?);
            all.appliance_pss += pss;
            // Of the two processes of Spin, the one that serves is the larger.
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
            "memory, MiB (limit)", "instance PSS", "instance RSS", "appliance PSS"
        );
        let redirects = format!("after {:.1} million redirects", self.redirects / 1e6);
        for (name, snapshot, limits) in [
            ("after the installation", &self.after_installation, &AFTER_INSTALLATION),
            (redirects.as_str(), &self.after_redirects, &AFTER_REDIRECTS),
        ] {
            println!(
                "{name:<34} {:>18} {:>18} {:>18}",
                beside(snapshot.instance_pss, limits.instance_pss),
                beside(snapshot.instance_rss, limits.instance_rss),
                beside(snapshot.appliance_pss, limits.appliance_pss)
            );
        }
        println!(
            "{:<34} {:>18}; {} processes ended for want of memory",
            "the machine at most",
            beside(self.machine_at_most, Some(MEMORY as f64 / f64::from(1 << 20))),
            self.killed_processes
        );
        println!(
            "\nthe larger of two instances; of {LINKS} links each asked for about as often as any; the appliance: instances,\n\
             supervisors, agent and nginx; the machine: all that runs in it, and its page cache, which the kernel gives up as needed"
        );
    }
}

/// A figure and its limit.
fn beside(figure: f64, limit: Option<f64>) -> String {
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
        assert_eq!(beside(29.96, Some(30.0)), "30.0 (30)");
        assert_eq!(beside(30.1, Some(30.0)), "OVER 30.1 (30)");
        assert_eq!(beside(30.1, None), "30.1");
    }

    #[test]
    fn processes_are_added_up() {
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
