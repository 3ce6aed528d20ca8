//! The admin token from Vault: its rotation, its cache during outages, and the reports of problems.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use links_tests::http::Answer;
use links_tests::load::Link;
use links_tests::servers::Vault;
use links_tests::{CHECK_ONLINE, Check, DATABASE, Host, eventually, wording};

const ROOT: &str = "vault-root-s3cret";
const READER: &str = "vault-reader-s3cret";
const RENEWED: &str = "vault-renewed-s3cret";
const PATH: &str = "links/admin_token";
/// The token for Vault in runtime.toml.
const CREDENTIAL: &str = "credential:vault_token";
/// EX_CONFIG of sysexits.h.
const WRONG_CONFIGURATION: i32 = 78;
const SOON: Duration = Duration::from_secs(20);

#[test]
fn a_token_can_be_rotated_and_stays_valid_during_outages_of_vault() -> Result<()> {
    // The stale period is longer than the first outage takes with either runtime.
    let host = serving("1s", "25s")?;
    let vault = start_vault(&host)?;
    takes(&host, "one-s3cret")?;
    let link = link(&host, "one-s3cret")?;
    let own = host.token()?;
    ensure!(
        shorten_with(&host, &own)?.status == 401,
        "the token of this host should not be accepted while Vault has one"
    );

    vault.write(PATH, "two-s3cret")?;
    let rotated = Instant::now();
    takes(&host, "two-s3cret")?;
    refuses(&host, "one-s3cret")?;
    let after = rotated.elapsed();
    println!("rotated after {after:.1?}");
    ensure!(
        after < Duration::from_secs(5),
        "the rotation took {after:.1?} with secrets_ttl = 1 s"
    );

    vault.pause()?;
    works_without_vault(&host, &link)?;
    // An instance that starts during the outage works too.
    host.ok(["systemctl", "restart", "links@1"])?;
    host.wait_for_rotation(2)?;
    works_without_vault(&host, &link)?;
    vault.resume()?;
    vault.write(PATH, "three-s3cret")?;
    takes(&host, "three-s3cret")?;

    vault.write(PATH, "two-s3cret")?;
    takes(&host, "two-s3cret")?;
    vault.seal()?;
    works_without_vault(&host, &link)?;
    vault.restart()?;
    fill(&vault, "four-s3cret")?;
    takes(&host, "four-s3cret")?;

    let stopped = Instant::now();
    vault.stop()?;
    let unavailable = eventually("the token is no longer accepted", 2 * SOON, || {
        host.follow(&link)?;
        let answer = shorten_with(&host, "four-s3cret")?;
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
    host.follow(&link)?;
    vault.restart()?;
    fill(&vault, "five-s3cret")?;
    takes(&host, "five-s3cret")?;

    let journal = host.instances_journal()?;
    let outages = wording::outages(&journal, "admin_token");
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
    let host = serving("1s", "0s")?;
    let vault = start_vault(&host)?;
    let is_spin = host.runtime()?.is_spin();
    takes(&host, "one-s3cret")?;
    let link = link(&host, "one-s3cret")?;
    ensure!(host.check_online()?.answers()?, "Vault should answer");

    // Spin reports no more than this. links-host also reports the answer of Vault.
    let provider = wording::outage("admin_token");
    // `linksctl check --online` must report an error that contains all of `parts`, and the journal `in_journal`.
    let reports = |parts: &[&str], in_journal: &str| -> Result<()> {
        unavailable(&host, &link, in_journal)?;
        let check = host.check_online()?;
        ensure!(
            check.status == WRONG_CONFIGURATION && check.has_finding("error", parts),
            "an error with {parts:?} should be among {check:?}"
        );
        Ok(())
    };
    let in_journal = |by_host: &str| if is_spin { provider.clone() } else { by_host.to_owned() };
    vault.revoke(READER)?;
    reports(&["/etc/links/credentials/vault_token"], &in_journal("HTTP 403")).context("a revoked token")?;
    vault.token(READER)?;
    takes(&host, "one-s3cret")?;
    vault.seal()?;
    reports(&["sealed"], &in_journal("HTTP 503")).context("sealed")?;
    vault.restart()?;
    fill(&vault, "one-s3cret")?;
    takes(&host, "one-s3cret")?;
    vault.stop()?;
    reports(&[&wording::outage("")], &provider).context("stopped")?;
    vault.restart()?;

    // While Vault has no such secret, the token of this host is used, if there is one.
    let own = host.token()?;
    vault.token(READER)?;
    takes(&host, &own)?;
    let missing = "secret/data/links/admin_token";
    let check = host.check_online()?;
    ensure!(
        check.status == 0 && check.has_finding("warning", &[missing, "/etc/links/credentials"]),
        "{check:?}"
    );
    host.ok(["rm", "/etc/links/credentials/admin_token"])?;
    use_vault(&host, CREDENTIAL, "secret")?;
    let nobody = wording::NOBODY_MAY_USE_THE_API;
    reports(&[missing], nobody).context("a missing secret")?;
    use_vault(&host, CREDENTIAL, "elsewhere")?;
    reports(
        &["elsewhere/", "`mount`"],
        if is_spin { nobody } else { "no handler for route" },
    )
    .context("a wrong mount")?;

    use_vault(&host, CREDENTIAL, "secret")?;
    vault.write(PATH, "two-s3cret")?;
    takes(&host, "two-s3cret")?;
    let journal = host.instances_journal()?;
    ensure!(!journal.contains("s3cret"), "{journal}");
    Ok(())
}

#[test]
fn the_token_for_vault_can_come_from_another_programs_file_or_a_variable() -> Result<()> {
    let host = serving("1s", "0s")?;
    let vault = Vault::start_in(&host, ROOT)?;
    fill(&vault, "one-s3cret")?;
    // Vault Agent writes and renews its token in a file like this one.
    let sink = "/run/vault-agent/token";
    host.write_secret(sink, READER)?;
    host.ok(["ln", "--symbolic", sink, "/etc/links/credentials/vault_token"])?;
    use_vault(&host, CREDENTIAL, "secret")?;
    takes(&host, "one-s3cret")?;
    vault.revoke(READER)?;
    answers(&host, "one-s3cret", 503)?;
    vault.token(RENEWED)?;
    host.write(sink, RENEWED)?;
    use_vault(&host, CREDENTIAL, "secret")?;
    takes(&host, "one-s3cret")?;

    host.ok(["rm", "/etc/links/credentials/vault_token"])?;
    host.write_secret("/etc/vault.env", &format!("VAULT_TOKEN={RENEWED}\n"))?;
    let drop_in = "/etc/systemd/system/links@.service.d/vault.conf";
    host.ok(["mkdir", "--parents", "/etc/systemd/system/links@.service.d"])?;
    host.write(drop_in, "[Service]\nEnvironmentFile=/etc/vault.env\n")?;
    host.ok(["systemctl", "daemon-reload"])?;
    use_vault(&host, "env:VAULT_TOKEN", "secret")?;
    vault.write(PATH, "two-s3cret")?;
    takes(&host, "two-s3cret")?;
    let check = host.check_online()?;
    ensure!(
        check.outcomes()? == ["not_tried"] && check.has_finding("warning", &["VAULT_TOKEN"]),
        "{check:?}"
    );
    let with_variable = format!("set -a; . /etc/vault.env; {}", CHECK_ONLINE.join(" "));
    let check = Check::of(&host.run(["bash", "-c", &with_variable])?)?;
    ensure!(check.answers()?, "{check:?}");
    // Instances without the variable do not start, and the running ones keep serving.
    host.write(drop_in, "[Service]\n")?;
    host.ok(["systemctl", "daemon-reload"])?;
    let refused = host.run(["linksctl", "restart"])?;
    ensure!(
        refused.status == 1 && refused.printed().contains("VAULT_TOKEN"),
        "the error should name the variable: {refused}"
    );
    answers_by(&host, 2, "two-s3cret", 200)?;
    let journal = host.journal("links@*")?;
    ensure!(!journal.contains("s3cret"), "{journal}");
    Ok(())
}

/// A host whose instances ask Vault again after `ttl`, and do without it for `stale`.
fn serving(ttl: &str, stale: &str) -> Result<Host> {
    let links_toml = format!("[rollout]\nmin_healthy = \"200ms\"\n[secrets]\nttl = \"{ttl}\"\nstale = \"{stale}\"\n");
    Host::builder().links_toml(&links_toml).serving()
}

/// Starts Vault with the admin token "one-s3cret", and configures the appliance to use it.
fn start_vault(host: &Host) -> Result<Vault<'_>> {
    let vault = Vault::start_in(host, ROOT)?;
    fill(&vault, "one-s3cret")?;
    host.credential("vault_token", READER)?;
    use_vault(host, CREDENTIAL, "secret")?;
    Ok(vault)
}

fn fill(vault: &Vault<'_>, token: &str) -> Result<()> {
    vault.token(READER)?;
    vault.write(PATH, token)
}

/// Makes the instances read their variables from Vault's engine at `mount`, with the token from `token`.
fn use_vault(host: &Host, token: &str, mount: &str) -> Result<()> {
    host.configure_runtime(&format!(
        "[sqlite_database.default]\ntype = \"spin\"\npath = \"{DATABASE}\"\n\
         [[variables_provider]]\ntype = \"vault\"\nurl = \"{}\"\ntoken = \"{token}\"\n\
         mount = \"{mount}\"\nprefix = \"links\"\n",
        Vault::URL
    ))
}

fn shorten_with(host: &Host, token: &str) -> Result<Answer> {
    let client = host.http().bearer(token);
    Ok(client.post("/shorten", r#"{"url":"https://example.com/"}"#)?)
}

fn takes(host: &Host, token: &str) -> Result<()> {
    answers(host, token, 200)
}

fn refuses(host: &Host, token: &str) -> Result<()> {
    answers(host, token, 401)
}

/// Waits until each instance answers with `status` when it is asked to shorten with `token`.
fn answers(host: &Host, token: &str, status: u16) -> Result<()> {
    [1, 2]
        .into_iter()
        .try_for_each(|number| answers_by(host, number, token, status))
}

fn answers_by(host: &Host, number: u16, token: &str, status: u16) -> Result<()> {
    let client = host.instance_without_token(number).bearer(token);
    let mut last = None;
    eventually(&format!("{status} from instance {number}"), SOON, || {
        let answer = client.post("/shorten", r#"{"url":"https://example.com/"}"#)?;
        let right = answer.status == status;
        last = Some(answer);
        Ok(right.then_some(()))
    })
    .with_context(|| format!("{last:?}\n{}", host.instances_journal().unwrap_or_default()))
}

/// Creates a link.
fn link(host: &Host, token: &str) -> Result<Link> {
    let answer = shorten_with(host, token)?;
    let shortened: serde_json::Value = answer.json()?;
    let slug = shortened["slug"].as_str().context("no slug")?.to_owned();
    Ok(Link {
        slug,
        url: "https://example.com/".to_owned(),
    })
}

/// Checks redirects and tokens for longer than `secrets_ttl`, which is when the component asks Vault again.
fn works_without_vault(host: &Host, link: &Link) -> Result<()> {
    // Before the first outbound request of a Wasm instance, Spin resolves every variable, also those from Vault
    // (`prepare` in its crates/expressions). The component's request to nginx's cache then takes its full timeout of
    // three seconds, too.
    let limit = Duration::from_secs(if host.runtime()?.is_spin() { 10 } else { 5 });
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(3) {
        let asked = Instant::now();
        host.follow(link)?;
        let took = asked.elapsed();
        ensure!(took < Duration::from_secs(1), "a redirect took {took:.1?}");
        let asked = Instant::now();
        for (token, status) in [("two-s3cret", 200), ("one-s3cret", 401)] {
            let answer = shorten_with(host, token)?;
            ensure!(answer.status == status, "{status} expected: {answer}");
        }
        let took = asked.elapsed();
        ensure!(took < limit, "shortening took {took:.1?}");
    }
    Ok(())
}

/// Checks that shortening is unavailable, that redirects still work, and that the journal reports `reason`.
fn unavailable(host: &Host, link: &Link, reason: &str) -> Result<()> {
    let before = host.instances_journal()?.len();
    answers(host, "one-s3cret", 503)?;
    host.follow(link)?;
    eventually(&format!("the journal contains {reason:?}"), SOON, || {
        shorten_with(host, "one-s3cret")?;
        let journal = host.instances_journal()?;
        let new = journal.get(before..);
        Ok(new.is_some_and(|new| new.contains(reason)).then_some(()))
    })
    .with_context(|| host.instances_journal().unwrap_or_default())
}
