//! Writers that shorten unique URLs as fast as they are answered, and remember every link they were promised.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use serde::Deserialize;

use crate::http::{Answer, Client, Connection, Failure};

/// A link that was acknowledged with 200.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    pub slug: String,
    pub url: String,
}

/// Whether a writer connects for each request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connections {
    Fresh,
    KeptAlive,
}

/// What is to be done: `writers` threads, the n-th through the n-th client, round and round.
#[derive(Clone, Debug)]
pub struct Load {
    clients: Vec<Client>,
    writers: usize,
    connections: Connections,
    label: String,
}

impl Load {
    /// One writer through each client. The clients carry the token, where one is needed.
    pub fn through(clients: impl Into<Vec<Client>>) -> Self {
        let clients = clients.into();
        let writers = clients.len();
        Self {
            clients,
            writers,
            connections: Connections::KeptAlive,
            label: "load".to_owned(),
        }
    }

    /// Tells this load's URLs from another's: `https://load.example/LABEL/WRITER/NUMBER`, both from 0.
    #[must_use]
    pub fn label(mut self, label: &str) -> Self {
        label.clone_into(&mut self.label);
        self
    }

    #[must_use]
    pub fn writers(mut self, writers: usize) -> Self {
        self.writers = writers;
        self
    }

    #[must_use]
    pub fn connections(mut self, connections: Connections) -> Self {
        self.connections = connections;
        self
    }

    /// Starts the writers; they go on until [`Running::stop`].
    pub fn start(&self) -> Running {
        let stop = Arc::new(AtomicBool::new(false));
        let [acknowledged, failed] = [(); 2].map(|()| Arc::new(AtomicUsize::new(0)));
        let writers = (0..self.writers)
            .zip(self.clients.iter().cycle())
            .map(|(number, client)| {
                let (client, connections) = (client.clone(), self.connections);
                let urls = format!("https://load.example/{}/{number}", self.label);
                let (stop, acknowledged, failed) = (stop.clone(), acknowledged.clone(), failed.clone());
                thread::spawn(move || write(client, connections, &urls, &stop, (&acknowledged, &failed)))
            })
            .collect();
        Running {
            stop,
            acknowledged,
            failed,
            writers,
            begin: Instant::now(),
        }
    }

    /// Runs the writers for that long.
    ///
    /// # Errors
    /// As [`Running::stop`].
    pub fn run(&self, duration: Duration) -> Result<Report> {
        let running = self.start();
        thread::sleep(duration);
        running.stop()
    }
}

/// Writers at work. Dropped, they stop after their current request.
#[derive(Debug)]
pub struct Running {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicUsize>,
    failed: Arc<AtomicUsize>,
    writers: Vec<JoinHandle<Result<Report>>>,
    begin: Instant,
}

