//! nginx in front of the instances: what it answers by itself, and that these answers are never wrong.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail, ensure};
use links_tests::http::{Answer, Client, Connection};
use links_tests::{DATABASE, Host, Traffic, eventually};
use serde_json::{Value, json};

/// How long counting may take. nginx writes the journal once a second, and the agent waits a moment for more clicks.
const COUNTED_WITHIN: Duration = Duration::from_secs(60);

const BROWSER: &str = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0";

/// Punctuation that remains after a short URL when it is copied from a text.
const PUNCTUATION: [&str; 14] = [
    "/",
    "%2F",
    ".",
    ",",
    ")",
    "!",
    "'",
    "%22",
    "%3E",
    "%0A",
    "%20",
    "%25",
    "%E2%80%9D",
    "%E3%80%82",
];

/// The tolerance for times: nginx reads the clock before it answers, the test after the answer.
const TOLERANCE: Duration = Duration::from_millis(100);

#[test]
fn a_link_redirects_as_soon_as_its_creation_is_answered() -> Result<()> {
    const WORKERS: usize = 8;
    const LINKS: usize = 2000;
    /// One in this many links is requested by others before and during its creation.
    const AWAITED: usize = 10;
    let host = Host::builder().serving()?;
    let site = host.site()?;
    let traffic = Traffic::start(&host, "edge")?;
    let next = AtomicUsize::new(0);
    let work = || -> Result<()> {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            match number {
                LINKS.. => return Ok(()),
                _ if number.is_multiple_of(AWAITED) => create_while_requested(&site, &format!("awaited-{number}"))?,
                _ => create(&site, &format!("new-{number}"))?,
            }
        }
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(joined)
    })?;
    traffic.finish(&host)?;
    Ok(())
}

/// Creates a link and follows it at once.
fn create(site: &Client, slug: &str) -> Result<()> {
    let url = format!("https://example.com/{slug}");
    let created = site.post("/shorten", json!({ "url": url, "slug": slug }))?;
    ensure!(
        created.status == 200 && created.header("links-edge").is_empty(),
        "{slug}: {created}"
    );
    leads_to(&site.get(&format!("/{slug}"))?, &url)
}

/// Does the same while others request the link all the time. Each request that starts after the creation was answered must be
/// redirected. These requests go on for a while, because a late answer to an early request could still enter the cache.
fn create_while_requested(site: &Client, slug: &str) -> Result<()> {
    const CLIENTS: usize = 2;
    const AFTERWARDS: usize = 40;
    let path = format!("/{slug}");
    let url = format!("https://example.com/{slug}");
    let (is_created, failed) = (AtomicBool::new(false), AtomicBool::new(false));
    let ask = || -> Result<()> {
        let mut connection = ReusedConnection::new(site);
        let mut afterwards = 0;
        while afterwards < AFTERWARDS && !failed.load(Ordering::Relaxed) {
            let was_created = is_created.load(Ordering::SeqCst);
            let answer = connection.get(&path)?;
            if was_created {
                leads_to(&answer, &url)?;
                afterwards += 1;
            } else {
                ensure!(matches!(answer.status.as_u16(), 302 | 404), "{answer}");
            }
        }
        Ok(())
    };
    thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(ask)).collect();
        let created = site.get(&path).map_err(anyhow::Error::from).and_then(|before| {
            ensure!(before.status == 404, "{before}");
            create(site, slug)
        });
        is_created.store(true, Ordering::SeqCst);
        failed.store(created.is_err(), Ordering::Relaxed);
        created.and(clients.into_iter().try_for_each(joined))
    })
}

#[test]
fn a_change_is_visible_as_soon_as_it_is_answered() -> Result<()> {
    const LINKS: usize = 40;
    let host = Host::builder().serving()?;
    let site = host.site()?;
    let traffic = Traffic::start(&host, "changed")?;
    thread::scope(|scope| {
        let site = &site;
        let owners: Vec<_> = (0..LINKS)
            .map(|number| scope.spawn(move || change_and_remove(site, &format!("changed-{number}"))))
            .collect();
        owners.into_iter().try_for_each(joined)
    })?;
    traffic.finish(&host)?;

    let anonymous = host.http();
    for answer in [
        anonymous.get("/api/v1/links/x")?,
        anonymous.patch("/api/v1/links/x", json!({ "expires_at": null }))?,
        anonymous.delete("/api/v1/links/x")?,
    ] {
        ensure!(answer.status == 401, "{answer}");
    }
    for (answer, status) in [
        (site.get("/api/v1/links/no-such")?, 404),
        (site.patch("/api/v1/links/no-such", json!({ "expires_at": null }))?, 404),
        (site.delete("/api/v1/links/no-such")?, 404),
        (site.patch("/api/v1/links/no-such", json!({}))?, 422),
        (site.put("/api/v1/links/no-such", json!({}))?, 405),
    ] {
        ensure!(answer.status == status, "{answer}");
    }
    Ok(())
}

