//! The instances reach other machines only while the configuration names one.

use anyhow::{Result, ensure};
use links_tests::{Appliance, Output};

const DROP_IN: &str = "/etc/systemd/system/links@.service.d/10-network.conf";
const LINKS_TOML: &str =
    "[rollout]\nmin_healthy = \"200ms\"\n[health]\nstart_timeout = \"5s\"\n[cache]\nenabled = true\nttl = \"1s\"\n";
const LOCAL: &str = "[sqlite_database.default]\ntype = \"spin\"\npath = \"/var/lib/links/data/links.db\"\n";

#[test]
fn the_network_opens_with_a_remote_provider_and_closes_without() -> Result<()> {
    let appliance = Appliance::installed()?;
    let lab = Lab(&appliance);
    lab.is_closed()?;

    // A cache that never answers (RFC 5737) fails no client.
    let cache = "[key_value_store.default]\ntype = \"redis\"\nurl = \"redis://192.0.2.7:6379\"\n";
    let remote = format!("{LOCAL}{cache}");
    appliance.write("/etc/links/runtime.toml", &remote)?;
    let planned = appliance.ok(["linksctl", "rollout", "--dry-run"])?.stdout;
    ensure!(planned.contains("let the instances reach other machines"), "{planned}");
    lab.is_closed()?;
    appliance.configure(LINKS_TOML, &remote)?;
    lab.is_open()?;
    for unit in ["links@1", "links"] {
        let exposure = appliance.exposure(unit)?;
        ensure!(exposure <= 1.5, "{unit}: {exposure}");
    }
    for number in 0..20 {
        let link = appliance.shorten(&format!("https://example.com/{number}"))?;
        appliance.follow(&link)?;
    }

    appliance.configure(LINKS_TOML, LOCAL)?;
    lab.is_closed()?;

    // A rollout that fails, the database being nowhere, leaves the network as it was.
    let starts = appliance.releases(2)?;
    let nowhere = "[sqlite_database.default]\ntype = \"libsql\"\nurl = \"http://db.links.invalid\"\ntoken = \"\"\n";
    appliance.write("/etc/links/runtime.toml", nowhere)?;
    let failed: Output = appliance.run(["systemctl", "reload", "links"])?;
    ensure!(failed.status != 0, "{failed}");
    appliance.wait_for_rotation(2)?;
    ensure!(appliance.releases(2)? == starts, "something else runs");
    lab.is_closed()?;
    appliance.follow(&appliance.shorten("https://example.com/afterwards")?)?;

    // Who purges the package finds nothing of it.
    appliance.configure(LINKS_TOML, &remote)?;
    lab.is_open()?;
    appliance.ok(["apt-get", "--yes", "purge", "links-shortener"])?;
    ensure!(!appliance.exists(DROP_IN)?, "{DROP_IN} is left");
    Ok(())
}

struct Lab<'a>(&'a Appliance);

impl Lab<'_> {
    fn is_open(&self) -> Result<()> {
        let text = self.0.read(DROP_IN)?;
        ensure!(text.contains("IPAddressAllow=any"), "{text}");
        // `any` as systemd prints it.
        ensure!(self.property("IPAddressAllow")? == "0.0.0.0/0 ::/0");
        ensure!(self.property("IPAddressDeny")?.is_empty());
        self.is_known()
    }

    fn is_closed(&self) -> Result<()> {
        ensure!(!self.0.exists(DROP_IN)?, "{DROP_IN} is there");
        ensure!(self.property("IPAddressAllow")? == "127.0.0.0/8 ::1/128");
        ensure!(self.property("IPAddressDeny")? == "0.0.0.0/0 ::/0");
        self.is_known()
    }

    /// systemd has read what is on the disk.
    fn is_known(&self) -> Result<()> {
        ensure!(self.property("NeedDaemonReload")? == "no");
        Ok(())
    }

    /// Of both instances, which agree.
    fn property(&self, name: &str) -> Result<String> {
        let show = |unit| self.0.ok(["systemctl", "show", "--property", name, "--value", unit]);
        let [one, two] = [show("links@1")?.stdout, show("links@2")?.stdout];
        ensure!(one == two, "{name}: {one} and {two}");
        println!("{name} = {one:?}");
        let mut words: Vec<_> = one.split_whitespace().collect();
        words.sort_unstable();
        Ok(words.join(" "))
    }
}
