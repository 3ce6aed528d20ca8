//! Every click is counted exactly once, whichever process dies meanwhile.
//!
//! These tests have a binary of their own, so that no other test competes for the processor.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use links_tests::{Appliance, Broken, Counts, Crowd, DATABASE, eventually};

const JOURNAL: &str = "/var/lib/links/journal/clicks.log";
/// The maximum length of the journal once all of it is counted, in bytes as `stat` and `tar` report them.
const MAX_JOURNAL_LENGTH: u64 = 8 << 20;

#[test]
fn a_million_clicks_are_counted_once_despite_faults() -> Result<()> {
    counted_once(1_000_000, 36)
}

#[test]
#[ignore = "takes some minutes: `make soak`"]
fn three_million_clicks_are_counted_once_despite_faults() -> Result<()> {
    counted_once(3_000_000, 120)
}

#[test]
fn a_full_disk_delays_counting_and_nothing_else() -> Result<()> {
    let appliance = Appliance::installed()?;
    appliance.wait_for_rotation(2)?;
    let crowd = Crowd::new(&appliance)?;
    // The database and the files of the agent get a file system of their own.
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
    let starts = appliance.invocation_ids(2)?;
    appliance.shell("fallocate --length $(df --output=avail --block-size=1 /mnt | tail -1) /mnt/ballast")?;

    let pid = appliance.main_pid("links")?;
    let journal = || appliance.journal("links");
    let mut until_full = Counts::new();
    crowd.during(&appliance.http(), Broken::Never, || {
        crowd.wait_for(50_000)?;
        eventually("the agent logs the full disk", Duration::from_secs(60), || {
            Ok(journal()?
                .contains("clicks: the database does not take them: ")
                .then_some(()))
        })?;
        until_full = crowd.counts(&appliance)?;
        crowd.wait_for(crowd.answered() + 50_000)
    })?;
    ensure!(
        crowd.counts(&appliance)? == until_full,
        "clicks were counted while the disk was full"
    );
    appliance.ok(["rm", "/mnt/ballast"])?;
    crowd.is_counted_once(&appliance)?;
    ensure!(
        journal()?.contains("clicks: the database takes them again"),
        "{}",
        journal()?
    );
    ensure!(appliance.invocation_ids(2)? == starts, "an instance was restarted");
    ensure!(appliance.main_pid("links")? == pid, "the agent was restarted");
    Ok(())
}

/// The number of clicks before the first fault: enough for a journal of about 12 MB if nothing shortened it.
const BEFORE_FAULTS: u64 = 200_000;

/// Follows links `clicks` times with `faults` faults meanwhile, then checks that each link has as many clicks as clients
/// received redirects.
fn counted_once(clicks: u64, faults: u64) -> Result<()> {
    let appliance = Appliance::installed()?;
    appliance.wait_for_rotation(2)?;
    let crowd = Crowd::new(&appliance)?;
    crowd.during(&appliance.http(), Broken::Never, || crowd.wait_for(BEFORE_FAULTS))?;
    crowd.is_counted_once(&appliance)?;
    // The agent shortens the journal once a batch is in the database. This check precedes the faults, because the agent cannot
    // write to the file that nginx creates after a rename.
    eventually("the agent has shortened the journal", Duration::from_secs(30), || {
        let size = appliance.ok(["stat", "--format=%s", JOURNAL])?.stdout;
        Ok((size.trim().parse::<u64>()? <= MAX_JOURNAL_LENGTH).then_some(()))
    })?;

    let begin = Instant::now();
    crowd.during(&appliance.http(), Broken::Never, || {
        for number in 1..=faults {
            crowd.wait_for(BEFORE_FAULTS + (clicks - BEFORE_FAULTS) * number / (faults + 1))?;
            let fault = Fault::ALL[(number as usize * 7 + number as usize / 6) % Fault::ALL.len()];
            println!("after {} clicks: {fault:?}", crowd.answered());
            fault.inject(&appliance, &crowd).with_context(|| format!("{fault:?}"))?;
        }
        crowd.wait_for(clicks)
    })?;
    println!("{} clicks in {:.1} s", crowd.answered(), begin.elapsed().as_secs_f64());
    crowd.is_counted_once(&appliance)?;

    // After a restore from a backup, the files have the same bytes but other inodes.
    appliance.ok(["systemctl", "stop", "links", "nginx"])?;
    appliance.wait_until_stopped()?;
    appliance.shell(
        "cd /var/lib/links
        for directory in agent data journal; do
            cp --archive $directory $directory.restored
            rm -r $directory
            mv $directory.restored $directory
        done
        systemctl start nginx links",
    )?;
    appliance.wait_for_rotation(2)?;
    let before = crowd.answered();
    crowd.during(&appliance.http(), Broken::Never, || crowd.wait_for(before + 20_000))?;
    crowd.is_counted_once(&appliance)
}

#[test]
fn killing_nginx_loses_at_most_one_second_of_clicks() -> Result<()> {
    const BEFORE: u64 = 20_000;
    let appliance = Appliance::installed()?;
    appliance.wait_for_rotation(2)?;
    let crowd = Crowd::new(&appliance)?;
    let (early, late) = crowd.during(&appliance.http(), Broken::ByTheKill, || {
        crowd.wait_for(BEFORE)?;
        let early = crowd.answered();
        // nginx writes its buffer once it is a second old, by a coarse clock. By then all earlier answers are written.
        let written = Instant::now() + Duration::from_millis(1500);
        eventually("a second passes under load", Duration::from_secs(30), || {
            Ok((Instant::now() >= written).then_some(()))
        })?;
        let late = crowd.answered();
        appliance.ok(["systemctl", "kill", "--signal=KILL", "nginx"])?;
        Ok((early, late))
    })?;
    ensure!(late > early, "nothing was answered in a second");
    appliance.ok(["systemctl", "restart", "nginx"])?;
    // For each worker, one answer may have been written but not received.
    let (least, most) = (early, crowd.answered() + Crowd::WORKERS as u64);
    let total = |counted: &Counts| counted.values().sum::<u64>();
    let counted = crowd.settled(&appliance, |counted| (least..=most).contains(&total(counted)))?;
    println!("{} answered, {} counted", crowd.answered(), total(&counted));
    for (slug, answers) in crowd.answers() {
        let count = counted.get(&slug).copied().unwrap_or_default();
        ensure!(
            count <= answers + Crowd::WORKERS as u64,
            "{slug}: {answers} answered, {count} counted"
        );
    }
    Ok(())
}

/// A fault, from which the appliance has to recover by itself.
#[derive(Clone, Copy, Debug)]
enum Fault {
    AgentKilled,
    InstanceKilled,
    /// Another process holds the write lock for a while.
    DatabaseLocked,
    NginxReloaded,
    NginxRestarted,
    /// The journal is renamed and opened again, as logrotate does it.
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

    fn inject(self, appliance: &Appliance, crowd: &Crowd) -> Result<()> {
        let kill = |unit| {
            // Without the reset, systemd would refuse to restart the unit this often.
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
                // This takes about two seconds.
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
