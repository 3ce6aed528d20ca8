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
const GENERATOR: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/bench/links.lua");
const HELLO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/hello/spin.toml");
const HELLO_WASM: &str = "target/wasm32-wasip2/release/hello.wasm";
const SITE: &str = "/etc/nginx/sites-enabled/links";

/// How long the popular links are asked for before that is measured, in seconds: until nginx has those that it would have.
const WARM_UP: u32 = 20;

/// Clicks of very many links wait for others for a minute.
const COUNTED_WITHIN: Duration = Duration::from_secs(180);

/// nginx's ports of the bench.
const BARE: u16 = 8301;
const NO_CACHE: u16 = 8302;
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
}

const fn subject(name: &'static str, port: u16, load: Load, leads: bool) -> Subject {
    Subject {
        name,
        port,
        load,
        leads,
    }
}

const LIMIT: &str = "nginx, return 302";
const UNCACHED: &str = "no cache, any of 1,000,000";

/// In the order of the table, in which they are measured: what leaves many clicks to be counted comes last, since whoever
/// comes after it has a part of that work.
const SUBJECTS: [Subject; 10] = [
    subject(LIMIT, BARE, Load::One, false),
    subject("cached, one link", 80, Load::One, true),
    subject(UNCACHED, NO_CACHE, Load::Uniform, true),
    subject("hello world behind nginx", HELLO_BEHIND, Load::Uniform, false),
    subject("no cache, one link", NO_CACHE, Load::One, true),
    subject("an instance, any of 1,000,000", 7001, Load::Uniform, true),
    subject("hello world, an instance", HELLOS[0], Load::Uniform, false),
    subject("creates through nginx", 80, Load::Create, true),
    subject("cached, Zipf 1.1 of 100,000", 80, Load::Zipf, true),
    subject("cached, any of 1,000,000", 80, Load::Uniform, true),
];

#[derive(Clone, Debug, Serialize)]
pub struct Figures {
    rows: Vec<Row>,
    /// Another shortener, on this machine.
    peer: Option<Row>,
}

/// Medians of the rounds.
#[derive(Clone, Debug, Serialize)]
struct Row {
    name: String,
    per_second: f64,
    p50_ms: f64,
    p99_ms: f64,
    rounds: Vec<Wrk>,
}

impl Row {
    fn new(name: &str, rounds: Vec<Wrk>) -> Self {
        let of = |value: fn(&Wrk) -> f64| median(rounds.iter().map(value).collect());
        Self {
            name: name.to_owned(),
            per_second: of(|wrk| wrk.per_second),
            p50_ms: of(|wrk| wrk.p50_ms),
            p99_ms: of(|wrk| wrk.p99_ms),
            rounds,
        }
    }
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
    let mut rounds = vec![vec![]; SUBJECTS.len()];
    let mut of_peer = vec![];
    for round in 0..ROUNDS {
        bench.appliance.wait_until_counted(COUNTED_WITHIN)?;
        for (subject, results) in SUBJECTS.iter().zip(&mut rounds) {
            let result = bench.run(subject, round);
            let result = result.with_context(|| format!("{}\n{}", subject.name, bench.what_is_said()))?;
            results.push(result);
        }
        if let Some(url) = peer {
            of_peer.push(wrk(SECONDS_PER_ROUND, CONNECTIONS, &[url]).context("PEER")?);
        }
    }
    bench.check()?;
    let rows = SUBJECTS.iter().zip(rounds);
    Ok(Figures {
        rows: rows.map(|(subject, rounds)| Row::new(subject.name, rounds)).collect(),
        peer: peer.map(|url| Row::new(url, of_peer)),
    })
}

struct Bench {
    appliance: Appliance,
    token: String,
}

impl Bench {
    fn new() -> Result<Self> {
        let appliance = Appliance::installed_on(&Tree::with_nginx_and(&["wrk"])?)?;
        appliance.wait_for_rotation(2)?;
        appliance.inside(|| fill(&Connection::open(DATABASE)?, LINKS))?;
        appliance.ok(["mkdir", "/var/tmp/hello"])?;
        appliance.copy_in(Path::new(HELLO), "/var/tmp/hello/spin.toml")?;
        appliance.copy_in(Path::new(HELLO_WASM), "/var/tmp/hello/hello.wasm")?;
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

    fn run(&self, subject: &Subject, round: usize) -> Result<Wrk> {
        let (script, path, arguments) = match subject.load {
            Load::One => ("links", "", format!("one 1 {round}")),
            Load::Zipf => ("links", "", format!("zipf {POPULAR} {round}")),
            Load::Uniform => ("links", "", format!("uniform {LINKS} {round}")),
            Load::Create => ("create", "shorten", format!("{} {round}", self.token)),
        };
        let wrk = |seconds| {
            let output = self.appliance.shell(&format!(
                "wrk --latency -t1 -c{CONNECTIONS} -d{seconds}s -s /var/tmp/{script}.lua http://127.0.0.1:{}/{path} \
                 -- {arguments}",
                subject.port
            ))?;
            Wrk::parse(&output.stdout)
        };
        if matches!(subject.load, Load::Zipf) {
            wrk(WARM_UP)?;
        }
        wrk(SECONDS_PER_ROUND)
    }
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
fn sites(site: &str) -> Result<String> {
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
    let hello = replaced(&uncached(HELLO_BEHIND)?, "http://links_all/", "http://bench_hello/")?;
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
        let per_second = |name: &str| {
            let row = self.rows.iter().find(|row| row.name == name);
            row.map_or(f64::NAN, |row| row.per_second)
        };
        let (limit, uncached) = (per_second(LIMIT), per_second(UNCACHED));
        println!(
            "\n{:<31} {:>10} {:>8} {:>8} {:>10} {:>10}",
            "behind nginx", "requests/s", "p50 ms", "p99 ms", "of limit", "of no cache"
        );
        for row in self.rows.iter().chain(&self.peer) {
            println!(
                "{:<31} {:>10.0} {:>8.2} {:>8.2} {:>10.2} {:>10.2}",
                row.name,
                row.per_second,
                row.p50_ms,
                row.p99_ms,
                row.per_second / limit,
                row.per_second / uncached
            );
        }
        println!(
            "\nmedians of {ROUNDS} rounds of {SECONDS_PER_ROUND} s, {CONNECTIONS} connections, two instances, the journal on, \
             Zipf after {WARM_UP} s of it,\neach round when all clicks before it are counted; the limit is the first row"
        );
    }
}
