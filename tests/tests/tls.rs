//! Remote providers over HTTPS, as in production, with certificates of an authority that the host trusts and of one that it
//! does not trust.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use links_tests::servers::{LibSql, Vault, credential};
use links_tests::{Appliance, Collector, eventually};

const HRANA: &str = env!("CARGO_BIN_EXE_hrana-server");
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
    let appliance = Appliance::installed()?;
    appliance.wait_for_rotation(2)?;
    appliance.write("/var/tmp/certificates.sh", CERTIFICATES)?;
    appliance.ok(["bash", "/var/tmp/certificates.sh", "/etc/lab"])?;
    appliance.write("/etc/nginx/conf.d/tls.conf", NGINX)?;
    appliance.reload_nginx()?;
    let _libsql = LibSql::start_in(&appliance, HRANA, TURSO)?;
    let vault = Vault::start_in(&appliance, "root-s3cret")?;
    vault.token(READER)?;
    vault.write("links/admin_token", ADMIN)?;
    credential(&appliance, "turso", TURSO)?;
    credential(&appliance, "vault", READER)?;
    let collector = Collector::start(&appliance.network(), 4318)?;

    // linksctl and the agent do not depend on the runtime, so this part runs with Spin too.
    appliance.write("/etc/links/runtime.toml", format!("{DATABASE}{VAULT}"))?;
    let checked = appliance.ok(["linksctl", "check", "--online"])?.stdout;
    ensure!(checked.matches(" answers, after ").count() == 2, "{checked}");
    let untrusted = DATABASE.replace("8440", "8443");
    appliance.write("/etc/links/runtime.toml", &untrusted)?;
    let refused = appliance.run(["linksctl", "check", "--online"])?;
    ensure!(
        refused.status != 0 && refused.stdout.contains("certificate"),
        "{refused}"
    );
    appliance.configure(COLLECTOR, "")?;
    eventually("metrics arrive over TLS", TIMEOUT, || {
        Ok(collector.collected().into_iter().find(|it| it.path == "/v1/metrics"))
    })
    .with_context(|| appliance.journal("links").unwrap_or_default())?;

    // Spin 4.0.2 has a built-in list of authorities and ignores the host's.
    if !appliance.artifacts.runtime()?.is_spin() {
        appliance.configure(COLLECTOR, &format!("{DATABASE}{VAULT}"))?;
        let body = serde_json::json!({ "url": "https://example.com/tls", "slug": "by-tls" });
        let site = appliance.site()?;
        let made = site
            .header("authorization", format!("Bearer {ADMIN}"))
            .post("/shorten", body)?;
        ensure!(made.status == 200, "{made}");
        let followed = appliance.site()?.get("/by-tls")?;
        ensure!(followed.status == 302, "{followed}");
        eventually("traces arrive over TLS", TIMEOUT, || {
            Ok(collector.collected().into_iter().find(|it| it.path == "/v1/traces"))
        })?;
        // Instances whose database has an untrusted certificate do not become healthy, and the rollout is undone.
        appliance.write("/etc/links/runtime.toml", format!("{untrusted}{VAULT}"))?;
        let refused = appliance.run(["linksctl", "rollout"])?;
        ensure!(refused.status == 1, "{refused}");
        appliance.wait_for_rotation(2)?;
        ensure!(appliance.site()?.get("/by-tls")?.status == 302);
        eventually("the journal names the certificate", TIMEOUT, || {
            Ok(appliance.instances_journal()?.contains("certificate").then_some(()))
        })?;
    }
    Ok(())
}
