//! The nginx site. A change of it succeeds only if links answers through nginx; a failed change leaves nginx and its other
//! sites as they were.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use links_tests::http::Client;
use links_tests::servers::Squatter;
use links_tests::{Address, Check, DEB, Events, Host, LINKS_TOML, Output, eventually, wording};
use serde_json::Value;

const SITE: &str = "/etc/nginx/sites-available/links";
/// A line like those that certbot adds to the site, without a certificate.
const CERTBOT: &str = "listen 8443; # managed by Certbot";

/// Goes through one obstacle after the other, on a host whose nginx keeps serving another site. dpkg fails as long as there
/// is an obstacle, and succeeds once there is none.
#[test]
fn an_installation_succeeds_only_if_links_is_reachable_through_nginx() -> Result<()> {
    let host = Host::builder().uninstalled()?;
    host.write(
        "/etc/nginx/sites-enabled/own",
        "server { listen 8081; return 200 own; }\n",
    )?;
    host.ok(["rm", "/etc/nginx/sites-enabled/default"])?;
    host.ok(["systemctl", "restart", "nginx"])?;

    let squatter = Squatter::take(&host, "127.0.0.1:7000", "nobody")?;
    let install = host.apt_install_any(DEB)?;
    fails_with(
        &host,
        &install,
        // It names the address, who listens there, and the command that shows it.
        &["127.0.0.1:7000", &squatter.shown()?, squatter.ss()],
    )?;
    no_site_was_written(&host)?;
    configuring_fails(&host, &["127.0.0.1:7000", "dpkg --configure -a"])?;
    squatter.leave()?;

    let squatter = Squatter::take(&host, "0.0.0.0:80", "root")?;
    configuring_fails(&host, &["0.0.0.0:80", squatter.ss()])?;
    no_site_was_written(&host)?;
    // The port is taken, and still nginx can restart.
    host.ok(["systemctl", "restart", "nginx"])?;
    own_site_answers(&host)?;
    squatter.leave()?;

    host.write("/etc/nginx/conf.d/broken.conf", "no_such_directive on;\n")?;
    configuring_fails(&host, &["no_such_directive", "nginx -t"])?;
    no_site_was_written(&host)?;
    host.ok(["rm", "/etc/nginx/conf.d/broken.conf"])?;

    let endpoint = host.first_endpoint()?;
    let squatter = Squatter::take(&host, endpoint, "links")?;
    configuring_fails(&host, &["instance 1", endpoint, squatter.ss()])?;
    no_site_was_written(&host)?;
    squatter.leave()?;

    host.ok(["systemctl", "stop", "nginx"])?;
    configuring_fails(&host, &["systemctl start nginx"])?;
    host.ok(["systemctl", "start", "nginx"])?;

    ensure!(host.run(["linksctl", "status"])?.status == 1, "nothing serves yet");
    host.ok(["dpkg", "--configure", "--pending"])?;
    serves(&host)?;
    own_site_answers(&host)?;
    host.follow(&host.shorten("https://example.com/at-last")?)?;
    // Configuring again does no harm.
    host.ok(["linksctl", "configure"])?;
    serves(&host)
}