/// Changes a link that another client follows all the time. Each request that starts after a change was answered must get that
/// change or a later one.
fn change_and_remove(site: &Client, slug: &str) -> Result<()> {
    const CHANGES: usize = 49;
    let path = format!("/{slug}");
    let link = format!("/api/v1/links/{slug}");
    let url = |number: usize| format!("https://example.com/{slug}/{number}");
    let created = site.post("/shorten", json!({ "url": url(0), "slug": slug }))?;
    ensure!(created.status == 200, "{created}");
    let (answered, ended) = (AtomicUsize::new(0), AtomicBool::new(false));
    let follow = || -> Result<()> {
        let mut connection = ReusedConnection::new(site);
        let mut followed = 0;
        while !ended.load(Ordering::SeqCst) {
            let least = answered.load(Ordering::SeqCst);
            let answer = connection.get(&path)?;
            if answer.status == 302 {
                let number = answer.header("location").rsplit('/').next().unwrap_or_default();
                ensure!(
                    number.parse::<usize>()? >= least,
                    "change {least} was already answered: {answer}"
                );
                followed += 1;
            } else {
                // The link is removed after the last change was answered.
                let answered = answered.load(Ordering::SeqCst);
                ensure!(
                    answer.status == 404 && answered == CHANGES,
                    "after change {answered}: {answer}"
                );
            }
        }
        ensure!(followed > CHANGES, "only {followed} redirects");
        Ok(())
    };
    let change = || -> Result<()> {
        for number in 1..=CHANGES {
            let changed = site.patch(&link, json!({ "url": url(number) }))?;
            ensure!(
                changed.status == 200 && changed.header("links-edge").is_empty(),
                "{changed}"
            );
            answered.store(number, Ordering::SeqCst);
            leads_to(&site.get(&path)?, &url(number))?;
        }
        let details: Value = site.get(&link)?.json()?;
        ensure!(details["url"] == url(CHANGES), "{details}");
        let removed = site.delete(&link)?;
        ensure!(
            removed.status == 204 && removed.header("links-edge").is_empty(),
            "{removed}"
        );
        let gone = site.get(&path)?;
        ensure!(gone.status == 404, "{gone}");
        Ok(())
    };
    thread::scope(|scope| {
        let follower = scope.spawn(follow);
        let changed = change();
        ended.store(true, Ordering::SeqCst);
        changed.and(joined(follower))
    })
}

/// A connection that is reused until nginx closes it.
struct ReusedConnection<'a> {
    client: &'a Client,
    connection: Option<Connection>,
}

impl<'a> ReusedConnection<'a> {
    fn new(client: &'a Client) -> Self {
        let connection = None;
        Self { client, connection }
    }

    fn get(&mut self, path: &str) -> Result<Answer> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.client.connect()?,
        };
        let answer = connection.get(path)?;
        self.connection = Some(connection).filter(|_| answer.header("connection") != "close");
        Ok(answer)
    }
}

fn joined<T>(worker: thread::ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    worker.join().unwrap_or_else(|_| bail!("a worker panicked"))
}

fn leads_to(answer: &Answer, url: &str) -> Result<()> {
    ensure!(answer.status == 302 && answer.header("location") == url, "{answer}");
    // nginx does not pass on the headers that the component sends for the cache.
    ensure!(answer.header("x-accel-expires").is_empty(), "{answer}");
    ensure!(answer.header("cache-control") == "no-store", "{answer}");
    Ok(())
}

#[test]
fn a_link_expires_on_the_second_even_while_no_instance_runs() -> Result<()> {
    let host = Host::builder().serving()?;
    for instances_stop in [false, true] {
        let expiry = seconds_from_now(8)?;
        let slug = format!("ends-{instances_stop}");
        let body = json!({ "url": "https://example.com/", "slug": slug, "expires_at": rfc3339(&host, expiry)? });
        let created = host.site()?.post("/shorten", body)?;
        ensure!(created.status == 200, "{created}");
        leads_to(&host.http().get(&format!("/{slug}"))?, "https://example.com/")?;
        if instances_stop {
            host.ok(["systemctl", "stop", "links@1", "links@2"])?;
        }
        let end = UNIX_EPOCH + Duration::from_secs(expiry);
        let gone = if instances_stop { 502 } else { 410 };
        ends_at(&host.http(), &format!("/{slug}"), end, gone)?;
    }
    Ok(())
}

