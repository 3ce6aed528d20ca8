//! What HTTPS costs: the time until a new host has it; redirects from nginx's cache over plain HTTP/1.1 and over TLS 1.3, on kept
//! and on fresh connections; and what testssl.sh finds about the configuration of TLS.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use links_tests::local::Settings;
use links_tests::servers::Pebble;
use links_tests::{Artifacts, Host, KeyFrom, Repository};
use serde::Serialize;
use serde_json::Value;

use crate::load::Wrk;
use crate::{ROUNDS, SECONDS_PER_ROUND, median};

const NAME: &str = "s.example";
const CERTIFICATES: &str = include_str!("../../../lab/https.sh");
const CONNECTIONS: u32 = 64;
/// The number of fresh HTTP/2 connections at once, with one request on each: fewer than Debian's nginx accepts
/// (`worker_connections`).
const FRESH: u32 = 600;
/// How often they are opened in one run.
const FRESH_TIMES: usize = 5;
/// The requests that are under way at the same time on a kept HTTP/2 connection.
const STREAMS: u32 = 10;
/// The number of requests of one run on kept HTTP/2 connections. nginx closes a connection after 1,000 of them
/// (`keepalive_requests`), and h2load does not open another one.
const KEPT: u32 = CONNECTIONS * 950;

/// What testssl.sh finds because the test's authority is private. Everything else counts.
const OF_THE_AUTHORITY: [&str; 9] = [
    "cert_trust",
    "cert_chain_of_trust",
    "cert_revocation",
    "cert_ocspRevoked",
    "OCSP_stapling",
    "DNS_CAArecord",
    "certificate_transparency",
    "grade_cap_reason",
    "overall_grade",
];

