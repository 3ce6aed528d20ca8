//! What else happens on a host: others at work on nginx, slow clients, a full disk, a clock that is set.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use links_tests::load::Outcome;
use links_tests::{Host, Traffic, Tree, verify};

const BROKEN_RUNTIME: &str = env!("CARGO_BIN_EXE_broken-runtime");

#[test]
fn logrotate_is_not_noticed() -> Result<()> {
    let host = Host::serving_on(&Tree::with_nginx_and(&["logrotate"])?, BROKEN_RUNTIME)?;
    let log = || -> Result<(String, u64)> {
        let stat = ["stat", "--format=%i %s", "/var/log/nginx/access.log"];
        let stat = host.ok(stat)?.stdout;
        let (inode, size) = stat.trim().split_once(' ').context("two words")?;
        Ok((inode.to_owned(), size.parse()?))
    };
    let traffic = Traffic::start(&host, "logrotate")?;
    for _ in 0..3 {
        let (before, _) = log()?;
        traffic.during("logrotate", || {
            host.ok(["logrotate", "--force", "/etc/logrotate.d/nginx"])
        })?;
        let (after, size) = log()?;
        ensure!(after != before && size > 0, "nginx writes a new log: {size} bytes");
    }
    traffic.finish(&host)?;
    Ok(())
}

#[test]
fn a_restart_of_nginx_costs_what_comes_while_it_is_down() -> Result<()> {
    let host = Host::serving(BROKEN_RUNTIME)?;
    let before = host.starts(2)?;
    let traffic = Traffic::start(&host, "nginx")?;
    for _ in 0..3 {
        let failed = traffic.failed();
        let begin = Instant::now();
        // Its end includes requests that are right again.
        traffic.during("restart", || host.ok(["systemctl", "restart", "nginx"]))?;
        let down = traffic.failed();
        println!(
            "{} requests failed, all is well again after {:.2} s",
            down - failed,
            begin.elapsed().as_secs_f64()
        );
        traffic.wait_for(2_000)?;
        assert_eq!(traffic.failed(), down, "it is up");
    }
    assert_eq!(host.starts(2)?, before, "the instances had no part in it");

    let report = traffic.stop()?;
    assert_eq!(
        report.failed(),
        report.of(Outcome::Refused) + report.of(Outcome::Reset),
        "nobody gave a wrong answer: {report}"
    );
    verify(&host, "nginx", &report)
}