impl Running {
    /// Links acknowledged so far.
    pub fn acknowledged(&self) -> usize {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// Requests so far that ended in anything else.
    pub fn failed(&self) -> usize {
        self.failed.load(Ordering::Relaxed)
    }

    /// Lets every writer finish its request, and adds up.
    ///
    /// # Errors
    /// A writer could not enter the machine's network.
    pub fn stop(mut self) -> Result<Report> {
        self.stop.store(true, Ordering::Relaxed);
        let mut total = Report::default();
        for writer in self.writers.drain(..) {
            total.add(writer.join().map_err(|_| anyhow!("a writer panicked"))??);
        }
        total.elapsed = self.begin.elapsed();
        Ok(total)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// What the writers saw.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Answers per status code.
    pub statuses: BTreeMap<u16, u64>,
    /// Requests without an answer.
    pub refused: u64,
    pub resets: u64,
    pub timeouts: u64,
    /// Anything else: other failures, and 200s whose body is not what the interface promises.
    pub odd: Vec<String>,
    pub acknowledged: Vec<Link>,
    pub elapsed: Duration,
}

impl Report {
    /// Requests that ended in anything but the 200 that they should have.
    pub fn failed(&self) -> u64 {
        let wrong: u64 = self
            .statuses
            .iter()
            .filter(|(status, _)| **status != 200)
            .map(|(_, count)| count)
            .sum();
        wrong + self.refused + self.resets + self.timeouts + self.odd.len() as u64
    }

    fn count(&mut self, url: String, result: Result<Answer, Failure>) {
        match result {
            Ok(answer) => {
                *self.statuses.entry(answer.status.as_u16()).or_default() += 1;
                if answer.status == 200 {
                    match answer.json::<Shortened>() {
                        Ok(Shortened { slug }) => self.acknowledged.push(Link { slug, url }),
                        Err(error) => self.odd.push(error.to_string()),
                    }
                }
            }
            Err(Failure::Refused) => self.refused += 1,
            Err(Failure::Reset) => self.resets += 1,
            Err(Failure::TimedOut(_)) => self.timeouts += 1,
            Err(Failure::Other(what)) => self.odd.push(what),
        }
    }

    fn add(&mut self, other: Self) {
        for (status, count) in other.statuses {
            *self.statuses.entry(status).or_default() += count;
        }
        self.refused += other.refused;
        self.resets += other.resets;
        self.timeouts += other.timeouts;
        self.odd.extend(other.odd);
        self.acknowledged.extend(other.acknowledged);
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let per_second = self.acknowledged.len() as f64 / self.elapsed.as_secs_f64();
        write!(
            f,
            "{} links acknowledged in {:.1?} ({per_second:.0}/s)",
            self.acknowledged.len(),
            self.elapsed
        )?;
        write!(f, "; answers {:?}", self.statuses)?;
        write!(
            f,
            "; refused {}, reset {}, timed out {}",
            self.refused, self.resets, self.timeouts
        )?;
        write!(f, "; odd {}: {:?}", self.odd.len(), &self.odd[..self.odd.len().min(3)])
    }
}

#[derive(Deserialize)]
struct Shortened {
    slug: String,
}

/// A client in a thread of the machine's network, with the connection that it keeps.
struct Line {
    client: Client,
    connections: Connections,
    open: Option<Connection>,
}

impl Line {
    fn open(client: Client, connections: Connections) -> Result<Self> {
        client.network().enter().context("Entering the machine's network")?;
        Ok(Self {
            client,
            connections,
            open: None,
        })
    }

    /// One request, over a new connection where the old one is closed. A connection that failed is not used again.
    fn send(&mut self, request: impl FnOnce(&mut Connection) -> Result<Answer, Failure>) -> Result<Answer, Failure> {
        let mut connection = match self.open.take().and_then(Connection::reusable) {
            Some(open) => open,
            None => self.client.connect_from_inside()?,
        };
        let answer = request(&mut connection)?;
        if self.connections == Connections::KeptAlive {
            self.open = Some(connection);
        }
        Ok(answer)
    }
}

fn write(
    client: Client,
    connections: Connections,
    urls: &str,
    stop: &AtomicBool,
    (acknowledged, failed): (&AtomicUsize, &AtomicUsize),
) -> Result<Report> {
    let mut line = Line::open(client, connections)?;
    let mut report = Report::default();
    let mut sent = 0_u64;
    while !stop.load(Ordering::Relaxed) {
        let url = format!("{urls}/{sent}");
        let answer = line.send(|connection| connection.post("/shorten", serde_json::json!({ "url": &url })));
        if matches!(answer, Err(Failure::Refused)) {
            // Nobody listens: asking again at once would only take the processor from whoever is to.
            thread::sleep(Duration::from_millis(10));
        }
        let before = report.acknowledged.len();
        report.count(url, answer);
        let new = report.acknowledged.len() - before;
        acknowledged.fetch_add(new, Ordering::Relaxed);
        failed.fetch_add(1 - new, Ordering::Relaxed);
        sent += 1;
    }
    Ok(report)
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
            let answer = line.send(|connection| connection.get(&format!("/{}", link.slug)));
            let found = match answer {
                Ok(answer) if answer.status == 302 && answer.header("location") == link.url => continue,
                Ok(answer) => format!("{} {}", answer.status, answer.header("location")),
                Err(failure) => failure.to_string(),
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
