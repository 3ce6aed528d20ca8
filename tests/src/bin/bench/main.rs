//! `make bench` measures the appliance on this machine: how fast one instance redirects, shortens and starts, and how much
//! memory it uses.
//!
//! All runtimes are measured in the same run, in alternating rounds: links-host, and Spin if `$SPIN` names its binary.
//! Further sections measure the cost of a remote database and of many links, how fast a backlog of clicks is counted, how
//! fast nginx answers from its cache, what HTTPS costs, how long a backup takes and how large it is, what clients notice of
//! rollouts, and how much the agent and the whole appliance use.
//! If `$PEER` is the URL of a redirect of another shortener, that one is measured beside nginx. If `$PEER_SLUGS` names a file
//! with slugs of that shortener, one per line, `$PEER` is the URL before the slugs, and they are requested in the same
//! distributions as the appliance's links. An unexpected answer ends the run with an error.

mod agent;
mod backlog;
mod backup;
mod edge;
mod growth;
mod load;
mod memory;
mod peer;
mod remote;
mod rollouts;
mod tls;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde::Serialize;

use load::wrk;

const ROUNDS: usize = 5;
const SECONDS_PER_ROUND: u32 = 4;
const CREATE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/bench/create.lua");

/// The sections that the command line can name. Without names, all of them are measured.
const SECTIONS: [&str; 10] = [
    "runtimes", "remote", "growth", "backlog", "edge", "tls", "backup", "rollouts", "agent", "memory",
];
/// The sections that need a machine of the lab.
const IN_THE_LAB: [&str; 6] = ["edge", "tls", "backup", "rollouts", "agent", "memory"];

fn main() -> Result<()> {
    let names: Vec<_> = std::env::args().skip(1).collect();
    if let Some(unknown) = names.iter().find(|name| !SECTIONS.contains(&name.as_str())) {
        bail!("unknown section {unknown}; the sections are: {}", SECTIONS.join(", "));
    }
    let is_root = nix::unistd::geteuid().is_root();
    let wanted = |section: &str| {
        let is_wanted = names.is_empty() || names.iter().any(|name| name == section);
        if is_wanted && !is_root && IN_THE_LAB.contains(&section) {
            println!("\n{section}: not measured, because the lab needs root");
        }
        is_wanted && (is_root || !IN_THE_LAB.contains(&section))
    };
    let program = |name: &str| {
        let path = Path::new("target/dist").join(name);
        path.canonicalize()
            .with_context(|| format!("Looking for {} (`make deb` builds it)", path.display()))
    };
    let (linksctl, pack) = (program("linksctl")?, program("links-pack")?);
    let scratch = tempfile::tempdir().context("Making a temporary directory")?;
    let mut subjects = vec![Subject::pack(
        &pack,
        &linksctl,
        "links-host",
        "links-host".as_ref(),
        scratch.path(),
    )?];
    if let Some(spin) = std::env::var_os("SPIN") {
        subjects.push(Subject::pack(&pack, &linksctl, "spin", spin.as_ref(), scratch.path())?);
    }
    let bundle = subjects[0].bundle.clone();
    let mut results = Results::default();
    if wanted("remote") {
        let all = subjects.iter();
        let all = all.map(|subject| remote::measure(&linksctl, &subject.result.runtime, &subject.bundle));
        results.remote = Some(all.collect::<Result<_>>()?);
    }
    if wanted("runtimes") {
        results.runtimes = Some(runtimes(subjects)?);
    }
    results.runtimes.iter().for_each(|runtimes| print_table(runtimes));
    results.remote.iter().for_each(|remote| remote::print(remote));
    if wanted("growth") {
        let growth = growth::measure(&linksctl, &bundle)?;
        growth::print(&growth);
        results.growth = Some(growth);
    }
    if wanted("backlog") {
        let backlog = results.backlog.insert(backlog::measure(&linksctl, &bundle)?);
        backlog.print();
    }
    if wanted("edge") {
        let edge = edge::measure(peer::Peer::from_environment()?.as_ref())?;
        results.edge.insert(edge).print();
    }
    if wanted("tls") {
        results.tls.insert(tls::measure()?).print();
    }
    if wanted("backup") {
        results.backup.insert(backup::measure()?).print();
    }
    if wanted("rollouts") {
        results.rollouts.insert(rollouts::measure()?).print();
    }
    if wanted("agent") {
        results.agent.insert(agent::measure()?).print();
    }
    if wanted("memory") {
        results.memory.insert(memory::measure()?).print();
    }
    let path = Path::new("target/bench.json");
    fs::write(path, serde_json::to_vec_pretty(&results)?).with_context(|| format!("Writing {}", path.display()))?;
    println!("\nsaved as {}", path.display());
    Ok(())
}