#[derive(Clone, Copy)]
enum Load {
    /// HTTP/1.1 by wrk.
    Kept(&'static str),
    /// HTTP/1.1 by wrk, which is asked to close each connection after its first answer.
    Fresh(&'static str),
    /// HTTP/2 by h2load.
    KeptHttp2,
    FreshHttp2,
}

const SUBJECTS: [(&str, Load); 6] = [
    ("HTTP/1.1, kept", Load::Kept("http")),
    ("TLS 1.3, HTTP/1.1, kept", Load::Kept("https")),
    ("TLS 1.3, HTTP/2, kept", Load::KeptHttp2),
    ("HTTP/1.1, fresh", Load::Fresh("http")),
    ("TLS 1.3, HTTP/1.1, fresh", Load::Fresh("https")),
    ("TLS 1.3, HTTP/2, fresh", Load::FreshHttp2),
];

#[derive(Clone, Debug, Serialize)]
pub struct Figures {
    from_apt_to_https: f64,
    rows: Vec<Row>,
    findings: Vec<Finding>,
}

#[derive(Clone, Debug, Serialize)]
struct Row {
    name: &'static str,
    /// The median of the runs.
    per_second: f64,
    runs: Vec<f64>,
}

/// One finding of testssl.sh.
#[derive(Clone, Debug, Serialize)]
struct Finding {
    id: String,
    severity: String,
    finding: String,
}

/// Measures all loads in turns.
///
/// # Errors
/// Fails if the lab does not work here, if an answer is not the redirect, or if testssl.sh finds something serious.
pub fn measure() -> Result<Figures> {
    let packages = [
        "bsdextrautils",
        "dnsutils",
        // wrk looks up the ports of `http` and `https` in /etc/services.
        "netbase",
        "nghttp2-client",
        "procps",
        "testssl.sh",
        "wrk",
    ];
    let host = Host::builder().real_syncs().packages(&packages).serving()?;
    let link = host.shorten("https://example.com/over-tls")?;
    host.write("/var/tmp/https.sh", CERTIFICATES)?;
    host.ok(["bash", "/var/tmp/https.sh", "/etc/own", NAME, "90"])?;
    host.shell(&format!("echo 127.0.0.1 {NAME} >>/etc/hosts"))?;
    let files = [
        NAME,
        "--certificate",
        "/etc/own/fullchain.pem",
        "--key",
        "/etc/own/privkey.pem",
        "--http",
        "serve",
    ];
    host.ok([&["linksctl", "tls", "enable"], &files[..]].concat())?;
    let mut runs = vec![vec![]; SUBJECTS.len()];
    for _ in 0..ROUNDS {
        for ((name, load), runs) in SUBJECTS.iter().zip(&mut runs) {
            let run = load.run(&host, &link.slug).with_context(|| (*name).to_owned())?;
            runs.push(run);
        }
    }
    let rows = SUBJECTS.iter().zip(runs);
    Ok(Figures {
        from_apt_to_https: from_apt_to_https()?,
        rows: rows
            .map(|((name, _), runs)| Row {
                name,
                per_second: median(runs.clone()),
                runs,
            })
            .collect(),
        findings: findings(&host)?,
    })
}

/// The commands of the README on a Debian that has nginx, from an apt repository and with a certificate authority on this host.
const INSTALL: &str = "
    curl -fsSo /etc/apt/sources.list.d/links.sources http://127.0.0.1:8085/links.sources
    apt-get update -o Dir::Etc::SourceParts=/dev/null -o Dir::Etc::SourceList=/etc/apt/sources.list.d/links.sources
    apt-get --yes install links-shortener
    linksctl tls enable s.example --directory https://127.0.0.1:14000/dir --ca-file /etc/pebble/cert.pem
    https() { curl --fail --silent --insecure --resolve s.example:443:127.0.0.1 \"$@\"; }
    https -H \"Authorization: Bearer $(linksctl token)\" -H 'Content-Type: application/json' \\
        -d '{\"url\": \"https://example.com/\", \"slug\": \"first\"}' https://s.example/shorten
    https --output /dev/null --write-out '%{http_code} %{redirect_url}' https://s.example/first";

/// Seconds from the first command to the first redirect over HTTPS.
fn from_apt_to_https() -> Result<f64> {
    let host = Host::builder().real_syncs().debian()?;
    host.write(
        "/etc/nginx/conf.d/repository.conf",
        include_str!("../../../tests/repository/nginx.conf"),
    )?;
    host.reload_nginx()?;
    let repository = Repository::new("http://127.0.0.1:8085", KeyFrom::File)?;
    repository.add(&Artifacts::find()?.deb)?;
    repository.publish(&host, "/srv/apt", || Ok(()))?;
    let _pebble = Pebble::start_in(&host, Settings::default())?;
    let since = Instant::now();
    let script = format!("set -e; {INSTALL}");
    let output = host.run_within(Duration::from_secs(180), ["bash", "-c", &script])?;
    let seconds = since.elapsed().as_secs_f64();
    ensure!(
        output.status == 0 && output.stdout.ends_with("302 https://example.com/"),
        "{output}"
    );
    Ok(seconds)
}

impl Load {
    /// Redirects per second.
    fn run(self, host: &Host, slug: &str) -> Result<f64> {
        let wrk = |scheme: &str, headers: &str| -> Result<f64> {
            let command =
                format!("wrk --latency -t1 -c{CONNECTIONS} -d{SECONDS_PER_ROUND}s {headers} {scheme}://{NAME}/{slug}");
            Ok(Wrk::parse(&host.shell(&command)?.stdout)?.per_second)
        };
        let h2load = |load: &str| h2load(&host.shell(&format!("h2load -t1 {load} https://{NAME}/{slug}"))?.stdout);
        match self {
            Load::Kept(scheme) => wrk(scheme, ""),
            Load::Fresh(scheme) => wrk(scheme, "-H 'Connection: close'"),
            Load::KeptHttp2 => h2load(&format!("-c{CONNECTIONS} -n{KEPT} -m{STREAMS}")),
            Load::FreshHttp2 => {
                let times = (0..FRESH_TIMES).map(|_| h2load(&format!("-c{FRESH} -n{FRESH} -m1")));
                Ok(median(times.collect::<Result<_>>()?))
            }
        }
    }
}

/// The requests per second in the output of h2load.
fn h2load(text: &str) -> Result<f64> {
    ensure!(
        text.contains(" 0 failed, 0 errored, 0 timeout") && text.contains(" 0 2xx, ") && text.contains(" 0 4xx, 0 5xx"),
        "h2load reports failed requests:\n{text}"
    );
    ensure!(text.contains("TLS Protocol: TLSv1.3"), "not over TLS 1.3:\n{text}");
    let line = text.lines().find_map(|line| line.strip_prefix("finished in "));
    let rate = line.and_then(|line| line.split(", ").nth(1)?.strip_suffix(" req/s"));
    Ok(rate
        .with_context(|| format!("the output of h2load has no rate\n{text}"))?
        .parse()?)
}

/// What testssl.sh finds beyond what is in order.
fn findings(host: &Host) -> Result<Vec<Finding>> {
    // Its exit status counts findings.
    host.shell(&format!(
        "testssl --quiet --color 0 --warnings off --nodns min --ip 127.0.0.1 --severity LOW --jsonfile /var/tmp/tls.json \
         https://{NAME} >/var/tmp/testssl.log || true"
    ))?;
    let found: Vec<Value> = serde_json::from_str(&host.read("/var/tmp/tls.json")?)?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let findings: Vec<_> = found
        .iter()
        .map(|found| Finding {
            id: text(&found["id"]),
            severity: text(&found["severity"]),
            finding: text(&found["finding"]),
        })
        .filter(|found| !OF_THE_AUTHORITY.iter().any(|known| found.id.starts_with(known)))
        .collect();
    let serious: Vec<_> = findings
        .iter()
        .filter(|found| ["HIGH", "CRITICAL", "FATAL"].contains(&found.severity.as_str()))
        .collect();
    if !serious.is_empty() {
        bail!("testssl.sh finds: {serious:#?}");
    }
    Ok(findings)
}

impl Figures {
    pub fn print(&self) {
        println!(
            "\n{:.1} s from `apt install` to the first redirect over HTTPS, with the repository and the authority on the host",
            self.from_apt_to_https
        );
        let plain = self.rows.first().map_or(1.0, |row| row.per_second);
        println!(
            "\n{:<31} {:>10} {:>10}",
            "one link from nginx's cache", "requests/s", "of plain"
        );
        for row in &self.rows {
            println!(
                "{:<31} {:>10.0} {:>10.2}",
                row.name,
                row.per_second,
                row.per_second / plain
            );
        }
        println!(
            "\nmedians of {ROUNDS} rounds; HTTP/1.1: {SECONDS_PER_ROUND} s, {CONNECTIONS} connections; HTTP/2: {KEPT} requests on \
             {CONNECTIONS} kept connections, {STREAMS} at a time on each, or one on each of {FRESH} fresh ones, {FRESH_TIMES} \
             times; an ECDSA certificate for P-256"
        );
        println!(
            "\ntestssl.sh finds nothing serious, and {} lesser things:",
            self.findings.len()
        );
        for Finding { id, severity, finding } in &self.findings {
            println!("    {severity} {id}: {finding}");
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    const OUTPUT: &str = "TLS Protocol: TLSv1.3\n\nfinished in 4.00s, 21345.75 req/s, 3.34MB/s\n\
        requests: 85383 total, 85383 started, 85383 done, 85383 succeeded, 0 failed, 0 errored, 0 timeout\n\
        status codes: 0 2xx, 85383 3xx, 0 4xx, 0 5xx\n";

    #[test]
    fn the_output_of_h2load_is_parsed_and_failures_are_an_error() {
        assert!((h2load(OUTPUT).unwrap() - 21345.75).abs() < 0.001);
        for (sound, failed) in [("0 failed", "1 failed"), ("0 5xx", "7 5xx"), ("TLSv1.3", "TLSv1.2")] {
            assert!(h2load(&OUTPUT.replace(sound, failed)).is_err(), "{failed}");
        }
    }
}
