//! Every click is counted exactly once, whichever process dies meanwhile.
//!
//! These tests have a binary of their own, so that no other test competes for the processor.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use links_tests::{Broken, Counts, Crowd, DATABASE, Host, eventually};

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
    let host = Host::builder().serving()?;
    let crowd = Crowd::new(&host)?;
    // The database and the files of the agent get a file system of their own.
    host.ok(["systemctl", "stop", "links"])?;
    host.wait_until_stopped()?;
    host.shell(
        "mount -t tmpfs -o size=32m,mode=755 tmpfs /mnt
        for directory in data agent; do
            cp --archive /var/lib/links/$directory /mnt
            mount --bind /mnt/$directory /var/lib/links/$directory
        done
        systemctl start links",
    )?;
    host.wait_for_rotation(2)?;
    let starts = host.invocation_ids(2)?;
    host.shell("fallocate --length $(df --output=avail --block-size=1 /mnt | tail -1) /mnt/ballast")?;

    let pid = host.main_pid("links")?;
    // The lines about clicks and the database: first the errors that an instance answers (others are about the position of the
    // database), then the notices.
    let reports = || -> Result<[usize; 2]> {
        let count = |priority: &str, part: &str| -> Result<usize> {
            let journal = host.journal_at(priority, "links")?;
            let is_one = |line: &&str| line.starts_with("clicks: ") && line.contains("database") && line.contains(part);
            Ok(journal.lines().filter(is_one).count())
        };
        Ok([count("err", ": status 503 ")?, count("notice..notice", "")?])
    };
    let before = reports()?;
    let mut until_full = Counts::new();
    crowd.during(&host.http(), Broken::Never, || {
        crowd.wait_for(50_000)?;
        eventually("the agent logs the full disk", Duration::from_secs(60), || {
            Ok((reports()?[0] > before[0]).then_some(()))
        })?;
        until_full = crowd.counts(&host)?;
        crowd.wait_for(crowd.answered() + 50_000)
    })?;
    ensure!(
        crowd.counts(&host)? == until_full,
        "clicks were counted while the disk was full"
    );
    host.ok(["rm", "/mnt/ballast"])?;
    crowd.is_counted_once(&host)?;
    ensure!(
        reports()?[1] > before[1],
        "the agent should log that clicks are counted again:\n{}",
        host.journal("links")?
    );
    ensure!(host.invocation_ids(2)? == starts, "an instance was restarted");
    ensure!(host.main_pid("links")? == pid, "the agent was restarted");
    Ok(())
}

/// The number of clicks before the first fault: enough for a journal of about 12 MB if nothing shortened it.
const BEFORE_FAULTS: u64 = 200_000;

/// Follows links `clicks` times with `faults` faults meanwhile, then checks that each link has as many clicks as clients
/// received redirects.
fn counted_once(clicks: u64, faults: u64) -> Result<()> {
    let host = Host::builder().serving()?;
    let crowd = Crowd::new(&host)?;
    crowd.during(&host.http(), Broken::Never, || crowd.wait_for(BEFORE_FAULTS))?;
    crowd.is_counted_once(&host)?;
    // The agent shortens the journal once a batch is in the database. This check precedes the faults, because the agent cannot
    // write to the file that nginx creates after a rename.
    eventually("the agent has shortened the journal", Duration::from_secs(30), || {
        let size = host.ok(["stat", "--format=%s", JOURNAL])?.stdout;
        Ok((size.trim().parse::<u64>()? <= MAX_JOURNAL_LENGTH).then_some(()))
    })?;

    let begin = Instant::now();
    crowd.during(&host.http(), Broken::Never, || {
        for number in 1..=faults {
            crowd.wait_for(BEFORE_FAULTS + (clicks - BEFORE_FAULTS) * number / (faults + 1))?;
            let fault = Fault::ALL[(number as usize * 7 + number as usize / 6) % Fault::ALL.len()];
            println!("after {} clicks: {fault:?}", crowd.answered());
            fault.inject(&host, &crowd).with_context(|| format!("{fault:?}"))?;
        }
        crowd.wait_for(clicks)
    })?;
    println!("{} clicks in {:.1} s", crowd.answered(), begin.elapsed().as_secs_f64());
    crowd.is_counted_once(&host)?;

    // After a restore from a backup, the files have the same bytes but other inodes.
    host.ok(["systemctl", "stop", "links", "nginx"])?;
    host.wait_until_stopped()?;
    host.shell(
        "cd /var/lib/links
        for directory in agent data journal; do
            cp --archive $directory $directory.restored
            rm -r $directory
            mv $directory.restored $directory
        done
        systemctl start nginx links",
    )?;
    host.wait_for_rotation(2)?;
    let before = crowd.answered();
    crowd.during(&host.http(), Broken::Never, || crowd.wait_for(before + 20_000))?;
    crowd.is_counted_once(&host)
}

#[test]
fn killing_nginx_loses_at_most_one_second_of_clicks() -> Result<()> {
    const BEFORE: u64 = 20_000;
    let host = Host::builder().serving()?;
    let crowd = Crowd::new(&host)?;
    let (early, late) = crowd.during(&host.http(), Broken::ByTheKill, || {
        crowd.wait_for(BEFORE)?;
        let early = crowd.answered();
        // nginx writes its buffer once it is a second old, by a coarse clock. By then all earlier answers are written.
        let written = Instant::now() + Duration::from_millis(1500);
        eventually("a second passes under load", Duration::from_secs(30), || {
            Ok((Instant::now() >= written).then_some(()))
        })?;
        let late = crowd.answered();
        host.ok(["systemctl", "kill", "--signal=KILL", "nginx"])?;
        Ok((early, late))
    })?;
    ensure!(late > early, "nothing was answered in a second");
    host.ok(["systemctl", "restart", "nginx"])?;
    // For each worker, one answer may have been written but not received.
    let (least, most) = (early, crowd.answered() + Crowd::WORKERS as u64);
    let total = |counted: &Counts| counted.values().sum::<u64>();
    let counted = crowd.settled(&host, |counted| (least..=most).contains(&total(counted)))?;
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

    fn inject(self, host: &Host, crowd: &Crowd) -> Result<()> {
        let kill = |unit| {
            // Without the reset, systemd would refuse to restart the unit this often.
            host.ok(["systemctl", "reset-failed", unit])?;
            host.ok(["systemctl", "kill", "--signal=KILL", unit])
        };
        match self {
            Fault::AgentKilled => drop(kill("links")?),
            Fault::InstanceKilled => {
                host.wait_for_rotation(2)?;
                kill("links@1")?;
            }
            Fault::DatabaseLocked => host.change_database(DATABASE, |database| {
                database.execute_batch("BEGIN IMMEDIATE")?;
                // This takes about two seconds.
                crowd.wait_for(crowd.answered() + 50_000)?;
                Ok(database.execute_batch("ROLLBACK")?)
            })?,
            Fault::NginxReloaded => drop(host.ok(["systemctl", "reload", "nginx"])?),
            Fault::NginxRestarted => drop(host.ok(["systemctl", "restart", "nginx"])?),
            Fault::JournalRenamed => {
                let renamed = format!("{JOURNAL}.{}", crowd.answered());
                host.ok(["mv", JOURNAL, &renamed])?;
                host.ok(["nginx", "-s", "reopen"])?;
            }
        }
        Ok(())
    }
}
