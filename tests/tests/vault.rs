//! The admin token from Vault: its rotation, its cache during outages, and the reports of problems.

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
fn a_token_can_be_rotated_and_stays_valid_during_outages_of_vault() -> Result<()> {
    // The stale period is longer than the first outage takes with either runtime.
    let lab = Lab::new("1s", "25s")?;
    let vault = lab.vault()?;
    lab.takes("one-s3cret")?;
    let link = lab.link("one-s3cret")?;
    let own = lab.token()?;
    ensure!(
        lab.shorten_with(&own)?.status == 401,
        "the token of this host should not be accepted while Vault has one"
    );

    vault.write(PATH, "two-s3cret")?;
    let rotated = Instant::now();
    lab.takes("two-s3cret")?;
    lab.refuses("one-s3cret")?;
    let after = rotated.elapsed();
    println!("rotated after {after:.1?}");
    ensure!(
        after < Duration::from_secs(5),
        "the rotation took {after:.1?} with secrets_ttl = 1 s"
    );

    vault.pause()?;
    lab.works_without_vault(&link)?;
    // An instance that starts during the outage works too.
    lab.ok(["systemctl", "restart", "links@1"])?;
    lab.wait_for_rotation(2)?;
    lab.works_without_vault(&link)?;
    vault.resume()?;
    vault.write(PATH, "three-s3cret")?;
    lab.takes("three-s3cret")?;

    vault.write(PATH, "two-s3cret")?;
    lab.takes("two-s3cret")?;
    vault.seal()?;
    lab.works_without_vault(&link)?;
    vault.restart()?;
    lab.fill(&vault, "four-s3cret")?;
    lab.takes("four-s3cret")?;

    let stopped = Instant::now();
    vault.stop()?;
    let unavailable = eventually("the token is no longer accepted", 2 * SOON, || {
        lab.follow(&link)?;
        let answer = lab.shorten_with("four-s3cret")?;
        Ok((answer.status != 200).then_some(answer))
    })?;
    let kept = stopped.elapsed();
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
    vault.restart()?;
    lab.fill(&vault, "five-s3cret")?;
    lab.takes("five-s3cret")?;

    let journal = lab.instances_journal()?;
    let outages = journal
        .matches("links: the provider of the variable admin_token does not answer: ")
        .count();
    println!("{outages} reports of outages");
    ensure!(
        (3..=8).contains(&outages),
        "{outages} reports of three outages:\n{journal}"
    );
    ensure!(!journal.contains("s3cret"), "{journal}");
    Ok(())
}

#[test]
fn problems_with_vault_are_reported() -> Result<()> {
    let lab = Lab::new("1s", "0s")?;
    let vault = lab.vault()?;
    let is_spin = lab.artifacts.runtime()?.is_spin();
    lab.takes("one-s3cret")?;
    let link = lab.link("one-s3cret")?;
    let online = lab.ok(["linksctl", "check", "--online"])?;
    ensure!(printed(&online).contains("` answers, after "), "{online}");

    // Spin reports no more than this. links-host also reports the answer of Vault.
    let provider = "links: the provider of the variable admin_token does not answer: \
                    admin_token: Failed to check Vault for config";
    let reports = |check: &str, journal: &str| -> Result<()> {
        lab.unavailable(&link, journal)?;
        let checked = lab.run(["linksctl", "check", "--online"])?;
        ensure!(
            checked.status == 78 && printed(&checked).contains(check),
            "`linksctl check --online` should print {check:?}: {checked}"
        );
        Ok(())
    };
    let in_journal = |by_host: &str| {
        if is_spin {
            provider.to_owned()
        } else {
            by_host.to_owned()
        }
    };
    vault.revoke(READER)?;
    reports(
        "refuses the token; put a valid one into /etc/links/credentials/vault_token, mode 0600",
        &in_journal("HTTP 403: permission denied"),
    )
    .context("a revoked token")?;
    vault.token(READER)?;
    lab.takes("one-s3cret")?;
    vault.seal()?;
    reports("is sealed; unseal it", &in_journal("HTTP 503: Vault is sealed")).context("sealed")?;
    vault.restart()?;
    lab.fill(&vault, "one-s3cret")?;
    lab.takes("one-s3cret")?;
    vault.stop()?;
    reports("does not answer: ", provider).context("stopped")?;
    vault.restart()?;

    // While Vault has no such secret, the token of this host is used, if there is one.
    let own = lab.token()?;
    vault.token(READER)?;
    lab.takes(&own)?;
    let online = lab.ok(["linksctl", "check", "--online"])?;
    let missing = "has no secret secret/data/links/admin_token";
    ensure!(
        printed(&online).contains(&format!(
            "{missing}: the admin token of /etc/links/credentials is used instead"
        )),
        "{online}"
    );
    lab.ok(["rm", "/etc/links/credentials/admin_token"])?;
    lab.apply("secret")?;
    let nobody = "links: nobody may use the API: no provider has a value of the variable admin_token";
    reports(missing, nobody).context("a missing secret")?;
    lab.apply("elsewhere")?;
    reports(
        "has nothing mounted at elsewhere/; correct `mount`",
        if is_spin { nobody } else { "no handler for route" },
    )
    .context("a wrong mount")?;

    lab.apply("secret")?;
    vault.write(PATH, "two-s3cret")?;
    lab.takes("two-s3cret")?;
    let journal = lab.instances_journal()?;
    ensure!(!journal.contains("s3cret"), "{journal}");
    Ok(())
}

