//! How fast a backlog in nginx's journal is counted, and what that costs.
//!
//! `BACKLOG=LINES,LINKS,HOURS` overrides the size of the backlog: the number of clicks, the number of links, and the hours
//! over which the clicks are spread. The links' popularity follows a Zipf distribution with exponent 1.1.

use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::net::SocketAddr;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use links_tests::Address;
use links_tests::http::Client;
use links_tests::local::free_port;
use rusqlite::Connection;
use serde::Serialize;

use crate::edge::{fill, slug};
use crate::{Up, median, ticks};

const DEFAULT: Backlog = Backlog {
    lines: 10_000_000,
    links: 100_000,
    hours: 3,
};
/// User agents. The last one is a bot.
const AGENTS: [&str; 8] = [
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/130.0.0.0 Safari/537.36",
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:132.0) Gecko/20100101 Firefox/132.0",
    "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.1 Safari/605.1.15",
    "Mozilla/5.0 (iPhone; CPU iPhone OS 18_1 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.1 Mobile/15E148 Safari/604.1",
    "Mozilla/5.0 (Linux; Android 14; Pixel 8) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/130.0.0.0 Mobile Safari/537.36",
    "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/130.0.0.0 Safari/537.36 Edg/130.0.0.0",
    "Mozilla/5.0 (X11; Linux x86_64; rv:132.0) Gecko/20100101 Firefox/132.0",
    "Mozilla/5.0 (compatible; ExampleBot/2.1; +https://bot.example/)",
];
const REFERRERS: [&str; 6] = [
    "-",
    "-",
    "https://news.example/item?id=1",
    "https://social.example/",
    "https://search.example/",
    "https://mail.example/inbox",
];
/// The number of different client addresses.
const ADDRESSES: u64 = 1 << 18;
/// How long counting the whole backlog may take.
const DEADLINE: Duration = Duration::from_secs(1800);

#[derive(Clone, Copy, Debug)]
struct Backlog {
    lines: u64,
    links: u32,
    hours: u64,
}

impl Backlog {
    fn from_environment() -> Result<Self> {
        let Ok(text) = std::env::var("BACKLOG") else {
            return Ok(DEFAULT);
        };
        let numbers: Vec<_> = text.split(',').map(str::parse).collect::<Result<_, _>>()?;
        let [lines, links, hours] = numbers[..] else {
            anyhow::bail!("BACKLOG={text} does not have the form LINES,LINKS,HOURS");
        };
        Ok(Self {
            lines,
            links: links.try_into()?,
            hours,
        })
    }
}

#[derive(Clone, Debug, Serialize)]
pub struct Figures {
    lines: u64,
    links: u32,
    hours: u64,
    lines_per_second: f64,
    /// Processor time of the agent, for the whole backlog.
    agent_seconds: f64,
    /// Processor time of the runtimes, which write to the database.
    instances_seconds: f64,
    agent_peak_mib: f64,
    /// The size of the database with the links, before any click.
    links_mib: f64,
    /// How much larger the database is after counting.
    clicks_mib: f64,
    /// How long the statistics of the most popular link take.
    stats_ms: f64,
}

/// # Errors
/// Fails if the appliance does not start, or does not count every click.
pub fn measure(linksctl: &Path, bundle: &Path) -> Result<Figures> {
    let backlog = Backlog::from_environment()?;
    // On the disk of the build, because a line has about 200 bytes.
    let scratch = tempfile::tempdir_in("target").context("Making a temporary directory")?;
    let root = scratch.path().canonicalize()?.join("root");
    let metrics = SocketAddr::from(([127, 0, 0, 1], free_port()?));
    let config = format!(
        "metrics = {{ listen = \"{metrics}\", otlp_listen = \"127.0.0.1:{}\" }}\nnginx.listen = \"127.0.0.1:{}\"\n",
        free_port()?,
        free_port()?
    );
    fs::create_dir_all(root.join("etc/links"))?;
    fs::write(root.join("etc/links/links.toml"), config)?;
    let database = root.join("var/lib/links/data/links.db");
    let up = Up::start(linksctl, &root, bundle)?;
    fill(&Connection::open(&database)?, backlog.links)?;
    up.stop()?;
    let links_mib = mib(&database)?;
    write(&backlog, &root.join("var/lib/links/journal/clicks.log"))?;

    let up = Up::start(linksctl, &root, bundle)?;
    let begun = Instant::now();
    let counted = loop {
        let page = Client::here(Address::Tcp(metrics)).get("/metrics")?.text();
        let value = |name: &str| {
            let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.and_then(|value| value.parse::<u64>().ok())
        };
        if value("links_journal_lag_bytes") == Some(0) && value("links_journal_lines_total") >= Some(backlog.lines) {
            break begun.elapsed();
        }
        ensure!(
            begun.elapsed() < DEADLINE,
            "the journal is not counted in time; the metrics:\n{page}"
        );
        // Polling ten times a second costs next to nothing.
        thread::sleep(Duration::from_millis(100));
    };
    let agent = processes(&[root.to_string_lossy().as_ref(), "agent"])?;
    let instances = processes(&[
        root.join("run/links").to_string_lossy().as_ref(),
        "--runtime-config-file",
    ])?;
    let agent_pid = *agent.first().context("no agent runs")?;
    let status = fs::read_to_string(format!("/proc/{agent_pid}/status"))?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let peak = peak.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
    let seconds = |pids: &[u32]| -> Result<f64> {
        let all = pids
            .iter()
            .map(|pid| Ok(ticks(&fs::read_to_string(format!("/proc/{pid}/stat"))?)? / 100.0));
        all.sum()
    };
    let figures = Figures {
        lines: backlog.lines,
        links: backlog.links,
        hours: backlog.hours,
        lines_per_second: backlog.lines as f64 / counted.as_secs_f64(),
        agent_seconds: seconds(&agent)?,
        instances_seconds: seconds(&instances)?,
        agent_peak_mib: peak.context("/proc has no VmHWM of the agent")? / 1024.0,
        links_mib,
        clicks_mib: 0.0,
        stats_ms: stats(&up)?,
    };
    let sum = "SELECT sum(clicks + bots) FROM click_days WHERE link_id = 0";
    let clicks: i64 = Connection::open(&database)?.query_row(sum, [], |row| row.get(0))?;
    ensure!(
        clicks.unsigned_abs() == backlog.lines,
        "{clicks} of {} clicks are counted",
        backlog.lines
    );
    up.stop()?;
    Ok(Figures {
        clicks_mib: mib(&database)? - links_mib,
        ..figures
    })
}

