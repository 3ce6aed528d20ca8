//! The database on a libSQL server: what still works while the server is down, slow, or refuses the token, and the recovery.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use links_tests::http::{Answer, Client, Failure};
use links_tests::load::Link;
use links_tests::servers::LibSql;
use links_tests::{Host, eventually, wording};

const TOKEN: &str = "turso-s3cret";

/// The maximum time for a redirect from the cache during an outage. It may try the database for one second.
const FROM_CACHE: Duration = Duration::from_secs(3);
/// The maximum time for an answer that needs the database. An instance gives up after ten seconds.
const ANSWER_DEADLINE: Duration = Duration::from_secs(12);
/// How long the metrics may take. The agent queries the database once a minute.
const METRICS_DEADLINE: Duration = Duration::from_secs(90);
/// How long it may take until the database is used again after an outage.
const RECOVERY: Duration = Duration::from_secs(20);

#[test]
fn redirects_continue_without_the_database_and_links_recovers_by_itself() -> Result<()> {
    let host = on_libsql("1s", "24h")?;
    let starts = host.invocation_ids(2)?;
    for outage in [Outage::Stopped, Outage::Paused, Outage::Slow, Outage::Refuses] {
        survives(&host, outage).with_context(|| format!("{outage:?}"))?;
        ensure!(
            host.invocation_ids(2)? == starts,
            "{outage:?}: an instance was restarted"
        );
    }
    ensure!(!host.instances_journal()?.contains(TOKEN), "the journal has the token");
    reports_its_size(&host)
}

#[test]
fn every_instance_sees_a_change_within_the_cache_times() -> Result<()> {
    let host = on_libsql("2s", "6s")?;
    let libsql = host.libsql();
    let instances = [host.instance(1)?, host.instance(2)?];

    // This includes a slug that was requested before it existed.
    for (creator, other) in [(0, 1), (1, 0)] {
        let slug = format!("created-by-{creator}");
        for instance in &instances {
            ensure!(
                instance.get(&format!("/{slug}"))?.status == 404,
                "{slug} should not exist yet"
            );
        }
        let url = "https://example.com/one";
        let body = serde_json::json!({ "url": url, "slug": slug });
        let created = instances[creator].post("/shorten", body)?;
        ensure!(created.status == 200, "{created}");
        leads_to(&instances[other].get(&format!("/{slug}"))?, url)?;
        leads_to(&instances[creator].get(&format!("/{slug}"))?, url)?;
    }

    let link = host.shorten("https://example.com/old")?;
    let path = format!("/{}", link.slug);
    for instance in &instances {
        leads_to(&instance.get(&path)?, "https://example.com/old")?;
    }
    let changed = change(&host, &link, "https://example.com/new")?;
    let everywhere = |what: &str, url: &str| {
        instances.iter().try_for_each(|instance| {
            eventually(what, RECOVERY, || {
                let answer = instance.get(&path)?;
                Ok(leads_to(&answer, url).ok())
            })
        })
    };
    everywhere("the change is visible", "https://example.com/new")?;
    // Cache entries hold times in whole seconds, hence the tolerance.
    let seen = changed.elapsed();
    ensure!(
        seen < Duration::from_secs(4),
        "visible only after {seen:.1?} with cache_ttl = 2 s"
    );

    // A cached link expires on time, even without the database.
    let ends = in_seconds(&host, 4)?;
    let body = serde_json::json!({ "url": "https://example.com/brief", "slug": "brief", "expires_at": ends });
    let created = host.site()?.post("/shorten", body)?;
    ensure!(created.status == 200, "{created}");
    for instance in &instances {
        leads_to(&instance.get("/brief")?, "https://example.com/brief")?;
    }
    libsql.stop()?;
    for instance in &instances {
        eventually("the link has expired", RECOVERY, || {
            let answer = instance.get("/brief")?;
            match answer.status.as_u16() {
                302 => Ok(None),
                410 => Ok(Some(())),
                _ => bail!("{answer}"),
            }
        })?;
    }

    // A cached link is served for cache_stale, and no longer.
    libsql.start()?;
    let kept = change(&host, &link, "https://example.com/last")?;
    everywhere("the database is used again", "https://example.com/last")?;
    libsql.stop()?;
    for instance in &instances {
        let old = eventually("the cache entry is too old", RECOVERY, || {
            let answer = instance.get(&path)?;
            Ok(leads_to(&answer, "https://example.com/last").is_err().then_some(answer))
        })?;
        is_unavailable(&old)?;
    }
    let served = kept.elapsed();
    ensure!(
        served > Duration::from_secs(4),
        "served for only {served:.1?} with cache_stale = 6 s"
    );
    Ok(())
}

