//! The whole appliance with nginx in front, beside what bounds it: nginx's own `return 302` and a component that does
//! nothing, on the same runtime behind the same nginx.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use links_tests::http::Client;
use links_tests::{Appliance, DATABASE, Tree, eventually};
use rusqlite::Connection;
use serde::Serialize;

use crate::load::{Wrk, wrk};
use crate::{CREATE, ROUNDS, SECONDS_PER_ROUND, median};

const LINKS: u32 = 1_000_000;
/// That are asked for by a Zipf distribution.
const POPULAR: u32 = 100_000;
/// Enough that both of nginx's workers have some in each round.
const CONNECTIONS: u32 = 64;
pub const GENERATOR: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/bench/links.lua");
const HELLO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/hello/spin.toml");
/// What the components in the package were built with.
const VERSIONS: &str = "/usr/lib/links/bundle/components/versions.json";
pub const SITE: &str = "/etc/nginx/sites-enabled/links";

/// How long the popular links are asked for before that is measured, in seconds: until nginx has those that it would have.
const WARM_UP: u32 = 20;

/// A machine that others share is not equally fast for long. So what is compared with nginx's own answers takes turns with
/// them, several times in a round.
const TURNS: usize = 3;
const SECONDS_PER_TURN: u32 = 3;

/// Clicks of very many links wait for others for a minute.
const COUNTED_WITHIN: Duration = Duration::from_secs(180);

/// nginx's ports of the bench.
const BARE: u16 = 8301;
pub const NO_CACHE: u16 = 8302;
const HELLO_BEHIND: u16 = 8303;
/// Of the two instances of hello world.
const HELLOS: [u16; 2] = [7901, 7902];

/// What is asked for.
#[derive(Clone, Copy)]
enum Load {
    One,
    Zipf,
    Uniform,
    Create,
}

/// What is measured.
struct Subject {
    name: &'static str,
    port: u16,
    load: Load,
    /// Whether the links themselves answer there.
    leads: bool,
    when: When,
}

/// In a round. What leaves many clicks to be counted comes last: whoever comes after it has a part of that work.
#[derive(Clone, Copy, PartialEq, Eq)]
enum When {
    First,
    InTurns,
    Last,
}

const fn subject(name: &'static str, port: u16, load: Load, leads: bool, when: When) -> Subject {
    Subject {
        name,
        port,
        load,
        leads,
        when,
    }
}

const LIMIT: &str = "nginx, return 302";
const UNCACHED: &str = "no cache, any of 1,000,000";
const HELLO_BEHIND_NGINX: &str = "hello world behind nginx";
const AN_INSTANCE: &str = "an instance, any of 1,000,000";
const HELLO_INSTANCE: &str = "hello world, an instance";

/// In the order of the table.
const SUBJECTS: [Subject; 10] = [
    subject(LIMIT, BARE, Load::One, false, When::InTurns),
    subject("cached, one link", 80, Load::One, true, When::InTurns),
    subject("cached, Zipf 1.1 of 100,000", 80, Load::Zipf, true, When::InTurns),
    subject("cached, any of 1,000,000", 80, Load::Uniform, true, When::Last),
    subject(UNCACHED, NO_CACHE, Load::Uniform, true, When::First),
    subject(HELLO_BEHIND_NGINX, HELLO_BEHIND, Load::Uniform, false, When::First),
    subject("no cache, one link", NO_CACHE, Load::One, true, When::First),
    subject(AN_INSTANCE, 7001, Load::Uniform, true, When::First),
    subject(HELLO_INSTANCE, HELLOS[0], Load::Uniform, false, When::First),
    subject("creates through nginx", 80, Load::Create, true, When::First),
];

#[derive(Clone, Debug, Serialize)]
pub struct Figures {
    rows: Vec<Row>,
    /// Another shortener, on this machine.
    peer: Option<Row>,
    /// The uncached path, of hello world on the same way.
    of_hello_behind_nginx: f64,
    of_hello_at_an_instance: f64,
}

/// Medians of all runs, and of the quotients of each round.
#[derive(Clone, Debug, Serialize)]
struct Row {
    name: String,
    per_second: f64,
    p50_ms: f64,
    p99_ms: f64,
    of_limit: f64,
    of_no_cache: f64,
    /// One a round, or one a turn.
    runs: Vec<Wrk>,
}

/// All runs of each subject, as many in each round.
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

