//! Proxies in front of nginx, which report the addresses of clients; the limits per address; and nginx's own errors.

use std::io::{Read as _, Write as _};
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use links_tests::http::{Answer, Client};
use links_tests::{Address, Check, Host, eventually};
use serde_json::{Value, json};

/// An address of the host outside of the loopback network. A client that connects to it has it, too.
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);
const BROWSER: &str = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0";
const TIMEOUT: Duration = Duration::from_secs(60);

#[test]
fn only_trusted_proxies_report_a_client() -> Result<()> {
    let host = Host::builder().serving()?;
    host.ok(["ip", "address", "add", &format!("{OUTSIDE}/32"), "dev", "lo"])?;
    let token = host.token()?;
    let reporting = |client: Client, addresses: &str| {
        client
            .bearer(&token)
            .header("user-agent", BROWSER)
            .header("x-forwarded-for", addresses)
            .header("x-forwarded-proto", "https")
            .header("x-forwarded-host", "s.example.org")
    };
    let inside = |addresses| reporting(host.http(), addresses);
    let outside = |addresses| reporting(host.http_through(Address::Tcp((OUTSIDE, 80).into())), addresses);
    let short_url = |client: &Client, slug: &str| -> Result<String> {
        let body = json!({ "url": "https://example.com/", "slug": slug });
        let created = client.post("/shorten", body)?;
        ensure!(created.status == 200, "{created}");
        let created: Value = created.json()?;
        Ok(created["short_url"].as_str().unwrap_or_default().to_owned())
    };

    // Nobody is trusted unless links.toml says so.
    assert_eq!(
        short_url(&inside("198.51.100.1"), "first")?,
        "http://links.example/first"
    );
    host.configure_links("[nginx]\ntrusted_proxies = \"127.0.0.0/8\"\n")?;
    assert_eq!(
        short_url(&inside("198.51.100.1"), "second")?,
        "https://s.example.org/second"
    );
    assert_eq!(
        short_url(&outside("198.51.100.1"), "third")?,
        "http://links.example/third"
    );
    // The last address that is no proxy's counts: clients can write anything before it. nginx answers some of these requests from
    // its cache.
    follow(&inside("198.51.100.99, 198.51.100.1"), "/second")?;
    follow(&inside("127.0.0.1, 198.51.100.2, 127.0.0.3"), "/second")?;
    follow(&outside("198.51.100.99"), "/second")?;
    for address in ["198.51.100.1", "198.51.100.2", "192.0.2.10"] {
        has_in_journal(&host, "/second", address)?;
    }
    // Clicks are counted by these addresses.
    eventually("several visitors are counted", TIMEOUT, || {
        let stats: Value = host.ok(["linksctl", "stats", "second", "--json"])?.json()?;
        // The number of visitors is an estimate.
        Ok((stats["clicks"] == 3 && stats["visitors"].as_u64() > Some(1)).then_some(()))
    })?;

    host.write(
        "/etc/links/cloudflare.txt",
        "# Cloudflare's, in this test\nno network\n",
    )?;
    host.write("/etc/links/links.toml", "[nginx]\ntrusted_proxies = [\"cloudflare\"]\n")?;
    let check = Check::of(&host.run(["linksctl", "check", "--json"])?)?;
    let place = |finding: &links_tests::Finding| finding.file == "/etc/links/cloudflare.txt" && finding.line == Some(2);
    ensure!(check.status == 78 && check.findings.iter().any(place), "{check:?}");
    let refused = host.run(["linksctl", "rollout"])?;
    ensure!(
        refused.status != 0 && refused.printed().contains("/etc/links/cloudflare.txt:2:"),
        "{refused}"
    );
    host.write("/etc/links/cloudflare.txt", format!("{OUTSIDE}\n"))?;
    host.ok(["systemctl", "reload", "links"])?;
    assert_eq!(
        short_url(&outside("198.51.100.1"), "fourth")?,
        "https://s.example.org/fourth"
    );
    assert_eq!(
        short_url(&inside("198.51.100.1"), "fifth")?,
        "http://links.example/fifth"
    );

    host.configure_links(WITH_PROXY_PROTOCOL)?;
    let status = host.status()?;
    ensure!(status["ok"] == true, "{status}");
    let click = "GET /fifth HTTP/1.0\r\nHost: links.example\r\n\r\n";
    for (protocol, address, to) in [
        ("TCP4", "198.51.100.7", "192.0.2.1"),
        ("TCP6", "2001:db8::7", "2001:db8::1"),
    ] {
        let proxied = raw(&host, &format!("PROXY {protocol} {address} {to} 40000 80\r\n{click}"))?;
        ensure!(proxied.starts_with("HTTP/1.1 302 "), "{address}: {proxied}");
        has_in_journal(&host, "/fifth", address)?;
    }
    // Without the protocol, nobody can say who asks, so nginx closes the connection.
    let plain = raw(&host, click).unwrap_or_default();
    ensure!(!plain.contains(" 302 "), "{plain}");

    // The clients of one IPv6 network are one client here too.
    let answers_creation = |address: &str, slug: &str, status: u16| -> Result<()> {
        let body = json!({ "url": "https://example.com/", "slug": slug }).to_string();
        let request = format!(
            "PROXY TCP6 {address} 2001:db8::1 40000 80\r\nPOST /shorten HTTP/1.0\r\nHost: links.example\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let answer = raw(&host, &request)?;
        ensure!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{status} for {address}: {answer}"
        );
        Ok(())
    };
    for number in 0..6 {
        answers_creation(&format!("2001:db8:0:1::{number}"), &format!("six-{number}"), 200)?;
    }
    answers_creation("2001:db8:0:1:ffff::1", "six", 429)?;
    answers_creation("2001:db8:0:2::1", "six", 200)
}

