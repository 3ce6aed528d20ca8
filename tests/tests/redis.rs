//! The cache of redirects in Redis: clients do not notice an outage of it.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use links_platform::circuit_breaker::state::{Outage, SharedState, decode_end};
use links_tests::load::{Connections, Load, Mix, Running};
use links_tests::servers::{Server, redis};
use links_tests::{DATABASE, Host, eventually, verify, wording};
use rusqlite::OptionalExtension as _;

const PASSWORD: &str = "redis-s3cret";
const OTHER: &str = "redis-other-s3cret";
/// The file of the key-value store "local".
const LOCAL_STORE: &str = "/var/lib/links/data/local.db";
/// How soon an outage must be noticed: a component's cache timeout, with some slack for a busy machine.
const NOTICED: Duration = Duration::from_secs(30);

#[test]
fn no_client_notices_when_redis_hangs_stops_or_refuses_the_password() -> Result<()> {
    let host = Host::builder().packages(&["redis-server"]).serving()?;
    let redis = redis(&host, PASSWORD)?;
    host.credential("redis_url", &format!("redis://:{PASSWORD}@127.0.0.1:6379/1"))?;
    host.configure(
        "[rollout]\nmin_healthy = \"200ms\"\n[cache]\nenabled = true\nttl = \"1s\"\n",
        &format!(
            "[sqlite_database.default]\ntype = \"spin\"\npath = \"{DATABASE}\"\n\
             [key_value_store.default]\ntype = \"redis\"\nurl = \"credential:redis_url\"\n"
        ),
    )?;
    let starts = host.invocation_ids(2)?;
    let load = Load::through([host.site()?]).workers(8).rate(200).label("redis");
    let load = load.connections(Connections::Both).mix(Mix::Usual).start();
    let observed = Observed {
        host: &host,
        redis: &redis,
        load: &load,
    };
    observed.more(200)?;
    ensure!(
        observed.holds(&cached_key(&host)?)?,
        "Redis does not hold the link that was just followed"
    );

    let spin = host.runtime()?.is_spin();
    observed.survives("paused", |redis| redis.pause(), |redis| redis.resume(), NOTICED)?;
    // Spin 4.0.2 backs off: the longer a server is gone, the more rarely it reconnects.
    let back = if spin { Duration::from_secs(150) } else { NOTICED };
    observed.survives("stopped", |redis| redis.stop(), |redis| redis.start(), back)?;
    // The Redis connection manager of Spin 4.0.2 does not reconnect after a refused password.
    if !spin {
        let change_password = |old: &str, new: &str| -> Result<()> {
            observed.ask(old, &["config", "set", "requirepass", new])?;
            // Connections that are already authenticated would stay so.
            observed.ask(new, &["client", "kill", "type", "normal"]).map(drop)
        };
        observed.survives(
            "refusing the password",
            |_| change_password(PASSWORD, OTHER),
            |_| change_password(OTHER, PASSWORD),
            back,
        )?;
    }

    let report = load.stop()?;
    println!("{report}");
    ensure!(report.failed() == 0, "{:#?}", report.examples);
    verify(&host, "redis", &report)?;
    ensure!(host.invocation_ids(2)? == starts, "an instance was restarted");
    ensure!(
        !host.instances_journal()?.contains("s3cret"),
        "the journal contains a password"
    );
    Ok(())
}

/// Creates and follows a link, and returns its key in the cache.
fn cached_key(host: &Host) -> Result<String> {
    let link = host.shorten("https://example.com/kept")?;
    host.follow(&link)?;
    Ok(format!("links:redirect:{}", link.slug))
}

/// A host with Redis, under a load that must not notice what happens to it.
struct Observed<'a> {
    host: &'a Host,
    redis: &'a Server<'a>,
    load: &'a Running,
}