/// The contents of `target/bench.json`. A section that was not measured is `None`.
#[derive(Default, Serialize)]
struct Results {
    runtimes: Option<Vec<Figures>>,
    remote: Option<Vec<remote::Figures>>,
    growth: Option<Vec<growth::Figures>>,
    backlog: Option<backlog::Figures>,
    edge: Option<edge::Figures>,
    tls: Option<tls::Figures>,
    backup: Option<backup::Figures>,
    rollouts: Option<rollouts::Figures>,
    agent: Option<agent::Figures>,
    memory: Option<memory::Figures>,
}

/// Measures one instance of each runtime, without nginx.
fn runtimes(mut subjects: Vec<Subject>) -> Result<Vec<Figures>> {
    for subject in &mut subjects {
        for start in [Start::Cold, Start::Warm] {
            subject.measure_start(start)?;
        }
    }
    for round in 0..ROUNDS {
        for subject in &mut subjects {
            let up = subject.up()?;
            if round == 0 {
                subject.result.idle_resident_kib = up.resident_kib()?;
            }
            subject.rates.push(up.rates(round)?);
            up.stop()?;
        }
    }
    Ok(subjects.into_iter().map(Subject::result).collect())
}

/// The resident memory of a process, by its /proc/PID/status (proc(5)).
fn resident_kib(status: &str) -> Option<u64> {
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    resident.split_whitespace().next()?.parse().ok()
}

