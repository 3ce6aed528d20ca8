//! Clients at work: they shorten, follow what they were promised, ask for what does not exist, and check every answer.
//!
//! # What counts as a failed request
//! Every request whose answer is not exactly the right one: 200 with a slug for a `POST`; 302 with the link's URL for a
//! `GET` or `HEAD` of an acknowledged link; 404 for one of a slug that nobody has. A refused connection, a reset, an end
//! before the answer's, and no answer within the client's deadline are failures too.
//!
//! One thing is none, because HTTP says what a client does then. A server may close a kept connection between two
//! requests:
//! * where the close is seen before a byte of the next request is sent, that request goes over a new connection
//!   (counted as [`Report::closes`]);
//! * where the two cross, so that a connection *that served a request before* ends without a single byte of answer, a
//!   `GET` or `HEAD` is sent once more, over a new connection (RFC 9110, 9.2.2; RFC 9112, 9.3.1; counted as
//!   [`Report::retries`]). What becomes of that second try counts.
//!
//! A `POST` is never sent twice: it is not idempotent, and the client cannot know whether it was carried out. On a fresh
//! connection nothing is, and a timeout never leads to a second try.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, anyhow};
use serde::Deserialize;

use crate::eventually;
use crate::http::{Client, Failure};
use crate::wire::{Broken, Reply, Wire};

/// Wrong answers of one kind that are told in full.
const EXAMPLES: usize = 5;
/// The phase that a load begins in.
const FIRST_PHASE: &str = "rest";

/// A link that was acknowledged with 200.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    pub slug: String,
    pub url: String,
}

/// Whether a worker connects for each request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connections {
    /// Each request says `Connection: close`.
    Fresh,
    KeptAlive,
    /// Every other worker the one, every other the other.
    Both,
}

/// What the workers ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mix {
    /// `POST` only.
    Writes,
    /// Of 20 requests 5 are `POST`, 8 `GET` and 5 `HEAD` of acknowledged links, 2 ask for slugs that do not exist.
    Usual,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Method {
    Get,
    Head,
    Post,
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
            Self::Post => "POST",
        })
    }
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    Right,
    Refused,
    /// The connection was reset, or ended before the answer did.
    Reset,
    TimedOut,
    /// An answer with a status that it should not have.
    Status(u16),
    /// The right status with another location, or without the slug.
    Answer,
    /// No HTTP, or a failure of the machine's network.
    Other,
}

/// What is to be done: `workers` threads, the n-th through the n-th client, round and round.
#[derive(Clone, Debug)]
pub struct Load {
    clients: Vec<Client>,
    workers: usize,
    connections: Connections,
    mix: Mix,
    /// Requests per second of all workers together; as fast as they are answered without one.
    rate: Option<u32>,
    label: String,
}

impl Load {
    /// One worker through each client, which only writes. The clients carry the token, where one is needed.
    pub fn through(clients: impl Into<Vec<Client>>) -> Self {
        let clients = clients.into();
        let workers = clients.len();
        Self {
            clients,
            workers,
            connections: Connections::KeptAlive,
            mix: Mix::Writes,
            rate: None,
            label: "load".to_owned(),
        }
    }

    /// Tells this load's URLs from another's: `https://load.example/LABEL/WORKER/NUMBER`, both from 0.
    #[must_use]
    pub fn label(mut self, label: &str) -> Self {
        label.clone_into(&mut self.label);
        self
    }

