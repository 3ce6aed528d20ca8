//! The links on a libSQL server: what goes on while it is away, slow, or refuses the token, and how it comes back.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use links_tests::http::{Answer, Client, Failure};
use links_tests::load::Link;
use links_tests::servers::{LibSql, credential};
use links_tests::{Appliance, eventually};
use rusqlite::Connection;

const HRANA: &str = env!("CARGO_BIN_EXE_hrana-server");
const TOKEN: &str = "turso-s3cret";

/// A redirect from the cache while the database is away: it may try the database for a second.
const FROM_CACHE: Duration = Duration::from_secs(3);
/// An answer that needs the database: it is given up after ten seconds.
const BOUNDED: Duration = Duration::from_secs(12);
/// The agent looks at the database once a minute.
const COUNTED: Duration = Duration::from_secs(90);
/// Until what came back is used again.
const RECOVERY: Duration = Duration::from_secs(20);

#[test]
fn redirects_go_on_without_the_database_and_all_recovers_by_itself() -> Result<()> {
    let appliance = Appliance::installed()?;
    let libsql = on_libsql(&appliance, "1s", "24h")?;
    let starts = appliance.starts(2)?;
    let lab = Lab {
        appliance: &appliance,
        libsql: &libsql,
    };
    for trouble in [Trouble::Stopped, Trouble::Paused, Trouble::Slow, Trouble::Refuses] {
        lab.goes_through(trouble).with_context(|| format!("{trouble:?}"))?;
        ensure!(appliance.starts(2)? == starts, "{trouble:?}: an instance was restarted");
    }
    ensure!(
        !appliance.instances_said()?.contains(TOKEN),
        "the journal has the token"
    );
    lab.is_counted()
}

#[test]
fn what_changes_is_seen_through_every_instance_in_time() -> Result<()> {
    let appliance = Appliance::installed()?;
    let libsql = on_libsql(&appliance, "2s", "6s")?;
    let instances = [appliance.instance(1)?, appliance.instance(2)?];

    // A slug that was asked for before it existed, too.
    for (maker, other) in [(0, 1), (1, 0)] {
        let slug = format!("made-by-{maker}");
        for instance in &instances {
            ensure!(instance.get(&format!("/{slug}"))?.status == 404);
        }
        let url = "https://example.com/one";
        let body = serde_json::json!({ "url": url, "slug": slug });
        let made = instances[maker].post("/shorten", body)?;
        ensure!(made.status == 200, "{made}");
        leads_to(&instances[other].get(&format!("/{slug}"))?, url)?;
        leads_to(&instances[maker].get(&format!("/{slug}"))?, url)?;
    }

    let link = appliance.shorten("https://example.com/old")?;
    let path = format!("/{}", link.slug);
    for instance in &instances {
        leads_to(&instance.get(&path)?, "https://example.com/old")?;
    }
    let changed = change(&appliance, &link, "https://example.com/new")?;
    let everywhere = |what: &str, url: &str| {
        instances.iter().try_for_each(|instance| {
            eventually(what, RECOVERY, || {
                let answer = instance.get(&path)?;
                Ok(leads_to(&answer, url).ok())
            })
        })
    };
    everywhere("the change is seen", "https://example.com/new")?;
    // Times in entries are whole seconds.
    let seen = changed.elapsed();
    ensure!(
        seen < Duration::from_secs(4),
        "seen after {seen:.1?} with cache_ttl = 2 s"
    );

    // It ends when it was to end, for the cache as well, and without the database.
    let ends = in_seconds(&appliance, 4)?;
    let body = serde_json::json!({ "url": "https://example.com/brief", "slug": "brief", "expires_at": ends });
    let made = appliance.site()?.post("/shorten", body)?;
    ensure!(made.status == 200, "{made}");
    for instance in &instances {
        leads_to(&instance.get("/brief")?, "https://example.com/brief")?;
    }
    libsql.stop()?;
    for instance in &instances {
        eventually("the link has ended", RECOVERY, || {
            let answer = instance.get("/brief")?;
            match answer.status.as_u16() {
                302 => Ok(None),
                410 => Ok(Some(())),
                _ => bail!("{answer}"),
            }
        })?;
    }

    // What is kept is served for cache_stale, and no longer.
    libsql.start()?;
    let kept = change(&appliance, &link, "https://example.com/last")?;
    everywhere("the database is used again", "https://example.com/last")?;
    libsql.stop()?;
    for instance in &instances {
        let old = eventually("the entry is too old", RECOVERY, || {
            let answer = instance.get(&path)?;
            Ok(leads_to(&answer, "https://example.com/last").is_err().then_some(answer))
        })?;
        is_unavailable(&old)?;
    }
    let served = kept.elapsed();
    ensure!(
        served > Duration::from_secs(4),
        "served for {served:.1?} with cache_stale = 6 s"
    );
    Ok(())
}