/// Requests `path` until two seconds after `end`. It must redirect before `end`, and get the status `gone` afterwards.
fn ends_at(client: &Client, path: &str, end: SystemTime, gone: u16) -> Result<()> {
    let mut connection = ReusedConnection::new(client);
    let (mut before, mut after) = (0, 0);
    loop {
        let asked = SystemTime::now();
        let answer = connection.get(path)?;
        let answered = SystemTime::now();
        if answered < end {
            ensure!(answer.status == 302, "before the end: {answer}");
            before += 1;
        }
        if asked >= end + TOLERANCE {
            ensure!(answer.status == gone, "after the end: {answer}");
            after += 1;
        }
        if asked >= end + Duration::from_secs(2) {
            ensure!(
                before > 100 && after > 100,
                "{before} answers before the end, {after} after it"
            );
            return Ok(());
        }
    }
}

fn seconds_from_now(seconds: u64) -> Result<u64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs() + seconds)
}

fn rfc3339(host: &Host, unix: u64) -> Result<String> {
    let date = host
        .ok(["date", "--utc", "--date", &format!("@{unix}"), "+%FT%TZ"])?
        .stdout;
    Ok(date.trim().to_owned())
}

#[test]
fn a_limited_link_redirects_exactly_as_often_as_its_limit() -> Result<()> {
    const CLIENTS: usize = 64;
    const CLICKS: usize = 500;
    let host = Host::builder().serving()?;
    let site = host.site()?;
    for (body, status) in [
        (json!({ "url": "https://example.com/", "max_clicks": 0 }), 422),
        (
            json!({ "url": "https://example.com/", "max_clicks": 1_000_000_001 }),
            422,
        ),
        (json!({ "url": "https://example.com/", "max_clicks": "5" }), 400),
    ] {
        let answer = site.post("/shorten", &body)?;
        ensure!(
            answer.status == status && answer.text().contains("max_clicks"),
            "{body}: {answer}"
        );
    }

    let body = json!({ "url": "https://example.com/", "slug": "limited", "max_clicks": CLICKS });
    // The slug is requested before it exists.
    ensure!(site.get("/limited")?.status == 404, "the link should not exist yet");
    let created = site.post("/shorten", &body)?;
    ensure!(
        created.status == 200 && created.header("links-edge").is_empty(),
        "{created}"
    );
    let person = site.clone().header("user-agent", BROWSER);
    let slack = "Slackbot-LinkExpanding 1.0 (+https://api.slack.com/robots)";
    let slack = site.clone().header("user-agent", slack);
    let prefetch = person.clone().header("sec-purpose", "prefetch");
    // None of these requests follows the link, so no click is used up, and no answer contains the target.
    for _ in 0..10 {
        for (answer, status) in [
            (person.head("/limited")?, 200),
            (slack.get("/limited")?, 200),
            (slack.get("/limited.")?, 200),
            (site.get("/limited")?, 200),
            (prefetch.get("/limited")?, 403),
        ] {
            ensure!(answer.status == status, "{answer}");
            ensure!(!answer.to_string().contains("example.com"), "{answer}");
            ensure!(answer.header("cache-control") == "no-store", "{answer}");
        }
    }
    let follow = || -> Result<usize> {
        let mut connection = ReusedConnection::new(&person);
        let mut redirects = 0;
        loop {
            let answer = connection.get("/limited")?;
            match answer.status.as_u16() {
                302 => redirects += 1,
                410 => return Ok(redirects),
                _ => bail!("{answer}"),
            }
        }
    };
    let redirects = thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(follow)).collect();
        clients.into_iter().map(joined).sum::<Result<usize>>()
    })?;
    assert_eq!(redirects, CLICKS);

    ensure!(site.head("/limited")?.status == 410, "HEAD after the last click");
    ensure!(slack.get("/limited")?.status == 410, "a preview after the last click");
    // Creating the same link again adds no clicks.
    ensure!(
        site.post("/shorten", &body)?.status == 200,
        "creating the same link again should succeed"
    );
    ensure!(person.get("/limited")?.status == 410, "GET after the last click");
    let other = json!({ "url": "https://example.com/", "slug": "limited", "max_clicks": CLICKS + 1 });
    ensure!(
        site.post("/shorten", &other)?.status == 409,
        "another limit should be a conflict"
    );

    // nginx has cached the redirect of an old link with this slug, and nobody has purged it.
    create(&site, "reused")?;
    delete_without_purge(&host, "reused")?;
    leads_to(&site.get("/reused")?, "https://example.com/reused")?;
    let body = json!({ "url": "https://example.org/", "slug": "reused", "max_clicks": 3 });
    let created = site.post("/shorten", &body)?;
    ensure!(
        created.status == 200 && created.header("links-edge").is_empty(),
        "{created}"
    );
    leads_to(&person.get("/reused")?, "https://example.org/")?;
    // A change uses up no click.
    let changed = site.patch("/api/v1/links/reused", json!({ "url": "https://example.net/" }))?;
    ensure!(
        changed.status == 200 && changed.header("links-edge").is_empty(),
        "{changed}"
    );
    for _ in 0..2 {
        leads_to(&person.get("/reused")?, "https://example.net/")?;
    }
    ensure!(person.get("/reused")?.status == 410, "GET after the last click");

    // The same holds for a link without a limit, and for a deletion that is repeated because its answer was lost.
    create(&site, "retried")?;
    delete_without_purge(&host, "retried")?;
    let created = site.post("/shorten", json!({ "url": "https://example.org/", "slug": "retried" }))?;
    ensure!(
        created.status == 200 && created.header("links-edge").is_empty(),
        "{created}"
    );
    leads_to(&site.get("/retried")?, "https://example.org/")?;
    delete_without_purge(&host, "retried")?;
    let removed = site.delete("/api/v1/links/retried")?;
    ensure!(
        removed.status == 404 && removed.header("links-edge").is_empty(),
        "{removed}"
    );
    ensure!(site.get("/retried")?.status == 404, "the deleted link should be gone");
    Ok(())
}