    #[must_use]
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = workers;
        self
    }

    #[must_use]
    pub fn connections(mut self, connections: Connections) -> Self {
        self.connections = connections;
        self
    }

    #[must_use]
    pub fn mix(mut self, mix: Mix) -> Self {
        self.mix = mix;
        self
    }

    /// Bounds the requests per second. The latency of a request then counts from the moment at which it was due: one
    /// that is late because the worker still waited for the one before it was late for its user.
    #[must_use]
    pub fn rate(mut self, per_second: u32) -> Self {
        self.rate = Some(per_second);
        self
    }

    /// Starts the workers; they go on until [`Running::stop`].
    pub fn start(&self) -> Running {
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            asked: AtomicU64::new(0),
            acknowledged: AtomicUsize::new(0),
            failed: AtomicU64::new(0),
            phases: Mutex::new(vec![FIRST_PHASE.to_owned()]),
            phase: AtomicUsize::new(0),
            begin: Instant::now(),
            begin_of_day: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default(),
        });
        let workers = (0..self.workers)
            .zip(self.clients.iter().cycle())
            .map(|(number, client)| {
                let connections = match self.connections {
                    Connections::Both if number % 2 == 0 => Connections::KeptAlive,
                    Connections::Both => Connections::Fresh,
                    one => one,
                };
                let (client, shared, mix) = (client.clone(), shared.clone(), self.mix);
                let pace = self.rate.map(|rate| Duration::from_secs(self.workers as u64) / rate);
                let urls = format!("https://load.example/{}/{number}", self.label);
                thread::spawn(move || {
                    let mut worker = Worker {
                        line: Line::open(client, connections)?,
                        mix,
                        urls,
                        shared,
                        sent: 0,
                        report: Report::default(),
                    };
                    worker.work(pace);
                    Ok(worker.report)
                })
            })
            .collect();
        Running { shared, workers }
    }

    /// Runs the workers for that long.
    ///
    /// # Errors
    /// As [`Running::stop`].
    pub fn run(&self, duration: Duration) -> Result<Report> {
        let running = self.start();
        thread::sleep(duration);
        running.stop()
    }
}

/// What the workers of one load have in common.
#[derive(Debug)]
struct Shared {
    stop: AtomicBool,
    /// Requests that have come to an end.
    asked: AtomicU64,
    acknowledged: AtomicUsize,
    failed: AtomicU64,
    /// Every phase so far.
    phases: Mutex<Vec<String>>,
    /// Index of the phase that the load is in.
    phase: AtomicUsize,
    begin: Instant,
    /// When that was, since 1970.
    begin_of_day: Duration,
}

impl Shared {
    fn phases(&self) -> Vec<String> {
        self.phases.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Workers at work. Dropped, they stop after their current request.
#[derive(Debug)]
pub struct Running {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<Result<Report>>>,
}

impl Running {
    /// Requests that have come to an end, good or bad.
    pub fn asked(&self) -> u64 {
        self.shared.asked.load(Ordering::Relaxed)
    }

    /// Links acknowledged so far.
    pub fn acknowledged(&self) -> usize {
        self.shared.acknowledged.load(Ordering::Relaxed)
    }

    /// Requests so far that ended in anything but the right answer.
    pub fn failed(&self) -> u64 {
        self.shared.failed.load(Ordering::Relaxed)
    }

    /// From here on latencies count for the phase of that name, which may be one that there was before. The load begins
    /// at "rest".
    pub fn phase(&self, name: &str) {
        let mut phases = self.shared.phases.lock().unwrap_or_else(PoisonError::into_inner);
        let known = phases.iter().position(|phase| phase == name);
        let index = known.unwrap_or_else(|| {
            phases.push(name.to_owned());
            phases.len() - 1
        });
        self.shared.phase.store(index, Ordering::Relaxed);
    }

    /// Waits until that many requests have come to an end since the start.
    ///
    /// # Errors
    /// Not within `deadline`.
    pub fn wait_for(&self, requests: u64, deadline: Duration) -> Result<()> {
        eventually(&format!("{requests} requests"), deadline, || {
            Ok((self.asked() >= requests).then_some(()))
        })
    }

    /// Lets every worker finish its request, and adds up.
    ///
    /// # Errors
    /// A worker could not enter the machine's network.
    pub fn stop(mut self) -> Result<Report> {
        self.shared.stop.store(true, Ordering::Relaxed);
        let mut total = Report::default();
        for worker in self.workers.drain(..) {
            total.add(worker.join().map_err(|_| anyhow!("a worker panicked"))??);
        }
        total.elapsed = self.shared.begin.elapsed();
        total.finish(&self.shared.phases());
        Ok(total)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

/// A request that failed.
#[derive(Clone, Debug)]
pub struct Example {
    /// Its end, since the start of the load.
    pub at: Duration,
    /// Its end, since 1970: as `journalctl --output=short-unix` prints it.
    pub time: Duration,
    pub method: Method,
    pub outcome: Outcome,
    /// All else that is known about it.
    pub what: String,
}

impl fmt::Display for Example {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { method, what, .. } = self;
        let (at, time) = (self.at.as_secs_f64(), self.time.as_secs_f64());
        write!(f, "at {at:.3} s ({time:.3}): {method} {what}")
    }
}

/// How long the requests of one phase took.
#[derive(Clone, Debug)]
pub struct Latency {
    pub phase: String,
    /// Microseconds, in order.
    sorted: Vec<u32>,
}

impl Latency {
    pub fn requests(&self) -> usize {
        self.sorted.len()
    }

    /// The time within which that share of the requests was answered: 0.5 for the median, 1.0 for the slowest.
    pub fn quantile(&self, share: f64) -> Duration {
        let rank = (self.sorted.len() as f64 * share).ceil() as usize;
        let micros = self.sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0);
        Duration::from_micros(micros.into())
    }
}

impl fmt::Display for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |share| self.quantile(share).as_secs_f64() * 1000.0;
        let (p50, p99, max) = (ms(0.5), ms(0.99), ms(1.0));
        write!(
            f,
            "{}: {} requests, p50 {p50:.2} ms, p99 {p99:.2} ms, max {max:.0} ms",
            self.phase,
            self.requests()
        )
    }
}

