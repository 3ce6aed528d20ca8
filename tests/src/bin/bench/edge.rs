//! The whole appliance behind nginx, compared with what limits it: nginx's own `return 302`, and a component that does
//! nothing, on the same runtime behind the same nginx.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use links_tests::http::Client;
use links_tests::{DATABASE, Host, eventually};
use rusqlite::Connection;
use serde::Serialize;

use crate::load::Wrk;
use crate::peer::Peer;
use crate::{CREATE, ROUNDS, SECONDS_PER_ROUND, median};

const LINKS: u32 = 1_000_000;
/// The number of links that the Zipf distribution covers.
const POPULAR: u32 = 100_000;
/// Enough connections that each of nginx's workers gets some in every round.
const CONNECTIONS: u32 = 64;
pub const GENERATOR: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/bench/links.lua");
const HELLO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/hello/spin.toml");
/// The versions with which the components in the package were built.
const VERSIONS: &str = "/usr/lib/links/bundle/components/versions.json";
pub const SITE: &str = "/etc/nginx/sites-enabled/links";

/// How long the popular links are requested before each measurement, in seconds. nginx's cache has filled by then.
const WARM_UP: u32 = 20;

/// How many times per round the subjects that are compared with nginx's own answers take turns with it. They alternate
/// because the speed of a shared machine varies over time.
const TURNS: usize = 3;
const SECONDS_PER_TURN: u32 = 3;

/// How long counting may take. The clicks of very many links are held back for a minute, to be counted together.
const COUNTED_WITHIN: Duration = Duration::from_secs(180);

/// The ports of the bench in nginx.
const BARE: u16 = 8301;
pub const NO_CACHE: u16 = 8302;
const HELLO_NGINX_PORT: u16 = 8303;
/// The ports of the two instances of hello world.
const HELLO_PORTS: [u16; 2] = [7901, 7902];

/// The links that are requested.
#[derive(Clone, Copy)]
enum Load {
    One,
    Zipf,
    Uniform,
    Create,
}

/// One row of the table.
struct Subject {
    name: &'static str,
    port: u16,
    load: Load,
    /// Whether this port serves the links themselves, so that `check` can verify the `Location`.
    serves_links: bool,
    when: When,
}

/// When a subject is measured in a round. A subject with many clicks left to count comes last, because the counting would
/// slow down the subject after it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum When {
    First,
    InTurns,
    Last,
}

const fn subject(name: &'static str, port: u16, load: Load, serves_links: bool, when: When) -> Subject {
    Subject {
        name,
        port,
        load,
        serves_links,
        when,
    }
}

const LIMIT: &str = "nginx, return 302";
const UNCACHED: &str = "no cache, any of 1,000,000";
const HELLO_BEHIND_NGINX: &str = "hello world behind nginx";
const AN_INSTANCE: &str = "an instance, any of 1,000,000";
const HELLO_INSTANCE: &str = "hello world, an instance";

/// The subjects, in the order of the table.
const SUBJECTS: [Subject; 10] = [
    subject(LIMIT, BARE, Load::One, false, When::InTurns),
    subject("cached, one link", 80, Load::One, true, When::InTurns),
    subject("cached, Zipf 1.1 of 100,000", 80, Load::Zipf, true, When::InTurns),
    subject("cached, any of 1,000,000", 80, Load::Uniform, true, When::Last),
    subject(UNCACHED, NO_CACHE, Load::Uniform, true, When::First),
    subject(HELLO_BEHIND_NGINX, HELLO_NGINX_PORT, Load::Uniform, false, When::First),
    subject("no cache, one link", NO_CACHE, Load::One, true, When::First),
    subject(AN_INSTANCE, 7001, Load::Uniform, true, When::First),
    subject(HELLO_INSTANCE, HELLO_PORTS[0], Load::Uniform, false, When::First),
    subject("creates through nginx", 80, Load::Create, true, When::First),
];

#[derive(Clone, Debug, Serialize)]
pub struct Figures {
    rows: Vec<Row>,
    /// Another shortener on this machine; empty if there is none.
    peer: Vec<Row>,
    /// The throughput of the uncached path behind nginx, as a share of hello world's behind nginx.
    of_hello_behind_nginx: f64,
    /// The same ratio for requests straight to an instance.
    of_hello_at_an_instance: f64,
}