/// What can be wrong with the database server.
#[derive(Clone, Copy, Debug)]
enum Outage {
    Stopped,
    Paused,
    Slow,
    Refuses,
}

impl Outage {
    fn begin(self, libsql: &LibSql<'_>) -> Result<()> {
        match self {
            Self::Stopped => libsql.stop(),
            Self::Paused => libsql.pause(),
            Self::Slow => libsql.set_delay(5_000),
            Self::Refuses => libsql.set_token("another-token"),
        }
    }

    fn end(self, libsql: &LibSql<'_>) -> Result<()> {
        match self {
            Self::Stopped => libsql.start(),
            Self::Paused => libsql.resume(),
            Self::Slow => libsql.set_delay(0),
            Self::Refuses => libsql.set_token(TOKEN),
        }
    }
}

/// Asserts that the agent reports the size of the database and the number of links.
fn reports_its_size(host: &Host) -> Result<()> {
    let links: u32 = host.read_database(LibSql::DATABASE, |database| {
        Ok(database.query_row("SELECT count(*) FROM links", [], |row| row.get(0))?)
    })?;
    ensure!(links > 0, "the database has no links");
    let agent = host.http_at(9464);
    let page = eventually("the links are counted", METRICS_DEADLINE, || {
        let page = agent.get("/metrics")?.text();
        let counted = metric(&page, "links_database_links") == Some(&links.to_string());
        Ok(counted.then_some(page))
    })?;
    let bytes = metric(&page, "links_database_size_bytes").context("the metrics have no database size")?;
    ensure!(bytes.parse::<f64>()? >= 4096.0, "the database has only {bytes} bytes");
    ensure!(
        metric(&page, "links_database_filesystem_free_bytes").is_none(),
        "{page}"
    );
    Ok(())
}

fn survives(host: &Host, outage: Outage) -> Result<()> {
    let libsql = host.libsql();
    let known = host.shorten(&format!("https://example.com/{outage:?}"))?;
    let unknown = unread(host, &format!("unread-{outage:?}").to_lowercase())?;
    host.follow(&known)?;
    let logged = outages_logged(host)?;

    outage.begin(&libsql)?;
    let clients = [host.site()?, host.instance(1)?, host.instance(2)?];
    // The loop outlasts cache_ttl, so it includes stale entries.
    let begun = Instant::now();
    let mut slowest = Duration::ZERO;
    while begun.elapsed() < Duration::from_secs(3) {
        for client in &clients {
            let (answer, took) = timed(|| client.get(&format!("/{}", known.slug)))?;
            leads_to(&answer, &known.url)?;
            slowest = slowest.max(took);
        }
    }
    ensure!(slowest < FROM_CACHE, "a redirect from the cache took {slowest:.1?}");

    let requests_uncached_link = |client: &Client| {
        let client = client.clone().deadline(ANSWER_DEADLINE);
        let (answer, took) = timed(|| client.get(&format!("/{}", unknown.slug)))?;
        is_unavailable(&answer).with_context(|| format!("requesting an uncached link, after {took:.1?}"))
    };
    let creates_link = |client: &Client| {
        let client = client.clone().deadline(ANSWER_DEADLINE);
        let (answer, took) = timed(|| client.post("/shorten", r#"{"url":"https://example.com/lost"}"#))?;
        is_unavailable(&answer).with_context(|| format!("creating a link, after {took:.1?}"))
    };
    thread::scope(|scope| {
        let threads: Vec<_> = clients
            .iter()
            .flat_map(|client| {
                [
                    scope.spawn(move || requests_uncached_link(client)),
                    scope.spawn(move || creates_link(client)),
                ]
            })
            .collect();
        let results = threads
            .into_iter()
            .map(|thread| thread.join().map_err(|_| anyhow!("a client panicked"))?);
        results.collect::<Result<()>>()
    })?;
    for number in 1..=2 {
        let (answer, took) = timed(|| host.instance_without_token(number).get("/health"))?;
        is_unavailable(&answer)?;
        ensure!(
            answer.text().contains("database"),
            "the answer should name the database: {answer}"
        );
        // The supervisor waits for two seconds.
        ensure!(took < Duration::from_secs(2), "/health took {took:.1?}");
    }
    host.follow(&known)?;

    outage.end(&libsql)?;
    for number in 1..=2 {
        let instance = host.instance(number)?;
        eventually("the database is used again", RECOVERY, || {
            Ok(is_healthy(&instance).then_some(()))
        })?;
        leads_to(&instance.get(&format!("/{}", unknown.slug))?, &unknown.url)?;
    }
    host.follow(&host.shorten("https://example.com/afterwards")?)?;
    let logged = outages_logged(host)? - logged;
    println!("{outage:?}: the slowest redirect took {slowest:.1?}; logged {logged} times");
    // One instance logs an outage for all. Two that notice it at the same moment may both log it.
    ensure!(
        (1..=2).contains(&logged),
        "logged {logged} times:\n{}",
        host.instances_journal()?
    );
    Ok(())
}

/// The value of a metric without labels.
fn metric<'a>(page: &'a str, name: &str) -> Option<&'a str> {
    page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))
}