/// What can be wrong with the server.
#[derive(Clone, Copy, Debug)]
enum Trouble {
    Stopped,
    Paused,
    Slow,
    Refuses,
}

struct Lab<'a> {
    appliance: &'a Appliance,
    libsql: &'a LibSql<'a>,
}

impl Lab<'_> {
    fn begins(&self, trouble: Trouble) -> Result<()> {
        match trouble {
            Trouble::Stopped => self.libsql.stop(),
            Trouble::Paused => self.libsql.pause(),
            Trouble::Slow => self.libsql.slow(5_000),
            Trouble::Refuses => self.libsql.takes("another-token"),
        }
    }

    fn ends(&self, trouble: Trouble) -> Result<()> {
        match trouble {
            Trouble::Stopped => self.libsql.start(),
            Trouble::Paused => self.libsql.go_on(),
            Trouble::Slow => self.libsql.slow(0),
            Trouble::Refuses => self.libsql.takes(TOKEN),
        }
    }

    /// The agent tells how much the server holds.
    fn is_counted(&self) -> Result<()> {
        let links: u32 = database(self.appliance, |database| {
            Ok(database.query_row("SELECT count(*) FROM links", [], |row| row.get(0))?)
        })?;
        ensure!(links > 0, "there is nothing to count");
        let agent = self.appliance.http_at(9464);
        let page = eventually("the links are counted", COUNTED, || {
            let page = agent.get("/metrics")?.text();
            let counted = metric(&page, "links_database_links") == Some(&links.to_string());
            Ok(counted.then_some(page))
        })?;
        let bytes = metric(&page, "links_database_size_bytes").context("no size is told")?;
        ensure!(bytes.parse::<f64>()? >= 4096.0, "{bytes} bytes");
        ensure!(
            metric(&page, "links_database_filesystem_free_bytes").is_none(),
            "{page}"
        );
        Ok(())
    }

    fn goes_through(&self, trouble: Trouble) -> Result<()> {
        let appliance = self.appliance;
        let known = appliance.shorten(&format!("https://example.com/{trouble:?}"))?;
        let unknown = unread(appliance, &format!("unread-{trouble:?}").to_lowercase())?;
        appliance.follow(&known)?;
        let told = outages_told(appliance)?;

        self.begins(trouble)?;
        let ways = [appliance.site()?, appliance.instance(1)?, appliance.instance(2)?];
        // Longer than cache_ttl, so that also entries which are no longer fresh are served.
        let begun = Instant::now();
        let mut slowest = Duration::ZERO;
        while begun.elapsed() < Duration::from_secs(3) {
            for way in &ways {
                let (answer, took) = timed(|| way.get(&format!("/{}", known.slug)))?;
                leads_to(&answer, &known.url)?;
                slowest = slowest.max(took);
            }
        }
        ensure!(slowest < FROM_CACHE, "a redirect from the cache took {slowest:.1?}");

        let asks = |way: &Client| {
            let way = way.clone().deadline(BOUNDED);
            let (answer, took) = timed(|| way.get(&format!("/{}", unknown.slug)))?;
            is_unavailable(&answer).with_context(|| format!("an unknown link, after {took:.1?}"))
        };
        let shortens = |way: &Client| {
            let way = way.clone().deadline(BOUNDED);
            let (answer, took) = timed(|| way.post("/shorten", r#"{"url":"https://example.com/lost"}"#))?;
            is_unavailable(&answer).with_context(|| format!("a new link, after {took:.1?}"))
        };
        thread::scope(|scope| {
            let users: Vec<_> = ways
                .iter()
                .flat_map(|way| [scope.spawn(move || asks(way)), scope.spawn(move || shortens(way))])
                .collect();
            let told = users
                .into_iter()
                .map(|user| user.join().map_err(|_| anyhow!("a user panicked"))?);
            told.collect::<Result<()>>()
        })?;
        for number in 1..=2 {
            let (answer, took) = timed(|| appliance.instance_without_token(number).get("/health"))?;
            is_unavailable(&answer)?;
            ensure!(answer.text().contains("The database does not answer"), "{answer}");
            // Its supervisor waits for two seconds.
            ensure!(took < Duration::from_secs(2), "/health took {took:.1?}");
        }
        appliance.follow(&known)?;

        self.ends(trouble)?;
        for number in 1..=2 {
            let instance = appliance.instance(number)?;
            eventually("the database is used again", RECOVERY, || {
                Ok(is_well(&instance).then_some(()))
            })?;
            leads_to(&instance.get(&format!("/{}", unknown.slug))?, &unknown.url)?;
        }
        appliance.follow(&appliance.shorten("https://example.com/afterwards")?)?;
        let told = outages_told(appliance)? - told;
        println!("{trouble:?}: a redirect took {slowest:.1?} at most; told {told} times");
        // Once for all instances; two that find out at the same moment may both tell.
        ensure!(
            (1..=2).contains(&told),
            "told {told} times:\n{}",
            appliance.instances_said()?
        );
        Ok(())
    }
}

/// The value of a metric without labels.
fn metric<'a>(page: &'a str, name: &str) -> Option<&'a str> {
    page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))
}

