//! The SQL files about clicks, run as the components run them, on the SQLite that this test is built with.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use links_domain::clicks::{Batch, Clicks, Detail, Kind, MAX_REUSES, OTHER, Position, Visitors, WHOLE};
use links_store::schema::SCHEMA;
use links_store::sql::{
    FIND_CLICK_POSITION, FIND_SLUG_REUSES, INSERT_CLICKS, STATS_DAYS, STATS_DETAILS, STATS_HOURS, STATS_TOP,
    STATS_VISITORS,
};
use rusqlite::{Connection, OptionalExtension, params};

const JOURNAL: &str = "0123456789abcdef0123456789abcdef";
const DAY: u32 = 20_454;
const HOUR: u32 = DAY * 24 + 12;
const NOW: i64 = HOUR as i64 * 3600 + 1800;

/// A database with the links `a` (id 1), `b` (id 2) and so on.
fn new_database(links: usize) -> Connection {
    let connection = Connection::open_in_memory().unwrap();
    for statement in SCHEMA.concat() {
        connection.execute(statement, []).unwrap();
    }
    for slug in ('a'..='z').take(links) {
        let link = "INSERT INTO links (slug, url, created_at) VALUES (?1, 'https://example.com/', 0)";
        connection.execute(link, [slug.to_string()]).unwrap();
    }
    connection
}

fn batch(start: u64, stop: u64) -> Batch {
    Batch {
        journal: JOURNAL.into(),
        start,
        stop,
        after: None,
        through: None,
        clicks: vec![],
        visitors: vec![],
        details: vec![],
    }
}

fn clicks_batch(start: u64, stop: u64, clicks: &[(&str, u32, u32, u32)]) -> Batch {
    let clicks = clicks.iter();
    Batch {
        clicks: clicks
            .map(|(slug, hour, clicks, bots)| Clicks((*slug).into(), *hour, *clicks, *bots))
            .collect(),
        ..batch(start, stop)
    }
}

fn details_batch(start: u64, details: &[(&str, Kind, &str, u32)]) -> Batch {
    let details = details.iter();
    Batch {
        details: details
            .map(|(slug, kind, name, clicks)| Detail((*slug).into(), DAY, *kind, (*name).into(), *clicks))
            .collect(),
        ..batch(start, start + 1)
    }
}

fn send_at(connection: &Connection, batch: &Batch, now: i64) -> bool {
    send_heeding(connection, batch, now, None)
}

fn send_heeding(connection: &Connection, batch: &Batch, now: i64, heeded: Option<i64>) -> bool {
    let body = serde_json::to_string(batch).unwrap();
    let after = batch.after.as_deref().unwrap_or_default();
    let through = batch.through.as_deref().unwrap_or(WHOLE);
    let (start, stop) = (batch.start as i64, batch.stop as i64);
    let row = params![batch.journal, start, stop, after, through, now, body, heeded];
    let taken = connection.query_row(INSERT_CLICKS, row, |row| row.get::<_, i64>(0));
    taken.optional().unwrap().is_some()
}

fn send(connection: &Connection, batch: &Batch) -> bool {
    send_at(connection, batch, NOW)
}

fn found(connection: &Connection) -> Position {
    let found = connection.query_row(FIND_CLICK_POSITION, [JOURNAL], |row| {
        let (start, stop): (i64, i64) = (row.get(0)?, row.get(1)?);
        Ok(Position::of(start as u64, stop as u64, row.get(2)?))
    });
    found.optional().unwrap().unwrap_or_default()
}

fn position(connection: &Connection) -> Option<u64> {
    assert_eq!(found(connection).part, None);
    found(connection).position
}

type Bars = Vec<(i64, i64, i64)>;

fn bars(connection: &Connection, statement: &str, link: i64, start: u32, stop: u32) -> Bars {
    let mut statement = connection.prepare(statement).unwrap();
    let rows = statement.query_map(params![link, start, stop], |row| {
        Ok((row.get(0)?, row.get(1)?, row.get(2)?))
    });
    rows.unwrap().map(Result::unwrap).collect()
}

fn days(connection: &Connection, link: i64) -> Bars {
    bars(connection, STATS_DAYS, link, DAY - 5, DAY + 5)
}

fn hours(connection: &Connection, link: i64) -> Bars {
    bars(connection, STATS_HOURS, link, HOUR - 100, HOUR + 100)
}