/// Deletes a link like an instance that is killed before it purges the cache of nginx.
fn delete_without_purge(host: &Host, slug: &str) -> Result<()> {
    host.change_database(DATABASE, |database| {
        ensure!(
            database.execute("DELETE FROM links WHERE slug = ?1", [slug])? == 1,
            "{slug}"
        );
        Ok(())
    })
}

#[test]
fn every_click_is_counted_whatever_its_headers_contain() -> Result<()> {
    const EACH: u64 = 20;
    let host = Host::builder().serving()?;
    let site = host.site()?;
    create(&site, "hostile")?;
    // `create` follows the link once, without a User-Agent, and so counts as a bot.
    let mut wanted = BTreeMap::from([("bots", 1), ("clicks", 0)]);
    let long = "x".repeat(8000);
    let hostile: [(&str, &[u8], &str); 8] = [
        ("user-agent", b"Mozilla/5.0 \"\\x22\\t\\n\\\\\" \t l1\tl1", "clicks"),
        ("user-agent", b"\xff\xfe\x80 \xc3\x28 Firefox", "bots"),
        ("user-agent", b"-", "bots"),
        ("user-agent", long.as_bytes(), "bots"),
        ("referer", b"https://\"quoted\"\\host.example/\t\xff", "clicks"),
        ("referer", b"\xf0\x9f\x98\x80", "clicks"),
        ("referer", long.as_bytes(), "clicks"),
        ("x-forwarded-for", b"1.2.3.4\tl1\t", "clicks"),
    ];
    for (name, value, kind) in hostile {
        let browser = site.clone().header("user-agent", "Mozilla/5.0 Firefox/140.0");
        let client = browser.header(name, value);
        for _ in 0..EACH {
            leads_to(&client.get("/hostile")?, "https://example.com/hostile")?;
            // None of these requests is a click.
            client.head("/hostile")?;
            client.get("/hostile%0Al1%09")?;
            client.get("/nowhere")?;
        }
        *wanted.entry(kind).or_default() += EACH;
    }
    // A header value on two lines (obsolete line folding, RFC 9112 section 5.2): nginx may refuse or accept it.
    for _ in 0..EACH {
        *wanted.entry("clicks").or_default() += u64::from(is_redirected_with_folded_header(&host)?);
    }
    let robot = site
        .clone()
        .header("user-agent", "Googlebot/2.1 (+http://www.google.com/bot.html)");
    for _ in 0..EACH {
        leads_to(&robot.get("/hostile")?, "https://example.com/hostile")?;
    }
    *wanted.entry("bots").or_default() += EACH;
    let prefetch = site
        .clone()
        .header("user-agent", BROWSER)
        .header("sec-purpose", "prefetch");
    for _ in 0..EACH {
        leads_to(&prefetch.get("/hostile")?, "https://example.com/hostile")?;
    }
    *wanted.entry("bots").or_default() += EACH;
    let mut last = BTreeMap::new();
    let counted = eventually("the clicks are counted", COUNTED_WITHIN, || {
        last = counts(&host, "hostile")?;
        Ok((last == wanted).then_some(()))
    });
    counted.with_context(|| format!("counted {last:?}, expected {wanted:?}"))?;
    let page = host.metrics()?.text();
    ensure!(page.contains("\nlinks_journal_malformed_lines_total 0\n"), "{page}");
    clicks_stay_with_their_link(&host)
}

