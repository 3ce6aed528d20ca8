//! The admin token from Vault: rotated, kept through outages, and what is told where something is wrong.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use links_tests::http::Answer;
use links_tests::load::Link;
use links_tests::servers::{Vault, credential, secret_file};
use links_tests::{Appliance, eventually};

const ROOT: &str = "vault-root-s3cret";
const READER: &str = "vault-reader-s3cret";
const RENEWED: &str = "vault-renewed-s3cret";
const PATH: &str = "links/admin_token";
const SOON: Duration = Duration::from_secs(20);

#[test]
fn a_token_is_rotated_and_outlives_the_outages_of_vault() -> Result<()> {
    // Longer than the first outage takes with either runtime.
    let lab = Lab::new("1s", "25s")?;
    let vault = lab.vault()?;
    lab.takes("one-s3cret")?;
    let link = lab.link("one-s3cret")?;
    let own = lab.token()?;
    ensure!(
        lab.shorten_with(&own)?.status == 401,
        "the token of this host counts after Vault's"
    );

    vault.write(PATH, "two-s3cret")?;
    let rotated = Instant::now();
    lab.takes("two-s3cret")?;
    lab.refuses("one-s3cret")?;
    let after = rotated.elapsed();
    println!("rotated after {after:.1?}");
    ensure!(after < Duration::from_secs(5), "{after:.1?} with secrets_ttl = 1 s");

    vault.pause()?;
    lab.goes_on(&link)?;
    // Also an instance that has never seen Vault.
    lab.ok(["systemctl", "restart", "links@1"])?;
    lab.wait_for_rotation(2)?;
    lab.goes_on(&link)?;
    vault.go_on()?;
    vault.write(PATH, "three-s3cret")?;
    lab.takes("three-s3cret")?;

    vault.write(PATH, "two-s3cret")?;
    lab.takes("two-s3cret")?;
    vault.seal()?;
    lab.goes_on(&link)?;
    vault.start_again()?;
    lab.fill(&vault, "four-s3cret")?;
    lab.takes("four-s3cret")?;

    let asked = Instant::now();
    vault.stop()?;
    let unavailable = eventually("the token is too old", 2 * SOON, || {
        lab.follow(&link)?;
        let answer = lab.shorten_with("four-s3cret")?;
        Ok((answer.status != 200).then_some(answer))
    })?;
    let kept = asked.elapsed();
    println!("kept for {kept:.1?}");
    ensure!(
        kept > Duration::from_secs(22),
        "kept for {kept:.1?} with secrets_ttl = 1 s, secrets_stale = 25 s"
    );
    ensure!(
        unavailable.status == 503 && !unavailable.header("retry-after").is_empty(),
        "{unavailable}"
    );
    lab.follow(&link)?;
    vault.start_again()?;
    lab.fill(&vault, "five-s3cret")?;
    lab.takes("five-s3cret")?;

    let said = lab.instances_said()?;
    let outages = said
        .matches("links: the provider of the variable admin_token does not answer: ")
        .count();
    println!("told {outages} times");
    ensure!((3..=8).contains(&outages), "three outages:\n{said}");
    ensure!(!said.contains("s3cret"), "{said}");
    Ok(())
}