/// Of the medians of each round.
fn quotient(some: &[Wrk], others: &[Wrk]) -> f64 {
    let by_round = |runs: &[Wrk]| {
        let rounds = runs.chunks((runs.len() / ROUNDS).max(1));
        let rounds = rounds.map(|runs| median(runs.iter().map(|wrk| wrk.per_second).collect()));
        rounds.collect::<Vec<_>>()
    };
    crate::quotient(&by_round(some), &by_round(others))
}

/// `peer`: the URL of a redirect of another shortener, which is measured in the same rounds.
///
/// # Errors
/// The lab does not work here, or an answer is not the expected one.
pub fn measure(peer: Option<&str>) -> Result<Figures> {
    let bench = Bench::new()?;
    if let Some(url) = peer {
        redirects(url)?;
    }
    bench.check()?;
    let mut runs = Runs(vec![vec![]; SUBJECTS.len()]);
    let mut of_peer = vec![];
    for round in 0..ROUNDS {
        bench.appliance.wait_until_counted(COUNTED_WITHIN)?;
        bench.run_all(When::First, SECONDS_PER_ROUND, round, &mut runs)?;
        if let Some(url) = peer {
            of_peer.push(wrk(SECONDS_PER_ROUND, CONNECTIONS, &[url]).context("PEER")?);
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
        peer: peer.map(|url| runs.row(url, &of_peer)),
        of_hello_behind_nginx: quotient(runs.of(UNCACHED), runs.of(HELLO_BEHIND_NGINX)),
        of_hello_at_an_instance: quotient(runs.of(AN_INSTANCE), runs.of(HELLO_INSTANCE)),
    })
}

struct Bench {
    appliance: Appliance,
    token: String,
}

impl Bench {
    fn new() -> Result<Self> {
        let appliance = Appliance::installed_on(&Tree::with_nginx_and(&["wrk"])?)?;
        // wrk knows no Unix sockets: with this, the instances open their ports as well.
        appliance.shell("touch /run/links/site-not-loaded && linksctl restart")?;
        appliance.wait_for_rotation(2)?;
        appliance.inside(|| fill(&Connection::open(DATABASE)?, LINKS))?;
        appliance.ok(["mkdir", "/var/tmp/hello"])?;
        appliance.copy_in(Path::new(HELLO), "/var/tmp/hello/spin.toml")?;
        appliance.copy_in(Path::new(&hello_wasm(&appliance)?), "/var/tmp/hello/hello.wasm")?;
        appliance.copy_in(Path::new(GENERATOR), "/var/tmp/links.lua")?;
        appliance.copy_in(Path::new(CREATE), "/var/tmp/create.lua")?;
        let runtime = runtime(&appliance)?;
        for port in HELLOS {
            let start = format!(
                "systemd-run --quiet --unit=hello-{port} --setenv=HOME=/var/tmp/hello --setenv=XDG_CACHE_HOME=/var/tmp/hello \
                 {runtime} up --from /var/tmp/hello/spin.toml \
                 --listen 127.0.0.1:{port} --state-dir /var/tmp/hello/{port}"
            );
            appliance.shell(&start)?;
        }
        let site = appliance.read(SITE)?;
        appliance.write("/etc/nginx/sites-enabled/zz-bench", sites(&site)?)?;
        appliance.reload_nginx()?;
        for port in HELLOS {
            let hello = appliance.http_at(port);
            eventually("hello world answers", Duration::from_secs(60), || {
                Ok(hello.get("/hello").is_ok().then_some(()))
            })?;
        }
        let token = appliance.token()?;
        Ok(Self { appliance, token })
    }

    /// Every way leads where it should.
    fn check(&self) -> Result<()> {
        for subject in &SUBJECTS {
            let client: Client = self.appliance.http_at(subject.port);
            for link in [1, 2, POPULAR, LINKS] {
                let answer = client.get(&format!("/{}", slug(link)))?;
                ensure!(
                    answer.status == 302 && (!subject.leads || answer.header("location") == target(link)),
                    "{}: {answer}",
                    subject.name
                );
            }
        }
        Ok(())
    }

    /// For who looks for the reason of a failure: how often nginx answered with what, and what the instances complain of.
    fn what_is_said(&self) -> String {
        let page = self.appliance.http_at(9464).get("/metrics").map(|page| page.text());
        let page = page.unwrap_or_else(|failure| failure.to_string());
        let statuses = page
            .lines()
            .filter(|line| line.starts_with("links_http_requests_total"));
        let said = self.appliance.instances_said();
        let said = said.unwrap_or_else(|error| format!("{error:#}"));
        let last: Vec<_> = said.lines().rev().take(20).collect();
        let last = last.into_iter().rev();
        statuses.chain(last).map(|line| format!("{line}\n")).collect()
    }