/// What the workers saw.
#[derive(Clone, Debug, Default)]
pub struct Report {
    outcomes: BTreeMap<(Method, Outcome), u64>,
    /// The first failures of each kind.
    pub examples: Vec<Example>,
    /// Kept connections that the server was seen to have closed before a request was sent.
    pub closes: u64,
    /// `GET` and `HEAD` requests sent again because a kept connection ended without a byte of answer.
    pub retries: u64,
    pub acknowledged: Vec<Link>,
    pub elapsed: Duration,
    /// One per phase in which there were requests.
    pub latencies: Vec<Latency>,
    /// Microseconds, per index of the phase.
    samples: Vec<Vec<u32>>,
}

impl Report {
    /// Requests that match.
    pub fn count(&self, matching: impl Fn(Method, Outcome) -> bool) -> u64 {
        let matching = self
            .outcomes
            .iter()
            .filter(|((method, outcome), _)| matching(*method, *outcome));
        matching.map(|(_, count)| count).sum()
    }

    /// Requests that came to that end.
    pub fn of(&self, outcome: Outcome) -> u64 {
        self.count(|_, found| found == outcome)
    }

    pub fn requests(&self) -> u64 {
        self.count(|_, _| true)
    }

    /// Requests that ended in anything but the right answer.
    pub fn failed(&self) -> u64 {
        self.count(|_, outcome| outcome != Outcome::Right)
    }

    /// Answers that blame the server.
    pub fn server_errors(&self) -> u64 {
        self.count(|_, outcome| matches!(outcome, Outcome::Status(500..)))
    }

    /// The latencies of a phase.
    pub fn latency(&self, phase: &str) -> Option<&Latency> {
        self.latencies.iter().find(|latency| latency.phase == phase)
    }

    fn add(&mut self, other: Self) {
        for (key, count) in other.outcomes {
            *self.outcomes.entry(key).or_default() += count;
        }
        self.examples.extend(other.examples);
        self.closes += other.closes;
        self.retries += other.retries;
        self.acknowledged.extend(other.acknowledged);
        self.samples
            .resize_with(self.samples.len().max(other.samples.len()), Vec::new);
        for (all, more) in self.samples.iter_mut().zip(other.samples) {
            all.extend(more);
        }
    }

    fn sample(&mut self, phase: usize, took: Duration) {
        self.samples.resize_with(self.samples.len().max(phase + 1), Vec::new);
        let micros = u32::try_from(took.as_micros()).unwrap_or(u32::MAX);
        self.samples[phase].push(micros);
    }