/// Creates a new link with the slug of a deleted one, while clicks on the old link are still in the journal.
fn clicks_stay_with_their_link(host: &Host) -> Result<()> {
    let site = host.site()?;
    let browser = site.clone().header("user-agent", BROWSER);
    let follow = |times| (0..times).try_for_each(|_| leads_to(&browser.get("/reused")?, "https://example.com/reused"));
    create(&site, "reused")?;
    follow(7)?;
    let deleted = site.delete("/api/v1/links/reused")?;
    ensure!(deleted.status == 204, "{deleted}");
    create(&site, "reused")?;
    follow(3)?;
    let wanted = BTreeMap::from([("bots", 1), ("clicks", 3)]);
    let mut last = BTreeMap::new();
    let counted = eventually("the clicks are counted", COUNTED_WITHIN, || {
        last = counts(host, "reused")?;
        Ok((last["clicks"] >= 3).then_some(()))
    });
    counted.with_context(|| format!("counted {last:?}"))?;
    ensure!(last == wanted, "counted {last:?}, expected {wanted:?}");
    Ok(())
}

/// The answer to a request in HTTP/1.0 without a Host header.
fn get_without_host(host: &Host, path: &str) -> Result<String> {
    let mut stream = host.http().stream()?;
    stream.set_read_timeout(Duration::from_secs(10))?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// Whether a request with a header on two lines is redirected.
fn is_redirected_with_folded_header(host: &Host) -> Result<bool> {
    let mut stream = host.http().stream()?;
    stream.set_read_timeout(Duration::from_secs(10))?;
    stream.write_all(
        b"GET /hostile HTTP/1.1\r\nHost: links.example\r\nConnection: close\r\nUser-Agent: Mozilla/5.0\r\n\tl1\tFirefox\r\n\r\n",
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer.starts_with("HTTP/1.1 302 "))
}

fn counts(host: &Host, slug: &str) -> Result<BTreeMap<&'static str, u64>> {
    let report: Value = host.ok(["linksctl", "stats", slug, "--json"])?.json()?;
    let count = |name: &'static str| Ok((name, report[name].as_u64().with_context(|| report.to_string())?));
    ["bots", "clicks"].into_iter().map(count).collect()
}

#[test]
fn redirects_and_statistics_do_not_block_each_other() -> Result<()> {
    const HOURS: u32 = 2100;
    const CLIENTS: usize = 4;
    const REQUESTS: usize = 50;
    let host = Host::builder().serving()?;
    create(&host.site()?, "counted")?;
    // These are so many hours, among those of so many links, that the component receives them in several parts.
    let from: String = host.change_database(DATABASE, |database| {
        database.execute(
            "WITH RECURSIVE hours(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM hours WHERE n < ?1),
                 others(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM others WHERE n < 200)
             INSERT INTO click_hours (hour, link_id, clicks, bots)
             SELECT unixepoch() / 3600 - hours.n, links.id + others.n, 1, 0 FROM hours, others, links WHERE slug = 'counted'",
            [HOURS],
        )?;
        let start = "SELECT strftime('%FT%TZ', 'now', -?1 || ' hours')";
        Ok(database.query_row(start, [HOURS], |row| row.get(0))?)
    })?;
    let instance = host.instance(1)?.deadline(Duration::from_secs(20));
    let stats = format!("/api/v1/links/counted/stats?granularity=hour&from={from}");
    let is_over = AtomicBool::new(false);
    let ask = || -> Result<()> {
        for _ in 0..REQUESTS {
            let answer = instance.get(&stats)?;
            let report: Value = answer.json()?;
            ensure!(answer.status == 200 && report["clicks"] == HOURS, "{report}");
        }
        Ok(())
    };
    let follow = || -> Result<usize> {
        let mut connection = ReusedConnection::new(&instance);
        let mut followed = 0;
        while !is_over.load(Ordering::Relaxed) {
            let answer = connection.get("/counted")?;
            ensure!(answer.status == 302, "{answer}");
            followed += 1;
        }
        Ok(followed)
    };
    let followed = thread::scope(|scope| {
        let followers: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(follow)).collect();
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(ask)).collect();
        let asked = clients.into_iter().try_for_each(joined);
        is_over.store(true, Ordering::Relaxed);
        let followed = followers.into_iter().map(joined).sum::<Result<usize>>()?;
        asked.map(|()| followed)
    })?;
    ensure!(followed > CLIENTS * REQUESTS, "only {followed} redirects");
    Ok(())
}