fn details(connection: &Connection, link: i64) -> Vec<(i64, String, i64)> {
    let mut statement = connection.prepare(STATS_DETAILS).unwrap();
    let rows = statement.query_map(params![link, DAY, DAY + 1], |row| {
        Ok((row.get(0)?, row.get(1)?, row.get(2)?))
    });
    rows.unwrap().map(Result::unwrap).collect()
}

fn count(connection: &Connection, table: &str) -> i64 {
    connection
        .query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0))
        .unwrap()
}

#[test]
fn an_interrupted_script_is_finished_by_the_next_run() {
    for done in 0..=SCHEMA[2].len() {
        let connection = Connection::open_in_memory().unwrap();
        let (earlier, later) = (SCHEMA[..2].concat(), SCHEMA[2..].concat());
        for statement in [&earlier, &SCHEMA[2][..done], &later].concat() {
            connection.execute(statement, []).unwrap();
        }
        connection
            .execute(
                "INSERT INTO links (slug, url, created_at) VALUES ('a', 'https://example.com/', 0)",
                [],
            )
            .unwrap();
        assert!(send(&connection, &clicks_batch(0, 10, &[("a", HOUR, 3, 0)])));
        assert_eq!(days(&connection, 1), [(DAY.into(), 3, 0)], "after {done} statements");
    }
}

#[test]
fn a_batch_is_added_to_hours_and_days() {
    let connection = new_database(2);
    let (hour, day) = (i64::from(HOUR), i64::from(DAY));
    assert!(send(
        &connection,
        &clicks_batch(
            0,
            10,
            &[
                ("a", HOUR, 3, 1),
                ("a", HOUR + 1, 2, 0),
                ("b", HOUR + 12, 1, 0),
                ("", HOUR, 6, 1)
            ]
        )
    ));
    assert!(send(
        &connection,
        &clicks_batch(10, 20, &[("a", HOUR, 4, 0), ("", HOUR, 4, 0)])
    ));
    assert_eq!(hours(&connection, 1), [(hour, 7, 1), (hour + 1, 2, 0)]);
    assert_eq!(days(&connection, 1), [(day, 9, 1)]);
    assert_eq!(days(&connection, 2), [(day + 1, 1, 0)]);
    // Every day with clicks has a row of link 0, so that the clicks of a deleted link are found.
    assert_eq!(days(&connection, 0), [(day, 10, 1), (day + 1, 0, 0)]);
}

#[test]
fn the_same_batch_again_changes_nothing() {
    let connection = new_database(1);
    let first = clicks_batch(0, 10, &[("a", HOUR, 3, 0)]);
    assert_eq!(position(&connection), None);
    assert!(send(&connection, &first));
    assert_eq!(position(&connection), Some(10));
    assert!(!send(&connection, &first));
    assert!(send(&connection, &clicks_batch(10, 30, &[("a", HOUR, 1, 0)])));
    for again in [&first, &clicks_batch(10, 30, &[("a", HOUR, 1, 0)])] {
        assert!(!send(&connection, again));
    }
    assert_eq!(
        (days(&connection, 1), position(&connection)),
        (vec![(DAY.into(), 4, 0)], Some(30))
    );
}

#[test]
fn the_parts_of_a_range_are_added_in_order_and_once() {
    let connection = new_database(3);
    let part = |after: Option<&str>, through: Option<&str>, slug: &str| Batch {
        after: after.map(str::to_owned),
        through: through.map(str::to_owned),
        ..clicks_batch(0, 10, &[(slug, HOUR, 1, 0)])
    };
    let parts = [
        part(None, Some("a"), "a"),
        part(Some("a"), Some("b"), "b"),
        part(Some("b"), None, ""),
    ];
    for (done, next) in parts.iter().enumerate() {
        // Only the next part is accepted: none of the others, no other division of the same range, and no later range.
        let another = part(Some("0"), Some("c"), "c");
        let longer = Batch {
            stop: 20,
            ..next.clone()
        };
        let later = clicks_batch(10, 20, &[("a", HOUR, 1, 0)]);
        let others = parts
            .iter()
            .enumerate()
            .filter(|(index, _)| *index != done)
            .map(|(_, part)| part);
        for wrong in others.chain([&another, &later]).chain((done > 0).then_some(&longer)) {
            assert!(!send(&connection, wrong), "{wrong:?} after {done} parts");
        }
        assert!(send(&connection, next), "{next:?}");
        assert_eq!(found(&connection), Position::after(next));
        assert_eq!(count(&connection, "click_batches"), 1);
    }
    assert_eq!(position(&connection), Some(10));
    let counted = [1, 2, 3, 0].map(|link| days(&connection, link).len());
    assert_eq!(counted, [1, 1, 0, 1]);
}