/// The size of a database that nobody has open, after its write-ahead log is emptied.
fn mib(database: &Path) -> Result<f64> {
    Connection::open(database)?.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
    Ok(fs::metadata(database)?.len() as f64 / f64::from(1 << 20))
}

/// The PIDs of the processes whose command lines contain all of `words`.
fn processes(words: &[&str]) -> Result<Vec<u32>> {
    let mut found = vec![];
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line);
        if words.iter().all(|word| line.contains(word)) {
            found.push(pid);
        }
    }
    Ok(found)
}

/// How long the statistics of the most popular link take in milliseconds, the median of twenty requests.
fn stats(up: &Up) -> Result<f64> {
    let client = Client::here(Address::Tcp(up.instance.parse()?)).bearer(&up.token);
    let path = format!("/api/v1/links/{}/stats", slug(1));
    let mut times = vec![];
    for _ in 0..20 {
        let begun = Instant::now();
        let answer = client.get(&path)?;
        times.push(begun.elapsed().as_secs_f64() * 1000.0);
        ensure!(
            answer.status == 200 && answer.text().contains("\"clicks\":"),
            "{answer}"
        );
    }
    Ok(median(times))
}

/// Appends the backlog to the journal, in nginx's format.
fn write(backlog: &Backlog, path: &Path) -> Result<()> {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut cumulative = Vec::with_capacity(backlog.links as usize);
    let mut sum = 0.0;
    for rank in 1..=backlog.links {
        sum += f64::from(rank).powf(-1.1);
        cumulative.push(sum);
    }
    let end = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis() as u64;
    let length = backlog.hours * 3_600_000;
    let file = File::options().append(true).create(true).open(path);
    let mut file = BufWriter::with_capacity(1 << 20, file.with_context(|| format!("Opening {}", path.display()))?);
    for number in 0..backlog.lines {
        let at = end - length + length * number / backlog.lines;
        let rank = cumulative.partition_point(|share| *share < random.share() * sum) as u32 + 1;
        let client = random.next() % ADDRESSES;
        let agent = AGENTS[(client % AGENTS.len() as u64) as usize];
        let referrer = REFERRERS[(random.next() % REFERRERS.len() as u64) as usize];
        writeln!(
            file,
            "l1\t{}.{:03}\t302\t0.000\t-\tHIT\tGET\t/{}\t198.{}.{}.{}\t{referrer}\t{agent}",
            at / 1000,
            at % 1000,
            slug(rank.min(backlog.links)),
            client >> 16 & 255,
            client >> 8 & 255,
            client & 255
        )?;
    }
    file.flush()?;
    Ok(())
}

/// Xorshift (Marsaglia, "Xorshift RNGs"), with the same sequence in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number from 0 to 1.
    fn share(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

impl Figures {
    pub fn print(&self) {
        println!(
            "\nbacklog: {:.0} lines/s; {} clicks on {} links in {} hours took {:.1} s of processor time in the agent and \
             {:.1} s in the instances; the agent used at most {:.1} MiB\n\
             database: {:.0} MiB for the links, {:.0} MiB for their clicks; the statistics of a link take {:.1} ms",
            self.lines_per_second,
            self.lines,
            self.links,
            self.hours,
            self.agent_seconds,
            self.instances_seconds,
            self.agent_peak_mib,
            self.links_mib,
            self.clicks_mib,
            self.stats_ms
        );
    }
}
