//! The nginx site: success means that links answers through nginx, and whatever fails leaves nginx and its other sites as
//! they were.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use links_tests::{Appliance, DEB, Output, Tree, eventually};
use serde_json::Value;

const SITE: &str = "/etc/nginx/sites-available/links";
const LINKS_TOML: &str = "/etc/links/links.toml";
/// What certbot leaves in the site, but for the certificate.
const CERTBOT: &str = "listen 8443; # managed by Certbot";

/// One cause after the other, on a host whose nginx serves a site of its own all the time. dpkg fails while there is a
/// cause, and succeeds once there is none.
#[test]
fn an_installation_succeeds_only_when_links_is_reached_through_nginx() -> Result<()> {
    let host = Host(Appliance::prepared(&Tree::with_nginx()?)?);
    host.write(
        "/etc/nginx/sites-enabled/own",
        "server { listen 8081; return 200 own; }\n",
    )?;
    host.ok(["rm", "/etc/nginx/sites-enabled/default"])?;
    host.ok(["systemctl", "restart", "nginx"])?;

    host.occupy("127.0.0.1:7000")?;
    let install = host.apt_install_any(DEB)?;
    host.names(
        &install,
        &["127.0.0.1:7000 is needed for nginx", "systemd (process 1)", "ss -ltnp"],
    )?;
    host.nothing_was_written()?;
    host.configuring_fails(&["127.0.0.1:7000 is needed for nginx", "dpkg --configure -a"])?;
    host.release("127.0.0.1:7000")?;

    host.occupy("0.0.0.0:80")?;
    host.configuring_fails(&["0.0.0.0:80 is needed for nginx", "ss -ltnp 'sport = :80'"])?;
    host.nothing_was_written()?;
    // The stranger and nginx go on whatever is restarted.
    host.ok(["systemctl", "restart", "nginx"])?;
    host.own_site_answers()?;
    host.release("0.0.0.0:80")?;

    host.write("/etc/nginx/conf.d/broken.conf", "no_such_directive on;\n")?;
    host.configuring_fails(&["no_such_directive", "nginx -t"])?;
    host.nothing_was_written()?;
    host.ok(["rm", "/etc/nginx/conf.d/broken.conf"])?;

    let endpoint = host.first_endpoint()?;
    host.occupy(endpoint)?;
    host.configuring_fails(&["instance 1 does not serve", &format!("{endpoint} is in use by another")])?;
    host.nothing_was_written()?;
    host.release(endpoint)?;

    host.ok(["systemctl", "stop", "nginx"])?;
    host.configuring_fails(&["nginx does not run", "systemctl start nginx"])?;
    host.ok(["systemctl", "start", "nginx"])?;

    ensure!(host.run(["linksctl", "status"])?.status == 1, "nothing serves yet");
    host.ok(["dpkg", "--configure", "--pending"])?;
    host.serves()?;
    host.own_site_answers()?;
    host.follow(&host.shorten("https://example.com/at-last")?)?;
    // Once more changes nothing.
    host.ok(["linksctl", "configure"])?;
    host.serves()
}

#[test]
fn a_site_that_somebody_has_edited_is_kept_until_it_is_given_up() -> Result<()> {
    let mut host = Host(Appliance::installed()?);
    let link = host.shorten("https://example.com/kept")?;
    host.shell(&format!(
        "sed -i '0,/server_tokens off;/s//{CERTBOT} server_tokens off;/' {SITE}"
    ))?;
    host.reload_nginx()?;
    let edited = host.read(SITE)?;
    ensure!(edited.contains("Certbot"), "the test edits the site");
    let kept = |host: &Host, when: &str| -> Result<()> {
        ensure!(host.read(SITE)? == edited, "the site was changed by {when}");
        let answer = host.http_at(8443).get(&format!("/{}", link.slug))?;
        ensure!(answer.status == 302, "{when}: {answer}");
        Ok(())
    };

    let said = host.ok(["linksctl", "rollout"])?.stdout;
    ensure!(
        said.contains("edited by somebody else") && said.contains("--force"),
        "{said}"
    );
    kept(&host, "a rollout")?;
    host.ok(["systemctl", "reload", "links"])?;
    kept(&host, "a reload")?;
    host.ok(["systemctl", "restart", "links"])?;
    kept(&host, "a restart")?;
    host.0.machine.reboot()?;
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
    ensure!(!host.read(SITE)?.contains("Certbot"), "--force replaces it");
    ensure!(
        host.read("/var/lib/links/site-replaced.conf")? == edited,
        "and keeps a copy"
    );
    host.serves()?;

    // What is to stay belongs elsewhere.
    host.write("/etc/links/nginx.d/own.conf", "location = /own/page { return 204; }\n")?;
    host.reload_nginx()?;
    host.ok(["linksctl", "scale", "2"])?;
    ensure!(
        host.http().get("/own/page")?.status == 204,
        "the administrator's own directives are included"
    );
    host.write("/etc/links/nginx.d/own.conf", "no_such_directive on;\n")?;
    host.configure_listen("8080")?;
    let before = host.read(SITE)?;
    let refused = host.run(["linksctl", "rollout"])?;
    host.names(&refused, &["no_such_directive", "/etc/links/nginx.d"])?;
    ensure!(host.read(SITE)? == before, "nothing was written");
    host.ok(["rm", "/etc/links/nginx.d/own.conf"])?;
    host.ok(["linksctl", "rollout"])?;
    ensure!(host.http_at(8080).get("/health")?.status == 200, "it listens elsewhere");

    // An edited site is no reason to stay installed, and neither is an nginx that takes no configuration.
    host.shell(&format!("echo '# an edit' >>{SITE}"))?;
    host.write("/etc/nginx/conf.d/broken.conf", "no_such_directive on;\n")?;
    let removal = host.run(["apt-get", "--yes", "remove", "links-shortener"])?;
    ensure!(removal.status == 0, "{removal}");
    ensure!(host.processes()?.is_empty(), "nothing of links runs");
    ensure!(!host.exists("/etc/nginx/sites-enabled/links")?, "the site is disabled");
    ensure!(host.read(SITE)?.ends_with("# an edit\n"), "and kept");
    Ok(())
}

