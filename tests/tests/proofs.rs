//! What an unprivileged user of the machine tries: reaching the parts of the appliance, imitating them, taking their places.

use std::time::Duration;

use anyhow::{Result, ensure};
use links_tests::load::Link;
use links_tests::{Appliance, Output};

/// Listens on 127.0.0.1:7001 and notes each connection.
const SQUAT: &str = r#"exec perl -MIO::Socket::INET -e '
    my $server = IO::Socket::INET->new(LocalAddr => "127.0.0.1:7001", Listen => 64, ReuseAddr => 1) or die "bind: $!\n";
    open my $note, ">", "/tmp/squatter" or die $!;
    $note->autoflush;
    print $note "listens\n";
    while (my $client = $server->accept) { print $note "connected\n"; close $client; }
'"#;

#[test]
fn an_unprivileged_user_can_neither_reach_nor_imitate_a_part_of_the_appliance() -> Result<()> {
    let mut appliance = Appliance::installed()?;
    appliance.wait_for_rotation(2)?;
    let on_sockets = appliance.is_on_sockets()?;
    let link = appliance.shorten("https://example.com/kept")?;

    let lab = Lab(&appliance);
    lab.secrets_are_private()?;
    if on_sockets {
        lab.instances_have_no_port()?;
    }
    for user in ["nobody", "www-data"] {
        lab.internal_does_not_exist(user, on_sockets)?;
    }
    lab.forged_headers_do_not_count(on_sockets)?;
    lab.a_squatter_gets_nothing(&link, on_sockets)?;

    // Each boot has other secrets, with which nginx, the agent and the instances start together.
    let before = lab.secrets()?;
    appliance.machine.reboot()?;
    appliance.wait_for_rotation(2)?;
    let lab = Lab(&appliance);
    let after = lab.secrets()?;
    ensure!(
        before.iter().all(|secret| !after.contains(secret)),
        "a secret outlived the boot"
    );
    lab.forged_headers_do_not_count(on_sockets)?;
    appliance.follow(&link)?;
    appliance.wait_until_counted(Duration::from_secs(60))
}

struct Lab<'a>(&'a Appliance);