    /// What can be said only of all workers together.
    fn finish(&mut self, phases: &[String]) {
        let samples = std::mem::take(&mut self.samples);
        self.latencies = phases
            .iter()
            .zip(samples)
            .filter(|(_, samples)| !samples.is_empty())
            .map(|(phase, mut sorted)| {
                sorted.sort_unstable();
                Latency {
                    phase: phase.clone(),
                    sorted,
                }
            })
            .collect();
        self.examples.sort_by_key(|example| example.at);
        let mut told = BTreeMap::<_, usize>::new();
        self.examples.retain(|example| {
            let told = told.entry((example.method, example.outcome)).or_default();
            *told += 1;
            *told <= EXAMPLES
        });
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (requests, seconds) = (self.requests(), self.elapsed.as_secs_f64());
        write!(
            f,
            "{requests} requests in {seconds:.1} s ({:.0}/s), {} failed; {} links acknowledged; kept connections: {} \
             found closed, {} requests sent again",
            requests as f64 / seconds,
            self.failed(),
            self.acknowledged.len(),
            self.closes,
            self.retries,
        )?;
        for ((method, outcome), count) in &self.outcomes {
            write!(f, "\n  {method:<4} {outcome:?}: {count}")?;
        }
        for latency in &self.latencies {
            write!(f, "\n  {latency}")?;
        }
        for example in &self.examples {
            write!(f, "\n  {example}")?;
        }
        Ok(())
    }
}

#[derive(Deserialize)]
struct Shortened {
    slug: String,
}

/// What is asked, and what has to come back.
enum Ask {
    Shorten { url: String },
    Follow { method: Method, slug: String, url: String },
    Unknown { method: Method, slug: String },
}

impl Ask {
    fn method(&self) -> Method {
        match self {
            Self::Shorten { .. } => Method::Post,
            Self::Follow { method, .. } | Self::Unknown { method, .. } => *method,
        }
    }

    /// `common`: the header fields of every request.
    fn bytes(&self, common: &str, connections: Connections) -> Vec<u8> {
        let (path, body) = match self {
            Self::Shorten { url } => ("shorten", serde_json::json!({ "url": url }).to_string()),
            Self::Follow { slug, .. } | Self::Unknown { slug, .. } => (slug.as_str(), String::new()),
        };
        let close = match connections {
            Connections::Fresh => "connection: close\r\n",
            _ => "",
        };
        let of_body = match self {
            Self::Shorten { .. } => format!("content-type: application/json\r\ncontent-length: {}\r\n", body.len()),
            _ => String::new(),
        };
        format!(
            "{} /{path} HTTP/1.1\r\n{common}{close}{of_body}\r\n{body}",
            self.method()
        )
        .into_bytes()
    }

    /// The link that the answer acknowledges, where it is the right answer; else how it is wrong, in full.
    fn check(&self, reply: &Reply) -> Result<Option<Link>, (Outcome, String)> {
        let expected = match self {
            Self::Shorten { .. } => 200,
            Self::Follow { .. } => 302,
            Self::Unknown { .. } => 404,
        };
        let wrong = |outcome| {
            let body = String::from_utf8_lossy(&reply.body);
            let body = body.trim_end();
            Err((outcome, format!("{self}: {} {} {body}", reply.status, reply.location)))
        };
        match self {
            _ if reply.status != expected => wrong(Outcome::Status(reply.status)),
            Self::Shorten { url } => match serde_json::from_slice(&reply.body) {
                Ok(Shortened { slug }) => Ok(Some(Link { slug, url: url.clone() })),
                Err(_) => wrong(Outcome::Answer),
            },
            Self::Follow { url, .. } if reply.location != *url => wrong(Outcome::Answer),
            Self::Follow { .. } | Self::Unknown { .. } => Ok(None),
        }
    }
}

impl fmt::Display for Ask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shorten { url } => write!(f, "/shorten of {url}"),
            Self::Follow { slug, url, .. } => write!(f, "/{slug} for {url}"),
            Self::Unknown { slug, .. } => write!(f, "/{slug} for 404"),
        }
    }
}

/// A client in a thread of the machine's network, with the connection that it keeps.
struct Line {
    client: Client,
    connections: Connections,
    header_lines: String,
    open: Option<Wire>,
    closes: u64,
    retries: u64,
}

impl Line {
    fn open(client: Client, connections: Connections) -> Result<Self> {
        client.network().enter().context("Entering the machine's network")?;
        Ok(Self {
            header_lines: client.header_lines(),
            client,
            connections,
            open: None,
            closes: 0,
            retries: 0,
        })
    }

