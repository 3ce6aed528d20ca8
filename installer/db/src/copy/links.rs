//! Copies links from one database to another in parts, then compares them. Links that are created meanwhile are left to the
//! next copy.

use std::fmt;

use anyhow::{Context as _, bail, ensure};
use links_platform::database::error::{ErrorKind, is_duplicate_column};
use links_store::schema::SCHEMA;
use links_store::sql::{COPY_EXTENT as EXTENT, COPY_READ as READ, COPY_WRITE as WRITE, SCHEMA_VERSION as APPLIED};
use serde::Serialize;

use super::comparison::Comparison;
use super::endpoint::Endpoint;
use super::link::{Link, counted};
use crate::libsql::Cell;

/// The maximum number of links in a part, which is read and written by one statement each.
const PART: i64 = 500;

/// What to do with a target that already holds links.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Refuse,
    /// Add the links that are missing.
    Resume,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Copying,
    Comparing,
}

/// The result of a copy that succeeded: every link of the source is in the target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Copied {
    /// The number of links in the source.
    pub links: u64,
    /// The number of links that were missing in the target.
    pub added: u64,
    /// The number of links in the target after the copy.
    pub target_links: u64,
    /// The checksum of the links, the same on both sides. It does not depend on their order.
    pub checksum: String,
}

/// The target already holds links, and the mode is [`Mode::Refuse`]. The field is their number.
#[derive(Debug)]
pub struct Occupied(u64);

impl fmt::Display for Occupied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "it already holds {}, and nothing was changed. If they come from an earlier or interrupted copy of the same \
             links, run the command with --resume: it adds what is missing and changes nothing else",
            counted(self.0)
        )
    }
}

impl std::error::Error for Occupied {}

/// Copies the links that the target lacks, then compares all of them. `watch` is called with the phase, the number of links
/// that are done, and the number of all links.
///
/// # Errors
/// The copy fails with [`Occupied`], with [`Different`], or because a database fails. The parts that were copied stay.
///
/// [`Different`]: super::comparison::Different
pub fn copy(
    source: &mut dyn Endpoint,
    target: &mut dyn Endpoint,
    mode: Mode,
    watch: &mut dyn FnMut(Phase, u64, u64),
) -> anyhow::Result<Copied> {
    let version = version(source).context("Reading the source")?;
    ensure!(
        version == SCHEMA.len(),
        "the source's tables have version {version}, but this linksctl copies version {}: {}",
        SCHEMA.len(),
        match version {
            0 => "it holds no links yet",
            known if known < SCHEMA.len() =>
                "to upgrade them, run `linksctl rollout` with this release and shorten one URL",
            _ => "use the linksctl of the release that created them",
        }
    );
    prepare(target, mode).context("Preparing the target")?;
    let (total, last) = extent(source)?;

    let mut added = 0;
    let mut done = 0;
    each_part(source, last, |links| {
        let rows = target.rows(WRITE, &[Cell::Text(serde_json::to_string(links)?)])?;
        added += rows.len() as u64;
        done += links.len() as u64;
        watch(Phase::Copying, done, total);
        Ok(())
    })?;

    let mut compared = Comparison::default();
    each_part(source, last, |links| {
        compared.part(links, target)?;
        watch(Phase::Comparing, compared.links, total);
        Ok(())
    })?;
    compared.verdict()?;
    Ok(Copied {
        links: compared.links,
        added,
        target_links: extent(target)?.0,
        checksum: compared.checksum(),
    })
}

