//! HTTPS through nginx, with certificates of pebble, a certificate authority for tests, and with files.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use links_tests::http2::Http2Load;
use links_tests::local::Settings;
use links_tests::servers::{Pebble, Squatter};
use links_tests::{Builder, Events, Host, LINKS_TOML, Output, Traffic, eventually};
use serde_json::Value;

const NAME: &str = "s.example";
const OTHER: &str = "t.example";
const SITE: &str = "/etc/nginx/sites-available/links";
const TLS_TOML: &str = "/etc/links/links.toml.d/tls.toml";
/// The roots that the certificates of pebble lead to.
const ROOTS: &str = "/etc/pebble/issuer.pem";
const CERTIFICATES: &str = include_str!("../lab/https.sh");

/// `linksctl tls enable` with pebble as the authority.
fn enable(host: &Host, arguments: &[&str]) -> Result<Output> {
    let command = ["linksctl", "tls", "enable"];
    let authority = ["--directory", Pebble::URL, "--ca-file", Pebble::ROOT_FILE, "--json"];
    host.run_within(Duration::from_secs(180), [&command[..], arguments, &authority].concat())
}

fn renew(host: &Host, arguments: &[&str]) -> Result<Output> {
    let command = ["linksctl", "tls", "renew", "--json"];
    host.run_within(Duration::from_secs(180), [&command[..], arguments].concat())
}

/// Runs the unit that the timer starts.
fn renew_as_the_timer_does(host: &Host) -> Result<()> {
    let started = host.run_within(Duration::from_secs(180), ["systemctl", "start", "links-tls.service"])?;
    ensure!(started.status == 0, "{started}\n{}", host.journal("links-tls")?);
    Ok(())
}

/// Starts pebble, and stores the roots of the certificates that it will issue. The timer is stopped, so that it does not renew
/// while a test does.
fn pebble(host: &Host, settings: Settings) -> Result<Pebble<'_>> {
    host.ok(["systemctl", "stop", "links-tls.timer"])?;
    let pebble = Pebble::start_in(host, settings)?;
    host.write(ROOTS, pebble.issuer()?)?;
    Ok(pebble)
}

/// What `linksctl tls enable` and `renew` say about a name at their end: whether it has HTTPS, and the kind of the error.
fn outcome(output: &Output, name: &str) -> Result<(bool, String)> {
    let events = Events::of(output)?;
    let https = events.first("https")?;
    let names = https["names"].as_array().context("names")?;
    let found = names
        .iter()
        .find(|found| found["name"] == name)
        .with_context(|| format!("{name} in {https}"))?;
    let kind = found["error"]["kind"].as_str().unwrap_or_default();
    Ok((found["https"] == true, kind.to_owned()))
}

/// What `linksctl tls status --json` says about a name.
fn status(host: &Host, name: &str) -> Result<Value> {
    let status: Value = host.run(["linksctl", "tls", "status", "--json"])?.json()?;
    let names = status["names"].as_array().cloned().unwrap_or_default();
    let found = names.into_iter().find(|found| found["name"] == name);
    found.with_context(|| format!("{name} in {status}"))
}

/// A request by curl, which checks the certificate.
struct Curl<'a> {
    host: &'a Host,
    arguments: Vec<String>,
}

/// The answer to a request by curl.
#[derive(Debug)]
struct Answer {
    /// The status, 0 without an answer.
    status: u16,
    /// The version of HTTP.
    version: String,
    location: String,
    hsts: String,
    body: String,
}

impl<'a> Curl<'a> {
    fn new(host: &'a Host) -> Self {
        Self {
            host,
            arguments: vec![],
        }
    }

    fn with(mut self, arguments: &[&str]) -> Self {
        self.arguments
            .extend(arguments.iter().map(|argument| (*argument).to_owned()));
        self
    }