    /// One request, with the second try that HTTP allows: see the module's text. The error tells on what connection it
    /// came about.
    fn send(&mut self, ask: &Ask) -> Result<Reply, (Failure, &'static str)> {
        let request = ask.bytes(&self.header_lines, self.connections);
        let to_head = ask.method() == Method::Head;
        if let Some(mut kept) = self.open.take() {
            if kept.is_closed() {
                self.closes += 1;
            } else {
                match kept.exchange(&request, to_head) {
                    Ok(reply) => return Ok(self.keep(kept, reply)),
                    Err(Broken {
                        failure: Failure::Reset,
                        received: 0,
                    }) if ask.method() != Method::Post => self.retries += 1,
                    Err(Broken { failure, .. }) => return Err((failure, "on a kept connection")),
                }
            }
        }
        let mut fresh = self.client.wire().map_err(|failure| (failure, "connecting"))?;
        let reply = fresh
            .exchange(&request, to_head)
            .map_err(|Broken { failure, .. }| (failure, "on a fresh connection"))?;
        Ok(self.keep(fresh, reply))
    }

    fn keep(&mut self, wire: Wire, reply: Reply) -> Reply {
        if reply.keeps && self.connections != Connections::Fresh {
            self.open = Some(wire);
        }
        reply
    }
}

struct Worker {
    line: Line,
    mix: Mix,
    urls: String,
    shared: Arc<Shared>,
    sent: u64,
    report: Report,
}

impl Worker {
    /// Asks until it is told to stop; with a pace, one request each.
    fn work(&mut self, pace: Option<Duration>) {
        let mut due = Instant::now();
        while !self.shared.stop.load(Ordering::Relaxed) {
            match pace {
                Some(pace) => {
                    due += pace;
                    thread::sleep(due.saturating_duration_since(Instant::now()));
                }
                None => due = Instant::now(),
            }
            self.ask(due);
        }
        self.report.closes = self.line.closes;
        self.report.retries = self.line.retries;
    }

    fn ask(&mut self, due: Instant) {
        let phase = self.shared.phase.load(Ordering::Relaxed);
        let ask = self.next();
        self.sent += 1;
        let answer = self.line.send(&ask);
        let end = Instant::now();
        let checked = match &answer {
            Ok(reply) => ask.check(reply),
            Err((failure, on)) => Err((
                match failure {
                    Failure::Refused => Outcome::Refused,
                    Failure::Reset => Outcome::Reset,
                    Failure::TimedOut(_) => Outcome::TimedOut,
                    Failure::Other(_) => Outcome::Other,
                },
                format!("{ask}: {failure}, {on}"),
            )),
        };
        self.report.sample(phase, end.duration_since(due));
        let outcome = match checked {
            Ok(link) => {
                self.shared
                    .acknowledged
                    .fetch_add(usize::from(link.is_some()), Ordering::Relaxed);
                self.report.acknowledged.extend(link);
                Outcome::Right
            }
            Err((outcome, what)) => {
                self.shared.failed.fetch_add(1, Ordering::Relaxed);
                self.example(end, ask.method(), outcome, what);
                outcome
            }
        };
        let count = self.report.outcomes.entry((ask.method(), outcome)).or_default();
        *count += 1;
        self.shared.asked.fetch_add(1, Ordering::Relaxed);
        if outcome == Outcome::Refused {
            // Nobody listens: asking again at once would only take the processor from whoever is to.
            thread::sleep(Duration::from_millis(10));
        }
    }

    fn example(&mut self, end: Instant, method: Method, outcome: Outcome, what: String) {
        let so_far = self.report.outcomes.get(&(method, outcome)).copied().unwrap_or(0);
        if so_far >= EXAMPLES as u64 {
            return;
        }
        let at = end.duration_since(self.shared.begin);
        self.report.examples.push(Example {
            at,
            time: self.shared.begin_of_day + at,
            method,
            outcome,
            what,
        });
    }

    fn next(&self) -> Ask {
        let place = match self.mix {
            Mix::Writes => 0,
            Mix::Usual => self.sent % 20,
        };
        let method = match place {
            place if place % 4 == 0 => {
                let url = format!("{}/{}", self.urls, self.sent);
                return Ask::Shorten { url };
            }
            place if place % 4 == 2 || place == 13 => Method::Head,
            _ => Method::Get,
        };
        match self.link() {
            Some(Link { slug, url }) if !matches!(place, 3 | 13) => Ask::Follow { method, slug, url },
            _ => {
                // A hyphen stands in no slug that was generated.
                let slug = format!("no-such-link-{}", self.sent);
                Ask::Unknown { method, slug }
            }
        }
    }