#[test]
fn a_change_of_the_site_that_fails_or_is_cut_off_leaves_the_old_one_or_the_new_one() -> Result<()> {
    let mut host = Host(Appliance::installed()?);
    let link = host.shorten("https://example.com/always")?;
    let before = host.read(SITE)?;

    // nginx would find out only when it has already been told.
    host.occupy("0.0.0.0:8080")?;
    host.configure_listen("[80, 8080]")?;
    // Twice: what is on the disk does not count as done.
    for _ in 0..2 {
        let rollout = host.run(["linksctl", "rollout"])?;
        host.names(&rollout, &["0.0.0.0:8080 is needed for nginx", "systemd (process 1)"])?;
        ensure!(host.read(SITE)? == before, "nothing was written");
    }
    host.release("0.0.0.0:8080")?;
    // `nginx -t` accepts this, and the running nginx, which has port 80 of all addresses, cannot listen there.
    host.configure_listen("\"127.0.0.1:80\"")?;
    for _ in 0..2 {
        let rollout = host.run(["linksctl", "rollout"])?;
        host.names(&rollout, &["bind() to 127.0.0.1:80 failed", "taken back"])?;
        ensure!(host.read(SITE)? == before, "the site was taken back");
        host.follow(&link)?;
    }
    host.ok(["systemctl", "restart", "nginx"])?;
    host.follow(&link)?;

    // No start of links succeeds while nobody reaches it; and then it does by itself.
    host.configure_listen("80")?;
    host.ok(["systemctl", "stop", "nginx"])?;
    let start = host.run(["systemctl", "restart", "links"])?;
    ensure!(start.status != 0, "links is not reached: {start}");
    let status = host.run(["linksctl", "status"])?;
    ensure!(
        status.status == 1 && status.stdout.contains("not running, links is reached nowhere"),
        "{status}"
    );
    host.ok(["systemctl", "start", "nginx"])?;
    eventually("links.service is active", Duration::from_secs(60), || {
        let state = host.run(["systemctl", "is-active", "links"])?.stdout;
        Ok((state == "active\n").then_some(()))
    })?;
    host.serves()?;

    // Killed in the middle: what would have to be undone is on the disk, and the change is under way.
    let [old, new] = ["80", "[80, 8080]"];
    for round in 0..12 {
        if round == 4 {
            // Whatever the rounds before have left: now there is certainly something to change.
            host.configure_listen(old)?;
            host.ok(["linksctl", "rollout"])?;
        }
        host.configure_listen(if round % 2 == 0 { new } else { old })?;
        let milliseconds = round * 15;
        host.shell(&format!(
            "linksctl rollout & until grep -q '\"unfinished\": {{' /var/lib/links/site.json || ! kill -0 $!; do :; done; \
             sleep 0.{milliseconds:03}; kill -KILL $! || true; wait $! || true"
        ))?;
        host.ok(["nginx", "-t", "-q"])?;
        host.follow(&link)?;
        if round == 4 {
            // What was cut off is undone before nginx starts; then the start of links brings about what is wanted.
            host.0.machine.kill_host()?;
            host.wait_for_rotation(2)?;
            let said = host.journal("links-recover")?;
            ensure!(said.contains("a change of the nginx site was cut off"), "{said}");
        }
    }
    host.configure_listen(new)?;
    host.ok(["linksctl", "rollout"])?;
    host.serves()?;
    ensure!(
        host.http_at(8080).get("/health")?.status == 200,
        "the new site is in force"
    );

    // nginx as nginx.org packs it reads conf.d alone.
    host.shell("sed -i 's/include .*sites-enabled.*/#&/' /etc/nginx/nginx.conf")?;
    host.ok(["linksctl", "rollout"])?;
    host.serves()?;
    ensure!(
        host.exists("/etc/nginx/conf.d/links.conf")? && !host.exists("/etc/nginx/sites-enabled/links")?,
        "the site is where nginx reads it"
    );
    host.shell("sed -i 's/#\\(include .*sites-enabled.*\\)/\\1/' /etc/nginx/nginx.conf")?;
    host.ok(["linksctl", "rollout"])?;
    host.serves()?;
    ensure!(!host.exists("/etc/nginx/conf.d/links.conf")?, "and nowhere else");
    Ok(())
}