#[test]
fn an_edited_site_is_kept_until_it_is_replaced_by_force() -> Result<()> {
    let mut host = Host::builder().serving()?;
    let link = host.shorten("https://example.com/kept")?;
    host.shell(&format!(
        "sed -i '0,/server_tokens off;/s//{CERTBOT} server_tokens off;/' {SITE}"
    ))?;
    host.reload_nginx()?;
    let edited = host.read(SITE)?;
    ensure!(edited.contains("Certbot"), "sed has not edited the site");
    let kept = |host: &Host, when: &str| -> Result<()> {
        ensure!(host.read(SITE)? == edited, "the site was changed by {when}");
        let answer = host.http_at(8443).get(&format!("/{}", link.slug))?;
        ensure!(answer.status == 302, "{when}: {answer}");
        Ok(())
    };

    let rollout = host.ok(["linksctl", "rollout", "--json"])?;
    let notices = Events::of(&rollout)?;
    let notices = notices
        .all("notice")
        .into_iter()
        .filter_map(|notice| notice["text"].as_str());
    ensure!(
        notices
            .into_iter()
            .any(|text| text.contains(SITE) && text.contains("--force")),
        "a notice should name the site and `--force`: {rollout}"
    );
    kept(&host, "a rollout")?;
    host.ok(["systemctl", "reload", "links"])?;
    kept(&host, "a reload")?;
    host.ok(["systemctl", "restart", "links"])?;
    kept(&host, "a restart")?;
    host.reboot()?;
    host.wait_for_rotation(2)?;
    kept(&host, "a reboot")?;
    let upgrade = host.apt_install_any(DEB)?;
    ensure!(upgrade.status == 0, "{upgrade}");
    kept(&host, "an upgrade")?;
    host.ok(["linksctl", "scale", "3"])?;
    kept(&host, "scaling")?;
    let status = host.status()?;
    ensure!(status["nginx"]["edited"] == true && status["ok"] == true, "{status}");

    host.ok(["linksctl", "rollout", "--force"])?;
    ensure!(!host.read(SITE)?.contains("Certbot"), "--force should replace the site");
    ensure!(
        host.read("/var/lib/links/site-replaced.conf")? == edited,
        "--force should keep a copy of the edited site"
    );
    serves(&host)?;

    // The administrator's own directives belong in nginx.d, where they stay.
    host.write(
        "/etc/links/nginx.d/own.conf",
        "location = /own/page { return 204; }\nif ($arg_own) { return 403; }\nif ($arg_later) { return 503; }\n",
    )?;
    host.reload_nginx()?;
    host.ok(["linksctl", "scale", "2"])?;
    for (path, status) in [
        ("/own/page".to_owned(), 204),
        (format!("/{}", link.slug), 302),
        // These also work while all flags are there.
        (format!("/{}?own=1", link.slug), 403),
        (format!("/{}?later=1", link.slug), 503),
    ] {
        let answer = host.http().get(&path)?;
        ensure!(
            answer.status == status,
            "the administrator's own directives should be included: {path}: {answer}"
        );
    }
    host.write("/etc/links/nginx.d/own.conf", "no_such_directive on;\n")?;
    configure_listen(&host, "8080")?;
    let before = host.read(SITE)?;
    let refused = host.run(["linksctl", "rollout"])?;
    fails_with(&host, &refused, &["no_such_directive", "/etc/links/nginx.d"])?;
    ensure!(host.read(SITE)? == before, "a refused change should not write the site");
    host.ok(["rm", "/etc/links/nginx.d/own.conf"])?;
    host.ok(["linksctl", "rollout"])?;
    ensure!(
        host.http_at(8080).get("/health")?.status == 200,
        "links should answer on the new port"
    );

    // Neither an edited site nor a broken nginx configuration prevents the removal.
    host.shell(&format!("echo '# an edit' >>{SITE}"))?;
    host.write("/etc/nginx/conf.d/broken.conf", "no_such_directive on;\n")?;
    let removal = host.run(["apt-get", "--yes", "remove", "links-shortener"])?;
    ensure!(removal.status == 0, "{removal}");
    ensure!(host.processes()?.is_empty(), "no process of links should run");
    ensure!(
        !host.exists("/etc/nginx/sites-enabled/links")?,
        "the site should be disabled"
    );
    ensure!(
        host.read(SITE)?.ends_with("# an edit\n"),
        "the edited site should be kept"
    );
    Ok(())
}

