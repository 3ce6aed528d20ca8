//! Links move from SQLite to a libSQL server with a Redis cache, and back, while clients shorten and follow them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use links_tests::load::{Connections, Link, Load, Mix, Report, Running, verify_all};
use links_tests::servers::{LibSql, credential, redis};
use links_tests::{Appliance, DATABASE, Output, Tree};
use rusqlite::{Connection, OpenFlags};
use serde_json::Value;

const HRANA: &str = env!("CARGO_BIN_EXE_hrana-server");
const TURSO: &str = "turso-s3cret";
const REDIS: &str = "redis-s3cret";

const LINKS_TOML: &str = "[rollout]\nmin_healthy = \"500ms\"\n[cache]\nttl = \"2s\"\n";
const LOCAL: &str = "[sqlite_database.default]\ntype = \"spin\"\npath = \"/var/lib/links/data/links.db\"\n";

#[test]
fn links_move_to_libsql_and_redis_and_back_under_load() -> Result<()> {
    let appliance = Appliance::installed_on(&Tree::with_nginx_and(&["redis-server"])?)?;
    let libsql = LibSql::start_in(&appliance, HRANA, TURSO)?;
    let _redis = redis(&appliance, REDIS)?;
    credential(&appliance, "turso_token", TURSO)?;
    credential(&appliance, "redis_url", &format!("redis://:{REDIS}@127.0.0.1:6379"))?;
    let remote = format!(
        "[sqlite_database.default]\ntype = \"libsql\"\nurl = \"{}\"\ntoken = \"credential:turso_token\"\n\
         [key_value_store.default]\ntype = \"redis\"\nurl = \"credential:redis_url\"\n",
        LibSql::URL
    );
    let to_file = format!("sqlite:{DATABASE}");
    let server = &format!("libsql:{}", LibSql::URL);
    let copy = |arguments: &[&str]| {
        let arguments = [&["linksctl", "db", "copy", "--json"], arguments].concat();
        appliance.run(&arguments)
    };
    appliance.configure(LINKS_TOML, LOCAL)?;
    let first: Vec<_> = (0..300)
        .map(|number| appliance.shorten(&format!("https://example.com/first/{number}")))
        .collect::<Result<_>>()?;

    // From the local file to the server.
    let load = Users::start(&appliance, &first)?;
    load.more()?;
    let copied = compared(&copy(&["--to", server, "--token", "credential:turso_token"])?)?;
    ensure!(copied["added"].as_u64() >= Some(300), "{copied}");
    let refused = copy(&["--to", server, "--token", "credential:turso_token"])?;
    ensure!(refused.status == 1 && refused.stderr.contains("already"), "{refused}");
    appliance.write("/etc/links/runtime.toml", &remote)?;
    let checked = appliance.ok(["linksctl", "check", "--online"])?;
    let printed = format!("{}{}", checked.stdout, checked.stderr);
    ensure!(printed.matches(" answers, after ").count() == 2, "{checked}");
    appliance.configure(LINKS_TOML, &remote)?;
    load.more()?;
    let resumed = compared(&copy(&["--resume", "--from", &to_file])?)?;
    ensure!(
        resumed["added"].as_u64() > Some(0),
        "links created during the first copy were not copied: {resumed}"
    );
    let report = load.finish()?;
    no_link_is_lost(&appliance, &first, &report)?;
    let on_server = every_link(&appliance, LibSql::DATABASE)?;
    ensure!(
        every_link(&appliance, DATABASE)?
            .iter()
            .all(|(slug, url)| on_server.get(slug) == Some(url))
    );
    let keys = appliance
        .ok(["redis-cli", "--no-auth-warning", "-a", REDIS, "dbsize"])?
        .stdout;
    ensure!(keys.trim().parse::<u64>()? > 300, "Redis holds only {keys} keys");

    // And back to the local file, which still exists.
    let again = Users::start(&appliance, &report.acknowledged)?;
    again.more()?;
    let refused = copy(&["--to", &to_file])?;
    ensure!(refused.status == 1 && refused.stderr.contains("already"), "{refused}");
    compared(&copy(&["--resume", "--to", &to_file])?)?;
    appliance.configure(LINKS_TOML, LOCAL)?;
    again.more()?;
    let from_server = ["--resume", "--from", server, "--token", "credential:turso_token"];
    let resumed = compared(&copy(&from_server)?)?;
    ensure!(
        resumed["added"].as_u64() > Some(0),
        "links created during the first copy were not copied: {resumed}"
    );
    let last = again.finish()?;
    // Nothing needs the server from here on.
    libsql.stop()?;
    no_link_is_lost(&appliance, &first, &report)?;
    no_link_is_lost(&appliance, &first, &last)?;
    let in_file = every_link(&appliance, DATABASE)?;
    ensure!(on_server.iter().all(|(slug, url)| in_file.get(slug) == Some(url)));
    Ok(())
}

