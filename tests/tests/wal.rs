//! SQLite's WAL-reset bug (<https://sqlite.org/wal.html#walresetbug>), with Debian's SQLite as one that has it, and the
//! measure against it: connections of such an SQLite never checkpoint, and one with the fix does it for them.
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

/// An affected SQLite has lost something after ten.
const ROUNDS: u32 = 60;
/// On a machine that is busy otherwise.
const PATIENCE: Duration = Duration::from_secs(240);
/// Pages that the checkpointer has mapped. Between its look at the state of the log and its look at how much of it is
/// copied, SQLite unmaps them: the more there are, the longer the moment in which a commit may reset the log.
const MAPPED_PAGES: u32 = 10_000;
/// Rows of the commit that fills the log. Those of the commits after it fit into a log that is shorter.
const MANY_ROWS: u32 = 3_000;
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
            .expect("the command sqlite3, of Debian's package sqlite3");
        let input = child.stdin.take().unwrap();
        let mut shell = Self {
            child,
            input,
            output: BufReader::new(output),
        };
        let version = shell.run("SELECT sqlite_version();").unwrap();
        assert!(
            !checkpoints_safely(&version),
            "SQLite {version} of the command sqlite3 has the fix, so there is nothing to show with it"
        );
        shell
    }

    fn send(&mut self, sql: &str) {
        writeln!(self.input, "{sql}\n.print {END}").unwrap();
        self.input.flush().unwrap();
    }

    /// What the statements that were sent have given, or what went wrong.
    fn answer(&mut self) -> Result<String, String> {
        let mut text = String::new();
        loop {
            let mut line = String::new();
            assert!(
                self.output.read_line(&mut line).unwrap() > 0,
                "sqlite3 has ended: {text}"
            );
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
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Who checkpoints.
#[derive(Clone, Copy, PartialEq, Eq)]
enum By {
    /// Everybody, as SQLite does by default.
    Affected,
    /// Connections of this process only, whose SQLite has the fix.
    Fixed,
}

/// Rows that were committed, and what became of them.
#[derive(Debug)]
struct Outcome {
    acknowledged: u32,
    rounds: u32,
    /// None: every row is there, and the file is sound.
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

/// What checkpoints in the wrong moment, and can be told to while another process is told to commit.
enum Checkpointer {
    Affected(Shell),
    Fixed(Connection),
}

impl Checkpointer {
    fn map(&mut self) {
        match self {
            // Where the file is damaged already, the next look at it says so.
            Self::Affected(shell) => drop(shell.run(READ_ALL)),
            Self::Fixed(connection) => connection.query_row(READ_ALL, [], |_| Ok(())).unwrap(),
        }
    }

    /// Checkpoints while `commit` runs.
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

/// Commits a lot, sees it copied into the database, and commits a little at the moment in which another process begins the
/// next checkpoint; over and over, until something is lost.
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
    while outcome.rounds < ROUNDS && begun.elapsed() < PATIENCE && outcome.loss.is_none() {
        outcome.rounds += 1;
        checkpointer.map();
        let mut lost = insert(&mut writer, &mut outcome, MANY_ROWS).err();
        if by == By::Fixed {
            // What the affected one does by itself after such a commit.
            fixed.query_row(PASSIVE, [], |_| Ok(())).unwrap();
        }
        checkpointer.checkpoint(|| {
            // Another moment in each round.
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
    // What was lost in the log shows when the log is reset once more.
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

fn damage(path: &Path, acknowledged: u32) -> Option<String> {
    let look = || -> rusqlite::Result<_> {
        let database = Connection::open(path)?;
        database.execute_batch("PRAGMA wal_autocheckpoint = 0")?;
        let rows: u32 = database.query_row("SELECT count(*) FROM t NOT INDEXED", [], |row| row.get(0))?;
        let verdict: String = database.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))?;
        Ok((rows, verdict))
    };
    match look() {
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
fn with_checkpoints_by_a_fixed_sqlite_only_nothing_is_lost() {
    assert!(checkpoints_safely(rusqlite::version()), "{}", rusqlite::version());
    let outcome = race(By::Fixed);
    assert_eq!(outcome.loss, None, "{outcome:?}");
    println!("{outcome:?}");
}
