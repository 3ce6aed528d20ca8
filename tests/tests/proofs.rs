//! Attacks by an unprivileged local user, who tries to reach, impersonate or replace the processes of the appliance.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use links_tests::load::Link;
use links_tests::servers::Squatter;
use links_tests::{Host, Output, eventually};

#[test]
fn an_unprivileged_user_can_neither_reach_nor_impersonate_a_process_of_the_appliance() -> Result<()> {
    let mut host = Host::builder().serving()?;
    let on_sockets = host.is_on_sockets()?;
    let link = host.shorten("https://example.com/kept")?;

    secrets_are_private(&host)?;
    if on_sockets {
        host.serve_only_sockets(2, "www-data")?;
    }
    for user in ["nobody", "www-data"] {
        internal_routes_are_hidden(&host, user, on_sockets)?;
    }
    forged_headers_are_ignored(&host, on_sockets)?;
    a_squatter_gets_nothing(&host, &link, on_sockets)?;

    // Every boot generates new secrets. nginx, the agent and the instances must all start with them.
    let before = secrets(&host)?;
    host.reboot()?;
    host.wait_for_rotation(2)?;
    let after = secrets(&host)?;
    ensure!(
        before.iter().all(|secret| !after.contains(secret)),
        "a secret survived the reboot"
    );
    forged_headers_are_ignored(&host, on_sockets)?;
    host.follow(&link)?;
    host.wait_until_counted(Duration::from_secs(60))
}

/// nginx.org's package runs the workers as its own user, and an administrator may choose any other.
#[test]
fn nginx_reaches_the_instances_whichever_user_its_workers_run_as() -> Result<()> {
    let mut host = Host::builder().serving()?;
    if !host.is_on_sockets()? {
        return Ok(());
    }
    let link = host.shorten("https://example.com/kept")?;
    host.shell(
        "groupadd --system edge && useradd --system --gid edge web
        sed -i 's/^user .*/user web edge;/' /etc/nginx/nginx.conf && grep --quiet '^user web edge;' /etc/nginx/nginx.conf",
    )?;
    let serves = |host: &Host, number: u32| -> Result<()> {
        host.follow(&link)?;
        host.follow(&host.shorten(&format!("https://example.com/{number}"))?)
    };
    host.ok(["linksctl", "rollout"])?;
    serves(&host, 1)?;
    host.serve_only_sockets(2, "edge")?;
    let workers = host.shell("ps --no-headers -o user --ppid $(cat /run/nginx.pid) | sort -u")?;
    ensure!(workers.stdout.contains("web"), "{workers}");
    let socket = ["--unix-socket", "/run/links/sockets/1.sock"];
    let former = curl(&host, "www-data", &socket, "http://x/health")?;
    ensure!(
        former.status == 7,
        "the former user of nginx can still reach an instance: {former}"
    );
    let cache = host.shell("find /run/links/edge -mindepth 1 -type f -printf '%u\\n' | sort -u")?;
    ensure!(
        cache.stdout == "web\n",
        "these users own files in nginx's cache: {cache}"
    );

    // An instance restarts. Then systemd-tmpfiles runs, which is the first step of an upgrade.
    host.ok(["systemctl", "restart", "links@1"])?;
    host.ok(["systemd-tmpfiles", "--create", "links.conf"])?;
    host.wait_for_rotation(2)?;
    host.serve_only_sockets(2, "edge")?;
    serves(&host, 2)?;

    // systemd-tmpfiles creates the directory anew at boot. Its group must be right before the first instance starts.
    host.reboot()?;
    host.wait_for_rotation(2)?;
    host.serve_only_sockets(2, "edge")?;
    serves(&host, 3)?;
    host.shell("chgrp root /run/links/sockets && systemctl restart links-recover")?;
    host.serve_only_sockets(2, "edge")?;

    // The administrator changes the user and restarts nginx: `linksctl status` reports the problem, and a rollout fixes it.
    host.shell("sed -i 's/^user .*/user www-data;/' /etc/nginx/nginx.conf && systemctl restart nginx")?;
    let status = host.run(["linksctl", "status"])?;
    ensure!(status.status == 1 && status.stdout.contains("502"), "{status}");
    host.ok(["linksctl", "rollout"])?;
    serves(&host, 4)?;
    host.serve_only_sockets(2, "www-data")
}

