//! The cache of redirects in Redis: while it is away nobody is the worse for it.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use links_platform::circuit_breaker::state::{Outage, SharedState, decode_end};
use links_tests::load::{Connections, Load, Mix, Running};
use links_tests::servers::{Server, credential, redis};
use links_tests::{Appliance, Tree, eventually, verify};
use rusqlite::{Connection, OpenFlags, OptionalExtension as _};

const PASSWORD: &str = "redis-s3cret";
const OTHER: &str = "redis-other-s3cret";
/// The key-value store "local".
const LOCAL_STORE: &str = "/var/lib/links/data/local.db";
/// What a component's request for its cache may take, and some more for a busy machine.
const NOTICED: Duration = Duration::from_secs(30);

#[test]
fn redis_is_paused_or_stopped_or_refuses_and_comes_back_and_no_client_sees_it() -> Result<()> {
    let appliance = Appliance::installed_on(&Tree::with_nginx_and(&["redis-server"])?)?;
    let redis = redis(&appliance, PASSWORD)?;
    credential(
        &appliance,
        "redis_url",
        &format!("redis://:{PASSWORD}@127.0.0.1:6379/1"),
    )?;
    appliance.configure(
        "[rollout]\nmin_healthy = \"200ms\"\n[cache]\nenabled = true\nttl = \"1s\"\n",
        "[sqlite_database.default]\ntype = \"spin\"\npath = \"/var/lib/links/data/links.db\"\n\
         [key_value_store.default]\ntype = \"redis\"\nurl = \"credential:redis_url\"\n",
    )?;
    let starts = appliance.starts(2)?;
    let load = Load::through([appliance.site()?]).workers(8).rate(200).label("redis");
    let load = load.connections(Connections::Both).mix(Mix::Usual).start();
    let lab = Lab {
        appliance: &appliance,
        redis: &redis,
        load: &load,
    };
    lab.more(200)?;
    ensure!(lab.keeps(&kept_key(&appliance)?)?, "nothing is kept");

    let spin = appliance.artifacts.runtime()?.is_spin();
    lab.goes_through("paused", |redis| redis.pause(), |redis| redis.go_on(), NOTICED)?;
    // Spin 4.0.2 looks for a server that is gone ever more rarely.
    let back = if spin { Duration::from_secs(150) } else { NOTICED };
    lab.goes_through("stopped", |redis| redis.stop(), |redis| redis.start(), back)?;
    // The connection manager that Spin 4.0.2 relies on does not connect again after a refused password.
    if !spin {
        let exchange = |old: &str, new: &str| -> Result<()> {
            lab.ask(old, &["config", "set", "requirepass", new])?;
            // Who is in stays in.
            lab.ask(new, &["client", "kill", "type", "normal"]).map(drop)
        };
        lab.goes_through(
            "closed to the password",
            |_| exchange(PASSWORD, OTHER),
            |_| exchange(OTHER, PASSWORD),
            back,
        )?;
    }

    let report = load.stop()?;
    println!("{report}");
    ensure!(report.failed() == 0, "{:#?}", report.examples);
    verify(&appliance, "redis", &report)?;
    ensure!(appliance.starts(2)? == starts, "an instance was restarted");
    ensure!(
        !appliance.instances_said()?.contains("s3cret"),
        "the journal has the password"
    );
    Ok(())
}

/// The key of a link that was just followed.
fn kept_key(appliance: &Appliance) -> Result<String> {
    let link = appliance.shorten("https://example.com/kept")?;
    appliance.follow(&link)?;
    Ok(format!("links:redirect:{}", link.slug))
}

struct Lab<'a> {
    appliance: &'a Appliance,
    redis: &'a Server<'a>,
    load: &'a Running,
}

impl Lab<'_> {
    fn goes_through(
        &self,
        name: &str,
        begin: impl Fn(&Server<'_>) -> Result<()>,
        end: impl Fn(&Server<'_>) -> Result<()>,
        back: Duration,
    ) -> Result<()> {
        let told = || -> Result<[usize; 2]> {
            let said = self.appliance.instances_said()?;
            let count = |text| said.matches(text).count();
            Ok([
                count("links: the key-value store \"default\" does not answer: "),
                count("links: the key-value store \"default\" answers again: "),
            ])
        };
        let before = told()?;
        self.load.phase(name);
        begin(self.redis)?;
        eventually(&format!("it is told that Redis is {name}"), NOTICED, || {
            Ok((told()?[0] > before[0]).then_some(()))
        })?;
        // Once for all instances, or a few times where several find out at the same moment; and then no more.
        self.more(300)?;
        let first = told()?[0] - before[0];
        self.more(1_200)?;
        let times = told()?[0] - before[0];
        ensure!(
            times == first && times <= 8,
            "told {first} times, then {times}:\n{}",
            self.appliance.instances_said()?
        );
        self.appliance
            .follow(&self.appliance.shorten("https://example.com/meanwhile")?)?;
        end(self.redis)?;
        let begun = Instant::now();
        self.load.phase("rest");
        eventually("Redis is used again", back, || {
            Ok((told()?[1] > before[1]).then_some(()))
        })
        .with_context(|| self.appliance.instances_said().unwrap_or_default())?;
        println!("{name}: used again after {:.1?}", begun.elapsed());
        eventually("both instances keep links in it", back, || {
            let key = kept_key(self.appliance)?;
            Ok(self.keeps(&key)?.then_some(()))
        })?;
        // As long as one instance takes it for away, what happens next is a part of the same outage to all.
        eventually("every instance knows that Redis is back", back, || {
            let is_over = self.is_over()? && {
                self.more(200)?;
                self.is_over()?
            };
            Ok(is_over.then_some(()))
        })?;
        println!(
            "{name}: told {times} times, and {} that it is back",
            told()?[1] - before[1]
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

    /// Whether what the instances tell each other is that the outage has ended.
    fn is_over(&self) -> Result<bool> {
        self.appliance.inside(|| {
            let store = Connection::open_with_flags(LOCAL_STORE, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
            store.busy_timeout(Duration::from_secs(10))?;
            let value = |key: &str| -> rusqlite::Result<Option<Vec<u8>>> {
                let get = "SELECT value FROM spin_key_value WHERE key = ?1";
                store.query_row(get, [key], |row| row.get(0)).optional()
            };
            let outage = value("links:outage:cache")?.and_then(|outage| Outage::decode(&outage));
            let outage = outage.context("no instance has told the others of an outage")?;
            let ended = value("links:outage-end:cache")?.and_then(|end| decode_end(&end));
            let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis();
            Ok(matches!(
                SharedState::new(outage, ended, now.try_into()?),
                SharedState::Closed(_)
            ))
        })
    }

    fn keeps(&self, key: &str) -> Result<bool> {
        Ok(self.ask(PASSWORD, &["exists", key])? == "1")
    }

    fn ask(&self, password: &str, words: &[&str]) -> Result<String> {
        let client = ["redis-cli", "--no-auth-warning", "-a", password, "-n", "1"];
        let answer = self.appliance.ok([&client, words].concat())?.stdout;
        let answer = answer.trim();
        ensure!(
            !answer.contains("ERR") && !answer.contains("WRONGPASS"),
            "{words:?}: {answer}"
        );
        Ok(answer.to_owned())
    }
}
