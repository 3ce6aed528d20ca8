//! Tests of the whole path, with a journal in a directory and a database with the component's own tables.
#![allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::rc::Rc;
use std::time::{SystemTime, UNIX_EPOCH};

use links_domain::clicks::{Batch, MAX_REUSES, Position, Reuse, WHOLE};
use links_store::schema::SCHEMA;
use links_store::sql::{FIND_CLICK_POSITION, FIND_SLUG_REUSES, INSERT_CLICKS};
use rusqlite::{Connection, OptionalExtension as _, params};

use super::aggregator::Aggregator;
use super::identity::{Record, legacy_name};
use super::pipeline::{COLLAPSE, LINGER, QUIET, RELEASE, RELEASE_AFTER};
use super::source::Source;
use super::*;
use links_base::layout::temporary;

const AT: u64 = 1_767_225_600;

/// The database as the component sees it.
#[derive(Clone)]
struct Database {
    connection: Rc<Connection>,
    /// How many of the next responses get lost although the work is done.
    lost: Rc<RefCell<u32>>,
    /// Whether the database does not answer at all.
    down: Rc<RefCell<bool>>,
}

impl Database {
    fn new() -> Self {
        let connection = Connection::open_in_memory().unwrap();
        for statement in SCHEMA.concat() {
            connection.execute(statement, []).unwrap();
        }
        for slug in 0..10 {
            let link = "INSERT INTO links (slug, url, created_at) VALUES (?1, 'https://example.com/', 0)";
            connection.execute(link, [format!("s{slug}")]).unwrap();
        }
        Self {
            connection: Rc::new(connection),
            lost: Rc::default(),
            down: Rc::default(),
        }
    }

    /// A copy of the present state.
    fn copy(&self) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("links.db");
        self.connection
            .execute("VACUUM INTO ?1", [path.to_str().unwrap()])
            .unwrap();
        let connection = Connection::open(path).unwrap();
        // The connection keeps working after the directory is removed.
        connection.pragma_update(None, "journal_mode", "off").unwrap();
        connection.pragma_update(None, "synchronous", "off").unwrap();
        Self {
            connection: Rc::new(connection),
            lost: Rc::default(),
            down: Rc::default(),
        }
    }

    fn answer(&self, journal: &str) -> Result<Position, String> {
        let mut lost = self.lost.borrow_mut();
        if *lost > 0 {
            *lost -= 1;
            return Err("the response got lost".to_owned());
        }
        let found = self.connection.query_row(FIND_CLICK_POSITION, [journal], |row| {
            let (start, stop): (i64, i64) = (row.get(0)?, row.get(1)?);
            Ok(Position::of(start.unsigned_abs(), stop.unsigned_abs(), row.get(2)?))
        });
        Ok(found.optional().unwrap().unwrap_or_default())
    }

    /// Clicks of people and of bots, by link. Checks that the hours, the days and the total agree.
    fn counted(&self) -> BTreeMap<String, (i64, i64)> {
        let read = |table: &str| -> BTreeMap<String, (i64, i64)> {
            let sums = format!(
                "SELECT ifnull(slug, ''), sum(clicks), sum(bots) FROM {table} LEFT JOIN links ON id = link_id GROUP BY link_id"
            );
            let mut statement = self.connection.prepare(&sums).unwrap();
            let rows = statement.query_map([], |row| Ok((row.get(0)?, (row.get(1)?, row.get(2)?))));
            rows.unwrap().map(Result::unwrap).collect()
        };
        let mut counted = read("click_days");
        assert_eq!(counted, read("click_hours"));
        let all = counted.remove("").unwrap_or_default();
        let sums = counted
            .values()
            .fold((0, 0), |sums, counts| (sums.0 + counts.0, sums.1 + counts.1));
        assert_eq!(all, sums);
        counted
    }
}

impl Sink for Database {
    fn position(&self, journal: &str) -> Result<Position, String> {
        if *self.down.borrow() {
            return Err("connection refused".to_owned());
        }
        self.answer(journal)
    }

    fn send(&self, batch: &Batch, heeded: i64) -> Result<Position, String> {
        if *self.down.borrow() {
            return Err("connection refused".to_owned());
        }
        let body = serde_json::to_vec(batch).unwrap();
        let batch: Batch = serde_json::from_slice(&body).unwrap();
        batch.check().unwrap();
        let body = String::from_utf8(body).unwrap();
        let after = batch.after.as_deref().unwrap_or_default();
        let through = batch.through.as_deref().unwrap_or(WHOLE);
        let (start, stop) = (batch.start as i64, batch.stop as i64);
        let row = params![batch.journal, start, stop, after, through, AT as i64, body, heeded];
        let taken = self.connection.query_row(INSERT_CLICKS, row, |_| Ok(()));
        let mut position = self.answer(&batch.journal)?;
        if taken.optional().unwrap().is_none() {
            let mut statement = self.connection.prepare(FIND_SLUG_REUSES).unwrap();
            let reuses = statement.query_map([heeded, MAX_REUSES], |row| {
                Ok(Reuse(row.get(0)?, row.get(1)?, row.get::<_, i64>(2)?.unsigned_abs()))
            });
            position.reuses = reuses.unwrap().map(Result::unwrap).collect();
        }
        Ok(position)
    }
}

