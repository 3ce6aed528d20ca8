//! Clients that follow links, and the clicks that have to be counted for it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rusqlite::OpenFlags;

use crate::http::{Client, Connection};
use crate::load::Link;
use crate::{Appliance, DATABASE, eventually};

/// For the agent to come back after the last fault, and to count what is left.
const COUNTED_WITHIN: Duration = Duration::from_secs(180);

/// Clicks by slug.
pub type Counts = BTreeMap<String, u64>;

/// Whether a client may see a connection end that was at work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    Never,
    ByTheKill,
}

/// Clients that follow links over connections that they keep, and how many answers they got for each.
#[derive(Debug)]
pub struct Crowd {
    links: Vec<(Link, AtomicU64)>,
    answered: AtomicU64,
    stop: AtomicBool,
    /// Between two requests of a client; none goes as fast as it is answered.
    pace: Option<Duration>,
}

impl Crowd {
    const LINKS: usize = 40;
    pub const WORKERS: usize = 8;

    /// Makes the links.
    ///
    /// # Errors
    /// One is not acknowledged.
    pub fn new(appliance: &Appliance) -> Result<Self> {
        let link = |number| {
            Ok((
                appliance.shorten(&format!("https://example.com/{number}"))?,
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

    /// The same crowd with a bound on its requests per second, so that it does not take the processor from the rest.
    #[must_use]
    pub fn rate(self, per_second: u32) -> Self {
        Self {
            pace: Some(Duration::from_secs(Self::WORKERS as u64) / per_second),
            ..self
        }
    }

    /// Follows the links while `work` is done, until it ends.
    ///
    /// # Errors
    /// `work` failed, or an answer was wrong.
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
            // Some links are asked for more often than others.
            number = (number * 21 + 7) % (Self::LINKS * Self::LINKS);
            let (link, answers) = &self.links[number.isqrt()];
            let Some(mut connection) = kept.take().or_else(|| client.connect().ok()) else {
                // nginx is being restarted.
                continue;
            };
            let answer = match connection.get(&format!("/{}", link.slug)) {
                Ok(answer) => answer,
                // Closed before it was asked, as a kept connection may be at any time; or killed.
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

    /// Answers so far, in all.
    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// Answers so far, by slug.
    pub fn answers(&self) -> Counts {
        let answers = |(link, answers): &(Link, AtomicU64)| (link.slug.clone(), answers.load(Ordering::Relaxed));
        self.links.iter().map(answers).collect()
    }

    /// Waits until that many were answered in all.
    ///
    /// # Errors
    /// They are not within two minutes.
    pub fn wait_for(&self, answers: u64) -> Result<()> {
        eventually(&format!("{answers} answers"), Duration::from_secs(120), || {
            Ok((self.answered() >= answers).then_some(()))
        })
    }

    /// Waits until each link has exactly the clicks that clients were answered, and stays so until nothing is left to count.
    ///
    /// # Errors
    /// A click is missing or was counted twice; the error names the links.
    pub fn is_counted_once(&self, appliance: &Appliance) -> Result<()> {
        let wanted = self.answers();
        let last = self.settled(appliance, |counted| *counted == wanted)?;
        ensure!(last == wanted, "{}", difference(&wanted, &last));
        Ok(())
    }

    /// Waits until the crowd's clicks are as wanted and everything that nginx wrote is counted.
    ///
    /// # Errors
    /// They are not within three minutes.
    pub fn settled(&self, appliance: &Appliance, wanted: impl Fn(&Counts) -> bool) -> Result<Counts> {
        let mut last = Counts::new();
        let waited = eventually("the clicks are counted", COUNTED_WITHIN, || {
            last = self.counts(appliance)?;
            Ok(wanted(&last).then_some(()))
        });
        waited.with_context(|| {
            let counted = last.values().sum::<u64>();
            let said = appliance.journal("links").unwrap_or_default();
            let differing = difference(&self.answers(), &last);
            format!("counted are {counted}:\n{differing}\nthe agent says:\n{said}")
        })?;
        appliance.wait_until_counted(COUNTED_WITHIN)?;
        self.counts(appliance)
    }

    /// The clicks of the crowd's links that the database has.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn counts(&self, appliance: &Appliance) -> Result<Counts> {
        let mut counted = appliance.inside(|| {
            let database = rusqlite::Connection::open_with_flags(DATABASE, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
            database.busy_timeout(Duration::from_secs(10))?;
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
    let lines = wanted.iter().filter_map(|(slug, wanted)| {
        let found = found.get(slug).copied().unwrap_or_default();
        (found != *wanted).then(|| format!("{slug}: {wanted} answered, {found} counted"))
    });
    lines.collect::<Vec<_>>().join("\n")
}
