//! The SQL files, run as the components run them, on the SQLite that this test is built with.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use links_domain::change::Change;
use links_domain::expiry::Expiry;
use links_domain::link::{Details, LinkRequest, NewLink, Stored};
use links_domain::origin::Origin;
use links_domain::request_id::RequestId;
use links_domain::slug::Slug;
use links_domain::target::Target;
use links_platform::database::Value;
use links_platform::database::error::{ErrorKind, is_duplicate_column};
use links_store::link_row::{change_values, details, found, insert_values};
use links_store::schema::{LINK_COLUMNS, SCHEMA};
use links_store::sql::{
    CHANGE_LINK, COUNT_LINKS, DATABASE_SIZE, DELETE_LINK, FIND_LINK, HEALTH, INSERT_LINK, SCHEMA_VERSION as APPLIED,
    SHOW_LINK, TAKE_CLICK, WRITE_AHEAD,
};
use rusqlite::types::Value as Sql;
use rusqlite::{Connection, OptionalExtension, params, params_from_iter};

/// The insert of releases for version 1 of the database. They run it on any later version as well.
const INSERT_LINK_OF_1: &str = "INSERT INTO links (slug, url, created_at, expires_at) VALUES (?1, ?2, ?3, ?4)
    ON CONFLICT (slug) DO NOTHING RETURNING id";

/// The lookup of releases for version 1 of the database.
const FIND_LINK_OF_1: &str = "SELECT url, expires_at FROM links WHERE slug = ?1";

type Link = (String, Option<i64>);

/// The maximum number of clicks, and the number of clicks left.
type Limit = (Option<i64>, Option<i64>);

/// Slug, URL and expiry, as an insert returns them.
type Row = (String, String, Option<i64>);

fn apply(connection: &Connection, script: &[&str]) -> rusqlite::Result<()> {
    script
        .iter()
        .try_for_each(|statement| match connection.execute(statement, []) {
            Err(error) if !is_duplicate_column(&error.to_string()) => Err(error),
            _ => Ok(()),
        })
}

fn apply_all(connection: &Connection) -> rusqlite::Result<()> {
    SCHEMA.iter().try_for_each(|script| apply(connection, script))
}

fn new_database() -> Connection {
    let connection = Connection::open_in_memory().unwrap();
    apply_all(&connection).unwrap();
    connection
}

fn version(connection: &Connection) -> i64 {
    connection.query_row(APPLIED, [], |row| row.get(0)).unwrap()
}

fn rows(connection: &Connection) -> i64 {
    connection
        .query_row("SELECT count(*) FROM links", [], |row| row.get(0))
        .unwrap()
}

/// The first row of a statement.
fn first_row(
    connection: &Connection,
    statement: &str,
    values: impl IntoIterator<Item = Value>,
) -> rusqlite::Result<Option<Vec<Value>>> {
    let values = values.into_iter().map(|value| match value {
        Value::Integer(integer) => Sql::Integer(integer),
        Value::Real(real) => Sql::Real(real),
        Value::Text(text) => Sql::Text(text),
        Value::Blob(blob) => Sql::Blob(blob),
        Value::Null => Sql::Null,
    });
    let value = |value| match value {
        Sql::Integer(integer) => Value::Integer(integer),
        Sql::Real(real) => Value::Real(real),
        Sql::Text(text) => Value::Text(text),
        Sql::Blob(blob) => Value::Blob(blob),
        Sql::Null => Value::Null,
    };
    let mut statement = connection.prepare(statement)?;
    let columns = statement.column_count();
    let mut rows = statement.query(params_from_iter(values))?;
    let row = rows.next()?;
    row.map(|row| (0..columns).map(|index| row.get(index).map(value)).collect())
        .transpose()
}

fn slug(text: &str) -> Slug {
    Slug::in_path(text).unwrap()
}

fn base_url() -> Origin {
    Origin::parse("https://sho.rt").unwrap()
}

fn new_link(url: &str, expires_at: Option<i64>, max_clicks: Option<i64>) -> NewLink {
    let request = LinkRequest {
        url: url.into(),
        max_clicks,
        ..LinkRequest::default()
    };
    NewLink {
        expiry: expires_at.map(Expiry),
        ..NewLink::check(&request, &base_url(), 0).unwrap()
    }
}

