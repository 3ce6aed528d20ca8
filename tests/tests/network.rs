//! Instances can reach other machines only while the configuration names a remote provider.

use anyhow::{Result, ensure};
use links_tests::{Appliance, Output};

const DROP_IN: &str = "/etc/systemd/system/links@.service.d/10-network.conf";
const LINKS_TOML: &str =
    "[rollout]\nmin_healthy = \"200ms\"\n[health]\nstart_timeout = \"5s\"\n[cache]\nenabled = true\nttl = \"1s\"\n";
const LOCAL: &str = "[sqlite_database.default]\ntype = \"spin\"\npath = \"/var/lib/links/data/links.db\"\n";

#[test]
fn the_network_is_open_only_while_a_remote_provider_is_configured() -> Result<()> {
    let appliance = Appliance::installed()?;
    let lab = Lab(&appliance);
    lab.is_closed()?;

    // The address is reserved (RFC 5737), so this cache never answers. Clients are still served.
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
        ensure!(exposure <= 1.5, "the exposure level of {unit} is {exposure}");
    }
    for number in 0..20 {
        let link = appliance.shorten(&format!("https://example.com/{number}"))?;
        appliance.follow(&link)?;
    }

    appliance.configure(LINKS_TOML, LOCAL)?;
    lab.is_closed()?;

    // The database does not exist, so the rollout fails and must leave the network as it was.
    let releases = appliance.releases(2)?;
    let nowhere = "[sqlite_database.default]\ntype = \"libsql\"\nurl = \"http://db.links.invalid\"\ntoken = \"\"\n";
    appliance.write("/etc/links/runtime.toml", nowhere)?;
    let failed: Output = appliance.run(["systemctl", "reload", "links"])?;
    ensure!(failed.status != 0, "{failed}");
    appliance.wait_for_rotation(2)?;
    ensure!(
        appliance.releases(2)? == releases,
        "the failed rollout changed the running releases"
    );
    lab.is_closed()?;
    appliance.follow(&appliance.shorten("https://example.com/afterwards")?)?;

    // Purging the package removes the drop-in.
    appliance.configure(LINKS_TOML, &remote)?;
    lab.is_open()?;
    appliance.ok(["apt-get", "--yes", "purge", "links-shortener"])?;
    ensure!(!appliance.exists(DROP_IN)?, "{DROP_IN} still exists");
    Ok(())
}

struct Lab<'a>(&'a Appliance);

impl Lab<'_> {
    fn is_open(&self) -> Result<()> {
        let text = self.0.read(DROP_IN)?;
        ensure!(text.contains("IPAddressAllow=any"), "{text}");
        // systemd prints `any` like this.
        ensure!(self.property("IPAddressAllow")? == "0.0.0.0/0 ::/0");
        ensure!(self.property("IPAddressDeny")?.is_empty());
        self.is_loaded()
    }

    fn is_closed(&self) -> Result<()> {
        ensure!(!self.0.exists(DROP_IN)?, "{DROP_IN} exists");
        ensure!(self.property("IPAddressAllow")? == "127.0.0.0/8 ::1/128");
        ensure!(self.property("IPAddressDeny")? == "0.0.0.0/0 ::/0");
        self.is_loaded()
    }

    /// Checks that systemd has loaded the unit files on the disk.
    fn is_loaded(&self) -> Result<()> {
        ensure!(self.property("NeedDaemonReload")? == "no");
        Ok(())
    }

    /// The value of a unit property, which must be the same for both instances. Its words are sorted.
    fn property(&self, name: &str) -> Result<String> {
        let show = |unit| self.0.ok(["systemctl", "show", "--property", name, "--value", unit]);
        let [one, two] = [show("links@1")?.stdout, show("links@2")?.stdout];
        ensure!(one == two, "{name} differs between the instances: {one} and {two}");
        println!("{name} = {one:?}");
        let mut words: Vec<_> = one.split_whitespace().collect();
        words.sort_unstable();
        Ok(words.join(" "))
    }
}
