//! Load on an appliance. Workers shorten URLs, follow the links they got, request slugs that do not exist, and check every
//! answer.
//!
//! # What counts as a failed request
//! A request fails unless its answer is exactly the right one: 200 with a slug for a `POST`, 302 with the link's URL for a
//! `GET` or `HEAD` of an acknowledged link, and 404 for a slug that does not exist. A refused connection, a reset, a
//! truncated answer, and no answer within the client's deadline are failures too.
//!
//! There is one exception, which HTTP defines. A server may close a kept connection between two requests:
//! * If the client sees the close before it sends the next request, it sends that request over a new connection (counted
//!   as [`Report::closes`]).
//! * If the two cross, a connection *that has served a request before* ends without a single byte of an answer. The client
//!   then sends a `GET` or `HEAD` once more, over a new connection (RFC 9110, 9.2.2; RFC 9112, 9.3.1; counted as
//!   [`Report::retries`]). The outcome of that second try counts.
//!
//! A `POST` is never sent twice: it is not idempotent, and the client cannot know whether it was carried out. A request that
//! failed on a fresh connection or by a timeout is never sent again either.

mod mix;
mod report;
mod request;
mod session;

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Result, anyhow};

use crate::http::Client;
use crate::process::eventually;
pub use mix::{Connections, Link, Mix};
pub use report::{Example, Latency, Method, Outcome, Report};
use request::Request;
use session::Session;

/// The phase in which a load begins.
const FIRST_PHASE: &str = "rest";

/// The plan of a load. Worker n uses client n, starting again from the first client when there are more workers.
#[derive(Clone, Debug)]
pub struct Load {
    clients: Vec<Client>,
    workers: usize,
    connections: Connections,
    mix: Mix,
    /// The rate of all workers together, in requests per second. Without one, each worker sends as soon as it has an answer.
    rate: Option<u32>,
    label: String,
    known: Arc<[Link]>,
}

impl Load {
    /// A load with one worker per client, which only writes. The clients carry the token if one is needed.
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

    /// Sets the links that [`Mix::Known`] follows.
    #[must_use]
    pub fn knowing(mut self, links: &[Link]) -> Self {
        self.known = links.into();
        self
    }

    /// Sets the label that distinguishes the URLs of this load from those of others:
    /// `https://load.example/LABEL/WORKER/NUMBER`, with both numbers counted from 0.
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

    /// Limits the requests per second. The latency of a request then counts from the moment when it was due, because a real
    /// user would also have waited while the worker was busy with the request before it.
    #[must_use]
    pub fn rate(mut self, per_second: u32) -> Self {
        self.rate = Some(per_second);
        self
    }

    /// Starts the workers, which run until [`Running::stop`].
    pub fn start(&self) -> Running {
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            asked: AtomicU64::new(0),
            acknowledged: AtomicUsize::new(0),
            failed: AtomicU64::new(0),
            phases: Mutex::new(vec![FIRST_PHASE.to_owned()]),
            phase: AtomicUsize::new(0),
            begin: Instant::now(),
            begin_since_1970: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default(),
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
                        session: Session::open(client, connections)?,
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

    /// Runs the workers for this long.
    ///
    /// # Errors
    /// Fails as [`Running::stop`] does.
    pub fn run(&self, duration: Duration) -> Result<Report> {
        let running = self.start();
        thread::sleep(duration);
        running.stop()
    }
}

/// The state that the workers of one load share.
#[derive(Debug)]
struct Shared {
    stop: AtomicBool,
    /// The number of requests that have ended.
    asked: AtomicU64,
    acknowledged: AtomicUsize,
    failed: AtomicU64,
    /// The names of all phases so far.
    phases: Mutex<Vec<String>>,
    /// The index of the current phase.
    phase: AtomicUsize,
    begin: Instant,
    /// The time of `begin`, since 1970.
    begin_since_1970: Duration,
}

impl Shared {
    fn phases(&self) -> Vec<String> {
        self.phases.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A load in progress. When it is dropped, the workers stop after their current request.
#[derive(Debug)]
pub struct Running {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<Result<Report>>>,
}

impl Running {
    /// The number of requests that have ended, well or badly.
    pub fn asked(&self) -> u64 {
        self.shared.asked.load(Ordering::Relaxed)
    }

    /// The number of links acknowledged so far.
    pub fn acknowledged(&self) -> usize {
        self.shared.acknowledged.load(Ordering::Relaxed)
    }

    /// The number of requests so far that got anything but the right answer.
    pub fn failed(&self) -> u64 {
        self.shared.failed.load(Ordering::Relaxed)
    }

    /// Makes latencies count towards the phase `name` from here on; a phase can be resumed. A load begins in the phase "rest".
    pub fn phase(&self, name: &str) {
        let mut phases = self.shared.phases.lock().unwrap_or_else(PoisonError::into_inner);
        let known = phases.iter().position(|phase| phase == name);
        let index = known.unwrap_or_else(|| {
            phases.push(name.to_owned());
            phases.len() - 1
        });
        self.shared.phase.store(index, Ordering::Relaxed);
    }

    /// Waits until this many requests have ended since the start.
    ///
    /// # Errors
    /// Fails if this takes longer than `deadline`.
    pub fn wait_for(&self, requests: u64, deadline: Duration) -> Result<()> {
        eventually(&format!("{requests} requests have ended"), deadline, || {
            Ok((self.asked() >= requests).then_some(()))
        })
    }

    /// Lets every worker finish its current request, and returns the merged report.
    ///
    /// # Errors
    /// Fails if a worker could not enter the machine's network.
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
    session: Session,
    mix: Mix,
    known: Arc<[Link]>,
    urls: String,
    shared: Arc<Shared>,
    sent: u64,
    report: Report,
}

impl Worker {
    /// Sends requests until the load is stopped: one per `pace`, or one after the other without it.
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
            self.send(due);
        }
        self.report.closes = self.session.closes;
        self.report.retries = self.session.retries;
    }