/// Inserts a link for the request with this id at the time `now`, and returns the link that the request has now.
fn insert_at(
    connection: &Connection,
    id: Option<[u8; 16]>,
    name: &str,
    link: &NewLink,
    now: i64,
) -> rusqlite::Result<Option<(Slug, Details)>> {
    let mut row = insert_values(&slug(name), link, RequestId::new(id.unwrap_or_default()), now);
    if id.is_none() {
        let column = LINK_COLUMNS.iter().position(|name| *name == "request_id");
        row[column.unwrap()] = Value::Null;
    }
    let row = first_row(connection, INSERT_LINK, row)?;
    Ok(row.map(|row| details(row).unwrap()))
}

/// Inserts a link for the request with this id, and returns the link that the request has now.
fn insert_for(
    connection: &Connection,
    id: Option<[u8; 16]>,
    name: &str,
    url: &str,
    expires_at: Option<i64>,
) -> rusqlite::Result<Option<Row>> {
    let link = insert_at(connection, id, name, &new_link(url, expires_at, None), 1_767_225_600)?;
    Ok(link.map(row_of))
}

fn row_of((slug, link): (Slug, Details)) -> Row {
    (
        slug.to_string(),
        link.stored.url,
        link.stored.expiry.map(|expiry| expiry.0),
    )
}

/// Inserts a link for a request without an id.
fn insert(connection: &Connection, slug: &str, url: &str, expires_at: Option<i64>) -> rusqlite::Result<bool> {
    Ok(insert_for(connection, None, slug, url, expires_at)?.is_some())
}

fn insert_as_1(connection: &Connection, slug: &str, url: &str) -> bool {
    let row = params![slug, url, 1_767_225_600_i64, None::<i64>];
    let made = connection.query_row(INSERT_LINK_OF_1, row, |row| row.get::<_, i64>(0));
    made.optional().unwrap().is_some()
}

fn stored(connection: &Connection, name: &str) -> Option<Stored> {
    let row = first_row(connection, FIND_LINK, [Value::Text(name.to_owned())]).unwrap();
    row.map(|row| found(row).unwrap())
}

fn find(connection: &Connection, name: &str) -> Option<Link> {
    stored(connection, name).map(|link| (link.url, link.expiry.map(|expiry| expiry.0)))
}

fn insert_limited(connection: &Connection, name: &str, expires_at: Option<i64>, max_clicks: i64) -> Option<Row> {
    let link = new_link("https://example.com/", expires_at, Some(max_clicks));
    insert_at(connection, None, name, &link, 0).unwrap().map(row_of)
}

fn limit(connection: &Connection, name: &str) -> Limit {
    let limit = stored(connection, name).unwrap().limit;
    (limit.map(|limit| limit.most), limit.map(|limit| limit.left))
}

fn take_click(connection: &Connection, slug: &str, now: i64) -> bool {
    let taken = connection.query_row(TAKE_CLICK, params![slug, now], |row| row.get::<_, String>(0));
    taken.optional().unwrap().is_some()
}

/// Deletes a link for the request with this id.
fn remove_for(connection: &Connection, id: [u8; 16], slug: &str, now: i64) -> bool {
    let removed = connection.query_row(DELETE_LINK, params![slug, id, now], |_| Ok(()));
    removed.optional().unwrap().is_some()
}

fn id_of(connection: &Connection, slug: &str) -> i64 {
    let id = connection.query_row("SELECT id FROM links WHERE slug = ?1", [slug], |row| row.get(0));
    id.unwrap()
}

#[test]
fn a_database_without_tables_is_recognised() {
    let connection = Connection::open_in_memory().unwrap();
    for statement in [APPLIED, HEALTH, FIND_LINK, INSERT_LINK, TAKE_CLICK, COUNT_LINKS] {
        let error = connection.prepare(statement).unwrap_err().to_string();
        assert_eq!(ErrorKind::of(&error), ErrorKind::NoSchema, "{error}");
    }
}

#[test]
fn the_schema_may_be_applied_twice() {
    let connection = new_database();
    assert!(
        insert_for(&connection, Some([1; 16]), "kept", "https://example.com/", None)
            .unwrap()
            .is_some()
    );
    apply_all(&connection).unwrap();
    assert!(find(&connection, "kept").is_some());
    assert_eq!(version(&connection), SCHEMA.len() as i64);
}