/// The medians of all runs, and the medians of each round's ratios.
#[derive(Clone, Debug, Serialize)]
struct Row {
    name: String,
    per_second: f64,
    p50_ms: f64,
    p99_ms: f64,
    of_limit: f64,
    of_no_cache: f64,
    /// All runs: one per round, or one per turn.
    runs: Vec<Wrk>,
}

/// The runs of each subject. Each round adds the same number of them.
struct Runs(Vec<Vec<Wrk>>);

impl Runs {
    fn of(&self, name: &str) -> &[Wrk] {
        let subjects = SUBJECTS.iter().zip(&self.0);
        let mut runs = subjects.filter_map(|(subject, runs)| (subject.name == name).then_some(runs));
        runs.next().map_or(&[], |runs| runs)
    }

    fn row(&self, name: &str, runs: &[Wrk]) -> Row {
        let of = |value: fn(&Wrk) -> f64| median(runs.iter().map(value).collect());
        Row {
            name: name.to_owned(),
            per_second: of(|wrk| wrk.per_second),
            p50_ms: of(|wrk| wrk.p50_ms),
            p99_ms: of(|wrk| wrk.p99_ms),
            of_limit: quotient(runs, self.of(LIMIT)),
            of_no_cache: quotient(runs, self.of(UNCACHED)),
            runs: runs.to_vec(),
        }
    }
}

/// The median over all rounds of the ratio of each round's medians.
fn quotient(some: &[Wrk], others: &[Wrk]) -> f64 {
    let by_round = |runs: &[Wrk]| {
        let rounds = runs.chunks((runs.len() / ROUNDS).max(1));
        let rounds = rounds.map(|runs| median(runs.iter().map(|wrk| wrk.per_second).collect()));
        rounds.collect::<Vec<_>>()
    };
    crate::quotient(&by_round(some), &by_round(others))
}

/// Measures all subjects, and in the same rounds `peer`, another shortener.
///
/// # Errors
/// Fails if the lab does not work here, or if an answer is not the expected one.
pub fn measure(peer: Option<&Peer>) -> Result<Figures> {
    let bench = Bench::new()?;
    let peer = peer.map_or_else(Vec::new, |peer| peer.loads(GENERATOR, POPULAR));
    bench.check()?;
    let mut runs = Runs(vec![vec![]; SUBJECTS.len()]);
    let mut of_peer = vec![vec![]; peer.len()];
    for round in 0..ROUNDS {
        bench.host.wait_until_counted(COUNTED_WITHIN)?;
        bench.run_all(When::First, SECONDS_PER_ROUND, round, &mut runs)?;
        for (load, runs) in peer.iter().zip(&mut of_peer) {
            runs.push(load.run(SECONDS_PER_ROUND, CONNECTIONS)?);
        }
        for subject in SUBJECTS.iter().filter(|subject| matches!(subject.load, Load::Zipf)) {
            bench.run(subject, WARM_UP, round)?;
        }
        for _ in 0..TURNS {
            bench.run_all(When::InTurns, SECONDS_PER_TURN, round, &mut runs)?;
        }
        bench.run_all(When::Last, SECONDS_PER_ROUND, round, &mut runs)?;
    }
    bench.check()?;
    let rows = SUBJECTS.iter().zip(&runs.0);
    Ok(Figures {
        rows: rows.map(|(subject, of_it)| runs.row(subject.name, of_it)).collect(),
        peer: peer
            .iter()
            .zip(&of_peer)
            .map(|(load, of_it)| runs.row(&load.name, of_it))
            .collect(),
        of_hello_behind_nginx: quotient(runs.of(UNCACHED), runs.of(HELLO_BEHIND_NGINX)),
        of_hello_at_an_instance: quotient(runs.of(AN_INSTANCE), runs.of(HELLO_INSTANCE)),
    })
}

struct Bench {
    host: Host,
    token: String,
}