    /// Each subject of this time once.
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
        let result = self
            .appliance
            .shell(&command)
            .and_then(|output| Wrk::parse(&output.stdout));
        result.with_context(|| format!("{}\n{}", subject.name, self.what_is_said()))
    }
}

/// The build of hello world for the runtime of the package.
fn hello_wasm(appliance: &Appliance) -> Result<String> {
    let versions: serde_json::Value = serde_json::from_str(&appliance.read(VERSIONS)?)?;
    let version = versions["redirect"]["wasi:http"].as_str();
    let version = version.with_context(|| format!("{VERSIONS} names no version of wasi:http"))?;
    Ok(format!("target/components/wasi-{version}/hello.wasm"))
}

/// The program that the instances run.
fn runtime(appliance: &Appliance) -> Result<String> {
    let release = appliance
        .ok(["readlink", "--canonicalize", "/var/lib/links/instances/1"])?
        .stdout;
    let release = release.trim();
    let manifest = appliance.read(&format!("{release}/manifest.json"))?;
    let manifest: serde_json::Value = serde_json::from_str(&manifest)?;
    let path = manifest["runtime"]["path"]
        .as_str()
        .context("the manifest names no runtime")?;
    Ok(format!("{release}/{path}"))
}

/// As in bench/links.lua: different for links up to 268,435,398, and in no order.
pub fn slug(link: u32) -> String {
    format!("{:07x}", u64::from(link) * 16_777_619 % 268_435_399)
}

fn target(link: u32) -> String {
    format!("https://example.com/{link}")
}

/// Links 1 to `links`, in tables that are there.
///
/// # Errors
/// The database does not take them.
pub fn fill(database: &Connection, links: u32) -> Result<()> {
    database.busy_timeout(Duration::from_secs(60))?;
    database.pragma_update(None, "cache_size", -1_000_000)?;
    let changed = database.execute(
        "WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < ?1)
         INSERT INTO links (slug, url, created_at)
         SELECT printf('%07x', n * 16777619 % 268435399), 'https://example.com/' || n, 0 FROM numbers",
        [links],
    )?;
    ensure!(changed == links as usize, "{changed} links were new");
    database.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
    Ok(())
}

/// nginx's sites of the bench, made of the appliance's own: the same without a cache, and the same before hello world.
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
    // Also while a flag is missing.
    let hello = replaced(&uncached(HELLO_BEHIND)?, "http://$links_pool", "http://bench_hello")?;
    let hello = replaced(&hello, "http://links_all/", "http://bench_hello/")?;
    let [one, two] = HELLOS;
    Ok(format!(
        "server {{ listen 127.0.0.1:{BARE}; access_log off; return 302 https://example.com/hello; }}\n\
         upstream bench_hello {{ server 127.0.0.1:{one}; server 127.0.0.1:{two}; keepalive 64; keepalive_timeout 1s; }}\n\
         {}\n{hello}\n",
        uncached(NO_CACHE)?
    ))
}

/// A redirect of another shortener, of whatever kind.
fn redirects(url: &str) -> Result<()> {
    let output = Command::new("curl")
        .args(["--silent", "--head", "--request", "GET", url])
        .output()?;
    let head = String::from_utf8_lossy(&output.stdout).to_lowercase();
    let is_redirect = ["301", "302", "303", "307", "308"]
        .iter()
        .any(|status| head.lines().next().is_some_and(|line| line.contains(status)));
    ensure!(
        is_redirect && head.contains("\nlocation: "),
        "PEER={url} is no redirect:\n{head}"
    );
    Ok(())
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
            "\nof hello world: {:.2} behind nginx without a cache, {:.2} at an instance",
            self.of_hello_behind_nginx, self.of_hello_at_an_instance
        );
        println!(
            "\nmedians of {ROUNDS} rounds of {SECONDS_PER_ROUND} s, the first three rows {TURNS} times {SECONDS_PER_TURN} s a round in turns after {WARM_UP} s \
             of Zipf;\nshares are medians of those in each round, the limit is the first row; {CONNECTIONS} connections, two \
             instances, the journal on,\neach round when all clicks before it are counted"
        );
    }
}
