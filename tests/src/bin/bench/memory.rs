//! What the appliance takes of memory: after its installation, and after many different links were followed.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use links_tests::{Appliance, Tree};
use rusqlite::Connection;
use serde::Serialize;

use crate::edge::{self, fill};
use crate::load::Wrk;

const LINKS: u32 = 1_000_000;
/// Of each of the two instances.
const REDIRECTS: f64 = 1_000_000.0;
const CONNECTIONS: u32 = 64;
const SECONDS_PER_RUN: u32 = 10;
/// The redirects have to be done by then.
const RUNS: u32 = 60;
/// Longer than an instance keeps what it does not use.
const SETTLES: Duration = Duration::from_secs(5);
const DATABASE: &str = "/var/lib/links/data/links.db";

/// In MiB.
#[derive(Clone, Debug, Serialize)]
pub struct Figures {
    after_installation: Snapshot,
    after_redirects: Snapshot,
    redirects: f64,
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
    let appliance = Appliance::installed_on(&Tree::with_nginx_and(&["wrk"])?)?;
    appliance.wait_for_rotation(2)?;
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
    Ok(Figures {
        after_installation,
        after_redirects: snapshot(&appliance)?,
        redirects,
    })
}

fn snapshot(appliance: &Appliance) -> Result<Snapshot> {
    let script = "for process in /proc/[0-9]*; do
        name=$(cat $process/comm 2>/dev/null) || continue
        case $name in links-host|linksctl|nginx) ;; *) continue ;; esac
        awk -v name=$name '/^Rss:/ { rss = $2 } /^Pss:/ { pss = $2 } END { print name, pss, rss }' $process/smaps_rollup
    done";
    Snapshot::parse(&appliance.shell(script)?.stdout)
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
            if name == "links-host" {
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
            "\n{:<34} {:>14} {:>14} {:>15}",
            "memory, MiB", "instance PSS", "instance RSS", "appliance PSS"
        );
        let redirects = format!("after {:.1} million redirects", self.redirects / 1e6);
        for (name, snapshot) in [
            ("after the installation", &self.after_installation),
            (redirects.as_str(), &self.after_redirects),
        ] {
            println!(
                "{name:<34} {:>14.1} {:>14.1} {:>15.1}",
                snapshot.instance_pss, snapshot.instance_rss, snapshot.appliance_pss
            );
        }
        println!(
            "\nthe larger of two instances; of {LINKS} links each asked for about as often as any; the appliance: instances,\n\
             supervisors, agent and nginx"
        );
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

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
