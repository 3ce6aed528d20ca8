//! System containers remove protection: LXC has a drop-in for every service, mounts may not propagate, and namespaces may be
//! refused. links serves with the remaining protection and names what is missing, or it refuses and gives the reason.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use links_tests::{Appliance, Tree};
use serde_json::Value;

const DROP_IN: &str = "/run/systemd/system/service.d/zzz-lxc-service.conf";
/// The drop-in as distrobuilder writes it.
const LXC: &str = "[Service]\nLoadCredential=\nProcSubset=all\nProtectProc=default\nNoNewPrivileges=no\n";
const URL: &str = "https://example.com/contained";

#[test]
fn links_serves_in_a_container_and_names_the_missing_protection() -> Result<()> {
    let appliance = Appliance::prepared(&Tree::with_nginx()?)?;
    appliance.write(DROP_IN, LXC)?;
    appliance.ok(["systemctl", "daemon-reload"])?;
    appliance.apt_install()?;
    let link = appliance.shorten(URL)?;
    appliance.follow(&link)?;
    let lacks = sandbox(&appliance)?;
    for lack in [
        "NoNewPrivileges=no, not yes",
        "ProcSubset=all, not pid",
        "ProtectProc=default, not invisible",
        "credentials come from linksctl, as systemd could not deliver them",
    ] {
        ensure!(
            lacks.iter().any(|found| found == lack),
            "{lack:?} should be in {lacks:?}"
        );
    }
    let modes = "stat --format='%a %U:%G %n' /run/links/credentials{,/1{,/admin_token}}";
    assert_eq!(
        appliance.shell(modes)?.stdout,
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
        Ok(appliance.run(command.chain(read.map(str::to_owned)))?.status)
    };
    ensure!(
        reads("links")? == 0 && reads("www-data")? != 0 && reads("nobody")? != 0,
        "only the user links may read the token"
    );

    // A rotated token is delivered in the same way.
    let old = appliance.token()?;
    let rotated = appliance.ok(["linksctl", "token", "--rotate"])?;
    ensure!(rotated.stderr.contains("`linksctl rollout`"), "{rotated}");
    ensure!(rotated.stdout.trim() != old, "the token should have changed");
    appliance.ok(["linksctl", "rollout"])?;
    appliance.shorten("https://example.com/rotated")?;
    appliance.ok(["systemctl", "stop", "links"])?;
    appliance.wait_until_stopped()?;
    assert_eq!(appliance.ok(["ls", "/run/links/credentials"])?.stdout, "");

    // Without mount propagation, the directory that systemd provides is empty.
    appliance.shell(&format!(
        "rm {DROP_IN}; systemctl daemon-reload; mount --make-rprivate /"
    ))?;
    appliance.ok(["systemctl", "start", "links"])?;
    appliance.wait_for_rotation(2)?;
    appliance.shorten("https://example.com/private")?;
    let delivered = ["credentials come from linksctl, as systemd could not deliver them"];
    assert_eq!(sandbox(&appliance)?, delivered);

    // With mount propagation, systemd delivers credentials again.
    appliance.ok(["mount", "--make-rshared", "/"])?;
    appliance.ok(["linksctl", "restart"])?;
    assert_eq!(sandbox(&appliance)?, Vec::<String>::new());
    appliance.follow(&link)?;

    // systemd handles a failed mount in the same way as a refused namespace.
    appliance.write(DROP_IN, "[Service]\nBindReadOnlyPaths=/does-not-exist:/mnt\n")?;
    appliance.ok(["systemctl", "daemon-reload"])?;
    let refused = appliance.run_within(Duration::from_secs(60), ["linksctl", "configure"])?;
    ensure!(refused.status == 1, "{refused}");
    for part in [
        "this host does not support",
        "PrivateUsers=yes",
        "links@.service.d/50-container.conf",
    ] {
        ensure!(refused.stderr.contains(part), "{part:?} should be in {refused}");
    }
    // The running instances are left alone.
    appliance.follow(&link)?;
    appliance.shell(&format!("rm {DROP_IN}; systemctl daemon-reload"))?;
    appliance.ok(["linksctl", "configure"])?;
    appliance.follow(&link)
}

fn sandbox(appliance: &Appliance) -> Result<Vec<String>> {
    let status = appliance.ok(["linksctl", "status", "--json"])?.stdout;
    let status: Value = serde_json::from_str(&status)?;
    let lacks = status["sandbox"]
        .as_array()
        .context("the status has no list of missing protection")?;
    Ok(lacks
        .iter()
        .filter_map(|lack| lack.as_str().map(str::to_owned))
        .collect())
}