/// A host. Of nginx there is only the journal.
struct Host {
    root: tempfile::TempDir,
    layout: Layout,
    facts: identity::Host,
    database: Database,
    executor: Executor<Database>,
    pipeline: Pipeline,
    collapse_from: u64,
    now: Duration,
    progress: Arc<Mutex<Progress>>,
    written: BTreeMap<String, (i64, i64)>,
    number: u64,
    /// The time from which lines are written, in Unix seconds.
    begun: u64,
}

impl Host {
    fn new() -> Self {
        Self::with(Database::new())
    }

    fn with(database: Database) -> Self {
        let (root, layout) = temporary(&[Layout::journal_dir, Layout::agent_dir, Layout::run_dir]);
        let progress = Arc::default();
        let facts = identity::Host {
            machine: "0123456789abcdef".to_owned(),
            boot: "first".to_owned(),
            restore: String::new(),
            booted: Some(0),
        };
        Self {
            executor: Executor::new(layout.clone(), facts.clone(), database.clone(), Arc::clone(&progress)),
            root,
            layout,
            facts,
            database,
            pipeline: Pipeline::new(),
            collapse_from: COLLAPSE,
            now: Duration::ZERO,
            progress,
            written: BTreeMap::new(),
            number: 0,
            begun: SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs(),
        }
    }

    fn append(&self, bytes: &[u8]) {
        let mut options = OpenOptions::new();
        let mut file = options.append(true).create(true).open(self.layout.journal()).unwrap();
        file.write_all(bytes).unwrap();
    }

    fn line(&mut self) -> String {
        self.number += 1;
        let number = self.number;
        let slug = format!("s{}", number % 10);
        let is_bot = number.is_multiple_of(7);
        let counts = self.written.entry(slug.clone()).or_default();
        if is_bot {
            counts.1 += 1;
        } else {
            counts.0 += 1;
        }
        let agent = if is_bot {
            "curl/8"
        } else {
            r"Mozilla/5.0 (X11; Linux) \x22\x5C\xFF\x0A Firefox/1"
        };
        // Later than the birth of the file.
        let begun = self.begun + 1 + number / 1000;
        format!(
            "l1\t{begun}.{:03}\t302\t0.000\t-\tHIT\tGET\t/{slug}\t192.0.2.{}\thttps://{}.example/\t{agent}\n",
            number % 1000,
            number % 250,
            number % 30
        )
    }

    fn clicks(&mut self, count: u32) {
        let lines: String = (0..count).map(|_| self.line()).collect();
        self.append(lines.as_bytes());
    }

    fn step(&mut self) -> Action {
        let action = self.pipeline.action();
        if let Action::Wait(time) = action {
            self.now += time;
        }
        let event = self.executor.perform(action);
        self.pipeline.next(event, self.now);
        action
    }

    fn run_for(&mut self, time: Duration) {
        let until = self.now + time;
        while self.now < until {
            self.step();
        }
    }

    /// Runs until there is nothing left to do but wait.
    fn settle(&mut self) {
        self.run_for(4 * LINGER + QUIET);
    }

    /// Kills the process, so that all it knew is lost.
    fn kill(&mut self) {
        self.executor = Executor::new(
            self.layout.clone(),
            self.facts.clone(),
            self.database.clone(),
            Arc::clone(&self.progress),
        );
        self.pipeline = Pipeline::collapsing_from(self.collapse_from);
    }

    /// Stops the agent in an orderly way, as systemd does.
    fn stop(&mut self) {
        self.executor.leave();
        self.kill();
    }

    /// Another host with the state of this one, restored from a backup. Its new lines are later than the copy.
    fn restored(&self, database: Database) -> Self {
        let mut copy = Self::with(database);
        for path in [Layout::journal, Layout::journal_position, Layout::visitor_salts] {
            if path(&self.layout).exists() {
                fs::copy(path(&self.layout), path(&copy.layout)).unwrap();
            }
        }
        (copy.number, copy.begun) = (self.number, copy.begun + 10);
        copy
    }

    /// A cloned virtual machine, which shares everything but the boot ID.
    fn cloned(&self, database: Database) -> Self {
        let mut copy = self.restored(database);
        let source = Source::open(&copy.layout.journal()).unwrap();
        if let Some(record) = copy.record() {
            let origin = record.journal.as_ref().unwrap().origin.clone();
            let record = Record {
                ..record.at(source.inode(), origin)
            };
            copy.write_down(&record);
        }
        copy.facts.boot = "second".to_owned();
        copy.facts.booted = Some(copy.begun * 1000);
        copy.kill();
        copy
    }

    fn record(&self) -> Option<Record> {
        let bytes = fs::read(self.layout.journal_position()).ok()?;
        Some(serde_json::from_slice(&bytes).unwrap())
    }

    fn write_down(&self, record: &Record) {
        fs::write(self.layout.journal_position(), serde_json::to_vec(record).unwrap()).unwrap();
    }

    fn journal_size(&self) -> u64 {
        fs::metadata(self.layout.journal()).unwrap().len()
    }

    fn progress(&self) -> Progress {
        self.progress.lock().unwrap().clone()
    }

    fn journal_blocks(&self) -> u64 {
        fs::metadata(self.layout.journal()).unwrap().blocks()
    }
}