/// After a restart the agent may divide the journal differently.
#[test]
fn a_batch_that_overlaps_or_leaves_a_gap_is_not_added() {
    let connection = new_database(1);
    assert!(!send(&connection, &clicks_batch(5, 10, &[("a", HOUR, 1, 0)])));
    assert!(send(&connection, &clicks_batch(0, 10, &[("a", HOUR, 1, 0)])));
    for (start, stop) in [(0, 20), (5, 15), (9, 10), (11, 20), (20, 30)] {
        assert!(
            !send(&connection, &clicks_batch(start, stop, &[("a", HOUR, 1, 0)])),
            "{start} to {stop}"
        );
    }
    assert_eq!(
        (days(&connection, 1), position(&connection)),
        (vec![(DAY.into(), 1, 0)], Some(10))
    );
}

#[test]
fn journals_are_independent() {
    let connection = new_database(1);
    assert!(send(&connection, &clicks_batch(0, 10, &[("a", HOUR, 1, 0)])));
    let other = Batch {
        journal: "f".repeat(32),
        ..clicks_batch(0, 10, &[("a", HOUR, 1, 0)])
    };
    assert!(send(&connection, &other));
    assert_eq!(days(&connection, 1), [(DAY.into(), 2, 0)]);
}

#[test]
fn only_the_latest_position_of_batches_is_kept() {
    let connection = new_database(1);
    for start in 0..100 {
        assert!(send(&connection, &clicks_batch(start, start + 1, &[("a", HOUR, 1, 0)])));
    }
    assert_eq!(count(&connection, "click_batches"), 1);
    let body: String = connection
        .query_row("SELECT body FROM click_batches", [], |row| row.get(0))
        .unwrap();
    assert_eq!((body.as_str(), position(&connection)), ("", Some(100)));
}

#[test]
fn a_batch_that_fails_leaves_nothing_behind() {
    let connection = new_database(1);
    // The component would reject this batch earlier.
    let row = params![
        JOURNAL,
        0,
        10,
        "",
        WHOLE,
        NOW,
        r#"{"clicks":[["a",1,1,0],["a","x",1,0]]}"#,
        None::<i64>
    ];
    assert!(connection.query_row(INSERT_CLICKS, row, |_| Ok(())).is_err());
    assert_eq!((position(&connection), count(&connection, "click_hours")), (None, 0));
    assert!(send(&connection, &clicks_batch(0, 10, &[("a", HOUR, 1, 0)])));
}

#[test]
fn clicks_are_deleted_with_their_link() {
    let connection = new_database(2);
    let clicks = clicks_batch(0, 10, &[("a", HOUR, 3, 0), ("b", HOUR, 1, 0), ("", HOUR, 4, 0)]);
    assert!(send(&connection, &clicks));
    assert!(send(
        &connection,
        &details_batch(10, &[("b", Kind::Referrer, "", 1), ("", Kind::Referrer, "", 4)])
    ));
    let visitors = Batch {
        visitors: vec![Visitors("b".into(), DAY, 0, 1)],
        ..batch(11, 12)
    };
    assert!(send(&connection, &visitors));
    connection.execute("DELETE FROM links WHERE slug = 'b'", []).unwrap();
    connection
        .execute(
            "INSERT INTO links (slug, url, created_at) VALUES ('new', 'https://example.com/', 0)",
            [],
        )
        .unwrap();
    let id: i64 = connection
        .query_row("SELECT id FROM links WHERE slug = 'new'", [], |row| row.get(0))
        .unwrap();
    assert_eq!(id, 3, "an id is used only once");
    assert!(send(
        &connection,
        &clicks_batch(12, 20, &[("b", HOUR, 5, 0), ("a", HOUR, 1, 0)])
    ));
    for link in [2, 3] {
        assert_eq!((days(&connection, link), hours(&connection, link)), (vec![], vec![]));
        assert_eq!(details(&connection, link), vec![]);
    }
    assert_eq!(count(&connection, "click_visitors"), 0);
    assert_eq!(days(&connection, 1), [(DAY.into(), 4, 0)]);
    assert_eq!(days(&connection, 0), [(DAY.into(), 4, 0)]);
}