    fn get(&self, url: &str) -> Result<Answer> {
        let host = url.split('/').nth(2).unwrap_or_default();
        let resolve = |port: &str| format!("{host}:{port}:127.0.0.1");
        let (plain, tls) = (resolve("80"), resolve("443"));
        let resolve = ["--resolve", &plain, "--resolve", &tls];
        let format = "\n%{http_code}\n%{http_version}\n%{redirect_url}\n%header{strict-transport-security}";
        let common = [
            "curl",
            "--silent",
            "--max-time",
            "10",
            "--cacert",
            ROOTS,
            "--write-out",
            format,
        ];
        let output = self.host.run(
            common
                .into_iter()
                .chain(resolve)
                .chain(self.arguments.iter().map(String::as_str))
                .chain([url]),
        )?;
        let mut lines: Vec<_> = output.stdout.rsplitn(5, '\n').map(str::to_owned).collect();
        lines.reverse();
        let [body, status, version, location, hsts] = lines.try_into().map_err(|lines| anyhow::anyhow!("{lines:?}"))?;
        Ok(Answer {
            status: status.parse()?,
            version,
            location,
            hsts,
            body,
        })
    }
}

fn get(host: &Host, url: &str) -> Result<Answer> {
    Curl::new(host).get(url)
}

/// Checks that the link works over HTTPS with this name.
fn follow(host: &Host, name: &str, slug: &str) -> Result<()> {
    let answer = get(host, &format!("https://{name}/{slug}"))?;
    ensure!(answer.status == 302, "https://{name}/{slug}: {answer:?}");
    Ok(())
}

/// The SHA-256 of the certificate that nginx serves for a name.
fn served(host: &Host, name: &str) -> Result<String> {
    let shown = host.shell(&format!(
        "openssl s_client -connect 127.0.0.1:443 -servername {name} </dev/null 2>/dev/null | \
         openssl x509 -noout -fingerprint -sha256 | cut -d= -f2 | tr -d : | tr A-F a-f"
    ))?;
    Ok(shown.stdout.trim().to_owned())
}

#[test]
fn https_takes_one_command_and_a_name_that_fails_takes_no_other_down() -> Result<()> {
    takes_one_command_and_a_name_that_fails_takes_no_other_down(Host::builder())
}