#[test]
fn a_change_that_fails_or_is_killed_leaves_the_old_site_or_the_new_one() -> Result<()> {
    let mut host = Host::builder().serving()?;
    let link = host.shorten("https://example.com/always")?;
    let before = host.read(SITE)?;

    // nginx would notice that the port is taken only during the reload, after the site is written.
    let squatter = Squatter::take(&host, "0.0.0.0:8080", "nobody")?;
    configure_listen(&host, "[80, 8080]")?;
    // Twice, because a second attempt must not take the state on the disk for a completed change.
    for _ in 0..2 {
        let rollout = host.run(["linksctl", "rollout"])?;
        fails_with(&host, &rollout, &["0.0.0.0:8080", &squatter.shown()?])?;
        ensure!(host.read(SITE)? == before, "a refused change should not write the site");
    }
    squatter.leave()?;
    // `nginx -t` accepts this address, but the running nginx cannot bind it: it already has port 80 of all addresses.
    configure_listen(&host, "\"127.0.0.1:80\"")?;
    for _ in 0..2 {
        let rollout = host.run(["linksctl", "rollout"])?;
        fails_with(&host, &rollout, &["bind() to 127.0.0.1:80 failed"])?;
        ensure!(host.read(SITE)? == before, "the old site should be restored");
        host.follow(&link)?;
    }
    host.ok(["systemctl", "restart", "nginx"])?;
    host.follow(&link)?;

    // links does not start while nginx is stopped, and starts by itself once nginx runs again.
    configure_listen(&host, "80")?;
    host.ok(["systemctl", "stop", "nginx"])?;
    let start = host.run(["systemctl", "restart", "links"])?;
    ensure!(
        start.status != 0,
        "links should not start while it is unreachable: {start}"
    );
    let status = host.run(["linksctl", "status", "--json"])?;
    ensure!(status.status == 1, "{status}");
    let status: Value = status.json()?;
    ensure!(status["ok"] == false && status["nginx"]["since"].is_null(), "{status}");
    let addresses = status["nginx"]["addresses"].as_array().context("nginx.addresses")?;
    ensure!(
        !addresses.is_empty() && addresses.iter().all(|listening| listening["trouble"].is_string()),
        "links should be reachable nowhere: {status}"
    );
    host.ok(["systemctl", "start", "nginx"])?;
    eventually("links.service is active", Duration::from_secs(60), || {
        let state = host.run(["systemctl", "is-active", "links"])?.stdout;
        Ok((state == "active\n").then_some(()))
    })?;
    serves(&host)?;

    // linksctl is killed during a change, after it has saved to the disk how to undo it.
    let [old, new] = ["80", "[80, 8080]"];
    for round in 0..12 {
        if round == 4 {
            // The earlier rounds may have left either site. From the old one there is certainly something to change.
            configure_listen(&host, old)?;
            host.ok(["linksctl", "rollout"])?;
        }
        configure_listen(&host, if round % 2 == 0 { new } else { old })?;
        let milliseconds = round * 15;
        host.shell(&format!(
            "linksctl rollout & until grep -q '\"unfinished\": {{' /var/lib/links/site.json || ! kill -0 $!; do :; done; \
             sleep 0.{milliseconds:03}; kill -KILL $! || true; wait $! || true"
        ))?;
        host.ok(["nginx", "-t", "-q"])?;
        host.follow(&link)?;
        if round == 4 {
            // The unfinished change is undone before nginx starts. Then the start of links applies the configuration.
            host.crash()?;
            host.wait_for_rotation(2)?;
            let journal = host.journal("links-recover")?;
            ensure!(journal.contains(wording::SITE_CUT_OFF), "{journal}");
        }
    }
    configure_listen(&host, new)?;
    host.ok(["linksctl", "rollout"])?;
    serves(&host)?;
    ensure!(
        host.http_at(8080).get("/health")?.status == 200,
        "links should answer on the new port"
    );

    // The configuration of nginx.org's package includes only conf.d.
    host.shell("sed -i 's/include .*sites-enabled.*/#&/' /etc/nginx/nginx.conf")?;
    host.ok(["linksctl", "rollout"])?;
    serves(&host)?;
    ensure!(
        host.exists("/etc/nginx/conf.d/links.conf")? && !host.exists("/etc/nginx/sites-enabled/links")?,
        "the site should be only where nginx reads it"
    );
    host.shell("sed -i 's/#\\(include .*sites-enabled.*\\)/\\1/' /etc/nginx/nginx.conf")?;
    host.ok(["linksctl", "rollout"])?;
    serves(&host)?;
    ensure!(
        !host.exists("/etc/nginx/conf.d/links.conf")?,
        "the site should no longer be in conf.d"
    );
    nginx_starts_after_ipv6_is_lost_at_a_boot(&mut host)
}