/// The appliance on a server of its own, with links that were shortened before.
fn on_libsql<'a>(appliance: &'a Appliance, ttl: &str, stale: &str) -> Result<LibSql<'a>> {
    let libsql = LibSql::start_in(appliance, HRANA, TOKEN)?;
    credential(appliance, "turso_token", TOKEN)?;
    let links_toml = format!("[rollout]\nmin_healthy = \"200ms\"\n[cache]\nttl = \"{ttl}\"\nstale = \"{stale}\"\n");
    let runtime_toml = format!(
        "[sqlite_database.default]\ntype = \"libsql\"\nurl = \"{}\"\ntoken = \"credential:turso_token\"\n",
        LibSql::URL
    );
    appliance.configure(&links_toml, &runtime_toml)?;
    // The instances have made the tables there.
    let version: u32 = database(appliance, |database| {
        Ok(database.query_row("SELECT max(version) FROM schema_version", [], |row| row.get(0))?)
    })?;
    ensure!(version >= 2, "the tables are of version {version}");
    Ok(libsql)
}

/// The server's own file.
fn database<T: Send>(appliance: &Appliance, work: impl FnOnce(&Connection) -> Result<T> + Send) -> Result<T> {
    appliance.inside(|| {
        let database = Connection::open(LibSql::DATABASE)?;
        database.busy_timeout(Duration::from_secs(10))?;
        work(&database)
    })
}

/// In the database itself, as an administrator does it.
fn change(appliance: &Appliance, link: &Link, url: &str) -> Result<Instant> {
    database(appliance, |database| {
        database.execute("UPDATE links SET url = ?2 WHERE slug = ?1", [&link.slug, url])?;
        Ok(Instant::now())
    })
}

/// A link that is in the database, and that no instance has read.
fn unread(appliance: &Appliance, slug: &str) -> Result<Link> {
    let url = format!("https://example.com/{slug}");
    database(appliance, |database| {
        let insert = "INSERT INTO links (slug, url, created_at) VALUES (?1, ?2, 0)";
        Ok(database.execute(insert, [slug, &url])?)
    })?;
    Ok(Link {
        slug: slug.to_owned(),
        url,
    })
}

/// As the machine counts, in RFC 3339.
fn in_seconds(appliance: &Appliance, seconds: u32) -> Result<String> {
    let date = format!("--date={seconds} seconds");
    let text = appliance.ok(["date", "--utc", &date, "+%FT%TZ"])?.stdout;
    Ok(text.trim().to_owned())
}

fn outages_told(appliance: &Appliance) -> Result<usize> {
    let said = appliance.instances_said()?;
    Ok(said.matches("links: the database does not answer: ").count())
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
        "should be a 503 with a problem and retry-after: {answer}"
    );
    Ok(())
}

fn is_well(instance: &Client) -> bool {
    instance.get("/health").is_ok_and(|answer| answer.status == 200)
}