/// Deletes `c` between two parts of a batch. The first part has counted clicks of `c` in an hour without other clicks.
fn delete_a_link_between_two_parts(connection: &Connection) {
    let first = Batch {
        through: Some("c".into()),
        visitors: vec![Visitors("c".into(), DAY, 0, 1)],
        details: vec![Detail("c".into(), DAY, Kind::Referrer, "secret.example".into(), 7)],
        ..clicks_batch(0, 10, &[("c", HOUR, 7, 0)])
    };
    let last = Batch {
        after: Some("c".into()),
        ..clicks_batch(0, 10, &[("", HOUR, 7, 0)])
    };
    assert!(send(connection, &first));
    connection.execute("DELETE FROM links WHERE slug = 'c'", []).unwrap();
    assert!(send(connection, &last));
}

#[test]
fn clicks_of_a_deleted_link_never_pass_to_another() {
    let connection = new_database(3);
    delete_a_link_between_two_parts(&connection);
    let link = "INSERT INTO links (slug, url, created_at) VALUES ('new', 'https://example.com/', 0)";
    connection.execute(link, []).unwrap();
    for table in ["click_hours", "click_days", "click_visitors", "click_details"] {
        let sql = format!("SELECT count(*) FROM {table} WHERE link_id <> 0");
        let left: i64 = connection.query_row(&sql, [], |row| row.get(0)).unwrap();
        assert_eq!(left, 0, "{table}");
    }
    assert_eq!(days(&connection, 0), [(DAY.into(), 7, 0)]);
}

#[test]
fn a_batch_is_refused_until_its_sender_knows_of_the_latest_slug_reuse() {
    let connection = new_database(2);
    let reuses = || -> Vec<(i64, String)> {
        let mut statement = connection.prepare(FIND_SLUG_REUSES).unwrap();
        let rows = statement.query_map([0, MAX_REUSES], |row| Ok((row.get(0)?, row.get(1)?)));
        rows.unwrap().map(Result::unwrap).collect()
    };
    let insert = |slug: &str| {
        let link = "INSERT INTO links (slug, url, created_at) VALUES (?1, 'https://example.com/', 0)";
        connection.execute(link, [slug]).unwrap();
    };
    insert("new");
    connection.execute("DELETE FROM links WHERE slug = 'a'", []).unwrap();
    assert_eq!(reuses(), []);
    let batch = clicks_batch(0, 10, &[("a", HOUR, 1, 0)]);
    assert!(send_heeding(&connection, &batch, NOW, Some(0)));
    insert("a");
    assert_eq!(reuses(), [(1, "a".to_owned())]);
    let batch = clicks_batch(10, 20, &[("b", HOUR, 1, 0)]);
    assert!(!send_heeding(&connection, &batch, NOW, Some(0)));
    assert_eq!(position(&connection), Some(10));
    assert!(send_heeding(&connection, &batch, NOW, Some(1)));
    // The agent of 0.1.0 does not know of reuses.
    assert!(send_heeding(&connection, &clicks_batch(20, 30, &[]), NOW, None));

    // The latest reuse stays however old it is, because senders compare its number.
    connection.execute("UPDATE slug_reuses SET at = 1", []).unwrap();
    connection
        .execute("UPDATE deleted_slugs SET deleted_at = 1", [])
        .unwrap();
    connection.execute("DELETE FROM links WHERE slug = 'b'", []).unwrap();
    assert_eq!((count(&connection, "deleted_slugs"), reuses().len()), (1, 1));
    insert("b");
    assert_eq!(reuses(), [(2, "b".to_owned())]);
}