/// The two units that need IPv6 at a boot find none, as with the kernel's parameter `ipv6.disable=1`: there is no table of its
/// addresses, and no socket for it. The kernel of the lab has it, so links.service waits: its start is the next rollout.
fn nginx_starts_after_ipv6_is_lost_at_a_boot(host: &mut Host) -> Result<()> {
    const LOST: [(&str, &str); 2] = [
        (
            "/etc/systemd/system/links-recover.service.d/lost.conf",
            "ProcSubset=pid",
        ),
        (
            "/etc/systemd/system/nginx.service.d/lost.conf",
            "RestrictAddressFamilies=~AF_INET6",
        ),
    ];
    let over_ipv6 = |host: &Host| host.http_through(Address::Tcp((Ipv6Addr::LOCALHOST, 80).into()));
    let answer = over_ipv6(host).get("/health")?;
    ensure!(answer.status == 200, "with IPv6: {answer}");
    for (drop_in, setting) in LOST {
        host.write(drop_in, format!("[Service]\n{setting}\n"))?;
    }
    host.ok(["systemctl", "disable", "links"])?;
    host.reboot()?;
    let state = host.run(["systemctl", "is-active", "nginx"])?.stdout;
    ensure!(state == "active\n", "nginx is {state}: {}", host.journal("nginx")?);
    let site = host.read(SITE)?;
    ensure!(!site.contains("listen [::]:"), "without IPv6: {site}");
    host.ok(["systemctl", "start", "links@1", "links@2"])?;
    host.wait_for_rotation(2)?;
    for port in [80, 8080] {
        let answer = host.http_at(port).get("/health")?;
        ensure!(answer.status == 200, "without IPv6, on port {port}: {answer}");
    }
    ensure!(over_ipv6(host).get("/health").is_err(), "nginx listens on IPv6");

    for (drop_in, _) in LOST {
        host.ok(["rm", drop_in])?;
    }
    host.ok(["systemctl", "daemon-reload"])?;
    host.ok(["systemctl", "restart", "nginx"])?;
    host.ok(["systemctl", "enable", "--now", "links"])?;
    host.wait_for_rotation(2)?;
    serves(host)?;
    let answer = over_ipv6(host).get("/health")?;
    ensure!(answer.status == 200, "with IPv6 again: {answer}");
    Ok(())
}

/// The main file of nginx.org's package, without what does not matter here.
const NGINX_ORG: &str = "user nginx;\nworker_processes auto;\npid /run/nginx.pid;\nerror_log /var/log/nginx/error.log notice;\n\
                         events { worker_connections 1024; }\nhttp {\n    include /etc/nginx/mime.types;\n    \
                         include /etc/nginx/conf.d/*.conf;\n}\n";
/// An address of the host that another site has for itself.
const OWN: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);
const NEIGHBOUR: &str = "/etc/nginx/conf.d/own.conf";

