//! Remote providers over HTTPS, as in production, with certificates of an authority that the host trusts and of one that it
//! does not trust.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use links_tests::servers::{Collector, LibSql, Vault};
use links_tests::{Host, RUNTIME_TOML, eventually};

const CERTIFICATES: &str = include_str!("../lab/certificates.sh");
const NGINX: &str = include_str!("../lab/tls.conf");
const TURSO: &str = "turso-s3cret";
const READER: &str = "vault-s3cret";
const ADMIN: &str = "4dmin-s3cret";
const TIMEOUT: Duration = Duration::from_secs(90);

const DATABASE: &str =
    "[sqlite_database.default]\ntype = \"libsql\"\nurl = \"https://localhost:8440\"\ntoken = \"credential:turso\"\n";
const VAULT: &str = "[[variables_provider]]\ntype = \"vault\"\nurl = \"https://localhost:8441\"\ntoken = \"credential:vault\"\n\
                     mount = \"secret\"\nprefix = \"links\"\n";
const COLLECTOR: &str = "[telemetry]\nendpoint = \"https://localhost:8442\"\n";

#[test]
fn providers_over_tls_need_a_certificate_that_the_host_trusts() -> Result<()> {
    let host = Host::builder().serving()?;
    host.write("/var/tmp/certificates.sh", CERTIFICATES)?;
    host.ok(["bash", "/var/tmp/certificates.sh", "/etc/lab"])?;
    host.write("/etc/nginx/conf.d/tls.conf", NGINX)?;
    host.reload_nginx()?;
    let _libsql = LibSql::start_in(&host, TURSO)?;
    let vault = Vault::start_in(&host, "root-s3cret")?;
    vault.token(READER)?;
    vault.write("links/admin_token", ADMIN)?;
    host.credential("turso", TURSO)?;
    host.credential("vault", READER)?;
    let collector = Collector::start(&host.network(), 4318)?;

    // linksctl and the agent do not depend on the runtime, so this part runs with Spin too.
    host.write(RUNTIME_TOML, format!("{DATABASE}{VAULT}"))?;
    let checked = host.check_online()?;
    ensure!(checked.answers()? && checked.outcomes()?.len() == 2, "{checked:?}");
    let untrusted = DATABASE.replace("8440", "8443");
    host.write(RUNTIME_TOML, &untrusted)?;
    let refused = host.check_online()?;
    ensure!(
        refused.status != 0 && refused.outcomes()? == ["fails"] && refused.has_finding("error", &["certificate"]),
        "{refused:?}"
    );
    host.configure(COLLECTOR, "")?;
    eventually("metrics arrive over TLS", TIMEOUT, || {
        Ok(collector.collected().into_iter().find(|it| it.path == "/v1/metrics"))
    })
    .with_context(|| host.journal("links").unwrap_or_default())?;

    // Spin 4.0.2 has a built-in list of authorities and ignores the host's.
    if !host.runtime()?.is_spin() {
        host.configure(COLLECTOR, &format!("{DATABASE}{VAULT}"))?;
        let body = serde_json::json!({ "url": "https://example.com/tls", "slug": "by-tls" });
        let site = host.site()?;
        let made = site
            .header("authorization", format!("Bearer {ADMIN}"))
            .post("/shorten", body)?;
        ensure!(made.status == 200, "{made}");
        let followed = host.site()?.get("/by-tls")?;
        ensure!(followed.status == 302, "{followed}");
        eventually("traces arrive over TLS", TIMEOUT, || {
            Ok(collector.collected().into_iter().find(|it| it.path == "/v1/traces"))
        })?;
        // Instances whose database has an untrusted certificate do not become healthy, and the rollout is undone.
        host.write(RUNTIME_TOML, format!("{untrusted}{VAULT}"))?;
        let refused = host.run(["linksctl", "rollout"])?;
        ensure!(refused.status == 1, "{refused}");
        host.wait_for_rotation(2)?;
        ensure!(host.site()?.get("/by-tls")?.status == 302);
        eventually("the journal names the certificate", TIMEOUT, || {
            Ok(host.instances_journal()?.contains("certificate").then_some(()))
        })?;
    }
    Ok(())
}