/// New links do not inherit clicks that version 4 left behind. Clicks counted before the upgrade are deleted with their link.
#[test]
fn an_upgrade_separates_the_clicks_of_deleted_links_from_new_ones() {
    let connection = Connection::open_in_memory().unwrap();
    for statement in SCHEMA[..4].concat() {
        connection.execute(statement, []).unwrap();
    }
    let make = |slug: &str| {
        let link = "INSERT INTO links (slug, url, created_at) VALUES (?1, 'https://example.com/', 0)";
        connection.execute(link, [slug]).unwrap();
    };
    ["a", "b", "c"].into_iter().for_each(make);
    // INSERT_CLICKS needs this table, which version 4 does not have.
    connection
        .execute("CREATE TEMP TABLE slug_reuses (number INTEGER)", [])
        .unwrap();
    delete_a_link_between_two_parts(&connection);
    let unfinished = Batch {
        through: Some("b".into()),
        ..clicks_batch(10, 20, &[("b", HOUR + 48, 5, 0)])
    };
    assert!(send(&connection, &unfinished));
    connection.execute("DROP TABLE temp.slug_reuses", []).unwrap();
    for statement in SCHEMA[4] {
        connection.execute(statement, []).unwrap();
    }
    connection.execute("DELETE FROM links WHERE slug = 'b'", []).unwrap();
    ["d", "e"].into_iter().for_each(make);
    for slug in ["d", "e"] {
        let id: i64 = connection
            .query_row("SELECT id FROM links WHERE slug = ?1", [slug], |row| row.get(0))
            .unwrap();
        assert!(id > 3, "{slug} has the id {id}");
        let days = bars(&connection, STATS_DAYS, id, DAY - 5, DAY + 5);
        assert_eq!((days, details(&connection, id)), (vec![], vec![]), "{slug}");
    }
    assert_eq!((days(&connection, 2), hours(&connection, 2)), (vec![], vec![]));
    // The sums of all links lose nothing and count nothing twice.
    assert_eq!(days(&connection, 0), [(DAY.into(), 7, 0), (i64::from(DAY) + 2, 0, 0)]);
}

#[test]
fn sketches_of_visitors_are_merged() {
    let connection = new_database(1);
    for (start, bits) in [(0, 0b0101), (1, 0b0011), (2, i64::MIN)] {
        let visitors = Batch {
            visitors: vec![Visitors("a".into(), DAY, 3, bits), Visitors("a".into(), DAY, 4, 1)],
            ..batch(start, start + 1)
        };
        assert!(send(&connection, &visitors));
    }
    let row: (i64, String) = connection
        .query_row(STATS_VISITORS, params![1, DAY - 1, DAY + 1], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })
        .unwrap();
    assert_eq!(row, (DAY.into(), format!("[[3,{}],[4,1]]", i64::MIN | 0b0111)));
}

#[test]
fn details_are_summed_and_the_most_frequent_come_first() {
    let connection = new_database(1);
    for start in 0..2 {
        let found = [
            ("a", Kind::Referrer, "", 2),
            ("a", Kind::Referrer, "news.example", 3),
            ("a", Kind::Visit, "dcw", 5),
        ];
        assert!(send(&connection, &details_batch(start, &found)));
    }
    assert_eq!(
        details(&connection, 1),
        [
            (1, "news.example".into(), 6),
            (1, String::new(), 4),
            (2, "dcw".into(), 10)
        ]
    );
}

#[test]
fn the_most_frequent_referrers_stay_and_no_click_is_lost() {
    let connection = new_database(1);
    let mut sent = 0;
    for start in 0..300_u64 {
        let made_up = [format!("{start}-a.example"), format!("{start}-b.example")];
        let mut found = vec![("a", Kind::Referrer, "real.example", 5)];
        found.extend(made_up.iter().map(|name| ("a", Kind::Referrer, name.as_str(), 1)));
        // This referrer first appears when the list is already full.
        if start > 200 {
            found.push(("a", Kind::Referrer, "late.example", 3));
        }
        sent += found.iter().map(|(.., clicks)| i64::from(*clicks)).sum::<i64>();
        assert!(send(&connection, &details_batch(start, &found)));
    }
    let details = details(&connection, 1);
    assert!(details.len() <= 41, "{}", details.len());
    assert_eq!(details.iter().map(|(.., clicks)| clicks).sum::<i64>(), sent);
    assert!(details.contains(&(1, "real.example".into(), 1500)));
    assert!(details.contains(&(1, "late.example".into(), 99 * 3)));
    assert_eq!(details[1].1, OTHER);
}