    fn send(&mut self, due: Instant) {
        let phase = self.shared.phase.load(Ordering::Relaxed);
        let request = self.next();
        self.sent += 1;
        let answer = self.session.send(&request);
        let end = Instant::now();
        let checked = match &answer {
            Ok(reply) => request.check(reply),
            Err((failure, on)) => Err((Outcome::of(failure), format!("{request}: {failure}, {on}"))),
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
                self.example(end, request.method(), outcome, what);
                outcome
            }
        };
        let count = self.report.outcomes.entry((request.method(), outcome)).or_default();
        *count += 1;
        self.shared.asked.fetch_add(1, Ordering::Relaxed);
        if outcome == Outcome::Refused {
            // Nothing listens. Trying again at once would only take processor time from the server that is starting.
            thread::sleep(Duration::from_millis(10));
        }
    }

    fn example(&mut self, end: Instant, method: Method, outcome: Outcome, what: String) {
        let so_far = self.report.outcomes.get(&(method, outcome)).copied().unwrap_or(0);
        if so_far >= report::MAX_EXAMPLES as u64 {
            return;
        }
        let at = end.duration_since(self.shared.begin);
        self.report.examples.push(Example {
            at,
            time: self.shared.begin_since_1970 + at,
            method,
            outcome,
            what,
        });
    }

    fn next(&self) -> Request {
        let turn = match self.mix {
            Mix::Writes => 0,
            Mix::Known => self.sent % 2 + 1,
            Mix::Usual => self.sent % 20,
        };
        let method = match turn {
            turn if turn % 4 == 0 => {
                let url = format!("{}/{}", self.urls, self.sent);
                return Request::Shorten { url };
            }
            turn if turn % 4 == 2 || turn == 13 => Method::Head,
            _ => Method::Get,
        };
        match self.link() {
            Some(Link { slug, url }) if !matches!(turn, 3 | 13) => Request::Follow { method, slug, url },
            _ => {
                // Generated slugs contain no hyphen.
                let slug = format!("no-such-link-{}", self.sent);
                Request::Unknown { method, slug }
            }
        }
    }

    /// Picks the newest link every other time, whatever the method, and otherwise any link: the large prime visits them all.
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

/// An acknowledged link that does not redirect to its URL.
#[derive(Clone, Debug)]
pub struct Lost {
    pub link: Link,
    /// The status and location of the answer, or the failure.
    pub found: String,
}

/// Requests every link through `client`, over eight connections, and returns the links that do not redirect to their URL.
///
/// # Errors
/// Fails if a reader could not enter the machine's network.
pub fn verify_all(client: &Client, links: &[Link]) -> Result<Vec<Lost>> {
    let next = AtomicUsize::new(0);
    let reader = || -> Result<Vec<Lost>> {
        let mut session = Session::open(client.clone(), Connections::KeptAlive)?;
        let mut lost = Vec::new();
        while let Some(link) = links.get(next.fetch_add(1, Ordering::Relaxed)) {
            let Link { slug, url } = link.clone();
            let method = Method::Get;
            let found = match session.send(&Request::Follow { method, slug, url }) {
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
