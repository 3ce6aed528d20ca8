//! Every click is counted exactly once, whatever dies meanwhile.
//!
//! In a test program of its own, so that nothing else takes the processor.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use links_tests::http::{Client, Connection};
use links_tests::load::Link;
use links_tests::{Appliance, DATABASE, eventually};
use rusqlite::OpenFlags;

const JOURNAL: &str = "/var/lib/links/journal/clicks.log";
const LINKS: usize = 40;
const WORKERS: usize = 8;
/// For the agent to come back after the last fault, and to count what is left.
const COUNTED_WITHIN: Duration = Duration::from_secs(180);

#[test]
fn a_million_clicks_are_counted_once() -> Result<()> {
    counted_once(1_000_000, 36)
}

#[test]
#[ignore = "takes some minutes: `make soak`"]
fn three_million_clicks_are_counted_once() -> Result<()> {
    counted_once(3_000_000, 120)
}

#[test]
fn a_full_disk_holds_up_the_count_and_nothing_else() -> Result<()> {
    let appliance = Appliance::installed()?;
    appliance.wait_for_rotation(2)?;
    let crowd = Crowd::new(&appliance)?;
    // A disk of its own for the database and for what the agent writes down.
    appliance.ok(["systemctl", "stop", "links"])?;
    appliance.wait_until_stopped()?;
    appliance.shell(
        "mount -t tmpfs -o size=32m,mode=755 tmpfs /mnt
        for directory in data agent; do
            cp --archive /var/lib/links/$directory /mnt
            mount --bind /mnt/$directory /var/lib/links/$directory
        done
        systemctl start links",
    )?;
    appliance.wait_for_rotation(2)?;
    let starts = appliance.starts(2)?;
    appliance.shell("fallocate --length $(df --output=avail --block-size=1 /mnt | tail -1) /mnt/ballast")?;

    let pid = appliance.main_pid("links")?;
    let said = || appliance.journal("links");
    let mut until_full = Counts::new();
    thread::scope(|scope| {
        let workers = crowd.start(scope, &appliance.http(), Broken::Never);
        let waited = crowd.wait_for(50_000).and_then(|()| {
            eventually("the agent says that the disk is full", Duration::from_secs(60), || {
                Ok(said()?
                    .contains("clicks: the database does not take them: ")
                    .then_some(()))
            })?;
            until_full = counts(&appliance)?;
            crowd.wait_for(crowd.answered() + 50_000)
        });
        crowd.stop.store(true, Ordering::Relaxed);
        workers.into_iter().try_for_each(joined)?;
        waited
    })?;
    ensure!(counts(&appliance)? == until_full, "something was counted meanwhile");
    appliance.ok(["rm", "/mnt/ballast"])?;
    let wanted = crowd.answers();
    let last = settled(&appliance, |counted| *counted == wanted)?;
    ensure!(last == wanted, "{}", difference(&wanted, &last));
    ensure!(said()?.contains("clicks: the database takes them again"), "{}", said()?);
    ensure!(appliance.starts(2)? == starts, "an instance was restarted");
    ensure!(appliance.main_pid("links")? == pid, "the agent was restarted");
    Ok(())
}

/// Has links followed that often, with that many faults meanwhile; then each has the clicks that clients were answered.
fn counted_once(clicks: u64, faults: u64) -> Result<()> {
    let appliance = Appliance::installed()?;
    appliance.wait_for_rotation(2)?;
    let crowd = Crowd::new(&appliance)?;
    let begin = Instant::now();
    thread::scope(|scope| {
        let workers = crowd.start(scope, &appliance.http(), Broken::Never);
        let disturbed = (1..=faults).try_for_each(|number| {
            crowd.wait_for(clicks * number / (faults + 1))?;
            let fault = Fault::ALL[(number as usize * 7 + number as usize / 6) % Fault::ALL.len()];
            println!("after {} clicks: {fault:?}", crowd.answered());
            fault.happen(&appliance, &crowd).with_context(|| format!("{fault:?}"))
        });
        let waited = disturbed.and_then(|()| crowd.wait_for(clicks));
        crowd.stop.store(true, Ordering::Relaxed);
        workers.into_iter().try_for_each(joined)?;
        waited
    })?;
    println!("{} clicks in {:.1} s", crowd.answered(), begin.elapsed().as_secs_f64());
    let wanted = crowd.answers();
    let last = settled(&appliance, |counted| *counted == wanted)?;
    ensure!(last == wanted, "{}", difference(&wanted, &last));
    Ok(())
}