/// Creates the missing tables. Refuses a target that must not be written to before it changes anything.
fn prepare(target: &mut dyn Endpoint, mode: Mode) -> anyhow::Result<()> {
    let version = version(target)?;
    ensure!(
        version <= SCHEMA.len(),
        "its tables have version {version}, but this linksctl knows only version {}: use the linksctl of a newer release",
        SCHEMA.len()
    );
    if version > 0 && mode == Mode::Refuse {
        let (links, _) = extent(target)?;
        if links > 0 {
            bail!(Occupied(links));
        }
    }
    for statement in SCHEMA[version..].concat() {
        match target.rows(statement, &[]) {
            Err(error) if !is_duplicate_column(&error.to_string()) => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// The version of the tables, or 0 if there are none.
fn version(side: &mut dyn Endpoint) -> anyhow::Result<usize> {
    let rows = match side.rows(APPLIED, &[]) {
        Err(error) if ErrorKind::of(&error.to_string()) == ErrorKind::NoSchema => return Ok(0),
        rows => rows?,
    };
    match rows.first().map(Vec::as_slice) {
        Some([Cell::Integer(version)]) => Ok(usize::try_from(*version)?),
        _ => Ok(0),
    }
}

/// The number of links, and the ID of the last one.
fn extent(side: &mut dyn Endpoint) -> anyhow::Result<(u64, i64)> {
    match side.rows(EXTENT, &[])?.first().map(Vec::as_slice) {
        Some([Cell::Integer(count), Cell::Integer(last)]) => Ok((count.unsigned_abs(), *last)),
        Some([Cell::Integer(0), Cell::Null]) => Ok((0, 0)),
        _ => bail!("the database did not return the number of its links"),
    }
}

fn each_part(
    source: &mut dyn Endpoint,
    last: i64,
    mut work: impl FnMut(&[Link]) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut after = i64::MIN;
    loop {
        let rows = source.rows(READ, &[Cell::Integer(after), Cell::Integer(last), Cell::Integer(PART)])?;
        let mut links = Vec::with_capacity(rows.len());
        for row in rows {
            let (id, columns) = row.split_first().context("a row without columns")?;
            let Cell::Integer(id) = id else {
                bail!("a link without an id")
            };
            after = *id;
            links.push(Link::of_row(columns)?);
        }
        if links.is_empty() {
            return Ok(());
        }
        work(&links)?;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use links_store::schema::LINK_COLUMNS;
    use rusqlite::types::Value;
    use rusqlite::{Connection, params, params_from_iter};

    use super::*;
    use crate::libsql::Client;
    use crate::libsql::tests::{TOKEN, serve};

    fn empty() -> Connection {
        Connection::open_in_memory().unwrap()
    }

    fn with_tables() -> Connection {
        let mut connection = empty();
        prepare(&mut connection, Mode::Refuse).unwrap();
        connection
    }

    fn insert(connection: &Connection, number: u32, slug: &str) {
        let id = number
            .is_multiple_of(2)
            .then(|| (u128::from(number) << 96 | 0x5a).to_be_bytes());
        let expires = number.is_multiple_of(3).then_some(i64::MAX - i64::from(number));
        let url = format!("https://example.com/{number}?ü=\"'\\");
        connection
            .execute(
                "INSERT INTO links (slug, url, created_at, expires_at, request_id) VALUES (?1, ?2, ?3, ?4, ?5)",
                params![slug, url, i64::from(number), expires, id],
            )
            .unwrap();
        if number.is_multiple_of(5) {
            let limit = "UPDATE links SET expires_at = 0, limited_until = expires_at, max_clicks = 9, clicks_left = ?2
                WHERE slug = ?1";
            connection.execute(limit, params![slug, number % 9]).unwrap();
        }
    }

    fn filled(count: u32) -> Connection {
        let connection = with_tables();
        for number in 0..count {
            insert(&connection, number, &format!("slug-{number}"));
        }
        // A gap, as after a deletion.
        connection.execute("DELETE FROM links WHERE id = 2", []).unwrap();
        connection
    }

    fn run(source: &mut dyn Endpoint, target: &mut dyn Endpoint, mode: Mode) -> anyhow::Result<Copied> {
        copy(source, target, mode, &mut |_, _, _| {})
    }

    fn content(connection: &Connection) -> Vec<String> {
        let columns: Vec<_> = LINK_COLUMNS.iter().map(|name| format!("quote({name})")).collect();
        let sql = format!("SELECT {} FROM links ORDER BY slug", columns.join(" || ' ' || "));
        let mut statement = connection.prepare(&sql).unwrap();
        let rows = statement.query_map([], |row| row.get(0)).unwrap();
        rows.map(Result::unwrap).collect()
    }

    #[test]
    fn every_part_arrives_and_is_reported() {
        let (mut source, mut target) = (filled(1203), empty());
        let mut reported = vec![];
        let copied = copy(&mut source, &mut target, Mode::Refuse, &mut |phase, done, total| {
            reported.push((phase, done, total));
        })
        .unwrap();
        assert_eq!((copied.links, copied.added, copied.target_links), (1202, 1202, 1202));
        assert_eq!(content(&source), content(&target));
        let parts = |phase| [(phase, 500, 1202), (phase, 1000, 1202), (phase, 1202, 1202)];
        assert_eq!(reported, [parts(Phase::Copying), parts(Phase::Comparing)].concat());
    }

    #[test]
    fn to_libsql_and_back() {
        let mut source = filled(700);
        let remote = Arc::new(Mutex::new(empty()));
        let server = serve(&remote);
        let mut client = Client::new(&server.url(""), TOKEN, Duration::from_secs(10));
        let there = run(&mut source, &mut client, Mode::Refuse).unwrap();
        assert_eq!(content(&source), content(&remote.lock().unwrap()));
        let mut target = empty();
        let back = run(&mut client, &mut target, Mode::Refuse).unwrap();
        assert_eq!(content(&source), content(&target));
        assert_eq!(there, back);
    }

    #[test]
    fn a_target_with_links_is_left_alone() {
        let (mut source, mut target) = (filled(3), with_tables());
        insert(&target, 9, "other");
        let before = content(&target);
        let error = run(&mut source, &mut target, Mode::Refuse).unwrap_err();
        let message = format!("{error:#}");
        assert!(
            message.contains("it already holds 1 link,") && message.contains("--resume"),
            "{message}"
        );
        assert!(error.root_cause().is::<Occupied>());
        assert_eq!(content(&target), before);
    }

    /// A database whose connection breaks after `left` statements.
    struct Flaky<'a> {
        side: &'a mut Connection,
        left: u32,
    }

    impl Endpoint for Flaky<'_> {
        fn rows(&mut self, sql: &str, arguments: &[Cell]) -> anyhow::Result<Vec<Vec<Cell>>> {
            self.left = self.left.checked_sub(1).context("the connection broke")?;
            self.side.rows(sql, arguments)
        }
    }

    #[test]
    fn a_copy_that_breaks_off_anywhere_can_be_resumed() {
        let mut source = filled(1203);
        let whole = content(&source);
        for left in 0..60 {
            let mut target = empty();
            let mut flaky = Flaky {
                side: &mut target,
                left,
            };
            let broke = run(&mut source, &mut flaky, Mode::Refuse);
            let before = content_if_any(&target);
            let copied = run(&mut source, &mut target, Mode::Resume).unwrap();
            assert_eq!(copied.added + before, 1202, "{left}");
            assert_eq!(content(&target), whole, "{left}");
            if broke.is_ok() {
                assert!(left > 8, "{left}");
                return;
            }
        }
        unreachable!("no copy completed");
    }

    fn content_if_any(connection: &Connection) -> u64 {
        connection
            .query_row("SELECT count(*) FROM links", [], |row| row.get::<_, i64>(0))
            .map_or(0, i64::unsigned_abs)
    }

    #[test]
    fn a_second_copy_adds_new_links_and_keeps_the_targets_own() {
        let (mut source, mut target) = (filled(10), empty());
        run(&mut source, &mut target, Mode::Refuse).unwrap();
        insert(&source, 20, "late");
        insert(&target, 21, "its-own");
        let copied = run(&mut source, &mut target, Mode::Resume).unwrap();
        assert_eq!((copied.links, copied.added, copied.target_links), (10, 1, 11));
        let again = run(&mut source, &mut target, Mode::Resume).unwrap();
        assert_eq!((again.added, again.checksum), (0, copied.checksum));
    }

    #[test]
    fn links_that_differ_are_named_and_kept() {
        let (mut source, mut target) = (filled(10), empty());
        run(&mut source, &mut target, Mode::Refuse).unwrap();
        for (connection, number) in [(&source, 30), (&target, 32)] {
            insert(connection, number, "promo");
        }
        let before = content(&target);
        let message = run(&mut source, &mut target, Mode::Resume).unwrap_err().to_string();
        assert!(
            message.starts_with("1 of 10 links differ") && message.contains(": promo. "),
            "{message}"
        );
        assert_eq!(content(&target), before);
    }

    #[test]
    fn tables_of_another_version_are_refused() {
        let mut target = empty();
        let message = run(&mut empty(), &mut target, Mode::Refuse).unwrap_err().to_string();
        assert!(
            message.contains("version 0") && message.contains("no links yet"),
            "{message}"
        );
        let mut newer = filled(2);
        newer
            .execute(
                "INSERT INTO schema_version SELECT max(version) + 1, 0 FROM schema_version",
                [],
            )
            .unwrap();
        let message = run(&mut newer, &mut target, Mode::Refuse).unwrap_err().to_string();
        assert!(message.contains("use the linksctl of the release"), "{message}");
        let message = format!("{:#}", run(&mut filled(2), &mut newer, Mode::Resume).unwrap_err());
        assert!(message.contains("newer release"), "{message}");
        let mut old = empty();
        for statement in SCHEMA[0] {
            old.execute(statement, []).unwrap();
        }
        let message = run(&mut old, &mut target, Mode::Refuse).unwrap_err().to_string();
        assert!(
            message.contains("version 1") && message.contains("rollout"),
            "{message}"
        );
        run(&mut filled(2), &mut old, Mode::Refuse).unwrap();
        assert_eq!(version(&mut old).unwrap(), SCHEMA.len());
    }

    /// Inserts a link that has a value in every column, the `variant`th that is easily damaged.
    fn insert_awkward(connection: &Connection, variant: usize) {
        let numbers = [i64::MIN, i64::MAX, 0, (1 << 53) + 1];
        let texts = ["\u{1}\u{1f}\u{7f}\n", "\"'\\/\u{2028}", "", "\u{1f600} NULL ü"];
        let blobs = [vec![0; 16], vec![255; 16], vec![], b"\"\\'\n".to_vec()];
        let mut columns = connection
            .prepare("SELECT type FROM pragma_table_info('links') WHERE name = ?1")
            .unwrap();
        let values = LINK_COLUMNS.iter().enumerate().map(|(index, name)| {
            let kind: String = columns.query_row([name], |row| row.get(0)).unwrap();
            let choice = (index + variant) % 4;
            match kind.as_str() {
                "INTEGER" => Value::Integer(numbers[choice]),
                "TEXT" => Value::Text(texts[choice].to_owned()),
                "BLOB" => Value::Blob(blobs[choice].clone()),
                kind => unreachable!("{name} {kind}"),
            }
        });
        let names = LINK_COLUMNS.join(", ");
        let sql = format!(
            "INSERT INTO links ({names}) VALUES (?{})",
            ", ?".repeat(LINK_COLUMNS.len() - 1)
        );
        connection.execute(&sql, params_from_iter(values)).unwrap();
    }

    #[test]
    fn every_column_arrives_exactly() {
        let (mut source, mut target) = (with_tables(), empty());
        for variant in 0..4 {
            insert_awkward(&source, variant);
        }
        let remote = Arc::new(Mutex::new(empty()));
        let server = serve(&remote);
        let mut client = Client::new(&server.url(""), TOKEN, Duration::from_secs(10));
        let there = run(&mut source, &mut client, Mode::Refuse).unwrap();
        let back = run(&mut client, &mut target, Mode::Refuse).unwrap();
        assert_eq!((there.added, &there), (4, &back));
        assert_eq!(content(&source), content(&target));
    }

    /// A new table fails this test, because the copy has to handle it.
    #[test]
    fn the_copy_handles_every_table() {
        let connection = with_tables();
        let list = |sql: &str| -> Vec<String> {
            let mut statement = connection.prepare(sql).unwrap();
            let names = statement.query_map([], |row| row.get(0)).unwrap();
            names.map(Result::unwrap).collect()
        };
        let tables = "SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name";
        // The scripts fill schema_version. Clicks and the notes of deleted links are not copied.
        assert_eq!(
            list(tables),
            [
                "click_batches",
                "click_days",
                "click_details",
                "click_hours",
                "click_visitors",
                "deleted_slugs",
                "link_deletions",
                "link_ids",
                "links",
                "schema_version",
                "slug_reuses"
            ]
        );
    }
}
