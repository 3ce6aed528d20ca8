//! Every click is counted exactly once, whatever dies meanwhile.
//!
//! In a test program of its own, so that nothing else takes the processor.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use links_tests::{Appliance, Broken, Counts, Crowd, DATABASE, eventually};

const JOURNAL: &str = "/var/lib/links/journal/clicks.log";
/// Of the journal, in bytes as `stat` and `tar` see it, when all of it is counted.
const LONGEST: u64 = 8 << 20;

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
    crowd.during(&appliance.http(), Broken::Never, || {
        crowd.wait_for(50_000)?;
        eventually("the agent says that the disk is full", Duration::from_secs(60), || {
            Ok(said()?
                .contains("clicks: the database does not take them: ")
                .then_some(()))
        })?;
        until_full = crowd.counts(&appliance)?;
        crowd.wait_for(crowd.answered() + 50_000)
    })?;
    ensure!(
        crowd.counts(&appliance)? == until_full,
        "something was counted meanwhile"
    );
    appliance.ok(["rm", "/mnt/ballast"])?;
    crowd.is_counted_once(&appliance)?;
    ensure!(said()?.contains("clicks: the database takes them again"), "{}", said()?);
    ensure!(appliance.starts(2)? == starts, "an instance was restarted");
    ensure!(appliance.main_pid("links")? == pid, "the agent was restarted");
    Ok(())
}

/// Has links followed that often, with that many faults meanwhile; then each has the clicks that clients were answered.
/// Enough for a journal of some twelve megabytes, if nothing shortened it.
const BEFORE_FAULTS: u64 = 200_000;

fn counted_once(clicks: u64, faults: u64) -> Result<()> {
    let appliance = Appliance::installed()?;
    appliance.wait_for_rotation(2)?;
    let crowd = Crowd::new(&appliance)?;
    crowd.during(&appliance.http(), Broken::Never, || crowd.wait_for(BEFORE_FAULTS))?;
    crowd.is_counted_once(&appliance)?;
    // The agent shortens it once the batch is in the database. A file that nginx made in the place of a renamed one it may not write.
    eventually("the journal is short", Duration::from_secs(30), || {
        let size = appliance.ok(["stat", "--format=%s", JOURNAL])?.stdout;
        Ok((size.trim().parse::<u64>()? <= LONGEST).then_some(()))
    })?;

    let begin = Instant::now();
    crowd.during(&appliance.http(), Broken::Never, || {
        for number in 1..=faults {
            crowd.wait_for(BEFORE_FAULTS + (clicks - BEFORE_FAULTS) * number / (faults + 1))?;
            let fault = Fault::ALL[(number as usize * 7 + number as usize / 6) % Fault::ALL.len()];
            println!("after {} clicks: {fault:?}", crowd.answered());
            fault.happen(&appliance, &crowd).with_context(|| format!("{fault:?}"))?;
        }
        crowd.wait_for(clicks)
    })?;
    println!("{} clicks in {:.1} s", crowd.answered(), begin.elapsed().as_secs_f64());
    crowd.is_counted_once(&appliance)?;

    // Restored from a backup: the same bytes in other files.
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
fn of_an_nginx_that_is_killed_a_second_is_missing_at_most() -> Result<()> {
    const BEFORE: u64 = 20_000;
    let appliance = Appliance::installed()?;
    appliance.wait_for_rotation(2)?;
    let crowd = Crowd::new(&appliance)?;
    let (early, late) = crowd.during(&appliance.http(), Broken::ByTheKill, || {
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
    })?;
    ensure!(late > early, "nothing was answered in a second");
    appliance.ok(["systemctl", "restart", "nginx"])?;
    // Each worker may have been answered without having got it.
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