#[test]
fn of_an_nginx_that_is_killed_a_second_is_missing_at_most() -> Result<()> {
    const BEFORE: u64 = 20_000;
    let appliance = Appliance::installed()?;
    appliance.wait_for_rotation(2)?;
    let crowd = Crowd::new(&appliance)?;
    let (early, late) = thread::scope(|scope| {
        let workers = crowd.start(scope, &appliance.http(), Broken::ByTheKill);
        let kill = || -> Result<(u64, u64)> {
            crowd.wait_for(BEFORE)?;
            let early = crowd.answered();
            // What was answered by now is written when nginx's buffer is a second old, and the clock of that is slow.
            let written = Instant::now() + Duration::from_millis(1500);
            eventually("a second passes under load", Duration::from_secs(30), || {
                Ok((Instant::now() >= written).then_some(()))
            })?;
            let late = crowd.answered();
            appliance.ok(["systemctl", "kill", "--signal=KILL", "nginx"])?;
            Ok((early, late))
        };
        let killed = kill();
        crowd.stop.store(true, Ordering::Relaxed);
        workers.into_iter().try_for_each(joined)?;
        killed
    })?;
    ensure!(late > early, "nothing was answered in a second");
    appliance.ok(["systemctl", "restart", "nginx"])?;
    // Each worker may have been answered without having got it.
    let (least, most) = (early, crowd.answered() + WORKERS as u64);
    let total = |counted: &Counts| counted.values().sum::<u64>();
    let counted = settled(&appliance, |counted| (least..=most).contains(&total(counted)))?;
    println!("{} answered, {} counted", crowd.answered(), total(&counted));
    for (slug, answers) in crowd.answers() {
        let count = counted.get(&slug).copied().unwrap_or_default();
        ensure!(
            count <= answers + WORKERS as u64,
            "{slug}: {answers} answered, {count} counted"
        );
    }
    Ok(())
}

/// By slug.
type Counts = BTreeMap<String, u64>;

/// Waits until the counts are as wanted and stay so while everything that nginx wrote is counted.
fn settled(appliance: &Appliance, wanted: impl Fn(&Counts) -> bool) -> Result<Counts> {
    let mut last = Counts::new();
    let waited = eventually("the clicks are counted", COUNTED_WITHIN, || {
        last = counts(appliance)?;
        Ok(wanted(&last).then_some(()))
    });
    waited.with_context(|| {
        let counted = last.values().sum::<u64>();
        let said = appliance.journal("links").unwrap_or_default();
        format!("counted are {counted}: {last:?}; the agent says:\n{said}")
    })?;
    appliance.wait_until_counted(COUNTED_WITHIN)?;
    counts(appliance)
}