/// nginx caches an answer under the path as nginx normalizes it, so the instance must interpret the path in the same way.
#[test]
fn nginx_and_the_instances_interpret_paths_alike() -> Result<()> {
    let host = Host::builder().serving()?;
    let site = host.site()?;
    only_nginx_and_the_agent_are_trusted(&host)?;
    paths_are_interpreted_alike(&site, "all")?;
    host.ok(["systemctl", "stop", "links@2"])?;
    paths_are_interpreted_alike(&site, "one")?;
    host.ok(["systemctl", "start", "links@2"])?;
    host.wait_for_rotation(2)?;
    // Before a reload of nginx, this file is removed so that nginx closes its connections.
    host.ok(["rm", "/run/links/keepalive"])?;
    let closing = paths_are_interpreted_alike(&site, "closing")?;
    ensure!(closing.header("connection") == "close", "{closing}");
    host.ok(["touch", "/run/links/keepalive"])?;

    // Each form of the path counts as a click on its link.
    for state in ["all", "one", "closing"] {
        eventually("the clicks are counted", COUNTED_WITHIN, || {
            let counts = counts(&host, &format!("{state}-2"))?;
            let asked = 2 + PUNCTUATION.len() as u64;
            Ok((counts == BTreeMap::from([("bots", asked), ("clicks", 0)])).then_some(()))
        })?;
    }
    // A request in HTTP/1.0 needs no Host header.
    for (path, status) in [("/health", "200"), ("/all-2", "302")] {
        let answer = get_without_host(&host, path)?;
        ensure!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{path}: {answer}");
    }

    // nginx itself answers paths that cannot be links.
    host.ok(["systemctl", "stop", "links@1", "links@2"])?;
    let icon = site.get("/favicon.ico")?;
    is_unknown(&icon).context("/favicon.ico")?;
    ensure!(
        site.get("/api/v1/links/all-2")?.status == 502,
        "nginx should answer 502 without instances"
    );
    Ok(())
}

/// A client that bypasses nginx cannot use the endpoints for the agent, and its forwarding headers are ignored.
fn only_nginx_and_the_agent_are_trusted(host: &Host) -> Result<()> {
    let stranger = host.instance_without_token(1);
    let unknown = stranger.get("/no/where")?;
    let journal = "/internal/clicks?journal=0123456789abcdef0123456789abcdef";
    let proxy = host.ok(["cat", "/run/links/secrets/proxy"])?.stdout;
    for secret in ["", "x", proxy.trim()] {
        let stranger = stranger.clone().header("links-agent-secret", secret);
        for answer in [
            stranger.get(journal)?,
            stranger.get("/internal/database")?,
            stranger.get("/internal/no-such")?,
            stranger.put("/internal/clicks", json!({}))?,
            stranger.post("/internal/clicks", json!({}))?,
        ] {
            ensure!(answer.status == 404 && answer.body == unknown.body, "{answer}");
        }
    }
    let secret = host.ok(["cat", "/run/links/secrets/agent"])?.stdout;
    let agent = stranger.clone().header("links-agent-secret", secret.trim());
    for path in [journal, "/internal/database"] {
        let answer = agent.get(path)?;
        ensure!(answer.status == 200, "{path}: {answer}");
    }

    for client in [host.instance(1)?, host.site()?] {
        let client = client
            .header("x-forwarded-proto", "https")
            .header("x-forwarded-host", "elsewhere.example")
            .header("x-request-id", "0123456789abcdef0123456789abcdef");
        // If the request ID were trusted, these would be one request.
        let created =
            [1, 2].map(|number| client.post("/shorten", json!({ "url": format!("https://example.com/{number}") })));
        for created in created {
            let created = created?;
            ensure!(created.status == 200, "{created}");
            let link: Value = created.json()?;
            let url = link["short_url"].as_str().unwrap_or_default();
            ensure!(url.starts_with("http://links.example/"), "{created}");
        }
    }
    Ok(())
}