    /// The newest one every other time, whatever the method, else any: a large prime wanders through all of them.
    fn link(&self) -> Option<Link> {
        let links = &self.report.acknowledged;
        let newest = (self.sent + self.sent / 20).is_multiple_of(2);
        let any = usize::try_from(self.sent.wrapping_mul(7_919)).unwrap_or(0) % links.len().max(1);
        let link = if newest { links.last() } else { links.get(any) };
        link.cloned()
    }
}

/// An acknowledged link that does not lead where it should.
#[derive(Clone, Debug)]
pub struct Lost {
    pub link: Link,
    /// The answer in short, or the failure.
    pub found: String,
}

/// Reads every link through `client`, over eight connections, and returns those that do not redirect to their URL.
///
/// # Errors
/// A reader could not enter the machine's network.
pub fn verify_all(client: &Client, links: &[Link]) -> Result<Vec<Lost>> {
    let next = AtomicUsize::new(0);
    let reader = || -> Result<Vec<Lost>> {
        let mut line = Line::open(client.clone(), Connections::KeptAlive)?;
        let mut lost = Vec::new();
        while let Some(link) = links.get(next.fetch_add(1, Ordering::Relaxed)) {
            let Link { slug, url } = link.clone();
            let method = Method::Get;
            let found = match line.send(&Ask::Follow { method, slug, url }) {
                Ok(reply) if reply.status == 302 && reply.location == link.url => continue,
                Ok(reply) => format!("{} {}", reply.status, reply.location),
                Err((failure, on)) => format!("{failure}, {on}"),
            };
            lost.push(Lost {
                link: link.clone(),
                found,
            });
        }
        Ok(lost)
    };
    thread::scope(|scope| {
        let readers: Vec<_> = (0..8).map(|_| scope.spawn(reader)).collect();
        let mut lost = Vec::new();
        for reader in readers {
            lost.extend(reader.join().map_err(|_| anyhow!("a reader panicked"))??);
        }
        Ok(lost)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_exact() {
        let latency = Latency {
            phase: String::new(),
            sorted: (1..=200).collect(),
        };
        let micros = |share| latency.quantile(share).as_micros();
        assert_eq!([0.5, 0.99, 1.0].map(micros), [100, 198, 200]);
    }

    #[test]
    fn an_answer_is_right_only_if_all_of_it_is() {
        let reply = |status, location: &str, body: &str| Reply {
            status,
            location: location.to_owned(),
            body: body.as_bytes().to_vec(),
            keeps: true,
        };
        let url = || "https://a.example/1".to_owned();
        let shorten = Ask::Shorten { url: url() };
        let link = shorten.check(&reply(200, "", r#"{"slug": "abc"}"#));
        assert_eq!(link.unwrap_or(None).map(|link| link.slug).as_deref(), Some("abc"));
        let outcome = |ask: &Ask, reply: Reply| {
            ask.check(&reply)
                .map_or_else(|(outcome, _)| outcome, |_| Outcome::Right)
        };
        assert_eq!(outcome(&shorten, reply(200, "", "{}")), Outcome::Answer);
        assert_eq!(outcome(&shorten, reply(502, "", "")), Outcome::Status(502));

        let follow = Ask::Follow {
            method: Method::Head,
            slug: "abc".to_owned(),
            url: url(),
        };
        assert_eq!(outcome(&follow, reply(302, "https://a.example/1", "")), Outcome::Right);
        assert_eq!(outcome(&follow, reply(302, "https://a.example/2", "")), Outcome::Answer);
        assert_eq!(outcome(&follow, reply(404, "", "")), Outcome::Status(404));
        let unknown = Ask::Unknown {
            method: Method::Get,
            slug: "no".to_owned(),
        };
        assert_eq!(outcome(&unknown, reply(404, "", "")), Outcome::Right);
        assert_eq!(outcome(&unknown, reply(302, "x", "")), Outcome::Status(302));
    }
}
