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

mod ask;
mod line;
mod report;

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Result, anyhow};

use crate::eventually;
use crate::http::Client;
use ask::Ask;
use line::Line;
pub use report::{Example, Latency, Method, Outcome, Report};

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
    /// `GET` and `HEAD` of links that there were before: those of [`Load::knowing`].
    Known,
    /// Of 20 requests 5 are `POST`, 8 `GET` and 5 `HEAD` of acknowledged links, 2 ask for slugs that do not exist.
    Usual,
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
    known: Arc<[Link]>,
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
            known: Arc::default(),
        }
    }

    /// Links to follow from the first request on.
    #[must_use]
    pub fn knowing(mut self, links: &[Link]) -> Self {
        self.known = links.into();
        self
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
                let known = self.known.clone();
                let pace = self.rate.map(|rate| Duration::from_secs(self.workers as u64) / rate);
                let urls = format!("https://load.example/{}/{number}", self.label);
                thread::spawn(move || {
                    let mut worker = Worker {
                        line: Line::open(client, connections)?,
                        mix,
                        known,
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

struct Worker {
    line: Line,
    mix: Mix,
    known: Arc<[Link]>,
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
            Err((failure, on)) => Err((Outcome::of(failure), format!("{ask}: {failure}, {on}"))),
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
        if so_far >= report::EXAMPLES as u64 {
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
            Mix::Known => self.sent % 2 + 1,
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
        let links = match self.mix {
            Mix::Known => &*self.known,
            Mix::Writes | Mix::Usual => &self.report.acknowledged,
        };
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