/// The clicks written on all these hosts together.
fn written(hosts: &[&Host]) -> BTreeMap<String, (i64, i64)> {
    let mut sums = BTreeMap::<_, (i64, i64)>::new();
    for (slug, counts) in hosts.iter().flat_map(|host| &host.written) {
        let sum = sums.entry(slug.clone()).or_default();
        *sum = (sum.0 + counts.0, sum.1 + counts.1);
    }
    sums
}

/// Whether blocks can be removed on the file system of the tests.
fn can_collapse() -> bool {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("file");
    fs::write(&path, [0; 3 * 4096]).unwrap();
    Source::open(&path).unwrap().remove(4096).is_ok()
}

#[test]
fn clicks_travel_from_the_journal_to_the_database() {
    let mut host = Host::new();
    host.run_for(Duration::from_secs(2));
    assert_eq!(host.database.counted(), BTreeMap::new(), "no journal, no clicks");
    host.clicks(1000);
    host.append(b"nonsense\n\n");
    host.settle();
    assert_eq!(host.database.counted(), host.written);
    let progress = host.progress();
    assert_eq!((progress.lines, progress.malformed), (1002, 2));
    let bots: i64 = host.written.values().map(|counts| counts.1).sum();
    assert_eq!((progress.clicks, progress.bots), (1000 - bots as u64, bots as u64));
    assert_eq!((progress.lag_bytes, progress.oldest, progress.error), (0, None, None));
    // A line without a click is not sent before the next click, and nothing in it is left to count.
    host.append(b"nonsense\n");
    host.run_for(Duration::from_secs(2));
    let progress = host.progress();
    assert_eq!((progress.lines, progress.lag_bytes), (1003, 0));
}

/// The agent is killed between any two steps, while nginx keeps writing complete and incomplete lines.
#[test]
fn an_agent_killed_at_any_step_counts_each_click_once() {
    for killed_every in 1..25 {
        let mut host = Host::new();
        let mut half = String::new();
        for step in 0..400 {
            if step % 3 == 0 && step < 200 {
                let line = half.clone() + &host.line() + &host.line();
                let (now, later) = line.split_at(line.len() - 1 - step % 50);
                host.append(now.as_bytes());
                half = later.to_owned();
            }
            host.step();
            if step % killed_every == 0 && step < 300 {
                host.kill();
            }
        }
        host.append(half.as_bytes());
        host.settle();
        assert_eq!(
            host.database.counted(),
            host.written,
            "killed every {killed_every} steps"
        );
        assert_eq!(host.progress().malformed, 0);
    }
}

#[test]
fn lost_responses_do_not_double_a_click() {
    let mut host = Host::new();
    for round in 0..20 {
        host.clicks(50);
        *host.database.lost.borrow_mut() = round % 4;
        if round % 3 == 0 {
            host.run_for(LINGER * 2);
        } else {
            host.settle();
        }
        if round % 5 == 0 {
            host.kill();
        }
    }
    host.settle();
    assert_eq!(host.database.counted(), host.written);
}

#[test]
fn while_the_database_is_down_clicks_wait_and_the_error_is_reported() {
    let mut host = Host::new();
    host.clicks(100);
    host.settle();
    *host.database.down.borrow_mut() = true;
    for _ in 0..20 {
        host.clicks(500);
        host.run_for(Duration::from_secs(600));
    }
    let progress = host.progress();
    assert_eq!(progress.clicks + progress.bots, 100);
    assert!(progress.oldest == Some((host.begun + 1) * 1000 + 101) && progress.error.unwrap().contains("refused"));
    host.kill();
    host.run_for(Duration::from_secs(600));
    *host.database.down.borrow_mut() = false;
    host.settle();
    host.settle();
    assert_eq!(host.database.counted(), host.written);
    assert_eq!(host.progress().error, None);
}

#[test]
fn counted_lines_are_released_and_not_counted_again() {
    let mut host = Host::new();
    for _ in 0..5 {
        host.clicks(2000);
        host.run_for(RELEASE_AFTER + LINGER);
    }
    let size = fs::metadata(host.layout.journal()).unwrap().len();
    assert!(
        size > 1_000_000 && host.journal_blocks() * 512 < 20_000,
        "{}",
        host.journal_blocks()
    );
    // The record is lost, but the counted lines have been released.
    host.stop();
    fs::remove_file(host.layout.journal_position()).unwrap();
    host.clicks(10);
    host.settle();
    assert_eq!(host.database.counted(), host.written);
}

/// Like logrotate: nginx writes to the old file until it opens the new one.
#[test]
fn a_renamed_journal_is_read_to_its_end_before_the_new_one() {
    for killed in [false, true] {
        let mut host = Host::new();
        host.clicks(100);
        host.settle();
        let renamed = host.layout.journal_dir().join("clicks.log.1");
        let late: String = (0..10).map(|_| host.line()).collect();
        fs::rename(host.layout.journal(), &renamed).unwrap();
        host.run_for(Duration::from_secs(1));
        if killed {
            host.kill();
        }
        let mut old = OpenOptions::new().append(true).open(&renamed).unwrap();
        old.write_all(late.as_bytes()).unwrap();
        host.clicks(50);
        host.settle();
        host.settle();
        assert_eq!(host.database.counted(), host.written, "killed: {killed}");
        assert_eq!(host.progress().replaced, 1);
        host.kill();
        host.clicks(5);
        host.settle();
        assert_eq!(host.database.counted(), host.written);
    }
}