#[test]
fn hours_older_than_ninety_days_are_deleted_and_their_days_stay() {
    let connection = new_database(1);
    let old = HOUR - 90 * 24;
    assert!(send(
        &connection,
        &clicks_batch(0, 1, &[("a", old - 2, 1, 0), ("a", old - 1, 2, 1), ("a", old, 4, 0)])
    ));
    assert!(send(&connection, &clicks_batch(1, 2, &[("a", HOUR, 8, 0)])));
    // Every batch deletes one hour.
    assert!(send(&connection, &batch(2, 3)));
    let left: Vec<_> = bars(&connection, STATS_HOURS, 1, old - 5, HOUR + 1)
        .into_iter()
        .map(|(.., clicks, _)| clicks)
        .collect();
    assert_eq!(left, [4, 8]);
    let days = bars(&connection, STATS_DAYS, 1, old / 24 - 1, DAY + 1);
    assert_eq!(days.iter().map(|(_, clicks, bots)| clicks + bots).sum::<i64>(), 16);
    let later = NOW + 3600;
    assert!(send_at(&connection, &batch(3, 4), later));
    // The row of the link and the row of all links.
    assert_eq!(count(&connection, "click_hours"), 2);
}

#[test]
fn the_links_with_the_most_clicks_are_listed() {
    let connection = new_database(3);
    let clicks = [
        ("a", HOUR, 1, 0),
        ("b", HOUR, 5, 2),
        ("b", HOUR + 24, 1, 0),
        ("c", HOUR, 3, 0),
        ("", HOUR, 10, 2),
    ];
    assert!(send(&connection, &clicks_batch(0, 1, &clicks)));
    let mut statement = connection.prepare(STATS_TOP).unwrap();
    let rows = statement.query_map(params![DAY, DAY + 2, 2], |row| {
        Ok((row.get(0)?, row.get(1)?, row.get(2)?))
    });
    let top: Vec<(String, i64, i64)> = rows.unwrap().map(Result::unwrap).collect();
    assert_eq!(top, [("b".into(), 6, 2), ("c".into(), 3, 0)]);
}

/// The statistics of a link take one search for each day, however many clicks and links there are.
#[test]
fn statistics_of_a_link_search_and_never_scan() {
    let connection = new_database(1);
    for (statement, table, key) in [
        (STATS_HOURS, "click_hours", "hour=? AND link_id=?"),
        (STATS_DAYS, "click_days", "day=? AND link_id=?"),
        (STATS_VISITORS, "click_visitors", "day=? AND link_id=?"),
        (STATS_DETAILS, "click_details", "day=? AND link_id=?"),
    ] {
        let mut plan = connection.prepare(&format!("EXPLAIN QUERY PLAN {statement}")).unwrap();
        let steps = plan.query_map(params![1, 1, 2], |row| row.get::<_, String>("detail"));
        let steps: Vec<_> = steps.unwrap().map(Result::unwrap).collect();
        // Only the span itself is scanned.
        let of_span = |step: &str| ["SCAN span", "SCAN CONSTANT ROW"].contains(&step);
        assert!(
            steps.iter().all(|step| !step.starts_with("SCAN") || of_span(step)),
            "{table}: {steps:?}"
        );
        let search = format!("SEARCH {table} USING PRIMARY KEY ({key})");
        assert!(steps.contains(&search), "{table}: {steps:?}");
    }
}

#[test]
fn clicks_of_a_deleted_link_are_found_by_key() {
    let connection = new_database(1);
    for (table, time, calendar) in [
        ("click_hours", "hour", "click_hours"),
        ("click_days", "day", "click_days"),
        ("click_details", "day", "click_days"),
    ] {
        let delete = format!(
            "EXPLAIN QUERY PLAN DELETE FROM {table} WHERE {time} IN (SELECT {time} FROM {calendar} WHERE link_id = 0) AND link_id = 1"
        );
        let mut plan = connection.prepare(&delete).unwrap();
        let steps: Vec<String> = plan
            .query_map([], |row| row.get("detail"))
            .unwrap()
            .map(Result::unwrap)
            .collect();
        assert!(
            steps[0].starts_with(&format!("SEARCH {table} USING PRIMARY KEY ({time}=? AND link_id=?")),
            "{steps:?}"
        );
        assert!(
            steps
                .iter()
                .any(|step| step.contains(&format!("COVERING INDEX {calendar}_of_all"))),
            "{steps:?}"
        );
    }
}