#[test]
fn the_token_for_vault_can_come_from_another_programs_file_or_a_variable() -> Result<()> {
    let lab = Lab::new("1s", "0s")?;
    let vault = Vault::start_in(&lab, ROOT)?;
    lab.fill(&vault, "one-s3cret")?;
    // Vault Agent writes and renews its token in a file like this one.
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
        printed(&online).contains("is not tried: its token is VAULT_TOKEN"),
        "{online}"
    );
    let online = lab.shell("set -a; . /etc/vault.env; linksctl check --online")?;
    ensure!(printed(&online).contains("` answers, after "), "{online}");
    // Instances without the variable do not start, and the running ones keep serving.
    lab.write(drop_in, "[Service]\n")?;
    lab.ok(["systemctl", "daemon-reload"])?;
    let refused = lab.run(["linksctl", "restart"])?;
    let reason = "the variable `VAULT_TOKEN`, which the configuration asks for, is not set";
    ensure!(refused.status == 1 && printed(&refused).contains(reason), "{refused}");
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

    /// Starts Vault with the admin token "one-s3cret", and configures the appliance to use it.
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

    /// Waits until each instance answers with `status` when it is asked to shorten with `token`.
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
        .with_context(|| format!("{last:?}\n{}", self.instances_journal().unwrap_or_default()))
    }

    /// Creates a link.
    fn link(&self, token: &str) -> Result<Link> {
        let answer = self.shorten_with(token)?;
        let shortened: serde_json::Value = answer.json()?;
        let slug = shortened["slug"].as_str().context("no slug")?.to_owned();
        Ok(Link {
            slug,
            url: "https://example.com/".to_owned(),
        })
    }

    /// Checks redirects and tokens for longer than `secrets_ttl`, which is when the component asks Vault again.
    fn works_without_vault(&self, link: &Link) -> Result<()> {
        // Before the first outbound request of a Wasm instance, Spin resolves every variable, also those from Vault
        // (`prepare` in its crates/expressions). The component's request to nginx's cache then takes its full timeout of
        // three seconds, too.
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

    /// Checks that shortening is unavailable, that redirects still work, and that the journal reports `reason`.
    fn unavailable(&self, link: &Link, reason: &str) -> Result<()> {
        let before = self.instances_journal()?.len();
        self.answers("one-s3cret", 503)?;
        self.follow(link)?;
        eventually(&format!("the journal contains {reason:?}"), SOON, || {
            self.shorten_with("one-s3cret")?;
            let journal = self.instances_journal()?;
            let new = journal.get(before..);
            Ok(new.is_some_and(|new| new.contains(reason)).then_some(()))
        })
        .with_context(|| self.instances_journal().unwrap_or_default())
    }
}

/// Everything that a command printed.
fn printed(output: &links_tests::Output) -> String {
    format!("{}{}", output.stdout, output.stderr)
}