/// The journal is renamed several times while the agent is not looking.
#[test]
fn renamed_journals_are_read_in_their_order() {
    for killed in [false, true] {
        let mut host = Host::new();
        host.clicks(100);
        host.settle();
        for number in 1..=4 {
            let renamed = host.layout.journal_dir().join(format!("clicks.log.{number}"));
            fs::rename(host.layout.journal(), renamed).unwrap();
            // One of the journals is empty.
            host.clicks(if number == 2 { 0 } else { 10 * number });
            if killed {
                host.kill();
            }
            host.run_for(Duration::from_millis(600));
        }
        (0..6).for_each(|_| host.settle());
        assert_eq!(host.database.counted(), host.written, "killed: {killed}");
        assert_eq!(host.progress().replaced, 4);
        assert_eq!(host.progress().malformed, 0);
    }
}

#[test]
fn a_copy_of_a_journal_is_not_counted() {
    let mut host = Host::new();
    // The lines are older than the copy.
    host.begun -= 10;
    host.clicks(100);
    host.settle();
    let at = |name: &str| host.layout.journal_dir().join(name);
    fs::copy(host.layout.journal(), at("clicks.log.bak")).unwrap();
    fs::write(at("clicks.log.gz"), b"\x1f\x8b\n").unwrap();
    fs::rename(host.layout.journal(), at("clicks.log.1")).unwrap();
    host.begun += 10;
    host.clicks(50);
    host.settle();
    host.settle();
    assert_eq!(host.database.counted(), host.written);
    assert_eq!(host.progress().malformed, 0);
}

#[test]
fn an_emptied_journal_is_counted_from_its_beginning() {
    for (killed, more) in [(false, 3), (true, 3), (false, 400), (true, 400)] {
        let mut host = Host::new();
        host.clicks(200);
        host.settle();
        if killed {
            host.kill();
        }
        fs::write(host.layout.journal(), b"").unwrap();
        // Fewer lines than before, or more.
        host.clicks(more);
        host.settle();
        assert_eq!(host.database.counted(), host.written, "killed: {killed}, {more} clicks");
        assert_eq!(host.progress().emptied, 1);
        // The same without a record.
        host.stop();
        fs::remove_file(host.layout.journal_position()).unwrap();
        host.clicks(20);
        host.settle();
        assert_eq!(host.database.counted(), host.written, "killed: {killed}, {more} clicks");
    }
}

#[test]
fn lines_that_were_read_before_the_journal_was_emptied_are_counted() {
    let mut host = Host::new();
    host.clicks(200);
    while !matches!(host.step(), Action::Aggregate { .. }) {}
    fs::write(host.layout.journal(), b"").unwrap();
    host.clicks(10);
    host.settle();
    assert_eq!(host.database.counted(), host.written);
}

/// Clicks wait until the name of the journal is on the disk.
#[test]
fn a_record_that_cannot_be_saved_neither_loses_nor_doubles_clicks() {
    let mut host = Host::new();
    fs::create_dir_all(host.layout.journal_position()).unwrap();
    for _ in 0..3 {
        host.clicks(2000);
        host.run_for(RELEASE_AFTER);
        host.kill();
    }
    host.run_for(RELEASE_AFTER);
    assert_eq!(host.database.counted(), BTreeMap::new());
    assert!(host.progress().error.unwrap().contains("journal.json"));
    fs::remove_dir(host.layout.journal_position()).unwrap();
    host.clicks(10);
    host.settle();
    let expected = (host.written.clone(), None);
    assert_eq!((host.database.counted(), host.progress().error), expected);
    // The directory is full, but the journal already has a name, so clicks are counted.
    let agent_dir = host.layout.agent_dir();
    let full = agent_dir.with_extension("full");
    fs::rename(&agent_dir, &full).unwrap();
    host.clicks(10);
    host.settle();
    assert_eq!(host.database.counted(), host.written);
    assert!(host.progress().error.unwrap().contains("journal.json"));
    fs::rename(&full, &agent_dir).unwrap();
    host.kill();
    host.clicks(10);
    host.settle();
    assert_eq!(host.database.counted(), host.written);
}

/// A host after this many steps, on which the agent was killed now and then. With `half` the journal ends with half a line.
fn at_step(step: u32, half: bool) -> Host {
    let mut host = Host::new();
    host.begun -= 100_000;
    for now in 0..step {
        if now % 3 == 0 {
            host.clicks(7);
        }
        if now % 11 == 10 {
            host.kill();
        }
        if now % 40 == 39 {
            host.run_for(LINGER);
        }
        host.step();
    }
    if half {
        let line = host.line();
        host.append(&line.as_bytes()[..line.len() / 2]);
    }
    host
}

/// Appends the second half of the line that `at_step` has begun.
fn rest_of_half(host: &mut Host) {
    host.number -= 1;
    let written = host.written.clone();
    let line = host.line();
    host.written = written;
    host.append(&line.as_bytes()[line.len() / 2..]);
}

/// The journal and the record are restored from a backup, with the database or without it.
#[test]
fn a_restored_host_counts_nothing_twice_and_skips_nothing() {
    for step in (0..90).step_by(2) {
        for shares in [false, true] {
            let host = at_step(step, false);
            let database = match shares {
                true => host.database.clone(),
                false => host.database.copy(),
            };
            let mut copy = host.restored(database);
            copy.clicks(20);
            copy.settle();
            copy.clicks(5);
            copy.kill();
            copy.settle();
            assert_eq!(
                copy.database.counted(),
                written(&[&host, &copy]),
                "step {step}, {shares}"
            );
            // Restores once more.
            let database = copy.database.clone();
            copy.stop();
            let mut again = copy.restored(database);
            again.clicks(9);
            again.settle();
            assert_eq!(
                again.database.counted(),
                written(&[&host, &copy, &again]),
                "step {step}, {shares}"
            );
        }
    }
}