#[test]
fn what_is_wrong_with_vault_is_told() -> Result<()> {
    let lab = Lab::new("1s", "0s")?;
    let vault = lab.vault()?;
    let is_spin = lab.artifacts.runtime()?.is_spin();
    lab.takes("one-s3cret")?;
    let link = lab.link("one-s3cret")?;
    let online = lab.ok(["linksctl", "check", "--online"])?;
    ensure!(said(&online).contains("` answers, after "), "{online}");

    // Spin's own words end here; links-host says what Vault has answered.
    let provider = "links: the provider of the variable admin_token does not answer: \
                    admin_token: Failed to check Vault for config";
    let wrong = |check: &str, told: &str| -> Result<()> {
        lab.unavailable(&link, told)?;
        let checked = lab.run(["linksctl", "check", "--online"])?;
        ensure!(
            checked.status == 78 && said(&checked).contains(check),
            "{check:?} should be said: {checked}"
        );
        Ok(())
    };
    let told = |by_host: &str| {
        if is_spin {
            provider.to_owned()
        } else {
            by_host.to_owned()
        }
    };
    vault.revoke(READER)?;
    wrong(
        "refuses the token; put a valid one into /etc/links/credentials/vault_token, mode 0600",
        &told("HTTP 403: permission denied"),
    )
    .context("a revoked token")?;
    vault.token(READER)?;
    lab.takes("one-s3cret")?;
    vault.seal()?;
    wrong("is sealed; unseal it", &told("HTTP 503: Vault is sealed")).context("sealed")?;
    vault.start_again()?;
    lab.fill(&vault, "one-s3cret")?;
    lab.takes("one-s3cret")?;
    vault.stop()?;
    wrong("does not answer: ", provider).context("stopped")?;
    vault.start_again()?;

    // A missing secret: the token of this host counts, where there is one.
    let own = lab.token()?;
    vault.token(READER)?;
    lab.takes(&own)?;
    let online = lab.ok(["linksctl", "check", "--online"])?;
    let missing = "has no secret secret/data/links/admin_token";
    ensure!(
        said(&online).contains(&format!(
            "{missing}: the admin token of /etc/links/credentials counts then"
        )),
        "{online}"
    );
    lab.ok(["rm", "/etc/links/credentials/admin_token"])?;
    lab.apply("secret")?;
    let nobody = "links: nobody may use the API: no provider has a value of the variable admin_token";
    wrong(missing, nobody).context("a missing secret")?;
    lab.apply("elsewhere")?;
    wrong(
        "has nothing mounted at elsewhere/; mend `mount`",
        if is_spin { nobody } else { "no handler for route" },
    )
    .context("a wrong mount")?;

    lab.apply("secret")?;
    vault.write(PATH, "two-s3cret")?;
    lab.takes("two-s3cret")?;
    let journal = lab.instances_said()?;
    ensure!(!journal.contains("s3cret"), "{journal}");
    Ok(())
}

#[test]
fn the_token_for_vault_may_be_another_programs_file_or_a_variable() -> Result<()> {
    let lab = Lab::new("1s", "0s")?;
    let vault = Vault::start_in(&lab, ROOT)?;
    lab.fill(&vault, "one-s3cret")?;
    // As Vault Agent writes and renews it.
    let sink = "/run/vault-agent/token";
    secret_file(&lab, sink, READER)?;
    lab.ok(["ln", "--symbolic", sink, "/etc/links/credentials/vault_token"])?;
    lab.apply("secret")?;
    lab.takes("one-s3cret")?;
    vault.revoke(READER)?;
    lab.answers("one-s3cret", 503)?;
    vault.token(RENEWED)?;
    lab.write(sink, RENEWED)?;
    lab.apply("secret")?;
    lab.takes("one-s3cret")?;

    lab.ok(["rm", "/etc/links/credentials/vault_token"])?;
    secret_file(&lab, "/etc/vault.env", &format!("VAULT_TOKEN={RENEWED}\n"))?;
    let drop_in = "/etc/systemd/system/links@.service.d/vault.conf";
    lab.ok(["mkdir", "--parents", "/etc/systemd/system/links@.service.d"])?;
    lab.write(drop_in, "[Service]\nEnvironmentFile=/etc/vault.env\n")?;
    lab.ok(["systemctl", "daemon-reload"])?;
    lab.apply_with("env:VAULT_TOKEN", "secret")?;
    vault.write(PATH, "two-s3cret")?;
    lab.takes("two-s3cret")?;
    let online = lab.ok(["linksctl", "check", "--online"])?;
    ensure!(
        said(&online).contains("is not tried: its token is VAULT_TOKEN"),
        "{online}"
    );
    let online = lab.shell("set -a; . /etc/vault.env; linksctl check --online")?;
    ensure!(said(&online).contains("` answers, after "), "{online}");
    // Instances without it do not start, and those that run stay.
    lab.write(drop_in, "[Service]\n")?;
    lab.ok(["systemctl", "daemon-reload"])?;
    let refused = lab.run(["linksctl", "restart"])?;
    let why = "the variable `VAULT_TOKEN`, which the configuration asks for, is not set";
    ensure!(refused.status == 1 && said(&refused).contains(why), "{refused}");
    lab.answers_by(2, "two-s3cret", 200)?;
    let journal = lab.journal("links@*")?;
    ensure!(!journal.contains("s3cret"), "{journal}");
    Ok(())
}

/// An appliance whose admin token is in Vault.
struct Lab {
    appliance: Appliance,
    links_toml: String,
}

impl std::ops::Deref for Lab {
    type Target = Appliance;

    fn deref(&self) -> &Appliance {
        &self.appliance
    }
}

