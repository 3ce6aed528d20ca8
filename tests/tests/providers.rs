//! links-host with the component on what its user may have: a libSQL server, Vault, a collector of telemetry.
//! From target/release and target/wasm32-wasip2/release; no systemd, no nginx, only loopback.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use links_tests::eventually;
use links_tests::local::{Place, ask, free_port};
use serde_json::json;

const HRANA: &str = env!("CARGO_BIN_EXE_hrana-server");
const SOON: Duration = Duration::from_secs(20);
const ANY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

fn libsql(address: SocketAddr, token: &str) -> String {
    format!(
        "[sqlite_database.default]\ntype = \"libsql\"\nurl = \"http://{address}\"\ntoken = \"{token}\"\n\
         [[variables_provider]]\ntype = \"static\"\nvalues = {{ admin_token = \"4dmin\" }}\n"
    )
}

#[test]
fn links_are_kept_on_a_libsql_server_and_shared() -> Result<()> {
    let place = Place::new()?;
    let (_server, address) = place.hrana(HRANA, ANY, "s3cret")?;
    let one = place.runtime(&libsql(address, "s3cret"), &[])?;
    let other = place.runtime(&libsql(address, "s3cret"), &[])?;
    for number in 0..20 {
        let url = format!("https://example.com/{number}");
        let slug = one.slug("4dmin", &url)?;
        other.leads_to(&slug, &url)?;
        other.slug("4dmin", &format!("{url}/other"))?;
    }
    let health = one.get("/health", &[])?;
    ensure!(health.status == 200, "{health:?}");
    one.process.terminate()?;
    // Streams end with their connections.
    other.process.terminate()?;
    let errors = place.runtime_errors()?;
    ensure!(errors.contains(&format!("libSQL at http://{address}")), "{errors}");
    ensure!(!errors.contains("s3cret"), "{errors}");
    Ok(())
}

#[test]
fn a_libsql_server_that_was_away_is_found_again() -> Result<()> {
    let place = Place::new()?;
    let (server, address) = place.hrana(HRANA, ANY, "s3cret")?;
    let runtime = place.runtime(&libsql(address, "s3cret"), &[])?;
    let slug = runtime.slug("4dmin", "https://example.com/")?;

    server.pause()?;
    let begin = Instant::now();
    let paused = runtime.get(&format!("/{slug}"), &[])?;
    ensure!(paused.status == 503 && begin.elapsed() < SOON, "{paused:?}");
    server.go_on()?;
    eventually("the server is asked again", SOON, || {
        Ok(runtime.leads_to(&slug, "https://example.com/").ok())
    })?;

    drop(server);
    let gone = runtime.get(&format!("/{slug}"), &[])?;
    ensure!(gone.status == 503 && !gone.body.contains("s3cret"), "{gone:?}");
    let (_server, _) = place.hrana(HRANA, address, "s3cret")?;
    eventually("the new server is found", SOON, || {
        Ok(runtime.leads_to(&slug, "https://example.com/").ok())
    })
}

#[test]
fn a_refused_token_is_told_and_not_shown() -> Result<()> {
    let place = Place::new()?;
    let (_server, address) = place.hrana(HRANA, ANY, "s3cret")?;
    let runtime = place.runtime(&libsql(address, "wr0ng-s3cret"), &[])?;
    let answer = runtime.get("/abc", &[])?;
    ensure!(answer.status == 503 && !answer.body.contains("s3cret"), "{answer:?}");
    let errors = place.runtime_errors()?;
    ensure!(errors.contains("401") && !errors.contains("s3cret"), "{errors}");

    let put = ask(address, "PUT", "/test/token", &[], "wr0ng-s3cret")?;
    ensure!(put.status == 204, "{put:?}");
    eventually("the token is taken", SOON, || {
        Ok(runtime.slug("4dmin", "https://example.com/").ok().map(drop))
    })
}

#[test]
fn a_token_is_rotated_in_vault() -> Result<()> {
    let place = Place::new()?;
    let port = free_port()?;
    let vault = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let bao = place.bao(port, "r00t-s3cret")?;
    let write = |token: &str| {
        let body = json!({ "data": { "value": token } }).to_string();
        let headers = [("x-vault-token", "r00t-s3cret")];
        ask(vault, "POST", "/v1/secret/data/links/admin_token", &headers, &body)
    };
    ensure!(write("one-s3cret")?.status == 200);
    let configuration = format!(
        "[[variables_provider]]\ntype = \"vault\"\nurl = \"http://{vault}\"\ntoken = \"r00t-s3cret\"\nmount = \"secret\"\n\
         prefix = \"links\"\n[[variables_provider]]\ntype = \"static\"\nvalues = {{ secrets_stale = \"0\" }}\n"
    );
    let runtime = place.runtime(&configuration, &[])?;
    let slug = runtime.slug("one-s3cret", "https://example.com/")?;
    let refused = runtime.shorten("two-s3cret", "https://example.com/")?;
    ensure!(refused.status == 401, "{refused:?}");

    // An instance of the component may keep what it has read for as long as it lives.
    let answers = |token: &str, test: fn(u16) -> bool| {
        eventually("the token is read again", SOON, || {
            let answer = runtime.shorten(token, "https://example.com/2")?;
            ensure!(!answer.body.contains("s3cret"), "{answer:?}");
            Ok(test(answer.status).then_some(()))
        })
    };
    ensure!(write("two-s3cret")?.status == 200);
    answers("two-s3cret", |status| status == 200)?;
    answers("one-s3cret", |status| status == 401)?;
    let seal = ask(vault, "PUT", "/v1/sys/seal", &[("x-vault-token", "r00t-s3cret")], "")?;
    ensure!(seal.status == 204, "{seal:?}");
    answers("two-s3cret", |status| status >= 500)?;
    drop(bao);
    answers("two-s3cret", |status| status >= 500)?;
    // Redirects never ask Vault.
    runtime.leads_to(&slug, "https://example.com/")?;
    let errors = place.runtime_errors()?;
    ensure!(!errors.contains("s3cret"), "{errors}");
    Ok(())
}
