//! Links move from SQLite to a libSQL server with a Redis cache, and back, while clients shorten and follow them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Result, ensure};
use links_tests::load::{Connections, Link, Load, Mix, Report, Running, verify_all};
use links_tests::servers::{LibSql, redis};
use links_tests::{DATABASE, Host, Output, RUNTIME_TOML};
use serde_json::Value;

const TURSO: &str = "turso-s3cret";
const REDIS: &str = "redis-s3cret";

const LINKS_TOML: &str = "[rollout]\nmin_healthy = \"500ms\"\n[cache]\nttl = \"2s\"\n";
const LOCAL: &str = "[sqlite_database.default]\ntype = \"spin\"\npath = \"/var/lib/links/data/links.db\"\n";

#[test]
fn links_move_to_libsql_and_redis_and_back_under_load() -> Result<()> {
    let host = Host::builder().packages(&["redis-server"]).serving()?;
    let libsql = LibSql::start_in(&host, TURSO)?;
    let _redis = redis(&host, REDIS)?;
    host.credential("turso_token", TURSO)?;
    host.credential("redis_url", &format!("redis://:{REDIS}@127.0.0.1:6379"))?;
    let remote = format!(
        "{}[key_value_store.default]\ntype = \"redis\"\nurl = \"credential:redis_url\"\n",
        LibSql::runtime_toml()
    );
    let to_file = format!("sqlite:{DATABASE}");
    let server = &format!("libsql:{}", LibSql::URL);
    let copy = |arguments: &[&str]| {
        let arguments = [&["linksctl", "db", "copy", "--json"], arguments].concat();
        host.run(&arguments)
    };
    host.configure(LINKS_TOML, LOCAL)?;
    let first: Vec<_> = (0..300)
        .map(|number| host.shorten(&format!("https://example.com/first/{number}")))
        .collect::<Result<_>>()?;

    // From the local file to the server.
    let load = Users::start(&host, &first)?;
    load.more()?;
    let to_server = || copy(&["--to", server, "--token", "credential:turso_token"]);
    let copied = compared(&to_server()?)?;
    ensure!(copied["added"].as_u64() >= Some(300), "{copied}");
    is_refused(&host, LibSql::DATABASE, to_server)?;
    host.write(RUNTIME_TOML, &remote)?;
    let checked = host.check_online()?;
    ensure!(checked.answers()? && checked.outcomes()?.len() == 2, "{checked:?}");
    host.configure(LINKS_TOML, &remote)?;
    load.more()?;
    let resumed = compared(&copy(&["--resume", "--from", &to_file])?)?;
    ensure!(
        resumed["added"].as_u64() > Some(0),
        "links created during the first copy were not copied: {resumed}"
    );
    let report = load.finish()?;
    no_link_is_lost(&host, &first, &report)?;
    let on_server = every_link(&host, LibSql::DATABASE)?;
    ensure!(
        every_link(&host, DATABASE)?
            .iter()
            .all(|(slug, url)| on_server.get(slug) == Some(url))
    );
    let keys = host
        .ok(["redis-cli", "--no-auth-warning", "-a", REDIS, "dbsize"])?
        .stdout;
    ensure!(keys.trim().parse::<u64>()? > 300, "Redis holds only {keys} keys");

    // And back to the local file, which still exists.
    let again = Users::start(&host, &report.acknowledged)?;
    again.more()?;
    is_refused(&host, DATABASE, || copy(&["--to", &to_file]))?;
    compared(&copy(&["--resume", "--to", &to_file])?)?;
    host.configure(LINKS_TOML, LOCAL)?;
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
    no_link_is_lost(&host, &first, &report)?;
    no_link_is_lost(&host, &first, &last)?;
    let in_file = every_link(&host, DATABASE)?;
    ensure!(on_server.iter().all(|(slug, url)| in_file.get(slug) == Some(url)));
    Ok(())
}

/// Clients that create links, and clients that follow the links that existed when they started.
struct Users {
    writers: Running,
    readers: Running,
}

impl Users {
    fn start(host: &Host, known: &[Link]) -> Result<Self> {
        let label = format!("moving-{}", known.len());
        let load = Load::through([host.site()?]).connections(Connections::Both);
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
    let report: Value = output.json()?;
    println!("{report}");
    ensure!(
        report["checksum"].as_str().is_some_and(|sum| sum.len() == 32),
        "{report}"
    );
    ensure!(report["target_links"].as_u64() >= report["links"].as_u64(), "{report}");
    Ok(report)
}

/// Checks that a copy to a database that holds links already is refused and does not change them. `target` is the file of that
/// database.
fn is_refused(host: &Host, target: &str, copy: impl FnOnce() -> Result<Output>) -> Result<()> {
    let before = every_link(host, target)?;
    let refused = copy()?;
    ensure!(refused.status == 1, "{refused}");
    for part in ["nothing was changed", "--resume"] {
        ensure!(
            refused.stderr.contains(part),
            "{part:?} should be in the error: {refused}"
        );
    }
    ensure!(
        every_link(host, target)? == before,
        "the refused copy has changed links in {target}"
    );
    Ok(())
}

fn no_link_is_lost(host: &Host, first: &[Link], report: &Report) -> Result<()> {
    for links in [first, &report.acknowledged] {
        let lost = verify_all(&host.http(), links)?;
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
fn every_link(host: &Host, file: &str) -> Result<BTreeMap<String, String>> {
    let links: BTreeMap<String, String> = host.read_database(file, |database| {
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
