//! System containers remove protection: LXC has a drop-in for every service, mounts may not propagate, and namespaces may be
//! refused. links serves with the remaining protection and names what is missing, or it refuses and gives the reason.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use links_tests::Host;
use serde_json::Value;

const DROP_IN: &str = "/run/systemd/system/service.d/zzz-lxc-service.conf";
/// The drop-in as distrobuilder writes it.
const LXC: &str = "[Service]\nLoadCredential=\nProcSubset=all\nProtectProc=default\nNoNewPrivileges=no\n";
/// The beginning of the report that linksctl delivers the credentials instead of systemd.
const CREDENTIALS: &str = "credentials ";
const URL: &str = "https://example.com/contained";

#[test]
fn links_serves_in_a_container_and_names_the_missing_protection() -> Result<()> {
    let host = Host::builder().uninstalled()?;
    host.write(DROP_IN, LXC)?;
    host.ok(["systemctl", "daemon-reload"])?;
    host.apt_install()?;
    let link = host.shorten(URL)?;
    host.follow(&link)?;
    let lacks = sandbox(&host)?;
    for lack in [
        "NoNewPrivileges=no",
        "ProcSubset=all",
        "ProtectProc=default",
        CREDENTIALS,
    ] {
        ensure!(
            lacks.iter().any(|found| found.starts_with(lack)),
            "{lack:?} should be in {lacks:?}"
        );
    }
    let modes = "stat --format='%a %U:%G %n' /run/links/credentials{,/1{,/admin_token}}";
    assert_eq!(
        host.shell(modes)?.stdout,
        "750 root:links /run/links/credentials\n750 root:links /run/links/credentials/1\n\
         440 root:links /run/links/credentials/1/admin_token\n"
    );
    let reads = |user: &str| -> Result<i32> {
        let read = ["cat", "/run/links/credentials/1/admin_token"];
        let user = [format!("--reuid={user}"), "--clear-groups".to_owned()];
        let group = format!(
            "--regid={}",
            if user[0].ends_with("links") { "links" } else { "nogroup" }
        );
        let command = ["setpriv".to_owned()].into_iter().chain(user).chain([group]);
        Ok(host.run(command.chain(read.map(str::to_owned)))?.status)
    };
    ensure!(
        reads("links")? == 0 && reads("www-data")? != 0 && reads("nobody")? != 0,
        "only the user links may read the token"
    );

    // A rotated token is delivered in the same way.
    let old = host.token()?;
    let rotated = host.ok(["linksctl", "token", "--rotate"])?;
    ensure!(rotated.stderr.contains("`linksctl rollout`"), "{rotated}");
    ensure!(rotated.stdout.trim() != old, "the token should have changed");
    host.ok(["linksctl", "rollout"])?;
    host.shorten("https://example.com/rotated")?;
    host.ok(["systemctl", "stop", "links"])?;
    host.wait_until_stopped()?;
    assert_eq!(host.ok(["ls", "/run/links/credentials"])?.stdout, "");

    // Without mount propagation, the directory that systemd provides is empty.
    host.shell(&format!(
        "rm {DROP_IN}; systemctl daemon-reload; mount --make-rprivate /"
    ))?;
    host.ok(["systemctl", "start", "links"])?;
    host.wait_for_rotation(2)?;
    host.shorten("https://example.com/private")?;
    let lacks = sandbox(&host)?;
    ensure!(lacks.len() == 1 && lacks[0].starts_with(CREDENTIALS), "{lacks:?}");

    // With mount propagation, systemd delivers credentials again.
    host.ok(["mount", "--make-rshared", "/"])?;
    host.ok(["linksctl", "restart"])?;
    assert_eq!(sandbox(&host)?, Vec::<String>::new());
    host.follow(&link)?;

    // systemd handles a failed mount in the same way as a refused namespace.
    host.write(DROP_IN, "[Service]\nBindReadOnlyPaths=/does-not-exist:/mnt\n")?;
    host.ok(["systemctl", "daemon-reload"])?;
    let refused = host.run_within(Duration::from_secs(60), ["linksctl", "configure"])?;
    ensure!(refused.status == 1, "{refused}");
    for part in ["PrivateUsers=yes", "links@.service.d/50-container.conf"] {
        ensure!(refused.stderr.contains(part), "{part:?} should be in {refused}");
    }
    // The running instances are left alone.
    host.follow(&link)?;
    host.shell(&format!("rm {DROP_IN}; systemctl daemon-reload"))?;
    host.ok(["linksctl", "configure"])?;
    host.follow(&link)
}

fn sandbox(host: &Host) -> Result<Vec<String>> {
    let status: Value = host.ok(["linksctl", "status", "--json"])?.json()?;
    let lacks = status["sandbox"]
        .as_array()
        .context("the status has no list of missing protection")?;
    Ok(lacks
        .iter()
        .filter_map(|lack| lack.as_str().map(str::to_owned))
        .collect())
}