/// Two copies continue with one database. Their common lines are counted once, from whichever copy is first.
#[test]
fn copies_that_share_a_database_count_their_common_lines_once() {
    // Before the journal has a name, copies have no name in common.
    for step in (2..70).step_by(3) {
        for (how, copied) in [
            ("restored", Host::restored as fn(&Host, Database) -> Host),
            ("cloned", Host::cloned),
        ] {
            for first in [0, 1, 7, 60] {
                let mut host = at_step(step, false);
                let mut copy = copied(&host, host.database.clone());
                let common = host.written.clone();
                for now in 0..200 {
                    if now % 9 == 0 {
                        host.clicks(3);
                        copy.clicks(4);
                    }
                    if now >= first {
                        host.step();
                    }
                    copy.step();
                    if now == 100 {
                        copy.kill();
                    }
                }
                host.settle();
                copy.settle();
                assert!(written(&[&host]) != common);
                assert_eq!(
                    host.database.counted(),
                    written(&[&host, &copy]),
                    "step {step}, {how}, {first}"
                );
            }
        }
    }
}

/// Only the boot ID changes.
#[test]
fn a_host_that_reboots_repeatedly_counts_each_click_once() {
    for step in 0..90 {
        let mut host = at_step(step, false);
        for boot in 1..4 {
            host.begun += 20_000;
            host.facts.boot = format!("boot {boot}");
            host.facts.booted = Some(host.begun * 1000);
            host.kill();
            host.clicks(10 * boot);
            for _ in 0..step % 17 {
                host.step();
            }
        }
        host.kill();
        host.settle();
        host.settle();
        assert_eq!(host.database.counted(), host.written, "step {step}");
    }
}

/// A backup may end in the middle of a line, after which nginx appends complete lines.
#[test]
fn a_line_after_an_incomplete_one_of_a_backup_is_counted() {
    for step in [5, 20, 33, 50] {
        let mut host = at_step(step, true);
        let mut copy = host.restored(host.database.clone());
        copy.clicks(20);
        rest_of_half(&mut host);
        host.clicks(3);
        copy.settle();
        host.settle();
        copy.settle();
        assert_eq!(host.database.counted(), written(&[&host, &copy]), "step {step}");
    }
}

/// An exact copy of this host, including the boot ID, continues under the same name.
#[test]
fn lines_of_an_exact_copy_hide_none_of_ours() {
    let mut host = Host::new();
    host.clicks(50);
    host.settle();
    let mut copy = host.cloned(host.database.clone());
    copy.facts = host.facts.clone();
    copy.kill();
    let source = Source::open(&copy.layout.journal()).unwrap();
    let record = copy.record().unwrap();
    let origin = copy.facts.origin(source.device());
    copy.write_down(&record.at(source.inode(), origin));
    for round in 0..5 {
        host.clicks(31);
        host.settle();
        copy.clicks(17 + round);
        copy.settle();
    }
    assert_eq!(host.database.counted(), written(&[&host, &copy]));
}

#[test]
fn a_restored_database_gets_what_the_journal_still_has() {
    let mut host = Host::new();
    host.clicks(100);
    host.settle();
    let before = host.database.copy();
    let counted = before.counted();
    host.clicks(40);
    host.settle();
    host.database = before;
    host.kill();
    host.clicks(5);
    host.settle();
    assert!(host.database.counted() != counted);
    assert_eq!(host.database.counted(), host.written);
}

impl Host {
    /// Restores the database from a backup, as `linksctl restore` does, and starts the agent.
    fn restore(&mut self, backup: Database, id: &str) {
        self.database = backup;
        fs::write(self.layout.restored_marker(), id).unwrap();
        self.facts.restore = id.to_owned();
        self.kill();
    }
}

/// The backup is made, and the database restored, at any step.
#[test]
fn a_restore_counts_no_click_twice_and_loses_none_that_the_journal_has() {
    for step in (0..90).step_by(3) {
        let mut host = at_step(step, false);
        let backup = host.database.copy();
        host.clicks(7);
        for _ in 0..step % 17 {
            host.step();
        }
        host.restore(backup, "r1");
        host.clicks(5);
        host.settle();
        host.settle();
        // No line was released, because the agent was killed.
        assert_eq!(host.database.counted(), host.written, "step {step}");
        let record = host.record().unwrap().journal.unwrap();
        assert_eq!(record.origin.restore, "r1", "step {step}");
    }
}