#[test]
fn each_script_leads_to_its_version() {
    let connection = Connection::open_in_memory().unwrap();
    for (script, wanted) in SCHEMA.iter().zip(1..) {
        apply(&connection, script).unwrap();
        assert_eq!(version(&connection), wanted);
    }
}

#[test]
fn the_columns_of_a_link_are_those_of_the_table() {
    let connection = new_database();
    let mut columns = connection
        .prepare("SELECT name FROM pragma_table_info('links')")
        .unwrap();
    let columns = columns.query_map([], |row| row.get::<_, String>(0)).unwrap();
    let columns: Vec<_> = columns.map(Result::unwrap).collect();
    assert_eq!(columns[0], "id");
    assert_eq!(columns[1..], *LINK_COLUMNS);
}

#[test]
fn an_interrupted_script_is_finished_by_the_next_run() {
    for (index, script) in SCHEMA.iter().enumerate() {
        for done in 0..script.len() {
            let connection = Connection::open_in_memory().unwrap();
            for earlier in &SCHEMA[..index] {
                apply(&connection, earlier).unwrap();
            }
            for statement in &script[..done] {
                connection.execute(statement, []).unwrap();
            }
            let context = format!("script {index} after {done} statements");
            if index > 0 {
                assert_eq!(version(&connection), index as i64, "{context}");
            }
            apply_all(&connection).unwrap();
            assert_eq!(version(&connection), SCHEMA.len() as i64, "{context}");
            let link = |slug| insert_for(&connection, Some([1; 16]), slug, "https://example.com/", None).unwrap();
            assert_eq!(link("x"), link("y"), "{context}");
            insert_limited(&connection, "z", None, 1).unwrap();
            assert!(take_click(&connection, "z", 0), "{context}");
        }
    }
}

#[test]
fn an_older_release_keeps_working_during_a_migration() {
    let directory = tempfile::tempdir().unwrap();
    let [old, new] = [(); 2].map(|()| Connection::open(directory.path().join("links.db")).unwrap());
    apply(&old, SCHEMA[0]).unwrap();
    assert!(insert_as_1(&old, "before", "https://example.com/1"));
    apply_all(&new).unwrap();
    assert!(insert_as_1(&old, "after", "https://example.com/2"));
    assert!(
        insert_as_1(&old, "another", "https://example.com/2"),
        "requests without an id are never repeats"
    );
    assert!(!insert_as_1(&old, "before", "https://example.com/3"));
    assert!(
        insert_for(&new, Some([1; 16]), "new", "https://example.com/4", None)
            .unwrap()
            .is_some()
    );
    assert!(!insert_as_1(&old, "new", "https://example.com/5"));
    for (slug, url) in [("before", "1"), ("after", "2"), ("another", "2"), ("new", "4")] {
        let link = Some((format!("https://example.com/{url}"), None));
        let found_by_old = old.query_row(FIND_LINK_OF_1, [slug], |row| Ok((row.get(0)?, row.get(1)?)));
        assert_eq!((found_by_old.ok(), find(&new, slug)), (link.clone(), link), "{slug}");
    }
}

