//! Instances can reach other machines only while the configuration names a remote provider.

use anyhow::{Result, ensure};
use links_tests::{Events, Host, RUNTIME_TOML};
use serde_json::Value;

const DROP_IN: &str = "/etc/systemd/system/links@.service.d/10-network.conf";
const LINKS_TOML: &str =
    "[rollout]\nmin_healthy = \"200ms\"\n[health]\nstart_timeout = \"5s\"\n[cache]\nenabled = true\nttl = \"1s\"\n";
const LOCAL: &str = "[sqlite_database.default]\ntype = \"spin\"\npath = \"/var/lib/links/data/links.db\"\n";

#[test]
fn the_network_is_open_only_while_a_remote_provider_is_configured() -> Result<()> {
    let host = Host::builder().serving()?;
    network_is_closed(&host)?;

    // The address is reserved (RFC 5737), so this cache never answers. Clients are still served.
    let cache = "[key_value_store.default]\ntype = \"redis\"\nurl = \"redis://192.0.2.7:6379\"\n";
    let remote = format!("{LOCAL}{cache}");
    host.write(RUNTIME_TOML, &remote)?;
    let planned = host.ok(["linksctl", "rollout", "--dry-run", "--json"])?;
    let opens = |event: &&Value| {
        let text = event["text"].as_str().unwrap_or_default();
        event["step"] == "network" && text.contains("the instances reach other machines")
    };
    ensure!(
        Events::of(&planned)?.all("step").iter().any(opens),
        "the plan should have a step `network` that opens it: {planned}"
    );
    network_is_closed(&host)?;
    host.configure(LINKS_TOML, &remote)?;
    network_is_open(&host)?;
    for unit in ["links@1", "links"] {
        let exposure = host.exposure(unit)?;
        ensure!(exposure <= 1.5, "the exposure level of {unit} is {exposure}");
    }
    for number in 0..20 {
        let link = host.shorten(&format!("https://example.com/{number}"))?;
        host.follow(&link)?;
    }

    host.configure(LINKS_TOML, LOCAL)?;
    network_is_closed(&host)?;

    // The database does not exist, so the rollout fails and must leave the network as it was.
    let releases = host.running_releases(2)?;
    let nowhere = "[sqlite_database.default]\ntype = \"libsql\"\nurl = \"http://db.links.invalid\"\ntoken = \"\"\n";
    host.write(RUNTIME_TOML, nowhere)?;
    let failed = host.run(["systemctl", "reload", "links"])?;
    ensure!(failed.status != 0, "{failed}");
    host.wait_for_rotation(2)?;
    ensure!(
        host.running_releases(2)? == releases,
        "the failed rollout changed the running releases"
    );
    network_is_closed(&host)?;
    host.follow(&host.shorten("https://example.com/afterwards")?)?;

    // Purging the package removes the drop-in.
    host.configure(LINKS_TOML, &remote)?;
    network_is_open(&host)?;
    host.ok(["apt-get", "--yes", "purge", "links-shortener"])?;
    ensure!(!host.exists(DROP_IN)?, "{DROP_IN} still exists");
    Ok(())
}

fn network_is_open(host: &Host) -> Result<()> {
    let text = host.read(DROP_IN)?;
    ensure!(text.contains("IPAddressAllow=any"), "{text}");
    // systemd prints `any` like this.
    ensure!(property(host, "IPAddressAllow")? == "0.0.0.0/0 ::/0");
    ensure!(property(host, "IPAddressDeny")?.is_empty());
    is_loaded(host)
}

fn network_is_closed(host: &Host) -> Result<()> {
    ensure!(!host.exists(DROP_IN)?, "{DROP_IN} exists");
    ensure!(property(host, "IPAddressAllow")? == "127.0.0.0/8 ::1/128");
    ensure!(property(host, "IPAddressDeny")? == "0.0.0.0/0 ::/0");
    is_loaded(host)
}

/// Checks that systemd has loaded the unit files on the disk.
fn is_loaded(host: &Host) -> Result<()> {
    ensure!(property(host, "NeedDaemonReload")? == "no");
    Ok(())
}

/// The value of a unit property, which must be the same for both instances. Its words are sorted.
fn property(host: &Host, name: &str) -> Result<String> {
    let show = |unit| host.ok(["systemctl", "show", "--property", name, "--value", unit]);
    let [one, two] = [show("links@1")?.stdout, show("links@2")?.stdout];
    ensure!(one == two, "{name} differs between the instances: {one} and {two}");
    println!("{name} = {one:?}");
    let mut words: Vec<_> = one.split_whitespace().collect();
    words.sort_unstable();
    Ok(words.join(" "))
}