/// The machine is rolled back to an older snapshot, and then a later backup of its database is restored. The database has
/// counted lines that the journal has not, or has not counted yet.
#[test]
fn a_restored_database_that_is_ahead_of_the_journal_counts_no_click_twice() {
    let mut host = Host::new();
    host.clicks(50);
    host.settle();
    host.clicks(10);
    let files = [host.layout.journal(), host.layout.journal_position()].map(|path| (fs::read(&path).unwrap(), path));
    host.clicks(30);
    host.settle();
    let backup = host.database.copy();
    let mut expected = backup.counted();
    host.stop();
    for (bytes, path) in files {
        // The same file, with its inode.
        fs::write(path, bytes).unwrap();
    }
    host.restore(backup, "r1");
    // The agent starts, and finds the end of the old name.
    host.settle();
    host.written.clear();
    host.clicks(20);
    host.settle();
    host.settle();
    for (slug, counts) in &host.written {
        let sum = expected.entry(slug.clone()).or_default();
        *sum = (sum.0 + counts.0, sum.1 + counts.1);
    }
    assert_eq!(host.database.counted(), expected);
}

#[test]
fn nothing_is_counted_until_a_restore_has_ended() {
    let mut host = Host::new();
    host.clicks(100);
    host.settle();
    let counted = host.database.counted();
    fs::write(host.layout.restore_journal(), b"").unwrap();
    host.clicks(100);
    host.settle();
    assert_eq!(host.database.counted(), counted);
    assert!(host.progress().error.is_some());
    // The former database comes back, and gets everything.
    host.stop();
    fs::remove_file(host.layout.restore_journal()).unwrap();
    host.settle();
    assert_eq!(
        (host.database.counted(), host.progress().error),
        (host.written.clone(), None)
    );
}

/// The directory belongs to root. Only root and nginx create, rename and remove files in it.
#[test]
fn the_agent_never_writes_to_the_journals_directory() {
    const LINKS: u32 = 65_534;
    let mut host = Host::new();
    host.collapse_from = 8192;
    host.clicks(1);
    let directory = host.layout.journal_dir();
    fs::set_permissions(host.root.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o555)).unwrap();
    let is_root = nix::unistd::geteuid().is_root();
    if is_root {
        for path in [host.layout.agent_dir(), host.layout.journal()] {
            chown(path, Some(LINKS), Some(LINKS)).unwrap();
        }
    }
    for _ in 0..3 {
        host.clicks(300);
        // Drops this thread's file permissions, because root may write anywhere.
        if is_root {
            nix::unistd::setfsuid(LINKS.into());
        }
        assert!(fs::write(directory.join("file"), b"").is_err());
        host.kill();
        host.run_for(RELEASE_AFTER + LINGER);
        host.stop();
        if is_root {
            nix::unistd::setfsuid(0.into());
        }
    }
    assert_eq!(host.database.counted(), host.written);
    assert_eq!(host.progress().error, None);
    // Only the block in which the next line begins is left.
    assert!(host.journal_blocks() * 512 <= 4096, "{}", host.journal_blocks());
    let names: Vec<_> = fs::read_dir(&directory)
        .unwrap()
        .map(|is| is.unwrap().file_name())
        .collect();
    assert_eq!(names, ["clicks.log"]);
}

#[test]
fn clicks_on_a_deleted_link_do_not_count_for_a_new_link_with_its_slug() {
    let mut host = Host::new();
    host.clicks(100);
    let reused_at = (host.begun + 1) * 1000 + 51;
    let connection = Rc::clone(&host.database.connection);
    connection.execute("DELETE FROM links WHERE slug = 's1'", []).unwrap();
    let link = "INSERT INTO links (slug, url, created_at) VALUES ('s1', 'https://example.com/', 0)";
    connection.execute(link, []).unwrap();
    connection
        .execute("UPDATE slug_reuses SET at = ?1", [reused_at as i64])
        .unwrap();
    host.settle();
    let counted = |slug: &str| -> (i64, i64) {
        let sums = "SELECT ifnull(sum(clicks + bots), 0) FROM click_days WHERE link_id =
                        iif(?1 = '', 0, (SELECT id FROM links WHERE slug = ?1))";
        let visitors = "SELECT count(*) FROM click_visitors WHERE link_id = (SELECT id FROM links WHERE slug = ?1)";
        let ask = |sql| connection.query_row(sql, [slug], |row| row.get(0)).unwrap();
        (ask(sums), ask(visitors))
    };
    // Of lines 1, 11, 21 and so on, those from 51 to 91 belong to the new link.
    assert_eq!((counted("s1").0, counted("s2").0, counted("").0), (5, 10, 100));
    assert_eq!(host.progress().error, None);

    // For another link the same visitors are new.
    let visitors = counted("s2").1;
    connection.execute("DELETE FROM links WHERE slug = 's2'", []).unwrap();
    connection.execute(&link.replace("s1", "s2"), []).unwrap();
    connection
        .execute("UPDATE slug_reuses SET at = 0 WHERE slug = 's2'", [])
        .unwrap();
    host.number = 1750;
    host.clicks(100);
    host.settle();
    assert_eq!(counted("s2"), (10, visitors));
}

/// The host crashes while 0.1.0 is being installed, and 0.1.0 starts after the crash.
#[test]
fn counted_lines_are_released_before_a_downgrade() {
    let mut host = Host::new();
    host.clicks(100);
    host.settle();
    assert!(!host.record().unwrap().journal.unwrap().is_legacy);
    fs::write(host.layout.downgrade_marker(), b"").unwrap();
    host.step();
    host.clicks(100);
    host.settle();
    assert!(host.progress().error.unwrap().contains("older version"));
    host.kill();
    OldAgent::of(&host).count();
    assert_eq!(host.database.counted(), host.written);
}