/// A host with its database on a libSQL server.
fn on_libsql(ttl: &str, stale: &str) -> Result<Host> {
    let links_toml = format!("[rollout]\nmin_healthy = \"200ms\"\n[cache]\nttl = \"{ttl}\"\nstale = \"{stale}\"\n");
    let host = Host::builder().libsql(TOKEN).links_toml(&links_toml).serving()?;
    // The instances have created the tables there.
    let version = host.schema(LibSql::DATABASE)?;
    ensure!(version >= 2, "the tables are of version {version}");
    Ok(host)
}

/// Changes a link directly in the database, as an administrator might. Returns the time of the change.
fn change(host: &Host, link: &Link, url: &str) -> Result<Instant> {
    host.change_database(LibSql::DATABASE, |database| {
        database.execute("UPDATE links SET url = ?2 WHERE slug = ?1", [&link.slug, url])?;
        Ok(Instant::now())
    })
}

/// Inserts a link that no instance has read.
fn unread(host: &Host, slug: &str) -> Result<Link> {
    let url = format!("https://example.com/{slug}");
    host.change_database(LibSql::DATABASE, |database| {
        let insert = "INSERT INTO links (slug, url, created_at) VALUES (?1, ?2, 0)";
        Ok(database.execute(insert, [slug, &url])?)
    })?;
    Ok(Link {
        slug: slug.to_owned(),
        url,
    })
}

/// The time in this many seconds by the clock of the machine, in RFC 3339.
fn in_seconds(host: &Host, seconds: u32) -> Result<String> {
    let date = format!("--date={seconds} seconds");
    let text = host.ok(["date", "--utc", &date, "+%FT%TZ"])?.stdout;
    Ok(text.trim().to_owned())
}

fn outages_logged(host: &Host) -> Result<usize> {
    let journal = host.instances_journal()?;
    Ok(wording::outages(&journal, "links: the database"))
}

fn timed(ask: impl FnOnce() -> Result<Answer, Failure>) -> Result<(Answer, Duration)> {
    let begun = Instant::now();
    let answer = ask()?;
    Ok((answer, begun.elapsed()))
}

fn leads_to(answer: &Answer, url: &str) -> Result<()> {
    ensure!(
        answer.status == 302 && answer.header("location") == url,
        "should lead to {url}: {answer}"
    );
    Ok(())
}

fn is_unavailable(answer: &Answer) -> Result<()> {
    ensure!(
        answer.status == 503
            && answer.header("content-type") == "application/problem+json"
            && answer.header("retry-after").parse::<u32>().is_ok(),
        "should be a 503 with a problem document and retry-after: {answer}"
    );
    Ok(())
}

fn is_healthy(instance: &Client) -> bool {
    instance.get("/health").is_ok_and(|answer| answer.status == 200)
}