/// The processor time of a process in user and kernel mode, in hundredths of a second. USER_HZ is 100 on every architecture
/// that Debian supports (proc(5), /proc/pid/stat; sysconf(3)).
fn ticks(stat: &str) -> Result<f64> {
    let (_, after_name) = stat
        .rsplit_once(')')
        .context("this is not the format of /proc/PID/stat")?;
    let fields: Vec<_> = after_name.split_whitespace().collect();
    let field = |number: usize| -> Result<f64> { Ok(fields.get(number).context("stat is too short")?.parse()?) };
    Ok(field(11)? + field(12)?)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

/// The median of the quotients of corresponding values.
fn quotient(some: &[f64], others: &[f64]) -> f64 {
    median(some.iter().zip(others).map(|(one, other)| one / other).collect())
}

#[derive(Clone, Copy)]
enum Start {
    /// The components have to be compiled first.
    Cold,
    /// The compiled components are in the cache.
    Warm,
}

#[derive(Clone, Debug, Default, Serialize)]
struct Figures {
    runtime: String,
    /// The time from the start of the runtime to READY, with an empty compilation cache.
    cold_start_ms: u64,
    /// The time from the start of the runtime to READY, with the compiled components in the cache.
    warm_start_ms: u64,
    /// The resident memory of one instance's runtime after its start.
    idle_resident_kib: u64,
    redirects_per_second: f64,
    creates_per_second: f64,
}

/// A runtime under test.
struct Subject {
    linksctl: PathBuf,
    bundle: PathBuf,
    root: PathBuf,
    rates: Vec<(f64, f64)>,
    result: Figures,
}

impl Subject {
    fn pack(pack: &Path, linksctl: &Path, name: &str, runtime: &Path, scratch: &Path) -> Result<Self> {
        let out = scratch.join(name);
        let status = Command::new(pack)
            .args(["--offline", "--runtime"])
            .arg(runtime)
            .arg("--out")
            .arg(&out)
            .stdout(Stdio::null())
            .status()?;
        ensure!(status.success(), "packing with {} failed", runtime.display());
        let bundle = fs::read_dir(&out)?
            .filter_map(|entry| entry.ok().map(|entry| entry.path()))
            .find(|path| path.to_string_lossy().ends_with(".tar.gz"))
            .context("no tarball was packed")?;
        let result = Figures {
            runtime: name.to_owned(),
            ..Figures::default()
        };
        Ok(Self {
            linksctl: linksctl.to_owned(),
            bundle,
            root: out.join("root"),
            rates: vec![],
            result,
        })
    }

    fn up(&self) -> Result<Up> {
        Up::start(&self.linksctl, &self.root, &self.bundle)
    }

    fn measure_start(&mut self, start: Start) -> Result<()> {
        let cache = self.root.join("var/cache/links");
        if matches!(start, Start::Cold) && cache.exists() {
            fs::remove_dir_all(&cache)?;
        }
        let up = self.up()?;
        match start {
            Start::Cold => self.result.cold_start_ms = up.ready_ms,
            Start::Warm => self.result.warm_start_ms = up.ready_ms,
        }
        up.stop()
    }

    fn result(mut self) -> Figures {
        self.result.redirects_per_second = median(self.rates.iter().map(|rates| rates.0).collect());
        self.result.creates_per_second = median(self.rates.iter().map(|rates| rates.1).collect());
        self.result
    }
}

/// A running `linksctl up`, and what its first lines say.
struct Up {
    up: links_tests::local::Up,
    instance: String,
    token: String,
    /// The start time of the slower instance.
    ready_ms: u64,
}

impl Up {
    fn start(linksctl: &Path, root: &Path, bundle: &Path) -> Result<Self> {
        // wrk cannot use Unix sockets. With this file, the instances open their ports too.
        fs::create_dir_all(root.join("run/links"))?;
        fs::write(root.join("run/links/site-not-loaded"), b"")?;
        let mut up = links_tests::local::Up::start(linksctl, root, bundle)?;
        let lines = up.lines_to("Ctrl-C")?;
        up.discard_output();
        let ready_after = |line: &String| -> Option<u64> {
            let (_, after) = line.split_once(": ready after ")?;
            after.split(' ').next()?.parse().ok()
        };
        let token = lines
            .iter()
            .find_map(|line| line.split_once("Bearer ")?.1.split('\'').next());
        let status = up.status()?;
        let listens = status["instances"][0]["listens"].as_array();
        let mut listens = listens.into_iter().flatten().filter_map(serde_json::Value::as_str);
        let instance = listens.find(|listens| !listens.starts_with("unix:"));
        Ok(Self {
            instance: instance.context("linksctl status shows no TCP address")?.to_owned(),
            token: token
                .with_context(|| format!("no token in:\n{}", lines.join("\n")))?
                .to_owned(),
            ready_ms: lines.iter().filter_map(ready_after).max().unwrap_or_default(),
            up,
        })
    }

    fn rates(&self, round: usize) -> Result<(f64, f64)> {
        let body = r#"{"url": "https://example.com/bench", "slug": "bench"}"#;
        let created = Command::new("curl")
            .args([
                "--silent",
                "--fail",
                "-H",
                "Content-Type: application/json",
                "-d",
                body,
                "-H",
            ])
            .arg(format!("Authorization: Bearer {}", self.token))
            .arg(format!("http://{}/shorten", self.instance))
            .output()?;
        ensure!(created.status.success(), "the link for the bench was refused");
        let url = format!("http://{}/bench", self.instance);
        let followed = Command::new("curl").args(["--silent", "--include", &url]).output()?;
        ensure!(
            followed.stdout.starts_with(b"HTTP/1.1 302 "),
            "no redirect: {followed:?}"
        );
        let redirects = wrk(SECONDS_PER_ROUND, 32, &[&url])?.per_second;
        let creates = wrk(
            SECONDS_PER_ROUND,
            32,
            &[
                "-s",
                CREATE,
                &format!("http://{}/shorten", self.instance),
                "--",
                &self.token,
                &format!("{}-{round}", std::process::id()),
            ],
        )?
        .per_second;
        Ok((redirects, creates))
    }

    /// The resident memory of the runtime of instance 1. That is the process that listens, and also its parent where the
    /// runtime consists of two processes.
    fn resident_kib(&self) -> Result<u64> {
        let marker = self.up.root().join("run/links/1/runtime.toml");
        let mut sum = 0;
        for (pid, line) in self.up.processes()? {
            if line.contains(&*marker.to_string_lossy()) {
                let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
                sum += resident_kib(&status).unwrap_or(0);
            }
        }
        ensure!(sum > 0, "no process has {} on its command line", marker.display());
        Ok(sum)
    }

    fn stop(self) -> Result<()> {
        self.up.signal(Signal::SIGTERM)?;
        self.up.end().map(drop)
    }
}

fn print_table(results: &[Figures]) {
    println!(
        "{:<12} {:>12} {:>10} {:>10} {:>10} {:>10}",
        "runtime", "redirects/s", "creates/s", "cold ms", "warm ms", "idle MiB"
    );
    for figures in results {
        println!(
            "{:<12} {:>12.0} {:>10.0} {:>10} {:>10} {:>10.1}",
            figures.runtime,
            figures.redirects_per_second,
            figures.creates_per_second,
            figures.cold_start_ms,
            figures.warm_start_ms,
            figures.idle_resident_kib as f64 / 1024.0
        );
    }
    if let [ours, spin] = results {
        println!(
            "{:<12} {:>12.1} {:>10.1}",
            "ratio",
            ours.redirects_per_second / spin.redirects_per_second,
            ours.creates_per_second / spin.creates_per_second
        );
    }
    println!("\nmedians of {ROUNDS} rounds of {SECONDS_PER_ROUND} s, one instance, no nginx");
}