#[test]
fn counting_continues_after_an_abandoned_downgrade() {
    let mut host = Host::new();
    host.clicks(100);
    host.settle();
    fs::write(host.layout.downgrade_marker(), b"").unwrap();
    host.clicks(100);
    host.settle();
    assert_ne!(host.database.counted(), host.written);
    fs::remove_file(host.layout.downgrade_marker()).unwrap();
    host.settle();
    assert_eq!(host.database.counted(), host.written);
    assert_eq!(host.progress().error, None);
}

/// If the journal is missing, nginx creates it with a mode that does not let the agent write.
#[test]
fn lines_are_released_once_the_agent_may_write_the_journal() {
    const LINKS: u32 = 65_534;
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let mut host = Host::new();
    host.collapse_from = 8192;
    host.kill();
    host.clicks(300);
    let journal = host.layout.journal();
    fs::set_permissions(host.root.path(), fs::Permissions::from_mode(0o755)).unwrap();
    chown(host.layout.agent_dir(), Some(LINKS), Some(LINKS)).unwrap();
    fs::set_permissions(&journal, fs::Permissions::from_mode(0o644)).unwrap();
    nix::unistd::setfsuid(LINKS.into());
    host.run_for(RELEASE_AFTER + LINGER);
    assert_eq!(host.database.counted(), host.written);
    assert!(host.progress().error.unwrap().contains("may not write"));
    nix::unistd::setfsuid(0.into());

    let before = host.journal_blocks();
    fs::set_permissions(&journal, fs::Permissions::from_mode(0o666)).unwrap();
    host.clicks(300);
    nix::unistd::setfsuid(LINKS.into());
    host.run_for(RELEASE_AFTER + LINGER);
    nix::unistd::setfsuid(0.into());
    assert_eq!(host.progress().error, None);
    assert!(host.journal_blocks() < before, "{} of {before}", host.journal_blocks());
    assert_eq!(host.database.counted(), host.written);
}

/// The 200,000 requests take about 25 MB.
#[test]
fn the_journal_stays_short() {
    if !can_collapse() {
        return;
    }
    let mut host = Host::new();
    for _ in 0..40 {
        host.clicks(5000);
        host.run_for(2 * LINGER);
        let size = host.journal_size();
        assert!(size <= COLLAPSE + 2 * RELEASE, "{size}");
    }
    host.settle();
    assert_eq!(host.database.counted(), host.written);
    assert_eq!(host.progress().emptied, 0);
}

/// The agent is killed at any step of the removal, while nginx appends.
#[test]
fn removing_counted_lines_neither_loses_nor_doubles_clicks() {
    if !can_collapse() {
        return;
    }
    for killed_every in (1..30).step_by(2) {
        let mut host = Host::new();
        host.collapse_from = 8192;
        host.kill();
        for step in 0..600 {
            if step % 4 == 0 {
                host.clicks(20);
            }
            if step % 25 == 0 {
                host.run_for(LINGER);
            }
            host.step();
            if step % (killed_every * 7) == 0 {
                host.kill();
            }
        }
        host.settle();
        assert!(host.journal_size() < 100_000, "{}", host.journal_size());
        assert_eq!(host.database.counted(), host.written, "killed every {killed_every}");
        assert_eq!(host.progress().emptied, 0);
    }
}

/// The host crashes after the intent was saved, before or after the removal.
#[test]
fn the_file_shows_whether_blocks_were_removed() {
    if !can_collapse() {
        return;
    }
    for is_removed in [false, true] {
        for is_legacy in [false, true] {
            let mut host = Host::new();
            host.clicks(10);
            if is_legacy {
                OldAgent::of(&host).count();
            }
            host.clicks(200);
            host.settle();
            let mut source = Source::open(&host.layout.journal()).unwrap();
            let size = source.size().unwrap();
            let mut record = host.record().unwrap();
            assert_eq!(record.position, size);
            let length = source.removable(size).unwrap();
            let data = source.release(size).unwrap();
            let journal = record.journal.as_mut().unwrap();
            let name = match is_legacy {
                true => legacy_name(&host.facts.machine, source.inode(), record.generation + 1),
                false => "0123456789abcdef0123456789abcdef".to_owned(),
            };
            journal.is_legacy = is_legacy;
            journal.collapse = Some(identity::Collapse { length, data, name });
            record.mark = source.mark(size).unwrap();
            host.write_down(&record);
            host.clicks(5);
            if is_removed {
                source.remove(length).unwrap();
            }
            assert!(source.first_data().unwrap() > 0);
            host.clicks(5);
            host.kill();
            host.settle();
            assert_eq!(host.database.counted(), host.written, "{is_removed}, {is_legacy}");
            assert_eq!(host.progress().emptied, 0);
        }
    }
}

/// The parts of the 0.1.0 agent that decide what is counted: how it recognizes a journal, and how it names it.
struct OldAgent {
    layout: Layout,
    machine: String,
    database: Database,
}

impl OldAgent {
    fn of(host: &Host) -> Self {
        Self {
            layout: host.layout.clone(),
            machine: host.facts.machine.clone(),
            database: host.database.clone(),
        }
    }