impl Bench {
    fn new() -> Result<Self> {
        let host = Host::builder().real_syncs().packages(&["wrk"]).serving()?;
        // wrk cannot use Unix sockets. With this file, the instances open their ports too.
        host.shell("touch /run/links/site-not-loaded && linksctl restart")?;
        host.wait_for_rotation(2)?;
        host.inside(|| fill(&Connection::open(DATABASE)?, LINKS))?;
        host.ok(["mkdir", "/var/tmp/hello"])?;
        host.copy_in(Path::new(HELLO), "/var/tmp/hello/spin.toml")?;
        host.copy_in(Path::new(&hello_wasm(&host)?), "/var/tmp/hello/hello.wasm")?;
        host.copy_in(Path::new(GENERATOR), "/var/tmp/links.lua")?;
        host.copy_in(Path::new(CREATE), "/var/tmp/create.lua")?;
        let runtime = runtime(&host)?;
        for port in HELLO_PORTS {
            let start = format!(
                "systemd-run --quiet --unit=hello-{port} --setenv=HOME=/var/tmp/hello --setenv=XDG_CACHE_HOME=/var/tmp/hello \
                 {runtime} up --from /var/tmp/hello/spin.toml \
                 --listen 127.0.0.1:{port} --state-dir /var/tmp/hello/{port}"
            );
            host.shell(&start)?;
        }
        let site = host.read(SITE)?;
        host.write("/etc/nginx/sites-enabled/zz-bench", sites(&site)?)?;
        host.reload_nginx()?;
        for port in HELLO_PORTS {
            let hello = host.http_at(port);
            eventually("hello world answers", Duration::from_secs(60), || {
                Ok(hello.get("/hello").is_ok().then_some(()))
            })?;
        }
        let token = host.token()?;
        Ok(Self { host, token })
    }

    /// Checks that every subject answers with the right redirect.
    fn check(&self) -> Result<()> {
        for subject in &SUBJECTS {
            let client: Client = self.host.http_at(subject.port);
            for link in [1, 2, POPULAR, LINKS] {
                let answer = client.get(&format!("/{}", slug(link)))?;
                ensure!(
                    answer.status == 302 && (!subject.serves_links || answer.header("location") == target(link)),
                    "{}: {answer}",
                    subject.name
                );
            }
        }
        Ok(())
    }

    /// Hints about a failure: nginx's counts by status, and the last log lines of the instances.
    fn failure_hints(&self) -> String {
        let page = self.host.http_at(9464).get("/metrics").map(|page| page.text());
        let page = page.unwrap_or_else(|failure| failure.to_string());
        let statuses = page
            .lines()
            .filter(|line| line.starts_with("links_http_requests_total"));
        let journal = self.host.instances_journal();
        let journal = journal.unwrap_or_else(|error| format!("{error:#}"));
        let last: Vec<_> = journal.lines().rev().take(20).collect();
        let last = last.into_iter().rev();
        statuses.chain(last).map(|line| format!("{line}\n")).collect()
    }

    /// Runs every subject of this part of the round once.
    fn run_all(&self, when: When, seconds: u32, round: usize, runs: &mut Runs) -> Result<()> {
        let subjects = SUBJECTS.iter().zip(&mut runs.0);
        for (subject, runs) in subjects.filter(|(subject, _)| subject.when == when) {
            runs.push(self.run(subject, seconds, round)?);
        }
        Ok(())
    }

    fn run(&self, subject: &Subject, seconds: u32, round: usize) -> Result<Wrk> {
        let (script, path, arguments) = match subject.load {
            Load::One => ("links", "", format!("one 1 {round}")),
            Load::Zipf => ("links", "", format!("zipf {POPULAR} {round}")),
            Load::Uniform => ("links", "", format!("uniform {LINKS} {round}")),
            Load::Create => ("create", "shorten", format!("{} {round}", self.token)),
        };
        let command = format!(
            "wrk --latency -t1 -c{CONNECTIONS} -d{seconds}s -s /var/tmp/{script}.lua http://127.0.0.1:{}/{path} -- {arguments}",
            subject.port
        );
        let result = self.host.shell(&command).and_then(|output| Wrk::parse(&output.stdout));
        result.with_context(|| format!("{}\n{}", subject.name, self.failure_hints()))
    }
}

/// The path of the build of hello world that fits the runtime in the package.
fn hello_wasm(host: &Host) -> Result<String> {
    let versions: serde_json::Value = serde_json::from_str(&host.read(VERSIONS)?)?;
    let version = versions["redirect"]["wasi:http"].as_str();
    let version = version.with_context(|| format!("{VERSIONS} names no version of wasi:http"))?;
    Ok(format!("target/components/wasi-{version}/hello.wasm"))
}

