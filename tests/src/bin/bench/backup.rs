//! How long a backup takes, how large it is, and how long checking and restoring it take.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use links_tests::{DATABASE, Host, Output};
use rusqlite::Connection;
use serde::Serialize;

use crate::edge::fill;

const LINKS: u32 = 1_000_000;
const CLICKS: u32 = 10_000_000;
/// Of the links, this many have been clicked. A link has its clicks on one day, in one hour, and from one site.
const CLICKED: u32 = 200_000;
const DIRECTORY: &str = "/var/tmp/backups";
/// A restore starts links again, and compares all links.
const DEADLINE: Duration = Duration::from_secs(300);

#[derive(Clone, Debug, Serialize)]
pub struct Figures {
    database_bytes: u64,
    backup_bytes: u64,
    /// Seconds.
    backup: f64,
    verify: f64,
    restore: f64,
}

/// Measures one backup of each kind of work.
///
/// # Errors
/// Fails if the lab does not work here, or if a command does.
pub fn measure() -> Result<Figures> {
    let host = Host::builder().real_syncs().serving()?;
    host.inside(|| {
        let database = Connection::open(DATABASE)?;
        fill(&database, LINKS)?;
        clicks(&database)
    })?;
    host.ok(["mkdir", DIRECTORY])?;
    let size = |path: &str| -> Result<u64> { Ok(host.ok(["stat", "--format=%s", path])?.stdout.trim().parse()?) };
    let (backup, made) = timed(&host, &["linksctl", "backup", "--to", DIRECTORY, "--json"])?;
    let made = made.stdout.lines().last().unwrap_or_default().to_owned();
    let made: serde_json::Value = serde_json::from_str(&made)?;
    ensure!(made["links"] == LINKS, "{made}");
    let name = made["name"].as_str().context("the backup has no name")?;
    let file = format!("{DIRECTORY}/{name}");
    let (verify, _) = timed(&host, &["linksctl", "backup", "verify", &file])?;
    let (restore, _) = timed(&host, &["linksctl", "restore", &file, "--force"])?;
    Ok(Figures {
        database_bytes: size(DATABASE)?,
        backup_bytes: size(&file)?,
        backup,
        verify,
        restore,
    })
}

fn timed(host: &Host, command: &[&str]) -> Result<(f64, Output)> {
    let since = Instant::now();
    let output = host.run_within(DEADLINE, command)?;
    ensure!(output.status == 0, "{output}");
    Ok((since.elapsed().as_secs_f64(), output))
}

/// Distributes the clicks evenly over the links that have any, and over 90 days.
fn clicks(database: &Connection) -> Result<()> {
    let each = CLICKS / CLICKED;
    database.execute_batch(&format!(
        "BEGIN;
         INSERT INTO click_days (day, link_id, clicks, bots)
         SELECT unixepoch() / 86400 - id % 90, id, {each}, 0 FROM links ORDER BY id LIMIT {CLICKED};
         INSERT INTO click_hours (hour, link_id, clicks, bots) SELECT day * 24 + 12, link_id, clicks, bots FROM click_days;
         INSERT INTO click_details (day, link_id, kind, name, clicks)
         SELECT day, link_id, 1, 'example.com', clicks FROM click_days;
         COMMIT;
         PRAGMA wal_checkpoint(TRUNCATE);"
    ))?;
    let sum: u32 = database.query_row("SELECT sum(clicks) FROM click_days", [], |row| row.get(0))?;
    ensure!(sum == CLICKS, "the database has {sum} clicks");
    Ok(())
}

impl Figures {
    pub fn print(&self) {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        println!(
            "\nbackup of {LINKS} links with {CLICKS} clicks: {:.1} s, {:.1} MiB of a database of {:.1} MiB; verify {:.1} s; restore on the \
             same host {:.1} s",
            self.backup,
            mib(self.backup_bytes),
            mib(self.database_bytes),
            self.verify,
            self.restore
        );
    }
}