impl Lab {
    fn new(ttl: &str, stale: &str) -> Result<Self> {
        Ok(Self {
            appliance: Appliance::installed()?,
            links_toml: format!(
                "[rollout]\nmin_healthy = \"200ms\"\n[secrets]\nttl = \"{ttl}\"\nstale = \"{stale}\"\n"
            ),
        })
    }

    /// Starts it, with the token "one-s3cret", and the appliance on it.
    fn vault(&self) -> Result<Vault<'_>> {
        let vault = Vault::start_in(&self.appliance, ROOT)?;
        self.fill(&vault, "one-s3cret")?;
        credential(&self.appliance, "vault_token", READER)?;
        self.apply("secret")?;
        Ok(vault)
    }

    fn fill(&self, vault: &Vault<'_>, token: &str) -> Result<()> {
        vault.token(READER)?;
        vault.write(PATH, token)
    }

    fn apply(&self, mount: &str) -> Result<()> {
        self.apply_with("credential:vault_token", mount)
    }

    fn apply_with(&self, token: &str, mount: &str) -> Result<()> {
        let runtime_toml = format!(
            "[sqlite_database.default]\ntype = \"spin\"\npath = \"/var/lib/links/data/links.db\"\n\
             [[variables_provider]]\ntype = \"vault\"\nurl = \"{}\"\ntoken = \"{token}\"\n\
             mount = \"{mount}\"\nprefix = \"links\"\n",
            Vault::URL
        );
        self.configure(&self.links_toml, &runtime_toml)
    }

    fn shorten_with(&self, token: &str) -> Result<Answer> {
        let client = self.http().bearer(token);
        Ok(client.post("/shorten", r#"{"url":"https://example.com/"}"#)?)
    }

    fn takes(&self, token: &str) -> Result<()> {
        self.answers(token, 200)
    }

    fn refuses(&self, token: &str) -> Result<()> {
        self.answers(token, 401)
    }

    /// Through each instance, sooner or later.
    fn answers(&self, token: &str, status: u16) -> Result<()> {
        [1, 2]
            .into_iter()
            .try_for_each(|number| self.answers_by(number, token, status))
    }

    fn answers_by(&self, number: u16, token: &str, status: u16) -> Result<()> {
        let client = self.instance_without_token(number).bearer(token);
        let mut last = None;
        eventually(&format!("{status} from instance {number}"), SOON, || {
            let answer = client.post("/shorten", r#"{"url":"https://example.com/"}"#)?;
            let right = answer.status == status;
            last = Some(answer);
            Ok(right.then_some(()))
        })
        .with_context(|| format!("{last:?}\n{}", self.instances_said().unwrap_or_default()))
    }

    fn link(&self, token: &str) -> Result<Link> {
        let answer = self.shorten_with(token)?;
        let shortened: serde_json::Value = answer.json()?;
        let slug = shortened["slug"].as_str().context("no slug")?.to_owned();
        Ok(Link {
            slug,
            url: "https://example.com/".to_owned(),
        })
    }

    /// For longer than the token counts without Vault's being asked again.
    fn goes_on(&self, link: &Link) -> Result<()> {
        // Spin resolves every variable, those of Vault too, before the first outbound request of a Wasm instance
        // (`prepare` in its crates/expressions): then nginx's cache is not asked within the component's three seconds either.
        let limit = Duration::from_secs(if self.artifacts.runtime()?.is_spin() { 10 } else { 5 });
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(3) {
            let asked = Instant::now();
            self.follow(link)?;
            let took = asked.elapsed();
            ensure!(took < Duration::from_secs(1), "a redirect took {took:.1?}");
            let asked = Instant::now();
            for (token, status) in [("two-s3cret", 200), ("one-s3cret", 401)] {
                let answer = self.shorten_with(token)?;
                ensure!(answer.status == status, "{status} expected: {answer}");
            }
            let took = asked.elapsed();
            ensure!(took < limit, "shortening took {took:.1?}");
        }
        Ok(())
    }

    /// Nobody may shorten, redirects go on, and the journal tells why.
    fn unavailable(&self, link: &Link, why: &str) -> Result<()> {
        let before = self.instances_said()?.len();
        self.answers("one-s3cret", 503)?;
        self.follow(link)?;
        eventually(&format!("the journal tells: {why}"), SOON, || {
            self.shorten_with("one-s3cret")?;
            let said = self.instances_said()?;
            Ok(said.get(before..).is_some_and(|new| new.contains(why)).then_some(()))
        })
        .with_context(|| self.instances_said().unwrap_or_default())
    }
}

fn said(output: &links_tests::Output) -> String {
    format!("{}{}", output.stdout, output.stderr)
}
