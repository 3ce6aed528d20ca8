//! Clients that follow links, and the check that each of their clicks is counted once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use crate::host::Host;
use crate::host::database::DATABASE;
use crate::http::{Client, Connection};
use crate::load::Link;
use crate::process::eventually;

/// How long the agent may take to recover from the last fault and to count the remaining clicks.
const COUNTED_WITHIN: Duration = Duration::from_secs(180);

/// The number of clicks by slug.
pub type Counts = BTreeMap<String, u64>;

/// Whether answers may be other than the right redirect. Connections may end at any time in either case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    Never,
    /// Answers may be wrong because a server was killed.
    ByTheKill,
}

/// Clients that follow links over kept connections, with the number of right answers for each link.
#[derive(Debug)]
pub struct Crowd {
    links: Vec<(Link, AtomicU64)>,
    answered: AtomicU64,
    stop: AtomicBool,
    /// The time between two requests of a client. Without it, a client sends as soon as it has an answer.
    pace: Option<Duration>,
}

impl Crowd {
    const LINKS: usize = 40;
    pub const WORKERS: usize = 8;

    /// Creates the links.
    ///
    /// # Errors
    /// Fails if a link is not acknowledged.
    pub fn new(host: &Host) -> Result<Self> {
        let link = |number| {
            Ok((
                host.shorten(&format!("https://example.com/{number}"))?,
                AtomicU64::new(0),
            ))
        };
        Ok(Self {
            links: (0..Self::LINKS).map(link).collect::<Result<_>>()?,
            answered: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            pace: None,
        })
    }

    /// Limits the requests per second of the whole crowd, to leave processor time for everything else.
    #[must_use]
    pub fn rate(self, per_second: u32) -> Self {
        Self {
            pace: Some(Duration::from_secs(Self::WORKERS as u64) / per_second),
            ..self
        }
    }

    /// Follows the links while `work` runs.
    ///
    /// # Errors
    /// Fails if `work` fails or an answer is wrong.
    pub fn during<T>(&self, client: &Client, broken: Broken, work: impl FnOnce() -> Result<T>) -> Result<T> {
        self.stop.store(false, Ordering::Relaxed);
        thread::scope(|scope| {
            let workers: Vec<_> = (0..Self::WORKERS)
                .map(|number| scope.spawn(move || self.follow(&client.clone(), number, broken)))
                .collect();
            let done = work();
            self.stop.store(true, Ordering::Relaxed);
            for worker in workers {
                worker.join().unwrap_or_else(|_| bail!("a worker panicked"))?;
            }
            done
        })
    }

    fn follow(&self, client: &Client, worker: usize, broken: Broken) -> Result<()> {
        let mut kept: Option<Connection> = None;
        let mut number = worker;
        let mut due = Instant::now();
        while !self.stop.load(Ordering::Relaxed) {
            if let Some(pace) = self.pace {
                due += pace;
                thread::sleep(due.saturating_duration_since(Instant::now()));
            }
            // Some links are requested more often than others.
            number = (number * 21 + 7) % (Self::LINKS * Self::LINKS);
            let (link, answers) = &self.links[number.isqrt()];
            let Some(mut connection) = kept.take().or_else(|| client.connect().ok()) else {
                // nginx is being restarted.
                continue;
            };
            let answer = match connection.get(&format!("/{}", link.slug)) {
                Ok(answer) => answer,
                // The server was killed, or it closed the kept connection, which it may do at any time.
                Err(_) => continue,
            };
            let right = answer.status == 302 && answer.header("location") == link.url;
            ensure!(right || broken == Broken::ByTheKill, "{}: {answer}", link.slug);
            if right {
                answers.fetch_add(1, Ordering::Relaxed);
                self.answered.fetch_add(1, Ordering::Relaxed);
            }
            kept = Some(connection).filter(|_| answer.header("connection") != "close");
        }
        Ok(())
    }

    /// The number of right answers so far.
    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// The number of right answers so far, by slug.
    pub fn answers(&self) -> Counts {
        let answers = |(link, answers): &(Link, AtomicU64)| (link.slug.clone(), answers.load(Ordering::Relaxed));
        self.links.iter().map(answers).collect()
    }

    /// Waits until there are this many right answers in total.
    ///
    /// # Errors
    /// Fails if this takes more than two minutes.
    pub fn wait_for(&self, answers: u64) -> Result<()> {
        eventually(&format!("{answers} answers"), Duration::from_secs(120), || {
            Ok((self.answered() >= answers).then_some(()))
        })
    }

    /// Waits until each link has exactly as many clicks as right answers, and checks that again when nothing is left to count.
    ///
    /// # Errors
    /// Fails if a click is missing or was counted twice. The error names the links.
    pub fn is_counted_once(&self, host: &Host) -> Result<()> {
        self.settles_at(host, &self.answers())
    }

    /// Waits until each link has exactly this many clicks, and checks that again when nothing is left to count.
    ///
    /// # Errors
    /// Fails if they differ after three minutes. The error names the links.
    pub fn settles_at(&self, host: &Host, wanted: &Counts) -> Result<()> {
        let settled = self.settled(host, |counted| difference(wanted, counted).is_empty());
        let difference = difference(wanted, &self.counts(host)?);
        settled.with_context(|| difference.clone())?;
        ensure!(difference.is_empty(), "{difference}");
        Ok(())
    }

    /// Waits until the clicks are as `wanted` and everything that nginx has logged is counted. Returns the clicks.
    ///
    /// # Errors
    /// Fails if either takes more than three minutes.
    pub fn settled(&self, host: &Host, wanted: impl Fn(&Counts) -> bool) -> Result<Counts> {
        let mut last = Counts::new();
        let waited = eventually("the clicks are counted", COUNTED_WITHIN, || {
            last = self.counts(host)?;
            Ok(wanted(&last).then_some(()))
        });
        waited.with_context(|| {
            let counted = last.values().sum::<u64>();
            let log = host.journal("links").unwrap_or_default();
            format!("{counted} clicks are counted; the log of the agent:\n{log}")
        })?;
        host.wait_until_counted(COUNTED_WITHIN)?;
        self.counts(host)
    }

    /// The clicks of the crowd's links in the database.
    ///
    /// # Errors
    /// Fails if the database cannot be read.
    pub fn counts(&self, host: &Host) -> Result<Counts> {
        let mut counted = host.read_database(DATABASE, |database| {
            let mut query = database.prepare(
                "SELECT slug, sum(clicks + bots) FROM click_days JOIN links ON links.id = link_id GROUP BY slug",
            )?;
            let rows = query.query_map([], |row| Ok((row.get(0)?, row.get::<_, i64>(1)?.unsigned_abs())))?;
            Ok(rows.collect::<rusqlite::Result<Counts>>()?)
        })?;
        counted.retain(|slug, _| self.links.iter().any(|(link, _)| link.slug == *slug));
        Ok(counted)
    }
}

fn difference(wanted: &Counts, found: &Counts) -> String {
    let slugs: BTreeSet<_> = wanted.keys().chain(found.keys()).collect();
    let of = |counts: &Counts, slug: &String| counts.get(slug).copied().unwrap_or_default();
    let lines = slugs.into_iter().filter_map(|slug| {
        let (wanted, found) = (of(wanted, slug), of(found, slug));
        (found != wanted).then(|| format!("{slug}: {wanted} expected, {found} counted"))
    });
    lines.collect::<Vec<_>>().join("\n")
}