struct Host(Appliance);

impl std::ops::Deref for Host {
    type Target = Appliance;

    fn deref(&self) -> &Appliance {
        &self.0
    }
}

impl Host {
    /// A stranger listens there: systemd itself, or on a Unix socket a program that never accepts anybody. systemd would give
    /// that up after a few connections.
    fn occupy(&self, address: &str) -> Result<()> {
        let unit = format!("--unit={}", unit(address));
        if address.starts_with('/') {
            let listen =
                format!("my $server = IO::Socket::UNIX->new(Local => '{address}', Listen => 64) or die $!; sleep");
            self.ok([
                "systemd-run",
                &unit,
                "--uid=links",
                "perl",
                "-MIO::Socket::UNIX",
                "-e",
                &listen,
            ])?;
            return eventually("the socket is there", Duration::from_secs(10), || {
                Ok(self.exists(address)?.then_some(()))
            });
        }
        let listen = format!("--socket-property=ListenStream={address}");
        self.ok(["systemd-run", &unit, &listen, "cat"])?;
        Ok(())
    }

    fn release(&self, address: &str) -> Result<()> {
        let kind = if address.starts_with('/') { "service" } else { "socket" };
        self.ok(["systemctl", "stop", &format!("{}.{kind}", unit(address))])?;
        Ok(())
    }

    fn configure_listen(&self, listen: &str) -> Result<()> {
        self.write(LINKS_TOML, format!("[nginx]\nlisten = {listen}\n"))
    }

    /// A failure that says all of this.
    fn names(&self, output: &Output, expected: &[&str]) -> Result<()> {
        ensure!(output.status != 0, "it should have failed: {output}");
        let said = format!("{}{}", output.stdout, output.stderr);
        for expected in expected {
            ensure!(said.contains(expected), "{expected:?} should be said: {said}");
        }
        self.own_site_answers()
    }

    fn configuring_fails(&self, expected: &[&str]) -> Result<()> {
        let output = self.run(["dpkg", "--configure", "--pending"])?;
        self.names(&output, expected)
    }

    /// Where the host has one.
    fn own_site_answers(&self) -> Result<()> {
        if self.exists("/etc/nginx/sites-enabled/own")? && self.run(["systemctl", "is-active", "nginx"])?.status == 0 {
            let answer = self.http_at(8081).get("/")?;
            ensure!(answer.text() == "own", "the other site: {answer}");
        }
        Ok(())
    }

    fn nothing_was_written(&self) -> Result<()> {
        let sites = self
            .ok(["ls", "-A", "/etc/nginx/sites-enabled", "/etc/nginx/conf.d"])?
            .stdout;
        ensure!(!sites.contains("links"), "{sites}");
        ensure!(
            !self.exists(SITE)? && !self.exists("/etc/nginx/.links-candidate.conf")?,
            "a file was left"
        );
        Ok(())
    }

    /// In the words of `linksctl status --json`, and as a client sees it.
    fn serves(&self) -> Result<()> {
        let status = self.status()?;
        ensure!(status["ok"] == true, "{status}");
        let addresses = status["nginx"]["addresses"].as_array().context("nginx.addresses")?;
        ensure!(
            !addresses.is_empty() && addresses.iter().all(|listening| listening["trouble"].is_null()),
            "{status}"
        );
        ensure!(status["nginx"]["since"].is_string(), "{status}");
        let answer = self.http().get("/health")?;
        ensure!(answer.status == 200, "{answer}");
        Ok(())
    }

    fn status(&self) -> Result<Value> {
        Ok(serde_json::from_str(
            &self.run(["linksctl", "status", "--json"])?.stdout,
        )?)
    }
}

fn unit(address: &str) -> String {
    format!("squatter-{}", address.rsplit([':', '/']).next().unwrap_or_default())
}