impl Lab<'_> {
    fn secrets(&self) -> Result<Vec<String>> {
        let files = self.0.shell("cd /run/links/secrets && cat agent proxy otlp")?.stdout;
        let secrets: Vec<_> = files.lines().map(str::to_owned).collect();
        let is_one = |secret: &String| secret.len() == 64 && secret.bytes().all(|byte| byte.is_ascii_hexdigit());
        ensure!(secrets.len() == 3 && secrets.iter().all(is_one), "{files}");
        Ok(secrets)
    }

    fn as_user(&self, user: &str, command: &[&str]) -> Result<Output> {
        let words = ["runuser", "-u", user, "--"].into_iter().chain(command.iter().copied());
        self.0.run(words)
    }

    fn secrets_are_private(&self) -> Result<()> {
        let modes = self
            .0
            .shell("cd /run/links/secrets && stat --format='%n %a %U:%G' . agent proxy otlp proxy.conf")?;
        let expected = ". 750 root:links\nagent 640 root:links\nproxy 640 root:links\notlp 640 root:links\n\
                        proxy.conf 600 root:root\n";
        ensure!(modes.stdout == expected, "{modes}");
        for user in ["nobody", "www-data"] {
            for file in ["agent", "proxy", "otlp", "proxy.conf"] {
                let read = self.as_user(user, &["cat", &format!("/run/links/secrets/{file}")])?;
                ensure!(
                    read.status != 0 && read.stdout.is_empty(),
                    "{user} reads {file}: {read}"
                );
            }
        }
        Ok(())
    }

    fn instances_have_no_port(&self) -> Result<()> {
        let sockets = self
            .0
            .shell("stat --format='%a %U:%G' /run/links/sockets /run/links/sockets/*.sock")?;
        ensure!(
            sockets.stdout == "2710 links:www-data\n660 links:www-data\n660 links:www-data\n",
            "{sockets}"
        );
        for instance in ["1", "2"] {
            let port = self.curl("nobody", &[], &format!("http://127.0.0.1:700{instance}/health"))?;
            ensure!(port.status == 7, "something listens on 700{instance}: {port}");
            let socket = format!("/run/links/sockets/{instance}.sock");
            let socket = self.curl("nobody", &["--unix-socket", &socket], "http://x/health")?;
            ensure!(socket.status == 7, "nobody reaches instance {instance}: {socket}");
        }
        Ok(())
    }

    fn curl(&self, user: &str, options: &[&str], url: &str) -> Result<Output> {
        let curl = ["curl", "--silent", "--show-error", "--include", "--max-time", "10"];
        self.as_user(user, &[&curl, options, &[url]].concat())
    }

    /// The ways to an instance that this user has: through nginx, its server for the instances, and the instance itself.
    fn ways(user: &str, on_sockets: bool) -> Vec<(&'static [&'static str], &'static str)> {
        let mut ways: Vec<(&'static [&'static str], _)> =
            vec![(&[], "http://127.0.0.1"), (&[], "http://127.0.0.1:7000")];
        match (on_sockets, user) {
            (true, "www-data") => ways.push((&["--unix-socket", "/run/links/sockets/1.sock"], "http://x")),
            (true, _) => {}
            (false, _) => ways.push((&[], "http://127.0.0.1:7001")),
        }
        ways
    }

    fn internal_does_not_exist(&self, user: &str, on_sockets: bool) -> Result<()> {
        for (way, origin) in Self::ways(user, on_sockets) {
            for options in [
                &["--request", "POST", "--data", "{}"][..],
                &["--request", "POST", "--data", "{}", "--header", "links-agent-secret;"],
                &["--header", "links-agent-secret: 0"],
            ] {
                for path in ["/internal/clicks", "/internal/database"] {
                    let answer = self.curl(user, &[way, options].concat(), &format!("{origin}{path}"))?;
                    let refused = ["HTTP/1.1 404 ", "HTTP/1.1 403 "];
                    let is_refused = refused.iter().any(|status| answer.stdout.starts_with(status));
                    ensure!(is_refused, "{user}: {origin}{path} {options:?}: {answer}");
                }
            }
        }
        Ok(())
    }

    /// Through nginx, which replaces them, and at the instance itself, where the proof is missing.
    fn forged_headers_do_not_count(&self, on_sockets: bool) -> Result<()> {
        let authorization = format!("authorization: Bearer {}", self.0.token()?);
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
        for (way, origin) in Self::ways("www-data", on_sockets) {
            if origin.ends_with(":7000") {
                continue;
            }
            let mut slugs = vec![];
            for _ in 0..2 {
                let url = format!("{origin}/shorten");
                let answer = self.curl("www-data", &[way, &forged].concat(), &url)?.stdout;
                let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
                ensure!(head.starts_with("HTTP/1.1 200 "), "{url}: {answer}");
                ensure!(
                    !body.contains("evil.example") && !body.contains("https://127"),
                    "{url}: {body}"
                );
                let body: serde_json::Value = serde_json::from_str(body)?;
                slugs.push(body["slug"].to_string());
            }
            ensure!(slugs[0] != slugs[1], "{origin} takes two requests for one: {slugs:?}");
        }
        Ok(())
    }

    fn a_squatter_gets_nothing(&self, link: &Link, on_sockets: bool) -> Result<()> {
        self.0.ok(["systemctl", "stop", "links@1"])?;
        self.0
            .ok(["systemd-run", "--unit=squatter", "--uid=nobody", "bash", "-c", SQUAT])?;
        let noted = || self.0.read("/tmp/squatter");
        links_tests::eventually("the port is taken", Duration::from_secs(10), || {
            Ok(noted().is_ok_and(|noted| noted == "listens\n").then_some(()))
        })?;
        for number in 0..50 {
            self.0.follow(link)?;
            self.0.shorten(&format!("https://example.com/{number}"))?;
        }
        let start = self.0.run(["systemctl", "start", "links@1"])?;
        match on_sockets {
            true => ensure!(start.status == 0, "{start}"),
            false => {
                let journal = self.0.journal("links@1")?;
                ensure!(
                    start.status != 0 && journal.contains("127.0.0.1:7001 is in use"),
                    "{journal}"
                );
            }
        }
        self.0.follow(link)?;
        let noted = noted()?;
        ensure!(noted == "listens\n", "the squatter got a request:\n{noted}");
        self.0.ok(["systemctl", "stop", "squatter"])?;
        // Its attempts to start may have reached the limit.
        self.0.ok(["systemctl", "reset-failed"])?;
        self.0.ok(["systemctl", "start", "links@1"])?;
        self.0.wait_for_rotation(2)
    }
}
