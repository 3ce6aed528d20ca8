//! The whole way: a journal in a directory, and a database with the component's own tables.
#![allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::rc::Rc;
use std::time::{SystemTime, UNIX_EPOCH};

use links_core::clicks::{Batch, Position, WHOLE};
use links_core::sql::{SCHEMA, statements};
use rusqlite::{Connection, OptionalExtension as _, params};

use super::courier::{LINGER, QUIET, RELEASE_AFTER};
use super::*;
use crate::layout::temporary;

const INSERT_CLICKS: &str = include_str!("../../../../component/sql/insert_clicks.sql");
const FIND_CLICK_POSITION: &str = include_str!("../../../../component/sql/find_click_position.sql");

const AT: u64 = 1_767_225_600;

/// As the component has it.
#[derive(Clone)]
struct Database {
    connection: Rc<Connection>,
    /// The next so many answers get lost; the work is done.
    lost: Rc<RefCell<u32>>,
    /// It does not answer at all.
    down: Rc<RefCell<bool>>,
}

impl Database {
    fn new() -> Self {
        let connection = Connection::open_in_memory().unwrap();
        for statement in SCHEMA.into_iter().flat_map(statements) {
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

    fn answer(&self, journal: &str) -> Result<Position, String> {
        let mut lost = self.lost.borrow_mut();
        if *lost > 0 {
            *lost -= 1;
            return Err("the answer got lost".to_owned());
        }
        let found = self.connection.query_row(FIND_CLICK_POSITION, [journal], |row| {
            let (start, stop): (i64, i64) = (row.get(0)?, row.get(1)?);
            Ok(Position::of(start.unsigned_abs(), stop.unsigned_abs(), row.get(2)?))
        });
        Ok(found.optional().unwrap().unwrap_or_default())
    }

    /// Clicks and bots of each link, as the hours, the days and the sum of all agree on.
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

impl Desk for Database {
    fn position(&self, journal: &str) -> Result<Position, String> {
        if *self.down.borrow() {
            return Err("connection refused".to_owned());
        }
        self.answer(journal)
    }

    fn send(&self, batch: &Batch) -> Result<Position, String> {
        if *self.down.borrow() {
            return Err("connection refused".to_owned());
        }
        let body = serde_json::to_vec(batch).unwrap();
        let batch = Batch::parse(&body).unwrap();
        let body = String::from_utf8(body).unwrap();
        let after = batch.after.as_deref().unwrap_or_default();
        let through = batch.through.as_deref().unwrap_or(WHOLE);
        let (start, stop) = (batch.start as i64, batch.stop as i64);
        let row = params![batch.journal, start, stop, after, through, AT as i64, body];
        let taken = self.connection.query_row(INSERT_CLICKS, row, |_| Ok(()));
        taken.optional().unwrap();
        self.answer(&batch.journal)
    }
}

/// A host with nginx, of which only the journal is here.
struct Host {
    _root: tempfile::TempDir,
    layout: Layout,
    database: Database,
    clerk: Clerk<Database>,
    courier: Courier,
    now: Duration,
    progress: Arc<Mutex<Progress>>,
    written: BTreeMap<String, (i64, i64)>,
    number: u64,
    /// In Unix seconds.
    begun: u64,
}

impl Host {
    fn new() -> Self {
        let (root, layout) = temporary(&[Layout::journal_dir, Layout::agent_dir]);
        let database = Database::new();
        let progress = Arc::default();
        Self {
            clerk: Clerk::new(layout.clone(), database.clone(), Arc::clone(&progress)),
            _root: root,
            layout,
            database,
            courier: Courier::new(),
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
        // After the file was made, in which it will be.
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
        let action = self.courier.action();
        if let Action::Wait(time) = action {
            self.now += time;
        }
        let event = self.clerk.perform(action);
        self.courier.next(event, self.now);
        action
    }

    fn run_for(&mut self, time: Duration) {
        let until = self.now + time;
        while self.now < until {
            self.step();
        }
    }

    /// Until there is nothing left to do but wait.
    fn settle(&mut self) {
        self.run_for(4 * LINGER + QUIET);
    }

    /// All that the process knew is gone.
    fn kill(&mut self) {
        self.clerk = Clerk::new(self.layout.clone(), self.database.clone(), Arc::clone(&self.progress));
        self.courier = Courier::new();
    }

    fn told(&self) -> Progress {
        self.progress.lock().unwrap().clone()
    }

    fn journal_blocks(&self) -> u64 {
        fs::metadata(self.layout.journal()).unwrap().blocks()
    }
}

#[test]
fn clicks_get_from_the_journal_into_the_database() {
    let mut host = Host::new();
    host.run_for(Duration::from_secs(2));
    assert_eq!(host.database.counted(), BTreeMap::new(), "no journal, no clicks");
    host.clicks(1000);
    host.append(b"nonsense\n\n");
    host.settle();
    assert_eq!(host.database.counted(), host.written);
    let told = host.told();
    assert_eq!((told.lines, told.malformed), (1002, 2));
    let bots: i64 = host.written.values().map(|counts| counts.1).sum();
    assert_eq!((told.clicks, told.bots), (1000 - bots as u64, bots as u64));
    assert_eq!((told.lag_bytes, told.oldest, told.trouble), (0, None, None));
}

/// Killed between any two steps, while nginx writes on, in whole lines and in halves.
#[test]
fn killed_at_any_step_it_counts_each_click_once() {
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
        assert_eq!(host.told().malformed, 0);
    }
}

#[test]
fn answers_that_get_lost_do_not_double_a_click() {
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
fn while_the_database_is_down_clicks_wait_and_are_told_of() {
    let mut host = Host::new();
    host.clicks(100);
    host.settle();
    *host.database.down.borrow_mut() = true;
    for _ in 0..20 {
        host.clicks(500);
        host.run_for(Duration::from_secs(600));
    }
    let told = host.told();
    assert_eq!(told.clicks + told.bots, 100);
    assert!(told.oldest == Some((host.begun + 1) * 1000 + 101) && told.trouble.unwrap().contains("refused"));
    host.kill();
    host.run_for(Duration::from_secs(600));
    *host.database.down.borrow_mut() = false;
    host.settle();
    host.settle();
    assert_eq!(host.database.counted(), host.written);
    assert_eq!(host.told().trouble, None);
}

#[test]
fn what_was_counted_is_given_back_and_not_counted_again() {
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
    // What was written down is lost: the database knows.
    fs::remove_file(host.layout.journal_position()).unwrap();
    host.kill();
    host.clicks(10);
    host.settle();
    assert_eq!(host.database.counted(), host.written);
}

/// logrotate's way: the old file is written until nginx opens the new one.
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
        assert_eq!(host.told().replaced, 1);
        host.kill();
        host.clicks(5);
        host.settle();
        assert_eq!(host.database.counted(), host.written);
    }
}

/// Renamed again and again while nobody looks.
#[test]
fn journals_that_were_renamed_one_after_the_other_are_read_in_their_order() {
    for killed in [false, true] {
        let mut host = Host::new();
        host.clicks(100);
        host.settle();
        for number in 1..=4 {
            let renamed = host.layout.journal_dir().join(format!("clicks.log.{number}"));
            fs::rename(host.layout.journal(), renamed).unwrap();
            // One of them tells nothing.
            host.clicks(if number == 2 { 0 } else { 10 * number });
            if killed {
                host.kill();
            }
            host.run_for(Duration::from_millis(600));
        }
        (0..6).for_each(|_| host.settle());
        assert_eq!(host.database.counted(), host.written, "killed: {killed}");
        assert_eq!(host.told().replaced, 4);
        assert_eq!(host.told().malformed, 0);
    }
}

#[test]
fn a_copy_of_a_journal_is_not_taken_for_one() {
    let mut host = Host::new();
    // Some time ago.
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
    assert_eq!(host.told().malformed, 0);
}

#[test]
fn a_journal_that_somebody_emptied_begins_anew() {
    for (killed, more) in [(false, 3), (true, 3), (false, 400), (true, 400)] {
        let mut host = Host::new();
        host.clicks(200);
        host.settle();
        if killed {
            host.kill();
        }
        fs::write(host.layout.journal(), b"").unwrap();
        // Less than there was, or more.
        host.clicks(more);
        host.settle();
        assert_eq!(host.database.counted(), host.written, "killed: {killed}, {more} clicks");
        assert_eq!(host.told().emptied, 1);
        // And again, with nothing written down.
        fs::remove_file(host.layout.journal_position()).unwrap();
        host.kill();
        host.clicks(20);
        host.settle();
        assert_eq!(host.database.counted(), host.written, "killed: {killed}, {more} clicks");
    }
}

#[test]
fn what_was_read_of_a_journal_that_somebody_emptied_is_counted() {
    let mut host = Host::new();
    host.clicks(200);
    while !matches!(host.step(), Action::Gather { .. }) {}
    fs::write(host.layout.journal(), b"").unwrap();
    host.clicks(10);
    host.settle();
    assert_eq!(host.database.counted(), host.written);
}

#[test]
fn a_file_that_cannot_be_written_is_no_reason_to_lose_or_double() {
    let mut host = Host::new();
    fs::create_dir_all(host.layout.journal_position()).unwrap();
    for _ in 0..3 {
        host.clicks(2000);
        host.run_for(RELEASE_AFTER);
        host.kill();
    }
    host.clicks(10);
    host.settle();
    assert_eq!(host.database.counted(), host.written);
    assert!(host.told().trouble.unwrap().contains("journal.json"));
    fs::remove_dir(host.layout.journal_position()).unwrap();
    host.clicks(10);
    host.settle();
    assert_eq!(
        (host.database.counted(), host.told().trouble),
        (host.written.clone(), None)
    );
}

#[test]
fn a_visitor_is_the_same_one_after_a_restart_and_no_file_knows_the_address() {
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