/// An instance that listens on a port, as with version 0.1.0 or Spin, has died and left its flag file behind.
#[test]
fn a_process_that_takes_the_port_of_an_instance_does_not_get_the_agents_secret() -> Result<()> {
    let host = Host::builder().serving()?;
    let bundle = host.released_bundle()?;
    host.ok(["linksctl", "rollout", "--release", &bundle])?;
    host.wait_for_rotation(2)?;
    let site = host.read("/etc/nginx/sites-enabled/links")?;
    ensure!(
        site.contains("server 127.0.0.1:7001 ") && !site.contains("server unix:"),
        "{site}"
    );
    let link = host.shorten("https://example.com/kept")?;
    host.follow(&link)?;
    host.wait_until_counted(Duration::from_secs(60))?;

    host.ok(["systemctl", "stop", "links@1", "links@2"])?;
    let eavesdropper = Squatter::take(&host, "127.0.0.1:7001", "nobody")?;
    host.ok([
        "runuser",
        "-u",
        "links",
        "--",
        "ln",
        "--symbolic",
        ".",
        "/run/links/ready/1",
    ])?;
    // nginx logs this request, so the agent wants to deliver the click to the instance.
    let answer = host.http().get(&format!("/{}", link.slug))?;
    ensure!(answer.status == 302 || answer.status == 502, "{answer}");
    eventually("the agent reports the stranger", Duration::from_secs(60), || {
        let heard = eavesdropper.heard()?;
        ensure!(!heard.contains("/internal/"), "the eavesdropper received:\n{heard}");
        Ok(host.journal("links")?.contains(eavesdropper.ss()).then_some(()))
    })?;
    // `linksctl stats` would send the admin token.
    let stats = host.run(["linksctl", "stats", &link.slug])?;
    ensure!(
        stats.status != 0 && stats.stderr.contains("127.0.0.1:7001") && stats.stderr.contains(eavesdropper.ss()),
        "{stats}"
    );
    let (heard, secrets) = (eavesdropper.heard()?, secrets(&host)?);
    let agent = secrets.first().context("the agent's secret")?;
    for secret in [agent.as_str(), &host.token()?, "links-agent-secret", "/internal/"] {
        ensure!(
            !heard.contains(secret),
            "the eavesdropper received {secret:?}:\n{heard}"
        );
    }

    eavesdropper.leave()?;
    host.ok(["rm", "/run/links/ready/1"])?;
    host.ok(["systemctl", "start", "links@1", "links@2"])?;
    host.wait_for_rotation(2)?;
    host.follow(&link)?;
    host.wait_until_counted(Duration::from_secs(60))
}

fn secrets(host: &Host) -> Result<Vec<String>> {
    let files = host.shell("cd /run/links/secrets && cat agent proxy otlp")?.stdout;
    let secrets: Vec<_> = files.lines().map(str::to_owned).collect();
    let is_one = |secret: &String| secret.len() == 64 && secret.bytes().all(|byte| byte.is_ascii_hexdigit());
    ensure!(secrets.len() == 3 && secrets.iter().all(is_one), "{files}");
    Ok(secrets)
}

fn as_user(host: &Host, user: &str, command: &[&str]) -> Result<Output> {
    let words = ["runuser", "-u", user, "--"].into_iter().chain(command.iter().copied());
    host.run(words)
}

fn secrets_are_private(host: &Host) -> Result<()> {
    let modes = host.shell("cd /run/links/secrets && stat --format='%n %a %U:%G' . agent proxy otlp proxy.conf")?;
    let expected = ". 750 root:links\nagent 640 root:links\nproxy 640 root:links\notlp 640 root:links\n\
                    proxy.conf 600 root:root\n";
    ensure!(modes.stdout == expected, "{modes}");
    for user in ["nobody", "www-data"] {
        for file in ["agent", "proxy", "otlp", "proxy.conf"] {
            let read = as_user(host, user, &["cat", &format!("/run/links/secrets/{file}")])?;
            ensure!(
                read.status != 0 && read.stdout.is_empty(),
                "{user} can read {file}: {read}"
            );
        }
    }
    Ok(())
}

fn curl(host: &Host, user: &str, options: &[&str], url: &str) -> Result<Output> {
    let curl = ["curl", "--silent", "--show-error", "--include", "--max-time", "10"];
    as_user(host, user, &[&curl, options, &[url]].concat())
}