pub fn takes_one_command_and_a_name_that_fails_takes_no_other_down(host: Builder) -> Result<()> {
    let host = host.serving()?;
    let link = host.shorten("https://example.com/first")?;
    let slug = &link.slug;
    let pebble = pebble(&host, Settings::default())?;
    pebble.point(OTHER, "192.0.2.1")?;

    // A program on port 443 is found before the authority is asked, and no name is changed.
    let before = host.read(SITE)?;
    let squatter = Squatter::take(&host, "0.0.0.0:443", "root")?;
    let taken = enable(&host, &[NAME])?;
    ensure!(
        taken.status == 1 && taken.printed().contains(&squatter.shown()?),
        "{taken}"
    );
    squatter.leave()?;
    // Nor is anything changed if no name gets a certificate.
    let none = enable(&host, &[OTHER])?;
    ensure!(
        none.status == 1 && outcome(&none, OTHER)? == (false, "connection".to_owned()),
        "{none}"
    );
    ensure!(
        host.read(SITE)? == before && !host.exists(TLS_TOML)?,
        "something was changed"
    );
    let planned = host.ok(["linksctl", "tls", "enable", NAME, "--dry-run"])?.stdout;
    ensure!(
        planned.contains("Let's Encrypt") && planned.contains("mode = \"acme\""),
        "{planned}"
    );
    host.follow(&link)?;

    let enabled = enable(&host, &[OTHER, NAME, Pebble::BLOCKED, "--email", "me@example.org"])?;
    ensure!(enabled.status == 1, "{enabled}");
    for (name, expected) in [
        (NAME, (true, "")),
        (OTHER, (false, "connection")),
        (Pebble::BLOCKED, (false, "rejected_identifier")),
    ] {
        let (https, kind) = outcome(&enabled, name)?;
        ensure!((https, kind.as_str()) == expected, "{name}: {enabled}");
    }
    let answer = get(&host, &format!("https://{NAME}/{slug}"))?;
    ensure!(
        (answer.status, answer.version.as_str(), answer.location.as_str()) == (302, "2", link.url.as_str()),
        "{answer:?}"
    );
    ensure!(answer.hsts.is_empty(), "{answer:?}");

    redirects_to_https(&host, slug)?;
    // Other host names and the instances' own requests are served as before.
    host.follow(&link)?;
    let shortened = host
        .site()?
        .post("/shorten", r#"{"url": "https://example.com/second"}"#)?;
    let short_url: Value = shortened.json()?;
    ensure!(
        short_url["short_url"]
            .as_str()
            .is_some_and(|url| url.starts_with("https://s.example/")),
        "{shortened}"
    );
    old_protocols_are_refused_and_sessions_resumed(&host)?;
    keys_are_private(&host)?;
    let whole = host.status()?;
    ensure!(
        whole["ok"] == true && whole["public_url"] == "https://s.example",
        "{whole}"
    );
    let addresses = whole["nginx"]["addresses"].to_string();
    ensure!(addresses.contains("0.0.0.0:443"), "{whole}");
    let (good, bad) = (status(&host, NAME)?, status(&host, OTHER)?);
    ensure!(
        good["state"] == "valid" && good["problem"].is_null() && good["sha256"] == served(&host, NAME)?,
        "{good}"
    );
    ensure!(
        bad["state"] == "missing" && bad["error"]["kind"] == "connection" && bad["attempts"] == 2,
        "{bad}"
    );

    // Once the name leads here, it gets HTTPS by itself. The timer waits longer after each failure, a person need not.
    timer_is_set(&host)?;
    pebble.point(OTHER, "127.0.0.1")?;
    let renewed = renew(&host, &[OTHER, "--force"])?;
    ensure!(
        renewed.status == 0 && outcome(&renewed, OTHER)? == (true, String::new()),
        "{renewed}"
    );
    follow(&host, OTHER, slug)?;
    follow(&host, NAME, slug)?;
    host.ok(["linksctl", "tls", "disable", Pebble::BLOCKED])?;
    host.ok(["linksctl", "tls", "status"])?;
    // A run that has nothing to do does not reload nginx.
    // Not those that still end their connections.
    let workers = || Ok::<_, anyhow::Error>(host.ok(["pgrep", "--full", "nginx: worker process$"])?.stdout);
    let before = workers()?;
    renew_as_the_timer_does(&host)?;
    ensure!(workers()? == before, "nginx was reloaded");

    serves_without_https_if_it_is_asked_to(&host, slug)?;
    survives_a_reinstallation(&host, slug)?;

    host.ok(["linksctl", "tls", "disable", OTHER])?;
    ensure!(
        get(&host, &format!("http://{OTHER}/{slug}"))?.status == 302,
        "{OTHER} is not served without HTTPS"
    );
    follow(&host, NAME, slug)?;
    host.ok(["linksctl", "tls", "disable"])?;
    ensure!(
        get(&host, &format!("https://{NAME}/{slug}"))?.status == 0,
        "nginx still listens on port 443"
    );
    ensure!(
        get(&host, &format!("http://{NAME}/{slug}"))?.status == 302,
        "{NAME} is not served without HTTPS"
    );
    host.follow(&host.shorten("https://example.com/without")?)?;

    let account = "/var/lib/links/tls/accounts";
    let purge = [
        "env",
        "LINKS_KEEP_ACME_ACCOUNT=1",
        "apt-get",
        "--yes",
        "purge",
        "links-shortener",
    ];
    host.ok(purge)?;
    let left = host
        .shell("find /var/lib/links /etc/links -type f 2>/dev/null || true")?
        .stdout;
    ensure!(
        !left.is_empty() && left.lines().all(|path| path.starts_with(account)),
        "{left}"
    );
    Ok(())
}

/// On port 80, everything is redirected except what programs ask for.
fn redirects_to_https(host: &Host, slug: &str) -> Result<()> {
    let answer = get(host, &format!("http://{NAME}/{slug}?a=1"))?;
    let expected = format!("https://{NAME}/{slug}?a=1");
    ensure!((answer.status, &answer.location) == (301, &expected), "{answer:?}");
    let posted = Curl::new(host)
        .with(&["--data", "{}"])
        .get(&format!("http://{NAME}/shorten"))?;
    ensure!(
        (posted.status, posted.location.as_str()) == (308, "https://s.example/shorten"),
        "{posted:?}"
    );
    for (path, expected) in [
        ("health", 200),
        ("internal/clicks", 404),
        (".well-known/acme-challenge/none", 404),
    ] {
        let answer = get(host, &format!("http://{NAME}/{path}"))?;
        ensure!(answer.status == expected, "/{path}: {answer:?}");
    }
    host.write("/var/lib/links/tls/challenges/token", "answer")?;
    let challenge = "/.well-known/acme-challenge/token";
    for url in [
        format!("http://{NAME}{challenge}"),
        format!("http://{OTHER}{challenge}"),
        format!("http://127.0.0.1{challenge}"),
    ] {
        let answer = get(host, &url)?;
        ensure!(
            (answer.status, answer.body.as_str()) == (200, "answer"),
            "{url}: {answer:?}"
        );
    }
    host.ok(["rm", "/var/lib/links/tls/challenges/token"])?;
    Ok(())
}

fn old_protocols_are_refused_and_sessions_resumed(host: &Host) -> Result<()> {
    for (version, expected) in [("1.1", 0), ("1.2", 200)] {
        let url = format!("https://{NAME}/health");
        let answer = Curl::new(host).with(&["--tls-max", version]).get(&url)?;
        ensure!(answer.status == expected, "TLS {version}: {answer:?}");
    }
    for version in ["-tls1_2", "-tls1_3"] {
        let connect = |session: &str| {
            host.shell(&format!(
                "printf 'GET /health HTTP/1.0\\r\\nHost: {NAME}\\r\\n\\r\\n' | openssl s_client -connect 127.0.0.1:443 \
                 -servername {NAME} {version} {session} /tmp/session -ign_eof 2>/dev/null | grep --max-count=1 -E '^(New|Reused)'"
            ))
        };
        connect("-sess_out")?;
        let second = connect("-sess_in")?.stdout;
        ensure!(second.starts_with("Reused"), "{version}: {second}");
    }
    Ok(())
}

fn keys_are_private(host: &Host) -> Result<()> {
    let modes = host.shell(&format!(
        "stat --dereference --format='%a %U' /var/lib/links/tls/live/{NAME}/privkey.pem /var/lib/links/tls/accounts"
    ))?;
    ensure!(modes.stdout == "600 root\n700 root\n", "{modes}");
    for user in ["links", "www-data", "nobody"] {
        let key = format!("/var/lib/links/tls/live/{NAME}/privkey.pem");
        let read = host.run(["runuser", "-u", user, "--", "cat", &key])?;
        ensure!(read.status != 0, "user {user} can read the key");
    }
    // Anybody may see how long the certificate is valid.
    let shown = host.run(["runuser", "-u", "nobody", "--", "linksctl", "tls", "status", "--json"])?;
    let shown: Value = shown.json()?;
    ensure!(
        shown["names"][0]["state"] == "valid" && shown["names"][0]["problem"].is_null(),
        "{shown}"
    );
    Ok(())
}

fn timer_is_set(host: &Host) -> Result<()> {
    // links.service wants it.
    host.ok(["systemctl", "restart", "links"])?;
    host.wait_for_rotation(2)?;
    let active = host.run(["systemctl", "is-active", "links-tls.timer"])?.stdout;
    ensure!(active == "active\n", "links-tls.timer is {active}");
    // The last run seems to be in the future after the clock was set back. The next one is within two hours nevertheless.
    host.shell(
        "touch --date='1 year' /var/lib/systemd/timers/stamp-links-tls.timer; systemctl restart links-tls.timer",
    )?;
    let shown = host.ok([
        "systemctl",
        "show",
        "--property=NextElapseUSecRealtime",
        "--value",
        "links-tls.timer",
    ])?;
    let next = host.shell(&format!(
        "echo $(( $(date --date='{}' +%s) - $(date +%s) ))",
        shown.stdout.trim()
    ))?;
    let seconds: i64 = next.stdout.trim().parse()?;
    ensure!(seconds <= 7200, "the next run is in {seconds} s");
    host.ok(["systemctl", "stop", "links-tls.timer"])?;
    // It is root, uses the network and runs `nginx -t`, so it can do without less than the other units.
    let exposure = host.exposure("links-tls.service")?;
    ensure!(exposure <= 4.0, "{exposure}");
    Ok(())
}

fn serves_without_https_if_it_is_asked_to(host: &Host, slug: &str) -> Result<()> {
    let served = host.ok(["linksctl", "tls", "enable", NAME, "--http", "serve", "--hsts", "--json"])?;
    ensure!(outcome(&served, NAME)?.0, "{served}");
    ensure!(
        get(host, &format!("http://{NAME}/{slug}"))?.status == 302,
        "{NAME} is not served without HTTPS"
    );
    let answer = get(host, &format!("https://{NAME}/{slug}"))?;
    ensure!(answer.hsts == "max-age=31536000", "{answer:?}");
    let check: Value = host.ok(["linksctl", "check", "--json"])?.json()?;
    ensure!(
        check["warnings"].as_u64().is_some_and(|warnings| warnings > 0),
        "{check}"
    );
    host.ok(["linksctl", "tls", "enable", NAME, "--http", "redirect", "--hsts=false"])?;
    ensure!(
        get(host, &format!("http://{NAME}/{slug}"))?.status == 301,
        "{NAME} is not redirected"
    );
    Ok(())
}

/// Neither a reboot nor a repeated installation needs the authority.
fn survives_a_reinstallation(host: &Host, slug: &str) -> Result<()> {
    host.ok(["systemctl", "stop", "pebble"])?;
    let before = served(host, NAME)?;
    host.ok(["linksctl", "configure"])?;
    host.ok(["systemctl", "restart", "nginx", "links"])?;
    host.wait_for_rotation(2)?;
    follow(host, NAME, slug)?;
    ensure!(served(host, NAME)? == before, "another certificate is served");
    host.ok(["systemctl", "start", "pebble"])?;
    Ok(())
}

/// The load is over kept HTTP/2 connections to port 443 and over both kinds of HTTP/1.1 connections to port 80.
#[test]
fn twenty_renewals_under_load_cost_no_request() -> Result<()> {
    let host = Host::builder().serving()?;
    let link = host.shorten("https://example.com/renewed")?;
    let _pebble = pebble(&host, Settings::default())?;
    let enabled = enable(&host, &[NAME])?;
    ensure!(enabled.status == 0, "{enabled}");
    let roots = host.read(ROOTS)?;
    let plain = Traffic::start(&host, "plain")?;
    let tls = Http2Load::start(&host, NAME, &roots, &link)?;
    let mut last = served(&host, NAME)?;
    for round in 1..=20 {
        let renewed = tls.during(|| renew(&host, &["--force"]))?;
        ensure!(renewed.status == 0, "renewal {round}: {renewed}");
        let now = served(&host, NAME)?;
        ensure!(now != last, "renewal {round}: nginx serves the old certificate");
        last = now;
    }
    let report = tls.stop()?;
    println!(
        "HTTP/2: {} answers over {} connections, {} requests sent again, {} failed",
        report.answered, report.connections, report.repeated, report.failed
    );
    ensure!(report.failed == 0, "{report:?}");
    // Each renewal has ended each connection, or the load would prove nothing.
    ensure!(report.connections >= 20, "{report:?}");
    plain.finish(&host)?;
    for link in report.acknowledged.iter().rev().take(50) {
        host.follow(link)?;
    }
    Ok(())
}

#[test]
fn neither_kills_nor_expiry_nor_wrong_files_take_links_down() -> Result<()> {
    let host = Host::builder().serving()?;
    let link = host.shorten("https://example.com/kept")?;
    let slug = &link.slug;
    let first = pebble(&host, Settings::default())?;
    let enabled = enable(&host, &[NAME])?;
    ensure!(enabled.status == 0, "{enabled}");
    a_change_that_nginx_does_not_serve_is_undone(&host, slug)?;

    // linksctl and what it runs are killed at every moment of a renewal. nginx can start at any time, and the next renewal
    // makes it serve what is there.
    for round in 0..10 {
        host.shell(&format!(
            "setsid linksctl tls renew --force & sleep {}; kill -KILL -- -$! || true; pkill -KILL links-acme || true; \
             wait $! || true",
            f64::from(round) * 0.4
        ))?;
        host.ok(["nginx", "-t", "-q"])?;
        follow(&host, NAME, slug)?;
        if round == 5 {
            host.ok(["systemctl", "restart", "nginx"])?;
            follow(&host, NAME, slug)?;
        }
    }
    let renewed = renew(&host, &["--force"])?;
    ensure!(renewed.status == 0, "{renewed}");
    ensure!(
        status(&host, NAME)?["sha256"] == served(&host, NAME)?,
        "nginx serves an earlier certificate"
    );

    a_revoked_certificate_is_replaced(&host)?;
    a_bare_host_gets_its_certificate_and_account_back(&host, &first, slug)?;

    // The authority has lost its memory, and issues certificates for a short time. Without it, they expire, and nothing is
    // redirected to an error page then.
    first.server.stop()?;
    let settings = Settings {
        lifetime: 20,
        ..Settings::default()
    };
    let pebble = pebble(&host, settings)?;
    let short = renew(&host, &["--force"])?;
    ensure!(short.status == 0, "{short}");
    follow(&host, NAME, slug)?;
    pebble.server.stop()?;
    let offline = renew(&host, &["--force"])?;
    ensure!(
        offline.status == 1 && outcome(&offline, NAME)?.1 == "network",
        "{offline}"
    );
    eventually("the certificate has expired", Duration::from_secs(60), || {
        Ok((status(&host, NAME)?["state"] == "expired").then_some(()))
    })?;
    let expired = renew(&host, &[])?;
    ensure!(expired.status == 1, "{expired}");
    let answer = get(&host, &format!("http://{NAME}/{slug}"))?;
    ensure!(answer.status == 302, "{answer:?}");
    ensure!(
        host.run(["linksctl", "tls", "status"])?.status == 1,
        "an expired certificate should be reported"
    );
    pebble.server.start()?;
    host.write(ROOTS, pebble.issuer()?)?;
    let again = renew(&host, &["--force"])?;
    ensure!(again.status == 0, "{again}");
    ensure!(
        get(&host, &format!("http://{NAME}/{slug}"))?.status == 301,
        "{NAME} should be redirected again"
    );
    follow(&host, NAME, slug)?;

    own_files(&host, slug)
}

/// Another site of the same nginx has the name on port 443, so that nginx accepts the site of links and serves the other one.
/// Then the administrator's directives are broken, so that nginx takes no site.
fn a_change_that_nginx_does_not_serve_is_undone(host: &Host, slug: &str) -> Result<()> {
    let neighbour = "/etc/nginx/conf.d/neighbour.conf";
    host.write("/var/tmp/https.sh", CERTIFICATES)?;
    host.ok(["bash", "/var/tmp/https.sh", "/etc/own", OTHER, "30"])?;
    host.write(
        neighbour,
        format!(
            "server {{\n    listen 443 ssl;\n    server_name {OTHER};\n    ssl_certificate /etc/own/fullchain.pem;\n    \
             ssl_certificate_key /etc/own/privkey.pem;\n    return 200 own;\n}}\n"
        ),
    )?;
    host.reload_nginx()?;
    let state = || -> Result<_> {
        let mut status: Value = host.run(["linksctl", "tls", "status", "--json"])?.json()?;
        for name in status["names"].as_array_mut().into_iter().flatten() {
            // The authority may have been asked when.
            name["next"] = Value::Null;
        }
        Ok((host.read(SITE)?, host.read(TLS_TOML)?, status, served(host, OTHER)?))
    };
    let before = state()?;
    ensure!(before.2["ok"] == true, "{before:?}");
    let refused = enable(host, &[OTHER])?;
    ensure!(
        refused.status != 0 && refused.printed().contains(&format!("on 0.0.0.0:443 {OTHER}: ")),
        "{refused}"
    );
    let after = state()?;
    ensure!(after == before, "{before:?} before {refused}, and {after:?} after it");
    follow(host, NAME, slug)?;
    host.ok(["rm", neighbour])?;
    host.reload_nginx()?;

    let broken = "/etc/links/nginx.d/broken.conf";
    host.write(broken, "nonsense;\n")?;
    let before = state()?;
    let disable = ["linksctl", "tls", "disable", "--json"];
    for refused in [enable(host, &[OTHER])?, host.run(disable)?] {
        ensure!(
            refused.status != 0 && refused.printed().contains("nginx's configuration is broken"),
            "{refused}"
        );
        let after = state()?;
        ensure!(after == before, "{before:?} before {refused}, and {after:?} after it");
    }
    follow(host, NAME, slug)?;
    host.ok(["rm", broken])?;
    Ok(())
}

/// A purge leaves a host that is as bare as another one, and here is the authority that knows the account.
fn a_bare_host_gets_its_certificate_and_account_back(host: &Host, pebble: &Pebble<'_>, slug: &str) -> Result<()> {
    let before = served(host, NAME)?;
    let backup = "/var/backups/https.tar.zst";
    host.ok(["linksctl", "backup", "--to", backup, "--plain-secrets"])?;
    host.ok(["apt-get", "--yes", "purge", "links-shortener"])?;
    ensure!(!host.exists("/var/lib/links/tls")?, "the purge has left certificates");
    host.apt_install()?;
    host.wait_for_rotation(2)?;
    ensure!(
        get(host, &format!("https://{NAME}/{slug}"))?.status == 0,
        "a bare host serves HTTPS"
    );

    // Whoever asks the authority gets no answer.
    pebble.server.pause()?;
    host.ok(["linksctl", "restore", backup])?;
    host.ok(["systemctl", "stop", "links-tls.timer"])?;
    ensure!(served(host, NAME)? == before, "another certificate is served");
    follow(host, NAME, slug)?;
    let restored = status(host, NAME)?;
    ensure!(
        restored["state"] == "valid" && restored["problem"].is_null() && restored["sha256"] == before,
        "{restored}"
    );
    keys_are_private(host)?;
    pebble.server.resume()?;
    let renewed = renew(host, &["--force"])?;
    ensure!(renewed.status == 0 && served(host, NAME)? != before, "{renewed}");
    let account = Events::of(&renewed)?.first("account")?.clone();
    ensure!(account["created"] == false, "a new account was made: {account}");
    follow(host, NAME, slug)
}

/// The authority suggests to renew it at once (RFC 9773).
fn a_revoked_certificate_is_replaced(host: &Host) -> Result<()> {
    let before = served(host, NAME)?;
    // Somebody else with the account's key revokes it, so that this host learns of it by the suggestion only.
    host.shell("mkdir -p /var/tmp/else/var/lib/links; cp -a /var/lib/links/tls /var/tmp/else/var/lib/links/")?;
    let command = [
        "/usr/lib/links/bin/links-acme",
        "--root",
        "/var/tmp/else",
        "forget",
        "--revoke",
    ];
    host.ok([&command[..], &["--ca-file", Pebble::ROOT_FILE, NAME]].concat())?;
    // As if the time for the next question had come.
    let file = format!("/var/lib/links/tls/names/{NAME}.json");
    let mut record: Value = serde_json::from_str(&host.read(&file)?)?;
    record["ari_asked"] = Value::Null;
    host.write(&file, record.to_string())?;
    let renewed = renew(host, &[])?;
    ensure!(
        renewed.status == 0 && served(host, NAME)? != before,
        "the revoked certificate is still served: {renewed}"
    );
    Ok(())
}

/// Certificates of the administrator, of which nginx gets a checked copy.
fn own_files(host: &Host, slug: &str) -> Result<()> {
    host.write("/var/tmp/https.sh", CERTIFICATES)?;
    let make = |name: &str, days: &str| host.ok(["bash", "/var/tmp/https.sh", "/etc/own", name, days]);
    make(NAME, "30")?;
    let [certificate, key] = ["/etc/own/fullchain.pem", "/etc/own/privkey.pem"];
    let files = ["linksctl", "tls", "enable", "--certificate", certificate, "--key", key];
    host.write(ROOTS, host.read("/etc/own/authority.pem")?)?;
    let enabled = host.ok(files)?;
    ensure!(enabled.stdout.contains("https://s.example"), "{enabled}");
    follow(host, NAME, slug)?;
    let first = served(host, NAME)?;

    // A wrong key, a certificate for another name and an expired one are refused, and nginx can start as before.
    let before = (host.read(SITE)?, host.read(TLS_TOML)?);
    for (name, days, breaks) in [(NAME, "30", true), (OTHER, "30", false), (NAME, "-1", false)] {
        make(name, days)?;
        if breaks {
            host.ok(["cp", "/etc/own/other.key", key])?;
        }
        let taken = host.run(["linksctl", "tls", "renew"])?;
        ensure!(taken.status == 1, "{name} for {days} days: {taken}");
        let check = host.run(["linksctl", "check", "--json"])?;
        ensure!(check.status == 78, "{check}");
        // The rollout of something else does not fail for it.
        host.ok(["linksctl", "rollout"])?;
        host.ok(["systemctl", "restart", "nginx"])?;
        ensure!(served(host, NAME)? == first, "another certificate is served");
        ensure!(
            (host.read(SITE)?, host.read(TLS_TOML)?) == before,
            "something was changed"
        );
    }
    // The same happens at once with files that never were right.
    let wrong = host.run([
        "linksctl",
        "tls",
        "enable",
        OTHER,
        "--certificate",
        certificate,
        "--key",
        key,
    ])?;
    ensure!(wrong.status != 0 && host.read(TLS_TOML)? == before.1, "{wrong}");

    // certbot's deploy hook, or the timer.
    make(NAME, "60")?;
    renew_as_the_timer_does(host)?;
    ensure!(served(host, NAME)? != first, "the old certificate is served");
    follow(host, NAME, slug)?;

    an_authority_takes_over_without_a_gap(host, slug)?;

    // The settings may be in links.toml as well.
    host.ok(["rm", TLS_TOML])?;
    host.configure_links(&format!(
        "[tls]\nmode = \"files\"\nnames = [\"{NAME}\"]\ncertificate = \"{certificate}\"\nkey = \"{key}\"\nhttp = \"serve\"\n"
    ))?;
    follow(host, NAME, slug)?;
    ensure!(
        get(host, &format!("http://{NAME}/{slug}"))?.status == 302,
        "{NAME} should be served without HTTPS"
    );
    ensure!(host.read(LINKS_TOML)?.contains("[tls]"));
    Ok(())
}

/// From the administrator's files to a certificate of the authority. Every new connection gets the one or the other.
fn an_authority_takes_over_without_a_gap(host: &Host, slug: &str) -> Result<()> {
    let own = host.read(ROOTS)?;
    host.ok(["systemctl", "stop", "pebble"])?;
    let authority = pebble(host, Settings::default())?;
    host.write(ROOTS, format!("{}{own}", authority.issuer()?))?;
    // It is of the authority that is gone.
    host.ok(["/usr/lib/links/bin/links-acme", "forget", NAME])?;
    let before = served(host, NAME)?;

    let is_done = AtomicBool::new(false);
    let (enabled, answered) = thread::scope(|scope| {
        let client = scope.spawn(|| -> Result<u32> {
            let mut answered = 0;
            while !is_done.load(Ordering::Relaxed) {
                follow(host, NAME, slug).with_context(|| format!("after {answered} answers"))?;
                answered += 1;
            }
            Ok(answered)
        });
        let enabled = enable(host, &[NAME]);
        is_done.store(true, Ordering::Relaxed);
        (enabled, client.join())
    });
    let enabled = enabled?;
    let answered = answered.map_err(|_| anyhow!("the client panicked"))??;
    println!("{answered} answers from files to the authority");
    ensure!(
        enabled.status == 0 && outcome(&enabled, NAME)? == (true, String::new()),
        "{enabled}"
    );
    ensure!(answered >= 10, "only {answered} answers");
    ensure!(served(host, NAME)? != before, "the file is still served");
    follow(host, NAME, slug)
}
