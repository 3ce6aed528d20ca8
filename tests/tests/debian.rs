//! The releases of Debian that links supports. The other tests run on one of them (`SUITE`, by default trixie). Here what users
//! do first runs on the other one, and a host with links is upgraded from Debian 12 to 13.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use links_tests::{Builder, Host, Suite, Traffic, eventually};

use crate::{appliance, https, repository, upgrades};

/// A host with the release of Debian on which the other tests do not run.
fn other() -> Result<Builder> {
    let suite = Suite::of_environment()?.other();
    println!("on {suite}");
    Ok(Host::builder().suite(suite))
}

#[test]
fn apt_install_sets_up_nginx_on_the_other_debian_too() -> Result<()> {
    appliance::apt_install_sets_up_nginx(other()?)
}

#[test]
fn the_other_debian_serves_reboots_and_keeps_nothing_after_a_purge() -> Result<()> {
    let mut host = other()?.uninstalled()?;
    let before = host.inventory()?;
    host.apt_install()?;
    host.wait_for_rotation(2)?;
    appliance::passes_its_checks_starts_at_boot_and_stops_on_request(&mut host)?;
    appliance::removal_keeps_the_links_and_purge_leaves_nothing_but(&before, &host)
}

#[test]
fn an_upgrade_on_the_other_debian_costs_no_request_and_no_click() -> Result<()> {
    upgrades::cost_no_request_and_no_click(other()?, 1)
}

#[test]
fn https_takes_one_command_on_the_other_debian_too() -> Result<()> {
    https::takes_one_command_and_a_name_that_fails_takes_no_other_down(other()?)
}

/// Debian 12 has apt 2.6, and Debian 13 has apt 3.0.
#[test]
fn the_other_debians_apt_follows_the_repository_too() -> Result<()> {
    repository::follows_the_repository(other()?)
}

/// The upgrade of Debian restarts nginx and systemd, so this asks before and after it, not meanwhile.
#[test]
fn links_serves_before_and_after_an_upgrade_of_debian() -> Result<()> {
    let (old, new) = (Suite::Bookworm, Suite::Trixie);
    let mut host = Host::builder().suite(old).upgradable_to(new).serving()?;
    let link = host.shorten("https://example.com/before")?;
    host.follow(&link)?;
    let token = host.token()?;

    let begin = Instant::now();
    let upgraded = host.upgrade_debian(new)?;
    println!("apt full-upgrade: {:.1} s", begin.elapsed().as_secs_f64());
    ensure!(
        !upgraded.stdout.contains("Configuration file"),
        "dpkg asked about a conffile: {upgraded}"
    );
    assert_eq!(host.package_state()?, "installed");
    serves_again(&host).with_context(|| upgraded.to_string())?;
    host.follow(&link)?;
    host.follow(&host.shorten("https://example.com/after")?)?;
    host.ok(["linksctl", "status"])?;

    // The instances that still run with the libraries of before are replaced like those of any release.
    let traffic = Traffic::start(&host, "debian")?;
    traffic.during("restart", || host.restarted(|| host.ok(["linksctl", "restart"])))?;
    traffic.finish(&host)?;

    host.reboot()?;
    serves_again(&host)?;
    host.follow(&link)?;
    assert_eq!(host.token()?, token);
    appliance::passes_its_checks_starts_at_boot_and_stops_on_request(&mut host)
}

fn serves_again(host: &Host) -> Result<()> {
    host.wait_for_rotation(2)?;
    eventually("links answers through nginx", Duration::from_secs(30), || {
        let answer = host.http().get("/health");
        Ok(answer.is_ok_and(|answer| answer.status == 200).then_some(()))
    })
}