/// The curl options and origins with which this user can reach an instance: the site, nginx's server for the instances
/// (port 7000), and the instance itself.
fn routes_to_an_instance(user: &str, on_sockets: bool) -> Vec<(&'static [&'static str], &'static str)> {
    let mut routes: Vec<(&'static [&'static str], _)> = vec![(&[], "http://127.0.0.1"), (&[], "http://127.0.0.1:7000")];
    match (on_sockets, user) {
        (true, "www-data") => routes.push((&["--unix-socket", "/run/links/sockets/1.sock"], "http://x")),
        (true, _) => {}
        (false, _) => routes.push((&[], "http://127.0.0.1:7001")),
    }
    routes
}

fn internal_routes_are_hidden(host: &Host, user: &str, on_sockets: bool) -> Result<()> {
    for (route, origin) in routes_to_an_instance(user, on_sockets) {
        for options in [
            &["--request", "POST", "--data", "{}"][..],
            &["--request", "POST", "--data", "{}", "--header", "links-agent-secret;"],
            &["--header", "links-agent-secret: 0"],
        ] {
            for path in ["/internal/clicks", "/internal/database"] {
                let answer = curl(host, user, &[route, options].concat(), &format!("{origin}{path}"))?;
                let refused = ["HTTP/1.1 404 ", "HTTP/1.1 403 "];
                let is_refused = refused.iter().any(|status| answer.stdout.starts_with(status));
                ensure!(is_refused, "{user}: {origin}{path} {options:?}: {answer}");
            }
        }
    }
    Ok(())
}

/// nginx replaces the forged headers. The instance itself ignores them because the proxy's secret is wrong.
fn forged_headers_are_ignored(host: &Host, on_sockets: bool) -> Result<()> {
    let authorization = format!("authorization: Bearer {}", host.token()?);
    let forged = [
        "--header",
        "x-forwarded-proto: https",
        "--header",
        "x-forwarded-host: evil.example",
        "--header",
        "x-request-id: 0123456789abcdef0123456789abcdef",
        "--header",
        "links-proxy-secret: 0",
        "--header",
        &authorization,
        "--json",
        r#"{"url": "https://example.com/forged"}"#,
    ];
    for (route, origin) in routes_to_an_instance("www-data", on_sockets) {
        if origin.ends_with(":7000") {
            continue;
        }
        let mut slugs = vec![];
        for _ in 0..2 {
            let url = format!("{origin}/shorten");
            let answer = curl(host, "www-data", &[route, &forged].concat(), &url)?.stdout;
            let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
            ensure!(head.starts_with("HTTP/1.1 200 "), "{url}: {answer}");
            ensure!(
                !body.contains("evil.example") && !body.contains("https://127"),
                "{url}: {body}"
            );
            let body: serde_json::Value = serde_json::from_str(body)?;
            slugs.push(body["slug"].to_string());
        }
        ensure!(slugs[0] != slugs[1], "{origin} treats two requests as one: {slugs:?}");
    }
    Ok(())
}

fn a_squatter_gets_nothing(host: &Host, link: &Link, on_sockets: bool) -> Result<()> {
    host.ok(["systemctl", "stop", "links@1"])?;
    let squatter = Squatter::take(host, "127.0.0.1:7001", "nobody")?;
    for number in 0..50 {
        host.follow(link)?;
        host.shorten(&format!("https://example.com/{number}"))?;
    }
    let logged_before = host.journal("links@1")?.len();
    let start = host.run(["systemctl", "start", "links@1"])?;
    match on_sockets {
        true => ensure!(start.status == 0, "{start}"),
        false => {
            let journal = host.journal("links@1")?;
            let logged = &journal[logged_before..];
            ensure!(start.status != 0 && logged.contains(squatter.ss()), "{start}\n{logged}");
        }
    }
    host.follow(link)?;
    let heard = squatter.heard()?;
    ensure!(heard.is_empty(), "the squatter got a connection:\n{heard}");
    squatter.leave()?;
    // The failed starts of the instance may have reached systemd's limit.
    host.ok(["systemctl", "reset-failed"])?;
    host.ok(["systemctl", "start", "links@1"])?;
    host.wait_for_rotation(2)
}