/// Follows links under many forms of their paths. Returns the last answer, so that the caller can check its headers.
fn paths_are_interpreted_alike(site: &Client, state: &str) -> Result<Answer> {
    let forms = ["/SLUG", "//SLUG", "/./SLUG", "/a/../SLUG", "/SLUG?a=%0A&b"];
    for (number, form) in forms.iter().enumerate() {
        let slug = format!("{state}-{number}");
        let url = format!("https://example.com/{slug}");
        let created = site.post("/shorten", json!({ "url": url, "slug": slug }))?;
        ensure!(created.status == 200, "{created}");
        let escaped = format!("%{:x}{}", slug.as_bytes()[0], &slug[1..]);
        // The first request uses a form that is not in the cache yet.
        for slug in [&escaped, &slug] {
            let path = form.replace("SLUG", slug);
            leads_to(&site.get(&path)?, &url).context(path)?;
        }
        for rest in PUNCTUATION {
            let path = format!("/{slug}{rest}");
            leads_to(&site.get(&path)?, &url).context(path)?;
        }
        // These paths are not slugs, and a cached 404 for one of them does not replace the link that it resembles.
        for rest in ["/a", "%2Fa", "%0Aa", "%20a", "%3Fa", "%25a", "%C3%BC", ".a"] {
            let path = format!("/{slug}{rest}");
            for _ in 0..2 {
                is_unknown(&site.get(&path)?).with_context(|| path.clone())?;
            }
        }
    }
    // An answer to HEAD has no body and must not be cached for GET.
    for path in ["/nowhere", "/no/where", "/api", "/favicon.ico"] {
        let answers = [site.head(path)?, site.get(path)?, site.head(path)?, site.get(path)?];
        ensure!(answers.iter().all(|answer| answer.status == 404), "{path}: {answers:?}");
        for answer in [&answers[1], &answers[3]] {
            is_unknown(answer).context(path)?;
        }
    }
    let slug = format!("{state}-0");
    // A change is visible under all paths of the link.
    let url = format!("https://example.org/{slug}");
    let changed = site.patch(&format!("/api/v1/links/{slug}"), json!({ "url": url }))?;
    ensure!(changed.status == 200, "{changed}");
    for rest in [""].iter().chain(&PUNCTUATION) {
        let path = format!("/{slug}{rest}");
        leads_to(&site.get(&path)?, &url).context(path)?;
    }
    ensure!(site.post(&format!("/{slug}"), json!({}))?.status == 405, "POST /{slug}");
    ensure!(site.get("/shorten")?.status == 405, "GET /shorten");
    ensure!(site.get("/health")?.text() == "ok", "GET /health");
    ensure!(
        site.get(&format!("/api/v1/links/{slug}"))?.status == 200,
        "details of {slug}"
    );
    Ok(site.get(&format!("/{slug}"))?)
}

/// Checks that this is the component's answer for a path that is no link, from an instance or from nginx's cache, and not
/// nginx's own page.
fn is_unknown(answer: &Answer) -> Result<()> {
    ensure!(
        answer.status == 404 && answer.header("content-type") == "application/problem+json" && !answer.body.is_empty(),
        "{answer}"
    );
    Ok(())
}

#[test]
fn more_links_than_fit_into_the_nginx_cache_still_redirect() -> Result<()> {
    const LINKS: usize = 20_000;
    const CLIENTS: usize = 16;
    let host = Host::builder().serving()?;
    host.change_database(DATABASE, |database| {
        database.execute(
            "WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < ?1)
             INSERT INTO links (slug, url, created_at) SELECT 'many-' || n, 'https://example.com/' || n, 0 FROM numbers",
            [LINKS as u32],
        )?;
        Ok(())
    })?;
    // Half of /run is for the cache of nginx. Each answer takes about 4 kB.
    host.ok(["mount", "-o", "remount,size=24m", "/run"])?;
    host.ok(["linksctl", "configure"])?;
    let site = host.read("/etc/nginx/sites-enabled/links")?;
    ensure!(site.contains("max_size=12m\n"), "{site}");

    let client = host.http();
    let next = AtomicUsize::new(1);
    let follow = || -> Result<()> {
        let mut connection = ReusedConnection::new(&client);
        loop {
            match next.fetch_add(1, Ordering::Relaxed) {
                number @ ..=LINKS => {
                    let answer = connection.get(&format!("/many-{number}"))?;
                    leads_to(&answer, &format!("https://example.com/{number}"))?;
                }
                _ => return Ok(()),
            }
        }
    };
    thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(follow)).collect();
        clients.into_iter().try_for_each(joined)
    })
}