/// Clients that create links, and clients that follow the links that existed when they started.
struct Users {
    writers: Running,
    readers: Running,
}

impl Users {
    fn start(appliance: &Appliance, known: &[Link]) -> Result<Self> {
        let label = format!("moving-{}", known.len());
        let load = Load::through([appliance.site()?]).connections(Connections::Both);
        let writers = load.clone().workers(4).rate(60).label(&label);
        let readers = load.workers(8).rate(400).mix(Mix::Known).knowing(known);
        Ok(Self {
            writers: writers.start(),
            readers: readers.start(),
        })
    }

    /// Waits for enough requests to show what a change has broken.
    fn more(&self) -> Result<()> {
        for users in [&self.writers, &self.readers] {
            users.wait_for(users.asked() + 60, Duration::from_secs(30))?;
        }
        Ok(())
    }

    /// Stops the clients, checks that every answer was right, and returns the report of the writers.
    fn finish(self) -> Result<Report> {
        let (written, read) = (self.writers.stop()?, self.readers.stop()?);
        println!("shortened: {written}\nfollowed: {read}");
        for report in [&written, &read] {
            ensure!(
                report.failed() == 0,
                "{} requests failed: {:#?}",
                report.failed(),
                report.examples
            );
        }
        Ok(written)
    }
}

/// The report of a `db copy --json` that succeeded.
fn compared(output: &Output) -> Result<Value> {
    ensure!(output.status == 0, "linksctl db copy: {output}");
    let report: Value = serde_json::from_str(&output.stdout).with_context(|| output.stdout.clone())?;
    println!("{report}");
    ensure!(
        report["checksum"].as_str().is_some_and(|sum| sum.len() == 32),
        "{report}"
    );
    ensure!(report["target_links"].as_u64() >= report["links"].as_u64(), "{report}");
    Ok(report)
}

fn no_link_is_lost(appliance: &Appliance, first: &[Link], report: &Report) -> Result<()> {
    for links in [first, &report.acknowledged] {
        let lost = verify_all(&appliance.http(), links)?;
        ensure!(
            lost.is_empty(),
            "{} of {} links are lost: {:?}",
            lost.len(),
            links.len(),
            &lost[..lost.len().min(3)]
        );
    }
    Ok(())
}

/// The URL of each slug in a database file. Fails if a URL was shortened twice.
fn every_link(appliance: &Appliance, file: &str) -> Result<BTreeMap<String, String>> {
    let links: BTreeMap<String, String> = appliance.inside(|| {
        let database = Connection::open_with_flags(file, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        let mut query = database.prepare("SELECT slug, url FROM links")?;
        let rows = query.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
        Ok(rows.collect::<Result<_, _>>()?)
    })?;
    let urls: BTreeSet<_> = links.values().collect();
    ensure!(
        urls.len() == links.len(),
        "{file} has only {} distinct URLs for {} links",
        urls.len(),
        links.len()
    );
    Ok(links)
}
