//! SQLite's WAL-reset bug (<https://sqlite.org/wal.html#walresetbug>), which Debian's SQLite has, and the workaround:
//! connections of an affected SQLite never checkpoint, and a connection of a fixed SQLite checkpoints for them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a panic is how a test fails"
)]

use std::io::{BufRead as _, BufReader, PipeReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use links_store::checkpoints::checkpoints_safely;
use rusqlite::Connection;

/// The maximum number of rounds. An affected SQLite has lost something after ten.
const ROUNDS: u32 = 60;
/// The time limit for all rounds, which leaves room for a busy machine.
const TIME_LIMIT: Duration = Duration::from_secs(240);
/// The number of pages that the checkpointer has mapped. SQLite unmaps them after it has read the state of the log and before
/// it reads how much of the log is copied. The more pages there are, the longer a commit can reset the log in between.
const MAPPED_PAGES: u32 = 10_000;
/// The number of rows in the commit that fills the log. The commits after it need much less of the log.
const MANY_ROWS: u32 = 3_000;
/// The line that ends the output of a batch of statements.
const END: &str = "-- end --";

/// A process of the `sqlite3` command, whose SQLite has the bug.
struct Shell {
    child: Child,
    input: ChildStdin,
    output: BufReader<PipeReader>,
}

impl Shell {
    fn open(database: &Path) -> Self {
        let (output, errors) = std::io::pipe().unwrap();
        let mut child = Command::new("sqlite3")
            .args(["-batch", "-init", "/dev/null"])
            .arg(database)
            .stdin(Stdio::piped())
            .stdout(errors.try_clone().unwrap())
            .stderr(errors)
            .spawn()
            .expect("running sqlite3, from Debian's package sqlite3");
        let input = child.stdin.take().unwrap();
        let mut shell = Self {
            child,
            input,
            output: BufReader::new(output),
        };
        let version = shell.run("SELECT sqlite_version();").unwrap();
        assert!(
            !checkpoints_safely(&version),
            "the command sqlite3 has SQLite {version}, which has the fix; the test needs one with the bug"
        );
        shell
    }

    fn send(&mut self, sql: &str) {
        writeln!(self.input, "{sql}\n.print {END}").unwrap();
        self.input.flush().unwrap();
    }

    /// The output of the statements that were sent, as an error if it contains one.
    fn answer(&mut self) -> Result<String, String> {
        let mut text = String::new();
        loop {
            let mut line = String::new();
            assert!(self.output.read_line(&mut line).unwrap() > 0, "sqlite3 exited: {text}");
            if line.trim_end() == END {
                break;
            }
            text += &line;
        }
        if text.contains("rror") {
            Err(text)
        } else {
            Ok(text.trim_end().to_owned())
        }
    }

    fn run(&mut self, sql: &str) -> Result<String, String> {
        self.send(sql);
        self.answer()
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        // The process may have exited by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Which connections checkpoint.
#[derive(Clone, Copy, PartialEq, Eq)]
enum By {
    /// All connections, including those of the affected SQLite, as is SQLite's default.
    Affected,
    /// Only connections of this process, whose SQLite has the fix.
    Fixed,
}

/// The result of a race.
#[derive(Debug)]
struct Outcome {
    /// The number of rows whose commit succeeded.
    acknowledged: u32,
    rounds: u32,
    /// What was lost or damaged. `None` if every row is there and the file passes its integrity check.
    loss: Option<String>,
}

fn new_database(directory: &Path) -> PathBuf {
    let path = directory.join("links.db");
    let database = Connection::open(&path).unwrap();
    database
        .execute_batch(&format!(
            "PRAGMA synchronous = OFF; PRAGMA journal_mode = WAL;
             CREATE TABLE t (id INTEGER PRIMARY KEY, x TEXT); CREATE INDEX t_x ON t (x);
             CREATE TABLE pad (id INTEGER PRIMARY KEY, x BLOB);
             WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {MAPPED_PAGES})
             INSERT INTO pad SELECT i, zeroblob(3900) FROM n;
             PRAGMA wal_checkpoint(TRUNCATE);"
        ))
        .unwrap();
    path
}

const MAP: &str = "PRAGMA mmap_size = 1073741824;";
const READ_ALL: &str = "SELECT sum(length(x)) FROM pad;";
const PASSIVE: &str = "PRAGMA wal_checkpoint(PASSIVE);";

/// The connection that starts a checkpoint while another process commits.
enum Checkpointer {
    Affected(Shell),
    Fixed(Connection),
}

impl Checkpointer {
    /// Reads all pages, so that they are mapped.
    fn map(&mut self) {
        match self {
            // An error means that the file is already damaged, which the next check finds.
            Self::Affected(shell) => drop(shell.run(READ_ALL)),
            Self::Fixed(connection) => connection.query_row(READ_ALL, [], |_| Ok(())).unwrap(),
        }
    }

    /// Starts a checkpoint, runs `commit` at the same time, and waits for both.
    fn checkpoint(&mut self, commit: impl FnOnce()) {
        match self {
            Self::Affected(shell) => {
                shell.send(PASSIVE);
                commit();
                drop(shell.answer());
            }
            Self::Fixed(connection) => std::thread::scope(|scope| {
                scope.spawn(move || connection.query_row(PASSIVE, [], |_| Ok(())));
                commit();
            }),
        }
    }
}

/// Makes a large commit, has it checkpointed, and makes a small commit just when another connection starts the next
/// checkpoint. Repeats this until something is lost or the limits are reached.
fn race(by: By) -> Outcome {
    let directory = tempfile::tempdir().unwrap();
    let path = new_database(directory.path());
    let mut writer = Shell::open(&path);
    let automatic = if by == By::Affected {
        ""
    } else {
        "PRAGMA wal_autocheckpoint = 0;"
    };
    writer
        .run(&format!(
            "PRAGMA busy_timeout = 10000; PRAGMA synchronous = OFF; {automatic}"
        ))
        .unwrap();
    let fixed = Connection::open(&path).unwrap();
    let mut checkpointer = match by {
        By::Affected => Checkpointer::Affected(Shell::open(&path)),
        By::Fixed => Checkpointer::Fixed(Connection::open(&path).unwrap()),
    };
    match &mut checkpointer {
        Checkpointer::Affected(shell) => drop(shell.run(MAP).unwrap()),
        Checkpointer::Fixed(connection) => connection.execute_batch(MAP).unwrap(),
    }

    let begun = Instant::now();
    let mut outcome = Outcome {
        acknowledged: 0,
        rounds: 0,
        loss: None,
    };
    while outcome.rounds < ROUNDS && begun.elapsed() < TIME_LIMIT && outcome.loss.is_none() {
        outcome.rounds += 1;
        checkpointer.map();
        let mut lost = insert(&mut writer, &mut outcome, MANY_ROWS).err();
        if by == By::Fixed {
            // An affected SQLite would checkpoint by itself after such a large commit.
            fixed.query_row(PASSIVE, [], |_| Ok(())).unwrap();
        }
        checkpointer.checkpoint(|| {
            // A different delay in each round, to hit the critical moment.
            std::thread::sleep(Duration::from_micros(u64::from(outcome.rounds % 16) * 150));
            lost = lost.take().or(insert(&mut writer, &mut outcome, 1).err());
        });
        for _ in 0..4 {
            lost = lost.take().or(insert(&mut writer, &mut outcome, 1).err());
        }
        outcome.loss = lost;
        if outcome.rounds.is_multiple_of(10) && outcome.loss.is_none() {
            outcome.loss = damage(&path, outcome.acknowledged);
        }
    }
    // A loss in the log shows only after the log has been reset once more.
    let last = insert(&mut writer, &mut outcome, MANY_ROWS).err();
    outcome.loss = outcome.loss.or(last).or_else(|| damage(&path, outcome.acknowledged));
    outcome
}

fn insert(writer: &mut Shell, outcome: &mut Outcome, rows: u32) -> Result<(), String> {
    let first = outcome.acknowledged + 1;
    let last = outcome.acknowledged + rows;
    writer.run(&format!(
        "WITH RECURSIVE n (i) AS (SELECT {first} UNION ALL SELECT i + 1 FROM n WHERE i < {last})
         INSERT INTO t SELECT i, hex(randomblob(15)) FROM n;"
    ))?;
    outcome.acknowledged = last;
    Ok(())
}

/// What is missing or broken in the database, if anything.
fn damage(path: &Path, acknowledged: u32) -> Option<String> {
    let check = || -> rusqlite::Result<_> {
        let database = Connection::open(path)?;
        database.execute_batch("PRAGMA wal_autocheckpoint = 0")?;
        let rows: u32 = database.query_row("SELECT count(*) FROM t NOT INDEXED", [], |row| row.get(0))?;
        let verdict: String = database.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))?;
        Ok((rows, verdict))
    };
    match check() {
        Err(error) => Some(error.to_string()),
        Ok((rows, verdict)) if rows != acknowledged || verdict != "ok" => {
            Some(format!("{rows} of {acknowledged} rows, {verdict}"))
        }
        Ok(_) => None,
    }
}

#[test]
fn checkpoints_by_an_affected_sqlite_lose_commits() {
    let outcome = race(By::Affected);
    assert!(outcome.loss.is_some(), "{outcome:?}");
    println!("{outcome:?}");
}

#[test]
fn checkpoints_by_a_fixed_sqlite_alone_lose_nothing() {
    assert!(checkpoints_safely(rusqlite::version()), "{}", rusqlite::version());
    let outcome = race(By::Fixed);
    assert_eq!(outcome.loss, None, "{outcome:?}");
    println!("{outcome:?}");
}