/// A release may find an older database, for example a restored backup. It must notice what is missing.
#[test]
fn an_older_database_is_recognised() {
    let connection = Connection::open_in_memory().unwrap();
    apply(&connection, SCHEMA[0]).unwrap();
    for statement in [INSERT_LINK, FIND_LINK, TAKE_CLICK] {
        let error = connection.prepare(statement).unwrap_err().to_string();
        assert_eq!(ErrorKind::of(&error), ErrorKind::NoSchema, "{error}");
    }
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

fn shown(connection: &Connection, name: &str) -> Option<Details> {
    let row = first_row(connection, SHOW_LINK, [Value::Text(name.to_owned())]).unwrap();
    row.map(|row| details(row).unwrap().1)
}

fn change(connection: &Connection, name: &str, change: &Change) -> Option<Details> {
    let row = first_row(connection, CHANGE_LINK, change_values(&slug(name), change)).unwrap();
    let changed = row.map(|row| details(row).unwrap().1);
    assert_eq!(changed, shown(connection, name));
    assert_eq!(
        changed.as_ref().map(|link| &link.stored),
        stored(connection, name).as_ref()
    );
    changed
}

#[test]
fn a_link_is_shown_as_it_was_inserted() {
    let connection = new_database();
    for (name, expires_at, max_clicks) in [
        ("plain", None, None),
        ("expiring", Some(50), None),
        ("limited", None, Some(3)),
        ("both", Some(50), Some(3)),
    ] {
        let link = new_link("https://example.com/", expires_at, max_clicks);
        let made = insert_at(&connection, None, name, &link, 7).unwrap().unwrap();
        assert!(link.is_stored_as(&made.0, &made.1), "{made:?}");
        assert_eq!((made.0.as_str(), made.1.created_at), (name, 7));
        assert_eq!(made.1.stored, link.as_stored());
        assert_eq!(shown(&connection, name), Some(made.1));
        assert_eq!(stored(&connection, name), Some(link.as_stored()));
    }
}

#[test]
fn a_change_keeps_what_it_does_not_name() {
    let connection = new_database();
    let to = |url: &str| Change {
        target: Some(Target::parse(url, &base_url()).unwrap()),
        ..Change::default()
    };
    let until = |expiry: Option<i64>| Some(expiry.map(Expiry));
    for (name, limit) in [("plain", None), ("limited", Some(3))] {
        let link = new_link("https://example.com/", Some(50), limit);
        let (_, made) = insert_at(&connection, None, name, &link, 7).unwrap().unwrap();
        let changed = |to: Change| change(&connection, name, &to).unwrap();
        let at = |url: &str, expiry: Option<i64>| {
            let mut link = made.clone();
            link.stored.url = url.to_owned();
            link.stored.expiry = expiry.map(Expiry);
            link
        };
        assert_eq!(changed(Change::default()), made);
        assert_eq!(
            changed(to("https://example.org/")),
            at("https://example.org/", Some(50))
        );
        let later = Change {
            expiry: until(Some(60)),
            ..Change::default()
        };
        assert_eq!(changed(later), at("https://example.org/", Some(60)));
        let both = Change {
            expiry: until(None),
            ..to("https://example.net/")
        };
        assert_eq!(changed(both), at("https://example.net/", None));
        // An older release still takes a link with a limit for an expired one.
        let raw: Option<i64> = connection
            .query_row("SELECT expires_at FROM links WHERE slug = ?1", [name], |row| row.get(0))
            .unwrap();
        assert_eq!(raw, limit.map(|_| 0));
    }
    assert_eq!(change(&connection, "nobody", &to("https://example.org/")), None);
}

#[test]
fn a_link_is_removed_once() {
    let connection = new_database();
    insert(&connection, "a", "https://example.com/", None).unwrap();
    assert!(remove_for(&connection, [1; 16], "a", 100));
    assert!(!remove_for(&connection, [2; 16], "a", 100));
    assert_eq!(find(&connection, "a"), None);
}

#[test]
fn a_repeated_deletion_succeeds_and_spares_a_newer_link() {
    let connection = new_database();
    insert(&connection, "a", "https://example.com/1", None).unwrap();
    assert!(!remove_for(&connection, [1; 16], "b", 100), "there is no such link");
    assert!(remove_for(&connection, [1; 16], "a", 100));
    assert!(remove_for(&connection, [1; 16], "a", 101), "the first answer was lost");
    insert(&connection, "a", "https://example.com/2", None).unwrap();
    assert!(remove_for(&connection, [1; 16], "a", 102));
    assert_eq!(find(&connection, "a"), Some(("https://example.com/2".into(), None)));
    assert!(remove_for(&connection, [2; 16], "a", 103));
    assert_eq!(find(&connection, "a"), None);
}

#[test]
fn deletions_are_remembered_for_ten_minutes() {
    let connection = new_database();
    for (number, slug) in ["a", "b", "c"].into_iter().enumerate() {
        insert(&connection, slug, "https://example.com/", None).unwrap();
        assert!(remove_for(
            &connection,
            [number as u8; 16],
            slug,
            1000 + 400 * number as i64
        ));
    }
    let remembered: String = connection
        .query_row("SELECT group_concat(slug) FROM link_deletions", [], |row| row.get(0))
        .unwrap();
    assert_eq!(remembered, "b,c");
    let plan: String = connection
        .query_row(
            "EXPLAIN QUERY PLAN DELETE FROM link_deletions WHERE deleted_at < ?1",
            [0],
            |row| row.get("detail"),
        )
        .unwrap();
    assert!(plan.contains("link_deletions_by_time"), "{plan}");
}

/// Rows that still refer to the id of a deleted link must not refer to a new one.
#[test]
fn the_id_of_a_deleted_link_is_never_reused() {
    let connection = new_database();
    for slug in ["a", "b", "c"] {
        insert(&connection, slug, "https://example.com/", None).unwrap();
    }
    let mut used = vec![1, 2, 3];
    assert!(remove_for(&connection, [1; 16], "c", 0));
    for slug in ["d", "e"] {
        // These requests have no id. The statement of an older release and a request with an id follow.
        assert!(insert(&connection, slug, "https://example.com/", None).unwrap());
        used.push(id_of(&connection, slug));
    }
    connection.execute("DELETE FROM links", []).unwrap();
    assert!(insert_as_1(&connection, "f", "https://example.com/"));
    used.push(id_of(&connection, "f"));
    let again = insert_for(&connection, Some([9; 16]), "g", "https://example.com/", None).unwrap();
    assert_eq!(again.map(|(slug, ..)| slug).as_deref(), Some("g"));
    let repeated = insert_for(&connection, Some([9; 16]), "h", "https://example.com/", None).unwrap();
    assert_eq!(repeated.map(|(slug, ..)| slug).as_deref(), Some("g"));
    used.push(id_of(&connection, "g"));
    assert_eq!(used, [1, 2, 3, 4, 5, 6, 7]);
}

/// After a rollback, 0.1.0 runs on a database that 0.2.0 has migrated. These are the statements of 0.1.0.
#[test]
fn release_0_1_0_works_on_the_tables_of_this_release() {
    const INSERT: &str =
        "INSERT INTO links (slug, url, created_at, expires_at, request_id, max_clicks, clicks_left, limited_until)
        VALUES (?1, ?2, ?3, iif(?6 IS NULL, ?4, 0), ?5, ?6, ?6, iif(?6 IS NULL, NULL, ?4))
        ON CONFLICT (request_id) WHERE request_id IS NOT NULL DO UPDATE SET request_id = request_id
        ON CONFLICT (slug) DO NOTHING
        RETURNING slug, url, iif(max_clicks IS NULL, expires_at, limited_until), max_clicks, clicks_left";
    const DELETE: &str = "DELETE FROM links WHERE slug = ?1 RETURNING 1";
    const TAKE: &str = "UPDATE links SET clicks_left = clicks_left - 1
        WHERE slug = ?1 AND clicks_left > 0 AND (limited_until IS NULL OR limited_until > ?2) RETURNING 1";
    let connection = new_database();
    assert_eq!(version(&connection), SCHEMA.len() as i64);
    let no_id: Option<[u8; 16]> = None;
    let make = |slug: &str| {
        let row = params![slug, "https://example.com/", 0, None::<i64>, no_id, 1];
        connection
            .query_row(INSERT, row, |row| row.get::<_, String>(0))
            .optional()
            .unwrap()
    };
    assert_eq!((make("a").as_deref(), make("a")), (Some("a"), None));
    let take = || {
        connection
            .query_row(TAKE, params!["a", 0], |_| Ok(()))
            .optional()
            .unwrap()
    };
    assert_eq!((take(), take()), (Some(()), None));
    let delete = || connection.query_row(DELETE, ["a"], |_| Ok(())).optional().unwrap();
    assert_eq!((delete(), delete()), (Some(()), None));
    assert_eq!(make("b").as_deref(), Some("b"));
    assert_eq!(id_of(&connection, "b"), 2, "the id of a deleted link is not reused");
    // 0.1.0 has the scripts up to version 4, so it runs none of them here.
    assert_eq!(SCHEMA[..4].get(SCHEMA.len()..), None);
}

/// The slug may pass to another link between the lookup and the click.
#[test]
fn a_click_returns_the_url_of_the_link_it_was_taken_from() {
    let connection = new_database();
    insert_limited(&connection, "x", None, 1).unwrap();
    assert!(remove_for(&connection, [1; 16], "x", 0));
    let link = new_link("https://example.org/", None, Some(1));
    insert_at(&connection, Some([2; 16]), "x", &link, 0).unwrap();
    let taken = connection.query_row(TAKE_CLICK, params!["x", 0], |row| row.get::<_, String>(0));
    assert_eq!(taken.as_deref(), Ok("https://example.org/"));
}

#[test]
fn links_and_bytes_are_counted() {
    let connection = new_database();
    let number = |statement| connection.query_row(statement, [], |row| row.get::<_, i64>(0)).unwrap();
    assert_eq!(number(COUNT_LINKS), 0);
    insert(&connection, "a", "https://example.com/", None).unwrap();
    insert(&connection, "b", "https://example.com/", None).unwrap();
    assert_eq!(number(COUNT_LINKS), 2);
    assert!(number(DATABASE_SIZE) >= 4096);
}

#[test]
fn the_first_insert_gets_the_slug() {
    let connection = new_database();
    assert!(insert(&connection, "x", "https://example.com/", Some(5)).unwrap());
    assert!(!insert(&connection, "x", "https://example.org/", None).unwrap());
    assert_eq!(find(&connection, "x"), Some(("https://example.com/".into(), Some(5))));
}

#[test]
fn a_repeated_request_has_one_link() {
    let connection = new_database();
    let made = Some(("x".into(), "https://example.com/".into(), Some(5)));
    for slug in ["x", "y", "x"] {
        let link = insert_for(&connection, Some([1; 16]), slug, "https://example.com/", Some(5)).unwrap();
        assert_eq!(link, made, "with the slug {slug}");
    }
    assert_eq!(rows(&connection), 1);
}

#[test]
fn a_repeat_with_other_content_changes_nothing_and_returns_the_existing_link() {
    let connection = new_database();
    let first = insert_for(&connection, Some([1; 16]), "x", "https://example.com/", None).unwrap();
    insert_for(&connection, Some([2; 16]), "y", "https://example.net/", None).unwrap();
    for slug in ["x", "y", "z"] {
        let other = insert_for(&connection, Some([1; 16]), slug, "https://example.org/", Some(5)).unwrap();
        assert_eq!(other, first, "with the slug {slug}");
    }
    assert_eq!(rows(&connection), 2);
    assert_eq!(find(&connection, "x"), Some(("https://example.com/".into(), None)));
    assert_eq!(find(&connection, "y"), Some(("https://example.net/".into(), None)));
}

#[test]
fn another_request_does_not_get_the_slug() {
    let connection = new_database();
    for (id, made) in [(Some([1; 16]), true), (Some([2; 16]), false), (None, false)] {
        let link = insert_for(&connection, id, "x", "https://example.com/", None).unwrap();
        assert_eq!(link.is_some(), made, "{id:?}");
    }
    // The id of the second request is still free, so its next attempt with another slug succeeds.
    let link = insert_for(&connection, Some([2; 16]), "y", "https://example.com/", None).unwrap();
    assert_eq!(link.map(|(slug, ..)| slug).as_deref(), Some("y"));
}

#[test]
fn requests_without_an_id_are_never_repeats() {
    let connection = new_database();
    assert!(insert(&connection, "a", "https://example.com/", None).unwrap());
    assert!(insert(&connection, "b", "https://example.com/", None).unwrap());
    assert_eq!(rows(&connection), 2);
}

#[test]
fn slugs_are_case_sensitive() {
    let connection = new_database();
    assert!(insert(&connection, "abc", "https://example.com/1", None).unwrap());
    assert!(insert(&connection, "ABC", "https://example.com/2", None).unwrap());
    assert_eq!(find(&connection, "ABC"), Some(("https://example.com/2".into(), None)));
    assert_eq!(find(&connection, "aBC"), None);
}

#[test]
fn a_limit_is_used_up_click_by_click() {
    let connection = new_database();
    insert_limited(&connection, "x", None, 2).unwrap();
    insert(&connection, "endless", "https://example.com/", None).unwrap();
    assert_eq!(limit(&connection, "x"), (Some(2), Some(2)));
    assert_eq!(limit(&connection, "endless"), (None, None));
    let taken = [(); 4].map(|()| take_click(&connection, "x", 0));
    assert_eq!(taken, [true, true, false, false]);
    assert_eq!(limit(&connection, "x"), (Some(2), Some(0)));
    assert!(!take_click(&connection, "endless", 0) && !take_click(&connection, "nowhere", 0));
}

#[test]
fn no_click_is_taken_after_the_expiry() {
    let connection = new_database();
    let made = insert_limited(&connection, "x", Some(100), 5).unwrap();
    assert_eq!(made.2, Some(100));
    assert_eq!(find(&connection, "x"), Some(("https://example.com/".into(), Some(100))));
    assert!(take_click(&connection, "x", 99) && !take_click(&connection, "x", 100));
    assert_eq!(limit(&connection, "x"), (Some(5), Some(4)));
}

/// An older release would not count the clicks.
#[test]
fn an_older_release_takes_a_link_with_a_limit_for_an_expired_one() {
    let connection = new_database();
    for (slug, expires_at) in [("a", None), ("b", Some(i64::MAX))] {
        insert_limited(&connection, slug, expires_at, 5).unwrap();
        let expiry = connection.query_row(FIND_LINK_OF_1, [slug], |row| row.get::<_, Option<i64>>(1));
        assert_eq!(expiry, Ok(Some(0)), "{slug}");
    }
}

#[test]
fn concurrent_clicks_never_exceed_the_limit() {
    const TAKERS: usize = 4;
    const CLICKS: i64 = 100;
    let directory = tempfile::tempdir().unwrap();
    let open = || {
        let connection = Connection::open(directory.path().join("links.db")).unwrap();
        connection.busy_timeout(Duration::from_secs(30)).unwrap();
        connection
    };
    let connection = open();
    apply_all(&connection).unwrap();
    insert_limited(&connection, "x", None, CLICKS).unwrap();
    let taken: i64 = thread::scope(|scope| {
        let takers = [(); TAKERS].map(|()| {
            scope.spawn(|| {
                let connection = open();
                (0..CLICKS).filter(|_| take_click(&connection, "x", 0)).count() as i64
            })
        });
        takers.into_iter().map(|taker| taker.join().unwrap()).sum()
    });
    assert_eq!(taken, CLICKS);
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

/// Four writers start at the same time on a database that does not exist, and compete for the same slugs.
#[test]
fn concurrent_writers_share_a_new_database() {
    const WRITERS: usize = 4;
    const SLUGS: usize = 50;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("links.db");
    let start = Barrier::new(WRITERS);
    let deadline = Instant::now() + Duration::from_secs(60);
    // Like the component, this repeats a statement for a limited time while the database is busy.
    let retrying = |work: &dyn Fn() -> rusqlite::Result<bool>| loop {
        match work() {
            Err(error) if ErrorKind::of(&error.to_string()) == ErrorKind::Busy && Instant::now() < deadline => {
                thread::yield_now();
            }
            outcome => return outcome.unwrap(),
        }
    };
    let write = |writer: usize| {
        start.wait();
        let connection = Connection::open(&path).unwrap();
        connection.busy_timeout(Duration::from_secs(5)).unwrap();
        retrying(&|| connection.query_row(WRITE_AHEAD, [], |row| Ok(row.get::<_, String>(0)? == "wal")));
        retrying(&|| apply_all(&connection).map(|()| true));
        let url = format!("https://example.com/{writer}");
        // All writers serve this one request.
        let repeated = || {
            insert_for(
                &connection,
                Some([7; 16]),
                &format!("repeated-{writer}"),
                "https://example.com/",
                None,
            )
        };
        retrying(&|| repeated().map(|link| link.is_some()));
        (0..SLUGS)
            .filter(|slug| retrying(&|| insert(&connection, &slug.to_string(), &url, None)))
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
    assert_eq!(
        rows(&connection),
        1 + i64::try_from(SLUGS).unwrap(),
        "the repeated request has one link"
    );
    assert_eq!(version(&connection), SCHEMA.len() as i64);
    let mode: String = connection
        .query_row("PRAGMA journal_mode", [], |row| row.get(0))
        .unwrap();
    assert_eq!(mode, "wal");
}
