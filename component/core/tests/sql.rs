//! The component's SQL files, against the SQLite that is used here, as the component uses them.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use links_core::sql::{Trouble, statements};
use rusqlite::{Connection, OptionalExtension, params};

const SCHEMA: &str = include_str!("../../sql/0001_links.sql");
const APPLIED: &str = include_str!("../../sql/schema_version.sql");
const WRITE_AHEAD: &str = include_str!("../../sql/write_ahead.sql");
const INSERT_LINK: &str = include_str!("../../sql/insert_link.sql");
const FIND_LINK: &str = include_str!("../../sql/find_link.sql");
const HEALTH: &str = include_str!("../../sql/health.sql");

type Link = (String, Option<i64>);

fn apply(connection: &Connection) -> rusqlite::Result<()> {
    statements(SCHEMA).try_for_each(|statement| connection.execute(statement, []).map(drop))
}

fn new_database() -> Connection {
    let connection = Connection::open_in_memory().unwrap();
    apply(&connection).unwrap();
    connection
}

fn insert(connection: &Connection, slug: &str, url: &str, expires_at: Option<i64>) -> rusqlite::Result<bool> {
    let row = params![slug, url, 1_767_225_600_i64, expires_at];
    Ok(connection
        .query_row(INSERT_LINK, row, |row| row.get::<_, i64>(0))
        .optional()?
        .is_some())
}

fn find(connection: &Connection, slug: &str) -> Option<Link> {
    connection
        .query_row(FIND_LINK, [slug], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()
        .unwrap()
}

#[test]
fn a_database_without_tables_is_recognised() {
    let connection = Connection::open_in_memory().unwrap();
    for statement in [APPLIED, HEALTH, FIND_LINK, INSERT_LINK] {
        let error = connection.prepare(statement).unwrap_err().to_string();
        assert_eq!(Trouble::of(&error), Trouble::NoSchema, "{error}");
    }
}

#[test]
fn the_schema_may_be_applied_again() {
    let connection = new_database();
    assert!(insert(&connection, "kept", "https://example.com/", None).unwrap());
    apply(&connection).unwrap();
    assert!(find(&connection, "kept").is_some());
    let version = connection.query_row(APPLIED, [], |row| row.get::<_, i64>(0)).unwrap();
    assert_eq!(version, 1);
}

#[test]
fn health_reads_an_empty_table_and_a_full_one() {
    let connection = new_database();
    let health = || connection.query_row(HEALTH, [], |row| row.get::<_, i64>(0));
    assert_eq!(health(), Ok(0));
    insert(&connection, "a", "https://example.com/", None).unwrap();
    insert(&connection, "b", "https://example.com/", None).unwrap();
    assert_eq!(health(), Ok(1));
    connection.execute("DROP TABLE links", []).unwrap();
    assert!(health().is_err());
}

#[test]
fn the_first_insert_has_the_slug() {
    let connection = new_database();
    assert!(insert(&connection, "x", "https://example.com/", Some(5)).unwrap());
    assert!(!insert(&connection, "x", "https://example.org/", None).unwrap());
    assert_eq!(find(&connection, "x"), Some(("https://example.com/".into(), Some(5))));
}

#[test]
fn case_makes_another_slug() {
    let connection = new_database();
    assert!(insert(&connection, "abc", "https://example.com/1", None).unwrap());
    assert!(insert(&connection, "ABC", "https://example.com/2", None).unwrap());
    assert_eq!(find(&connection, "ABC"), Some(("https://example.com/2".into(), None)));
    assert_eq!(find(&connection, "aBC"), None);
}

#[test]
fn a_lookup_uses_the_index() {
    let connection = new_database();
    let plan: String = connection
        .query_row(&format!("EXPLAIN QUERY PLAN {FIND_LINK}"), ["x"], |row| {
            row.get("detail")
        })
        .unwrap();
    assert!(plan.starts_with("SEARCH links USING INDEX"), "{plan}");
}

/// Four processes start at once on a database that does not exist, and all of them race for the same slugs.
#[test]
fn writers_at_once_share_a_new_database() {
    const WRITERS: usize = 4;
    const SLUGS: usize = 50;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("links.db");
    let start = Barrier::new(WRITERS);
    let deadline = Instant::now() + Duration::from_secs(60);
    // As the component does: a database that is busy is asked again, for a limited time.
    let patiently = |work: &dyn Fn() -> rusqlite::Result<bool>| loop {
        match work() {
            Err(error) if Trouble::of(&error.to_string()) == Trouble::Busy && Instant::now() < deadline => {
                thread::yield_now();
            }
            outcome => return outcome.unwrap(),
        }
    };
    let write = |writer: usize| {
        start.wait();
        let connection = Connection::open(&path).unwrap();
        connection.busy_timeout(Duration::from_secs(5)).unwrap();
        patiently(&|| connection.query_row(WRITE_AHEAD, [], |row| Ok(row.get::<_, String>(0)? == "wal")));
        patiently(&|| apply(&connection).map(|()| true));
        let url = format!("https://example.com/{writer}");
        (0..SLUGS)
            .filter(|slug| patiently(&|| insert(&connection, &slug.to_string(), &url, None)))
            .collect::<Vec<_>>()
    };
    let won: Vec<Vec<usize>> = thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS).map(|writer| scope.spawn(move || write(writer))).collect();
        writers.into_iter().map(|writer| writer.join().unwrap()).collect()
    });
    let connection = Connection::open(&path).unwrap();
    for (writer, slugs) in won.iter().enumerate() {
        for slug in slugs {
            assert_eq!(
                find(&connection, &slug.to_string()),
                Some((format!("https://example.com/{writer}"), None))
            );
        }
    }
    assert_eq!(
        won.iter().map(Vec::len).sum::<usize>(),
        SLUGS,
        "every slug has one winner"
    );
    let mode: String = connection
        .query_row("PRAGMA journal_mode", [], |row| row.get(0))
        .unwrap();
    assert_eq!(mode, "wal");
}