/// Goes through the layouts and neighbours that links may meet, on a host with the nginx of nginx.org.
#[test]
fn links_fits_in_with_any_layout_and_any_neighbour() -> Result<()> {
    let host = Host::builder().uninstalled()?;
    host.shell(&format!(
        "useradd --system nginx; rm -rf /etc/nginx/sites-*; ip address add {OWN}/32 dev lo"
    ))?;
    host.write("/etc/nginx/nginx.conf", NGINX_ORG)?;
    host.write(
        "/etc/nginx/conf.d/default.conf",
        "server { listen 80; server_name localhost; return 200 welcome; }\n",
    )?;
    host.ok(["systemctl", "restart", "nginx"])?;
    host.apt_install()?;
    host.ok(["systemctl", "start", "links"])?;
    host.wait_for_rotation(2)?;
    serves(&host)?;
    let site = "/etc/nginx/conf.d/links.conf";
    ensure!(host.exists(site)?, "the site should be in conf.d");
    assert_eq!(host.http().header("host", "localhost").get("/")?.text(), "welcome");
    no_findings(&host)?;
    let link = host.shorten("https://example.com/neighbours")?;
    host.follow(&link)?;

    // Another site has an address for itself, which links shares without becoming its default.
    let own = |text: &str| -> Result<()> {
        host.write(NEIGHBOUR, text)?;
        host.reload_nginx()
    };
    own("server {\n    listen 192.0.2.10:80 default_server;\n    server_name own.example;\n    return 200 own;\n}\n")?;
    let at_own = |name: &str| host.http_through(Address::Tcp((OWN, 80).into())).header("host", name);
    has_finding(&host, "warning", NEIGHBOUR, Some(2))?;
    assert_eq!(at_own("links.example").get("/health")?.text(), "own");
    host.configure_links("public_url = \"http://links.example\"\n")?;
    assert_eq!(at_own("links.example").get("/health")?.text(), "ok");
    for name in ["own.example", "unknown.example"] {
        assert_eq!(at_own(name).get("/health")?.text(), "own", "{name}");
    }
    serves(&host)?;
    no_findings(&host)?;

    // Another site answers for unknown host names.
    host.write(
        NEIGHBOUR,
        "server {\n    server_name own.example;\n    listen 80 default_server;\n    return 200 own;\n}\n",
    )?;
    // Until the rollout, nginx refuses the two default servers.
    host.ok(["linksctl", "rollout"])?;
    let named = |name: &str| -> Client { host.http().header("host", name) };
    assert_eq!(named("unknown.example").get("/health")?.text(), "own");
    assert_eq!(named("links.example").get("/health")?.text(), "ok");
    has_finding(&host, "warning", NEIGHBOUR, Some(3))?;
    host.write(LINKS_TOML, "")?;
    has_finding(&host, "error", NEIGHBOUR, Some(3))?;
    let refused = host.run(["linksctl", "rollout"])?;
    ensure!(
        refused.status != 0 && refused.printed().contains(&format!("{NEIGHBOUR}:3")),
        "{refused}"
    );

    // Another site has the same name.
    let same = "/etc/nginx/conf.d/a.conf";
    host.write(LINKS_TOML, "public_url = \"http://links.example\"\n")?;
    host.ok(["rm", NEIGHBOUR])?;
    host.write(
        same,
        "server {\n    listen 80;\n    server_name a.example links.example;\n    return 200 own;\n}\n",
    )?;
    has_finding(&host, "error", same, Some(3))?;
    let refused = host.run(["linksctl", "rollout"])?;
    ensure!(
        refused.status != 0 && refused.printed().contains(&format!("{same}:3")),
        "{refused}"
    );
    host.ok(["rm", same])?;
    host.reload_nginx()?;

    // A long name needs more room than nginx has by default.
    let long = format!("{}.example", "long".repeat(12));
    let (short, both) = (
        "public_url = \"http://links.example\"\n",
        format!("[nginx]\nserver_name = [\"links.example\", \"{long}\"]\n"),
    );
    host.configure_links(&both)?;
    assert_eq!(named(&long).get("/health")?.text(), "ok");
    serves(&host)?;
    host.configure_links(short)?;
    own("\nserver_names_hash_bucket_size 64;\n")?;
    host.write(LINKS_TOML, &both)?;
    has_finding(&host, "error", NEIGHBOUR, Some(2))?;
    let refused = host.run(["linksctl", "rollout"])?;
    ensure!(
        refused.status != 0 && refused.printed().contains(&format!("{NEIGHBOUR}:2")),
        "{refused}"
    );
    own("\nserver_names_hash_bucket_size 128;\n")?;
    host.configure_links(&both)?;
    assert_eq!(named(&long).get("/health")?.text(), "ok");
    host.configure_links(short)?;
    host.ok(["rm", NEIGHBOUR])?;
    no_findings(&host)?;

    // Directories that nginx does not read, and a configuration that it refuses.
    host.ok(["mkdir", "/etc/nginx/sites-available", "/etc/nginx/sites-enabled"])?;
    has_finding(&host, "warning", "/etc/nginx/nginx.conf", Some(6))?;
    host.ok(["rmdir", "/etc/nginx/sites-available", "/etc/nginx/sites-enabled"])?;
    host.write(NEIGHBOUR, "\n\nno_such_directive on;\n")?;
    has_finding(&host, "error", NEIGHBOUR, Some(3))?;
    host.ok(["rm", NEIGHBOUR])?;
    no_findings(&host)?;

    the_sample_site_counts_clicks_and_caches(&host, site)
}