impl Observed<'_> {
    /// An outage from `begin` to `end`: it is logged once, no request fails, and Redis is used again within `back`.
    fn survives(
        &self,
        name: &str,
        begin: impl Fn(&Server<'_>) -> Result<()>,
        end: impl Fn(&Server<'_>) -> Result<()>,
        back: Duration,
    ) -> Result<()> {
        // How often the journal reports the outage, and how often its end.
        let reports = || -> Result<[usize; 2]> {
            let journal = self.host.instances_journal()?;
            let store = "links: the key-value store \"default\"";
            Ok([wording::outages(&journal, store), wording::recoveries(&journal, store)])
        };
        let before = reports()?;
        self.load.phase(name);
        begin(self.redis)?;
        eventually(&format!("the journal reports that Redis is {name}"), NOTICED, || {
            Ok((reports()?[0] > before[0]).then_some(()))
        })?;
        // One report for all instances, or a few if several of them notice at the same moment; then no more.
        self.more(300)?;
        let first = reports()?[0] - before[0];
        self.more(1_200)?;
        let times = reports()?[0] - before[0];
        ensure!(
            times == first && times <= 8,
            "{first} reports soon after the outage began, {times} later:\n{}",
            self.host.instances_journal()?
        );
        self.host.follow(&self.host.shorten("https://example.com/meanwhile")?)?;
        end(self.redis)?;
        let begun = Instant::now();
        self.load.phase("rest");
        eventually("Redis is used again", back, || {
            Ok((reports()?[1] > before[1]).then_some(()))
        })
        .with_context(|| self.host.instances_journal().unwrap_or_default())?;
        println!("{name}: used again after {:.1?}", begun.elapsed());
        eventually("a followed link is cached again", back, || {
            let key = cached_key(self.host)?;
            Ok(self.holds(&key)?.then_some(()))
        })?;
        // While one instance still sees the outage, the next one would count as a part of it for all instances.
        eventually("every instance sees that the outage is over", back, || {
            let is_over = self.is_over()? && {
                self.more(200)?;
                self.is_over()?
            };
            Ok(is_over.then_some(()))
        })?;
        println!(
            "{name}: {times} reports of the outage, {} of its end",
            reports()?[1] - before[1]
        );
        ensure!(
            self.load.failed() == 0,
            "{name}: {} requests failed",
            self.load.failed()
        );
        Ok(())
    }

    fn more(&self, requests: u64) -> Result<()> {
        self.load
            .wait_for(self.load.asked() + requests, Duration::from_secs(60))
    }

    /// Whether the state that the instances share says that the outage has ended.
    fn is_over(&self) -> Result<bool> {
        self.host.read_database(LOCAL_STORE, |store| {
            let value = |key: &str| -> rusqlite::Result<Option<Vec<u8>>> {
                let get = "SELECT value FROM spin_key_value WHERE key = ?1";
                store.query_row(get, [key], |row| row.get(0)).optional()
            };
            let outage = value("links:outage:cache")?.and_then(|outage| Outage::decode(&outage));
            let outage = outage.context("no instance has shared an outage")?;
            let ended = value("links:outage-end:cache")?.and_then(|end| decode_end(&end));
            let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis();
            Ok(matches!(
                SharedState::new(outage, ended, now.try_into()?),
                SharedState::Closed(_)
            ))
        })
    }

    fn holds(&self, key: &str) -> Result<bool> {
        Ok(self.ask(PASSWORD, &["exists", key])? == "1")
    }

    /// The answer of Redis to a command.
    fn ask(&self, password: &str, words: &[&str]) -> Result<String> {
        let client = ["redis-cli", "--no-auth-warning", "-a", password, "-n", "1"];
        let answer = self.host.ok([&client, words].concat())?.stdout;
        let answer = answer.trim();
        ensure!(
            !answer.contains("ERR") && !answer.contains("WRONGPASS"),
            "{words:?}: {answer}"
        );
        Ok(answer.to_owned())
    }
}