#[test]
fn cached_links_redirect_without_instances_and_links_created_without_nginx_redirect_later() -> Result<()> {
    let host = Host::builder().links_toml("[nginx]\ncache_ttl = \"5s\"\n").serving()?;
    let site = host.site()?;
    create(&site, "known")?;
    host.ok(["systemctl", "stop", "links@1", "links@2"])?;
    // The loop outlasts cache_ttl. After that, every answer is stale.
    let begin = Instant::now();
    let mut connection = ReusedConnection::new(&site);
    while begin.elapsed() < Duration::from_secs(8) {
        leads_to(&connection.get("/known")?, "https://example.com/known")?;
    }
    // nginx cannot answer for links that are not in its cache.
    ensure!(
        site.get("/unknown")?.status == 502,
        "nginx should answer 502 without instances"
    );
    ensure!(
        site.post("/shorten", json!({ "url": "https://example.com/" }))?.status == 502,
        "nginx should answer 502 without instances"
    );
    host.ok(["systemctl", "start", "links@1", "links@2"])?;
    host.wait_for_rotation(2)?;

    // While nginx is down, a link can be created, but the cache cannot be purged. The header links-edge reports that.
    host.ok(["systemctl", "stop", "nginx"])?;
    let created = host.instance(1)?.post(
        "/shorten",
        json!({ "url": "https://example.com/", "slug": "meanwhile" }),
    )?;
    ensure!(
        created.status == 200 && created.header("links-edge") == "stale",
        "{created}"
    );
    let journal = host.instances_journal()?;
    ensure!(
        journal
            .lines()
            .any(|line| line.starts_with("links: nginx") && line.contains("/meanwhile")),
        "{journal}"
    );
    host.ok(["systemctl", "start", "nginx"])?;
    create(&site, "afterwards")?;
    leads_to(&site.get("/meanwhile")?, "https://example.com/")
}

#[test]
fn only_the_host_can_query_the_nginx_cache() -> Result<()> {
    let host = Host::builder().serving()?;
    create(&host.site()?, "mine")?;
    let listening = host
        .shell("ss --listening --tcp --numeric --no-header | awk '{ print $4 }'")?
        .stdout;
    ensure!(
        listening.lines().any(|address| address == "127.0.0.1:7000"),
        "{listening}"
    );
    ensure!(
        !listening.contains("0.0.0.0:7000") && !listening.contains("[::]:7000"),
        "{listening}"
    );
    let edge = host.http_at(7000);
    assert_eq!(edge.get("/mine")?.header("links-edge"), "BYPASS");
    assert_eq!(edge.head("/mine")?.header("links-edge"), "HIT");
    // For what is not in the cache no instance is asked, which would answer 404.
    let missing = edge.head("/missing")?;
    ensure!(
        missing.status == 204 && missing.header("links-edge") == "MISS",
        "{missing}"
    );
    assert_eq!(edge.post("/shorten", "{}")?.status, 403);
    // The headers of a client do not bypass the cache.
    let curious = host
        .http()
        .header("links-edge", "BYPASS")
        .header("cache-control", "no-cache");
    assert_eq!(curious.get("/mine")?.header("links-edge"), "");
    let owner = host.ok(["stat", "--format=%U %a", "/run/links/edge"])?.stdout;
    assert_eq!(owner.trim(), "www-data 700");
    Ok(())
}

#[test]
fn nginx_may_open_as_many_files_as_it_caches() -> Result<()> {
    let host = Host::builder().serving()?;
    let site = host.read("/etc/nginx/sites-enabled/links")?;
    let kept: u64 = site
        .split_once("open_file_cache max=")
        .and_then(|(_, rest)| rest.split_once(' ')?.0.parse().ok())
        .context("the site has no open_file_cache")?;
    let check = || -> Result<()> {
        let limits = host.shell("cat $(pgrep --parent $(cat /run/nginx.pid) | sed 's:.*:/proc/&/limits:')")?;
        let lines = limits.stdout.lines().filter(|line| line.starts_with("Max open files"));
        let lines: Vec<Vec<_>> = lines.map(|line| line.split_whitespace().collect()).collect();
        ensure!(!lines.is_empty(), "{limits}");
        for words in lines {
            let (soft, hard): (u64, u64) = (words[3].parse()?, words[4].parse()?);
            // 768 is worker_connections in Debian's nginx.conf.
            ensure!(
                soft == hard.min(65_536) && kept > 100 && 2 * kept + 768 <= soft,
                "{kept} files in the cache, with the limits {words:?}"
            );
        }
        Ok(())
    };
    // First the nginx that ran before links was installed, then one that started afterwards.
    check()?;
    host.ok(["systemctl", "restart", "nginx"])?;
    check()
}