/// Any client may create five links per minute, and as many at once in addition to the first.
const WITH_PROXY_PROTOCOL: &str = "[shorten]\naccess = \"open\"\n[limits]\ncreate = 5\n\
                                   [nginx]\ntrusted_proxies = \"127.0.0.1\"\nproxy_protocol = true\n";

/// The answer to a request in HTTP/1.0, which may begin with the header of the PROXY protocol.
fn raw(host: &Host, request: &str) -> Result<String> {
    let mut stream = host.http().stream()?;
    stream.set_read_timeout(Duration::from_secs(10))?;
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn follow(client: &Client, path: &str) -> Result<()> {
    let answer = client.get(path)?;
    ensure!(answer.status == 302, "{path}: {answer}");
    Ok(())
}

/// Waits until nginx has logged a request for this path from this address.
fn has_in_journal(host: &Host, path: &str, address: &str) -> Result<()> {
    let pattern = format!("\\t{path}\\t{address}\\t").replace('.', "\\.");
    eventually(&format!("{path} from {address} is in the journal"), TIMEOUT, || {
        let found = host.run([
            "grep",
            "--quiet",
            "--perl-regexp",
            &pattern,
            "/var/lib/links/journal/clicks.log",
        ])?;
        Ok((found.status == 0).then_some(()))
    })
}

const LIMITED: &str = "[shorten]\naccess = \"open\"\nallowed_origin = \"https://app.example\"\n\
                       [limits]\ncreate = 5\nwrong_tokens = 4\nunknown_links = 6\ncache_misses = 100\n\
                       [nginx]\ntrusted_proxies = \"127.0.0.1\"\n";

#[test]
fn a_client_that_goes_too_far_is_limited_and_others_are_not() -> Result<()> {
    let host = Host::builder().links_toml(LIMITED).serving()?;
    let token = host.token()?;
    let from = |address: &str| host.http().header("x-forwarded-for", address);
    let create =
        |client: &Client, slug: &str| client.post("/shorten", json!({ "url": "https://example.com/", "slug": slug }));

    // Creating links. As many as the limit allows may come at once.
    let creator = from("198.51.100.1");
    let created: Vec<_> = (0..8)
        .map(|number| Ok(create(&creator, &format!("new-{number}"))?))
        .collect::<Result<_>>()?;
    let accepted = created.iter().take_while(|answer| answer.status == 200).count();
    ensure!(accepted == 6, "{accepted} links were created: {created:?}");
    is_too_many_as_problem(&created[accepted])?;
    // A page of the allowed origin can read why.
    assert_eq!(
        created[accepted].header("access-control-allow-origin"),
        "https://app.example"
    );
    ensure!(create(&from("198.51.100.2"), "other")?.status == 200, "another client");
    // The clients of one IPv6 network are one client.
    for number in 0..6 {
        let address = format!("2001:db8:0:1::{number}");
        ensure!(
            create(&from(&address), &format!("six-{number}"))?.status == 200,
            "{address}"
        );
    }
    ensure!(
        create(&from("2001:db8:0:1:ffff::1"), "six")?.status == 429,
        "the same network"
    );
    ensure!(
        create(&from("2001:db8:0:2::1"), "six")?.status == 200,
        "another network"
    );

    // Unknown links.
    let guesser = from("198.51.100.3");
    follow(&guesser, "/new-0")?;
    let mut number = 0;
    let refused = eventually("a client that guesses is refused", TIMEOUT, || {
        number += 1;
        let answer = guesser.get(&format!("/guess-{number}"))?;
        ensure!(answer.status == 404 || answer.status == 429, "{answer}");
        Ok((answer.status == 429).then_some(answer))
    })?;
    is_too_many(&refused, "text/html")?;
    ensure!(number > 6, "refused after {number} requests");
    // It cannot guess on, not even rightly, but what nginx has in its cache still works.
    ensure!(guesser.get("/new-1")?.status == 429, "a link that is not in the cache");
    ensure!(guesser.head("/new-1")?.status == 429, "a link that is not in the cache");
    follow(&guesser, "/new-0")?;
    ensure!(from("198.51.100.4").get("/guess-1")?.status == 404, "another client");
    follow(&from("198.51.100.4"), "/new-1")?;

    // Misses of the cache. A HEAD adds no entry, so each of these is one.
    let reader = from("198.51.100.7");
    number = 0;
    let refused = eventually("a client that misses the cache is refused", TIMEOUT, || {
        number += 1;
        let answer = reader.head("/new-3")?;
        ensure!(answer.status == 302 || answer.status == 429, "{answer}");
        Ok((answer.status == 429).then_some(answer))
    })?;
    is_too_many(&refused, "text/html")?;
    ensure!(number > 100, "refused after {number} requests");
    follow(&reader, "/new-0")?;
    follow(&from("198.51.100.4"), "/new-3")?;

    // Wrong tokens.
    let intruder = from("198.51.100.5").bearer("wrong");
    let refused = eventually("a client with wrong tokens is refused", TIMEOUT, || {
        let answer = intruder.get("/api/v1/links/new-0")?;
        ensure!(answer.status == 401 || answer.status == 429, "{answer}");
        Ok((answer.status == 429).then_some(answer))
    })?;
    is_too_many_as_problem(&refused)?;
    // The right token does not help, so it cannot be guessed on.
    let right = from("198.51.100.5").bearer(&token);
    is_too_many_as_problem(&right.get("/api/v1/links/new-0")?)?;
    is_too_many_as_problem(&create(&right, "by-token")?)?;
    ensure!(
        from("198.51.100.5").get("/api/v1/links/new-0")?.status == 401,
        "no token"
    );
    follow(&from("198.51.100.5"), "/new-2")?;
    ensure!(from("198.51.100.6").bearer(&token).get("/api/v1/links/new-0")?.status == 200);
    // Programs on this host have no limits.
    for number in 0..20 {
        ensure!(host.http().get(&format!("/here-{number}"))?.status == 404, "{number}");
    }

    // The limits end with the configuration, or else within a minute.
    host.configure_links(
        "[nginx]\ntrusted_proxies = \"127.0.0.1\"\n\
         [limits]\nwrong_tokens = 0\nunknown_links = 0\ncache_misses = 0\n",
    )?;
    eventually("no client is limited", TIMEOUT, || {
        let flags = host.ok(["ls", "/run/links/limits"])?.stdout;
        Ok((flags == "none\n").then_some(()))
    })?;
    ensure!(guesser.get("/guess-1")?.status == 404, "without a limit");
    ensure!(right.get("/api/v1/links/new-0")?.status == 200, "without a limit");

    errors_of_nginx_are_problems_or_pages(&host)
}

fn is_too_many(answer: &Answer, content_type: &str) -> Result<()> {
    ensure!(
        answer.status == 429
            && answer.header("content-type") == content_type
            && answer.header("retry-after") == "60"
            && answer.header("cache-control") == "no-store",
        "{answer}"
    );
    Ok(())
}

fn is_too_many_as_problem(answer: &Answer) -> Result<()> {
    is_too_many(answer, "application/problem+json")?;
    let problem: Value = answer.json()?;
    ensure!(
        problem["status"] == 429 && problem["title"] == "Too Many Requests",
        "{answer}"
    );
    Ok(())
}

fn errors_of_nginx_are_problems_or_pages(host: &Host) -> Result<()> {
    let site = host.site()?;
    let (long, large) = ("x".repeat(10_000), "x".repeat(1_100_000));
    for (answer, status) in [
        (site.post("/shorten", &large)?, 413),
        (site.patch("/api/v1/links/x", &large)?, 413),
        (site.get(&format!("/api/v1/links/{long}"))?, 414),
        (site.clone().header("x-long", &long).get("/api/v1/stats")?, 400),
    ] {
        is_problem(&answer, status)?;
    }
    for (answer, status) in [
        (site.post("/x", &large)?, 413),
        (site.get(&format!("/{long}"))?, 414),
        (site.clone().header("x-long", &long).get("/x")?, 400),
    ] {
        is_page(&answer, status)?;
    }
    host.ok(["systemctl", "stop", "links@1", "links@2"])?;
    let known = site.get("/new-1")?;
    ensure!(known.status == 302, "nginx has this link in its cache: {known}");
    is_page(&site.get("/nowhere")?, 502)?;
    is_problem(&site.get("/api/v1/stats")?, 502)?;
    is_problem(&site.post("/shorten", json!({ "url": "https://example.com/" }))?, 502)?;
    is_problem(&site.get("/health")?, 502)?;
    // These go to nothing else, even while nginx closes its connections.
    host.ok(["rm", "/run/links/keepalive"])?;
    is_page(&site.get("/nowhere")?, 502)?;
    is_problem(&site.get("/api/v1/stats")?, 502)?;
    host.ok(["touch", "/run/links/keepalive"])?;
    host.ok(["systemctl", "start", "links@1", "links@2"])?;
    host.wait_for_rotation(2)
}

fn is_problem(answer: &Answer, status: u16) -> Result<()> {
    ensure!(
        answer.status == status && answer.header("content-type") == "application/problem+json",
        "{status} as a problem: {answer}"
    );
    let problem: Value = answer.json()?;
    ensure!(problem["status"] == status && problem["detail"].is_string(), "{answer}");
    Ok(())
}

fn is_page(answer: &Answer, status: u16) -> Result<()> {
    ensure!(
        answer.status == status && answer.header("content-type") == "text/html",
        "{status} as a page: {answer}"
    );
    let page = answer.text();
    let title = page.split_once("<h1>").and_then(|(_, rest)| rest.split_once("</h1>"));
    let title = title.with_context(|| answer.to_string())?.0;
    ensure!(!title.is_empty() && !title.contains('$'), "{answer}");
    // It loads nothing.
    ensure!(!page.contains("src=") && !page.contains("href="), "{answer}");
    Ok(())
}