    /// Counts everything in the journal, and saves the record.
    fn count(&self) {
        let Ok(mut source) = Source::open(&self.layout.journal()) else {
            return;
        };
        let saved = fs::read(self.layout.journal_position()).ok();
        let saved: Option<Record> = saved.map(|bytes| serde_json::from_slice(&bytes).unwrap());
        let inode = source.inode();
        let name = |generation| legacy_name(&self.machine, inode, generation);
        let is_known = |generation| self.database.position(&name(generation)).unwrap().position.is_some();
        let mut generation = 0;
        match &saved {
            Some(saved) if saved.inode() == source.inode() => {
                generation = saved.generation;
                // 0.1.0 knows only holes of whole blocks.
                let size = source.size().unwrap();
                let is_same = size >= saved.position && {
                    let mark = source.mark(saved.position).unwrap();
                    let is_hole = source.first_data().unwrap() >= saved.position;
                    mark == saved.mark || is_hole
                };
                generation += u32::from(!is_same);
            }
            _ => {
                while is_known(generation) && is_known(generation + 1) {
                    generation += 1;
                }
            }
        }
        let counted = |generation| self.database.position(&name(generation)).unwrap().position;
        if counted(generation) > Some(source.size().unwrap()) {
            generation += 1;
        }
        let (name, start) = (name(generation), counted(generation).unwrap_or(0));
        let mut aggregator = Aggregator::new(BTreeMap::new());
        let reached = source.read(start, |line, _| {
            let line = line::parse(line).unwrap();
            while let Err(aggregator::NeedsSalt(day)) = aggregator.take(&line) {
                aggregator.set_salt(day, [7; 16]);
            }
            true
        });
        let position = reached.unwrap().position;
        if position > start {
            let batch = aggregator.part(&name, start, position, None);
            assert_eq!(batch.through, None);
            assert_eq!(self.database.send(&batch, 0).unwrap(), Position::after(&batch));
        }
        let saved = Record {
            inode: source.inode().number,
            born: source.inode().born,
            generation,
            position,
            mark: source.mark(position).unwrap(),
            journal: None,
        };
        fs::write(self.layout.journal_position(), serde_json::to_vec(&saved).unwrap()).unwrap();
    }
}

/// 0.1.0 began the journal. 0.2.0 is installed and removed several times, and stopped at any step.
#[test]
fn an_upgrade_and_a_rollback_count_each_click_once() {
    for collapse_from in [COLLAPSE, 8192] {
        for step in (0..60).step_by(2) {
            let mut host = Host::new();
            host.collapse_from = collapse_from;
            host.clicks(100);
            OldAgent::of(&host).count();
            for round in 0..4 {
                host.clicks(60);
                host.kill();
                for _ in 0..step {
                    host.step();
                }
                host.clicks(3);
                if round % 2 == 1 {
                    host.run_for(LINGER);
                }
                host.stop();
                assert_eq!(host.progress().emptied, 0);
                host.clicks(3);
                OldAgent::of(&host).count();
                assert_eq!(host.database.counted(), host.written, "step {step}, round {round}");
            }
            host.kill();
            host.settle();
            assert_eq!(host.database.counted(), host.written, "step {step}");
        }
    }
}

/// 0.2.0 began the journal or renamed it, so 0.1.0 must find no counted line in it.
#[test]
fn a_rollback_with_a_name_of_0_2_0_counts_each_click_once() {
    for step in 0..60 {
        let host = at_step(step, false);
        let mut copy = host.restored(host.database.clone());
        copy.clicks(20);
        for _ in 0..step {
            copy.step();
        }
        copy.run_for(LINGER);
        copy.stop();
        copy.clicks(5);
        OldAgent::of(&copy).count();
        assert_eq!(copy.database.counted(), written(&[&host, &copy]), "step {step}");
        copy.clicks(5);
        copy.kill();
        copy.settle();
        assert_eq!(copy.database.counted(), written(&[&host, &copy]), "step {step}");
    }
}

/// A backup of 0.1.0 is restored on a host with 0.2.0.
#[test]
fn a_backup_of_0_1_0_can_be_restored() {
    for shares in [false, true] {
        for machine in ["0123456789abcdef", "another"] {
            let mut host = Host::new();
            host.begun -= 100_000;
            host.clicks(300);
            OldAgent::of(&host).count();
            host.clicks(20);
            let database = match shares {
                true => host.database.clone(),
                false => host.database.copy(),
            };
            let mut copy = host.restored(database);
            copy.facts.machine = machine.to_owned();
            copy.kill();
            copy.clicks(9);
            copy.settle();
            assert_eq!(copy.database.counted(), written(&[&host, &copy]), "{machine}, {shares}");
        }
    }
}

#[test]
fn a_visitor_is_recognized_after_a_restart_without_a_stored_address() {
    let mut host = Host::new();
    for _ in 0..3 {
        host.append(
            format!("l1\t{AT}.000\t302\t0.000\t-\tHIT\tGET\t/s1\t192.0.2.77\t-\tMozilla/5.0 (X11)\n").as_bytes(),
        );
        host.settle();
        host.kill();
    }
    let words: i64 = host
        .database
        .connection
        .query_row("SELECT count(*) FROM click_visitors WHERE link_id > 0", [], |row| {
            row.get(0)
        })
        .unwrap();
    assert_eq!(words, 1);
    for file in [host.layout.journal_position(), host.layout.visitor_salts()] {
        let metadata = fs::metadata(&file).unwrap();
        assert_eq!(metadata.mode() & 0o777, 0o600);
        assert!(!fs::read_to_string(&file).unwrap().contains("192.0.2"));
    }
}