/// With `manage = false`, the administrator writes the site, and starts from the sample.
fn the_sample_site_counts_clicks_and_caches(host: &Host, site: &str) -> Result<()> {
    host.write(LINKS_TOML, "[nginx]\nmanage = false\ncache_ttl = \"5m\"\n")?;
    let sample = "/etc/nginx/conf.d/shortener.conf";
    host.shell(&format!(
        "linksctl sample-site | sed 's/client_max_body_size 1m;/client_max_body_size 2m;/' >{sample}; rm {site}"
    ))?;
    host.reload_nginx()?;
    host.ok(["systemctl", "reload", "links"])?;
    host.wait_for_rotation(2)?;
    ensure!(!host.exists(site)?, "links should leave the site to the administrator");
    // It is the same again, although it is in use.
    let again = host.ok(["linksctl", "sample-site"])?.stdout;
    ensure!(
        again.contains("listen 80 default_server;") && host.read(sample)?.contains("listen 80 default_server;"),
        "{again}"
    );
    let link = host.shorten("https://example.com/sample")?;
    host.follow(&link)?;
    let path = format!("/{}", link.slug);
    assert_eq!(host.http_at(7000).head(&path)?.header("links-edge"), "HIT");
    // A change reaches the cache.
    let changed = host.site()?.patch(
        &format!("/api/v1/links/{}", link.slug),
        serde_json::json!({ "url": "https://example.org/" }),
    )?;
    ensure!(
        changed.status == 200 && changed.header("links-edge").is_empty(),
        "{changed}"
    );
    assert_eq!(host.http().get(&path)?.header("location"), "https://example.org/");
    eventually("both clicks are counted", Duration::from_secs(60), || {
        let stats: Value = host.ok(["linksctl", "stats", &link.slug, "--json"])?.json()?;
        Ok((stats["bots"] == 2).then_some(()))
    })?;
    let status = host.status()?;
    ensure!(status["ok"] == true, "{status}");
    Ok(())
}

fn check(host: &Host) -> Result<Check> {
    Check::of(&host.run(["linksctl", "check", "--json"])?)
}

/// Checks that there is no finding about nginx. There may be one about Spin's SQLite.
fn no_findings(host: &Host) -> Result<()> {
    let check = check(host)?;
    let about_nginx = |finding: &links_tests::Finding| finding.file.contains("nginx");
    ensure!(
        check.status == 0 && !check.findings.iter().any(about_nginx),
        "{check:?}"
    );
    Ok(())
}

fn has_finding(host: &Host, severity: &str, file: &str, line: Option<usize>) -> Result<()> {
    let check = check(host)?;
    let is_it =
        |finding: &&links_tests::Finding| finding.severity == severity && finding.file == file && finding.line == line;
    ensure!(
        check.findings.iter().filter(is_it).count() == 1,
        "a finding ({severity}) in {file}:{line:?} is expected: {check:?}"
    );
    ensure!((check.status == 0) == (severity == "warning"), "{check:?}");
    Ok(())
}

fn configure_listen(host: &Host, listen: &str) -> Result<()> {
    host.write(LINKS_TOML, format!("[nginx]\nlisten = {listen}\n"))
}

/// Checks that a command has failed, that its output contains all of `expected`, and that the other site still answers.
fn fails_with(host: &Host, output: &Output, expected: &[&str]) -> Result<()> {
    ensure!(output.status != 0, "the command should have failed: {output}");
    let printed = output.printed();
    for expected in expected {
        ensure!(
            printed.contains(expected),
            "{expected:?} should be in the output: {printed}"
        );
    }
    own_site_answers(host)
}

fn configuring_fails(host: &Host, expected: &[&str]) -> Result<()> {
    let output = host.run(["dpkg", "--configure", "--pending"])?;
    fails_with(host, &output, expected)
}

/// Checks the host's other site, if there is one and nginx runs.
fn own_site_answers(host: &Host) -> Result<()> {
    if host.exists("/etc/nginx/sites-enabled/own")? && host.run(["systemctl", "is-active", "nginx"])?.status == 0 {
        let answer = host.http_at(8081).get("/")?;
        ensure!(answer.text() == "own", "the other site does not answer: {answer}");
    }
    Ok(())
}

fn no_site_was_written(host: &Host) -> Result<()> {
    let sites = host
        .ok(["ls", "-A", "/etc/nginx/sites-enabled", "/etc/nginx/conf.d"])?
        .stdout;
    ensure!(!sites.contains("links"), "{sites}");
    ensure!(
        !host.exists(SITE)? && !host.exists("/etc/nginx/.links-candidate.conf")?,
        "a file of the site is left"
    );
    Ok(())
}

/// Checks that links is reachable, by `linksctl status --json` and as a client.
fn serves(host: &Host) -> Result<()> {
    let status = host.status()?;
    ensure!(status["ok"] == true, "{status}");
    let addresses = status["nginx"]["addresses"].as_array().context("nginx.addresses")?;
    ensure!(
        !addresses.is_empty() && addresses.iter().all(|listening| listening["trouble"].is_null()),
        "{status}"
    );
    ensure!(status["nginx"]["since"].is_string(), "{status}");
    let answer = host.http().get("/health")?;
    ensure!(answer.status == 200, "{answer}");
    Ok(())
}