fn counts(appliance: &Appliance) -> Result<Counts> {
    appliance.inside(|| {
        let database = rusqlite::Connection::open_with_flags(DATABASE, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        database.busy_timeout(Duration::from_secs(10))?;
        let mut query = database.prepare(
            "SELECT slug, sum(clicks + bots) FROM click_days JOIN links ON links.id = link_id GROUP BY slug",
        )?;
        let rows = query.query_map([], |row| Ok((row.get(0)?, row.get::<_, i64>(1)?.unsigned_abs())))?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    })
}

fn difference(wanted: &Counts, found: &Counts) -> String {
    let lines = wanted.iter().filter_map(|(slug, wanted)| {
        let found = found.get(slug).copied().unwrap_or_default();
        (found != *wanted).then(|| format!("{slug}: {wanted} answered, {found} counted"))
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// What happens to the appliance. After each it is left to itself.
#[derive(Clone, Copy, Debug)]
enum Fault {
    AgentKilled,
    InstanceKilled,
    /// Nobody can write for a while.
    DatabaseLocked,
    NginxReloaded,
    NginxRestarted,
    /// As logrotate would have it.
    JournalRenamed,
}

impl Fault {
    const ALL: [Fault; 6] = [
        Fault::AgentKilled,
        Fault::InstanceKilled,
        Fault::DatabaseLocked,
        Fault::NginxReloaded,
        Fault::NginxRestarted,
        Fault::JournalRenamed,
    ];

    fn happen(self, appliance: &Appliance, crowd: &Crowd) -> Result<()> {
        let kill = |unit| {
            // So often would be too often for systemd otherwise.
            appliance.ok(["systemctl", "reset-failed", unit])?;
            appliance.ok(["systemctl", "kill", "--signal=KILL", unit])
        };
        match self {
            Fault::AgentKilled => drop(kill("links")?),
            Fault::InstanceKilled => {
                appliance.wait_for_rotation(2)?;
                kill("links@1")?;
            }
            Fault::DatabaseLocked => appliance.inside(|| {
                let database = rusqlite::Connection::open(DATABASE)?;
                database.busy_timeout(Duration::from_secs(10))?;
                database.execute_batch("BEGIN IMMEDIATE")?;
                // For two seconds or so.
                crowd.wait_for(crowd.answered() + 50_000)?;
                Ok(database.execute_batch("ROLLBACK")?)
            })?,
            Fault::NginxReloaded => drop(appliance.ok(["systemctl", "reload", "nginx"])?),
            Fault::NginxRestarted => drop(appliance.ok(["systemctl", "restart", "nginx"])?),
            Fault::JournalRenamed => {
                let renamed = format!("{JOURNAL}.{}", crowd.answered());
                appliance.ok(["mv", JOURNAL, &renamed])?;
                appliance.ok(["nginx", "-s", "reopen"])?;
            }
        }
        Ok(())
    }
}

/// Whether a client may see a connection end that was at work.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Broken {
    Never,
    ByTheKill,
}

/// Clients that follow links, and how many answers they got for each.
struct Crowd {
    links: Vec<(Link, AtomicU64)>,
    answered: AtomicU64,
    stop: AtomicBool,
}

impl Crowd {
    fn new(appliance: &Appliance) -> Result<Self> {
        let link = |number| {
            Ok((
                appliance.shorten(&format!("https://example.com/{number}"))?,
                AtomicU64::new(0),
            ))
        };
        Ok(Self {
            links: (0..LINKS).map(link).collect::<Result<_>>()?,
            answered: AtomicU64::new(0),
            stop: AtomicBool::new(false),
        })
    }

    fn start<'scope>(
        &'scope self,
        scope: &'scope thread::Scope<'scope, '_>,
        client: &Client,
        broken: Broken,
    ) -> Vec<thread::ScopedJoinHandle<'scope, Result<()>>> {
        let worker = |number| {
            let client = client.clone();
            scope.spawn(move || self.follow(&client, number, broken))
        };
        (0..WORKERS).map(worker).collect()
    }

    fn follow(&self, client: &Client, worker: usize, broken: Broken) -> Result<()> {
        let mut kept: Option<Connection> = None;
        let mut number = worker;
        while !self.stop.load(Ordering::Relaxed) {
            // Some links are asked for more often than others.
            number = (number * 21 + 7) % (LINKS * LINKS);
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

    fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    fn answers(&self) -> Counts {
        let answers = |(link, answers): &(Link, AtomicU64)| (link.slug.clone(), answers.load(Ordering::Relaxed));
        self.links.iter().map(answers).collect()
    }

    /// Waits until that many were answered in all.
    fn wait_for(&self, answers: u64) -> Result<()> {
        eventually(&format!("{answers} answers"), Duration::from_secs(120), || {
            Ok((self.answered() >= answers).then_some(()))
        })
    }
}

fn joined(worker: thread::ScopedJoinHandle<'_, Result<()>>) -> Result<()> {
    worker.join().unwrap_or_else(|_| bail!("a worker panicked"))
}