/// The path of the runtime that the instances run.
fn runtime(host: &Host) -> Result<String> {
    let release = host
        .ok(["readlink", "--canonicalize", "/var/lib/links/instances/1"])?
        .stdout;
    let release = release.trim();
    let manifest = host.read(&format!("{release}/manifest.json"))?;
    let manifest: serde_json::Value = serde_json::from_str(&manifest)?;
    let path = manifest["runtime"]["path"]
        .as_str()
        .context("the manifest names no runtime")?;
    Ok(format!("{release}/{path}"))
}

/// The slug of a link, as bench/links.lua computes it. Slugs are unique for links up to 268,435,398, and unordered.
pub fn slug(link: u32) -> String {
    format!("{:07x}", u64::from(link) * 16_777_619 % 268_435_399)
}

fn target(link: u32) -> String {
    format!("https://example.com/{link}")
}

/// Inserts the links 1 to `links` into the existing tables.
///
/// # Errors
/// Fails if the database refuses them, or if some of them exist already.
pub fn fill(database: &Connection, links: u32) -> Result<()> {
    database.busy_timeout(Duration::from_secs(60))?;
    database.pragma_update(None, "cache_size", -1_000_000)?;
    let changed = database.execute(
        "WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < ?1)
         INSERT INTO links (slug, url, created_at)
         SELECT printf('%07x', n * 16777619 % 268435399), 'https://example.com/' || n, 0 FROM numbers",
        [links],
    )?;
    ensure!(changed == links as usize, "only {changed} links were new");
    database.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
    Ok(())
}

/// The nginx sites of the bench, derived from the appliance's site: one without a cache, and one in front of hello world.
pub fn sites(site: &str) -> Result<String> {
    let public = site.find("\nserver {\n").context("the site has no server")?;
    let end = public + site[public..].find("\n}\n").context("the server has no end")? + 3;
    let server = &site[public..end];
    let replaced = |text: &str, from: &str, to: &str| {
        ensure!(text.contains(from), "the site has no `{from}`:\n{text}");
        Ok(text.replace(from, to))
    };
    let moved = |port: u16| {
        let lines = server.lines().filter(|line| !line.trim_start().starts_with("listen "));
        let lines: Vec<_> = lines.collect();
        replaced(
            &lines.join("\n"),
            "server {",
            &format!("server {{\n    listen 127.0.0.1:{port};"),
        )
    };
    let uncached = |port| replaced(&moved(port)?, "proxy_cache links_edge;", "proxy_cache off;");
    // The site passes requests to `links_all`, and to `$links_pool` while a readiness flag is missing.
    let hello = replaced(&uncached(HELLO_NGINX_PORT)?, "http://$links_pool", "http://bench_hello")?;
    let hello = replaced(&hello, "http://links_all/", "http://bench_hello/")?;
    let [one, two] = HELLO_PORTS;
    Ok(format!(
        "server {{ listen 127.0.0.1:{BARE}; access_log off; return 302 https://example.com/hello; }}\n\
         upstream bench_hello {{ server 127.0.0.1:{one}; server 127.0.0.1:{two}; keepalive 64; keepalive_timeout 1s; }}\n\
         {}\n{hello}\n",
        uncached(NO_CACHE)?
    ))
}

impl Figures {
    pub fn print(&self) {
        println!(
            "\n{:<31} {:>10} {:>8} {:>8} {:>10} {:>10}",
            "behind nginx", "requests/s", "p50 ms", "p99 ms", "of limit", "of no cache"
        );
        for row in self.rows.iter().chain(&self.peer) {
            println!(
                "{:<31} {:>10.0} {:>8.2} {:>8.2} {:>10.2} {:>10.2}",
                row.name, row.per_second, row.p50_ms, row.p99_ms, row.of_limit, row.of_no_cache
            );
        }
        println!(
            "\nrelative to hello world: {:.2} behind nginx without a cache, {:.2} at an instance",
            self.of_hello_behind_nginx, self.of_hello_at_an_instance
        );
        println!(
            "\nmedians of {ROUNDS} rounds of {SECONDS_PER_ROUND} s; the first three rows take turns, {TURNS} times {SECONDS_PER_TURN} s a round, \
             after {WARM_UP} s of Zipf;\nratios are medians of each round's, and the limit is the first row; {CONNECTIONS} connections, two \
             instances, the journal on;\neach round begins when all earlier clicks are counted"
        );
    }
}
