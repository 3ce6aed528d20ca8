#![allow(clippy::unwrap_used, clippy::panic, reason = "a panic fails the test")]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex as StdMutex};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::sync::mpsc;

use super::connection::Connection;
use super::power::{self, Disk};
use super::rules::Rules;
use super::write_lock::WRITER_TIMEOUT;
use super::{Database, Handle};
use crate::bindings::sqlite::{Error, RowResult, Value};
use crate::storage::answer::{Answer, Rows};
use crate::storage::place::Place;

/// A database in a file, in WAL mode, with a table t (a INTEGER).
async fn database() -> (TempDir, Arc<Database>) {
    database_with(Rules::default()).await
}

async fn database_with(rules: Rules) -> (TempDir, Arc<Database>) {
    let dir = tempfile::tempdir().unwrap();
    let database = Database::with_rules(Place::File(dir.path().join("a.db")), false, rules);
    database.prepare().unwrap();
    let handle = database.open().await.unwrap();
    run(&handle, "PRAGMA journal_mode = WAL").await.unwrap();
    run(&handle, "CREATE TABLE t (a INTEGER)").await.unwrap();
    (dir, database)
}

async fn run(handle: &Handle, sql: &str) -> Result<Vec<RowResult>, Error> {
    Ok(handle.execute(sql.to_owned(), vec![]).await?.collect().await?.1)
}

async fn count(handle: &Handle) -> i64 {
    match run(handle, "SELECT count(*) FROM t").await.unwrap()[0].values[0] {
        Value::Integer(count) => count,
        ref other => panic!("{other:?}"),
    }
}

async fn until(happened: impl Fn() -> bool) {
    let wait = async {
        while !happened() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), wait).await.unwrap();
}

/// The number of idle connections.
fn idle(database: &Database) -> usize {
    database.pool.len()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reused_connection_is_reset() {
    let (_dir, database) = database().await;
    let handle = database.open().await.unwrap();
    run(&handle, "INSERT INTO t VALUES (1)").await.unwrap();
    run(&handle, "BEGIN").await.unwrap();
    run(&handle, "INSERT INTO t VALUES (2), (3)").await.unwrap();
    assert_eq!(handle.changes().await.unwrap(), 2);
    assert_eq!(handle.last_insert_rowid().await.unwrap(), 3);
    assert_eq!(idle(&database), 0);
    drop(handle);
    until(|| idle(&database) == 1).await;
    let handle = database.open().await.unwrap();
    assert_eq!(count(&handle).await, 1, "the transaction was rolled back");
    assert_eq!(idle(&database), 1, "it was the same connection");
    assert_eq!(handle.changes().await.unwrap(), 0);
    assert_eq!(handle.last_insert_rowid().await.unwrap(), 0);
}

#[tokio::test]
async fn handles_share_a_connection_as_if_each_had_its_own() {
    const TABLE: &str = "CREATE TABLE u (a INTEGER PRIMARY KEY, b UNIQUE)";
    /// The number of the handle and the statement that it runs.
    const STATEMENTS: [(usize, &str); 14] = [
        (0, "INSERT INTO u (b) VALUES ('x'), ('y')"),
        (1, "SELECT last_insert_rowid()"),
        (1, "INSERT INTO u (b) VALUES ('z') RETURNING a"),
        (0, "SELECT last_insert_rowid()"),
        (2, "INSERT INTO u (b) VALUES ('x')"),
        (0, "INSERT INTO u (b) VALUES ('z')"),
        (1, "UPDATE u SET b = b"),
        (0, "CREATE TABLE IF NOT EXISTS v (a)"),
        (2, "WITH n(i) AS (VALUES (7), (8)) INSERT INTO u SELECT i, i FROM n"),
        (1, "CREATE TABLE IF NOT EXISTS v (a)"),
        (0, "DELETE FROM u WHERE a = 1"),
        (1, "DELETE FROM u WHERE a = 1"),
        (2, "SELECT group_concat(b, ' ') FROM u"),
        (2, "INSERT INTO missing VALUES (1)"),
    ];
    let (dir, database) = database().await;
    let mut handles = Vec::new();
    for _ in 0..3 {
        handles.push(database.open().await.unwrap());
    }
    run(&handles[0], TABLE).await.unwrap();
    let place = Place::File(dir.path().join("alone.db"));
    let alone = [(); 3].map(|()| Connection::open(&place, false).unwrap());
    for sql in ["PRAGMA journal_mode = WAL", TABLE] {
        alone[0].run(sql, &[]).unwrap();
    }
    for (number, sql) in STATEMENTS {
        let result = run(&handles[number], sql).await;
        let expected = alone[number].run(sql, &[]).map(|table| table.rows);
        assert_eq!(result, expected, "{sql}");
        for (handle, alone) in handles.iter().zip(&alone) {
            let (changes, rowid) = (handle.changes().await, handle.last_insert_rowid().await);
            assert_eq!(changes.unwrap(), alone.changes(), "changes after {sql}");
            assert_eq!(rowid.unwrap(), alone.last_insert_rowid(), "row id after {sql}");
        }
        assert_eq!(idle(&database), 1, "after {sql}");
    }
}

#[tokio::test]
async fn connection_state_stays_with_the_handle() {
    let (_dir, database) = database().await;
    let (one, other) = (database.open().await.unwrap(), database.open().await.unwrap());
    run(&one, "BEGIN").await.unwrap();
    run(&one, "INSERT INTO t VALUES (1)").await.unwrap();
    assert_eq!(count(&other).await, 0);
    assert_eq!(count(&one).await, 1);
    assert_eq!(idle(&database), 1, "the transaction keeps its connection");
    run(&one, "COMMIT").await.unwrap();
    assert_eq!(idle(&database), 2, "the connection is returned after the transaction");
    run(&one, "CREATE TEMP TABLE x (a)").await.unwrap();
    run(&other, "PRAGMA foreign_keys = OFF").await.unwrap();
    run(&one, "INSERT INTO x VALUES (1)").await.unwrap();
    assert_error(run(&other, "SELECT * FROM x").await, "no such table");
    for (handle, foreign_keys) in [(&one, 1), (&other, 0), (&database.open().await.unwrap(), 1)] {
        let rows = run(handle, "PRAGMA foreign_keys").await.unwrap();
        assert_eq!(rows[0].values, [Value::Integer(foreign_keys)]);
    }
    drop((one, other));
    until(|| Arc::strong_count(&database) == 1).await;
    assert_eq!(idle(&database), 1, "changed connections are not reused");
}

#[tokio::test]
async fn waiters_for_the_write_lock_hold_no_connection() {
    let (_dir, database) = database().await;
    let holder = holder(&database).await;
    let mut waiting = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let handle = database.open().await.unwrap();
        waiting.spawn(async move {
            for sql in ["BEGIN IMMEDIATE", "INSERT INTO t VALUES (1)", "COMMIT"] {
                run(&handle, sql).await.unwrap();
            }
        });
    }
    until(|| database.write_lock.waiters() == 20).await;
    assert!(idle(&database) > 0, "the waiters hold all connections");
    run(&holder, "COMMIT").await.unwrap();
    waiting.join_all().await;
    assert_eq!(count(&holder).await, 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn handles_are_isolated() {
    let (_dir, database) = database().await;
    let (one, other) = (database.open().await.unwrap(), database.open().await.unwrap());
    run(&one, "BEGIN").await.unwrap();
    run(&one, "INSERT INTO t VALUES (1)").await.unwrap();
    assert_eq!(count(&other).await, 0);
    run(&one, "COMMIT").await.unwrap();
    assert_eq!(count(&other).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn writers_of_two_processes_never_get_a_lock_error() {
    let (dir, one) = database().await;
    // A second `Database` has its own write lock, which is equivalent to another process.
    let other = Database::new(Place::File(dir.path().join("a.db")), false);
    let mut writers = tokio::task::JoinSet::new();
    for database in [&one, &other] {
        for _ in 0..8 {
            let handle = database.open().await.unwrap();
            writers.spawn(async move {
                for _ in 0..20 {
                    run(&handle, "INSERT INTO t VALUES (1)").await.unwrap();
                }
            });
        }
    }
    while let Some(writer) = writers.join_next().await {
        writer.unwrap();
    }
    assert_eq!(count(&one.open().await.unwrap()).await, 320);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_can_keep_writing_while_others_wait() {
    let (_dir, database) = database().await;
    let (one, other) = (database.open().await.unwrap(), database.open().await.unwrap());
    run(&one, "BEGIN IMMEDIATE").await.unwrap();
    let waiting = tokio::spawn(async move { run(&other, "INSERT INTO t VALUES (3)").await });
    let start = Instant::now();
    run(&one, "INSERT INTO t VALUES (1)").await.unwrap();
    run(&one, "INSERT INTO t VALUES (2)").await.unwrap();
    run(&one, "COMMIT").await.unwrap();
    waiting.await.unwrap().unwrap();
    assert!(start.elapsed() < WRITER_TIMEOUT, "a writer waited for a timeout");
    assert_eq!(count(&one).await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_handle_releases_the_write_lock() {
    let (_dir, database) = database().await;
    let (one, other) = (database.open().await.unwrap(), database.open().await.unwrap());
    run(&one, "BEGIN IMMEDIATE").await.unwrap();
    drop(one);
    let start = Instant::now();
    run(&other, "INSERT INTO t VALUES (1)").await.unwrap();
    assert!(start.elapsed() < WRITER_TIMEOUT);
}

#[tokio::test]
async fn waiting_for_a_stuck_transaction_is_an_error() {
    let (_dir, database) = database().await;
    let (one, other) = (database.open().await.unwrap(), database.open().await.unwrap());
    run(&one, "BEGIN IMMEDIATE").await.unwrap();
    tokio::time::pause();
    let error = run(&other, "INSERT INTO t VALUES (1)").await.unwrap_err();
    assert!(
        matches!(&error, Error::Io(message) if message == "database is locked"),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_slow_read_does_not_block_the_thread() {
    let (_dir, database) = database().await;
    let handle = database.open().await.unwrap();
    let sql =
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000000) SELECT count(*) FROM n";
    let mut slow = tokio::spawn(async move { run(&handle, sql).await });
    let mut ticks = 0;
    let rows = loop {
        tokio::select! {
            biased;
            rows = &mut slow => break rows.unwrap().unwrap(),
            () = tokio::time::sleep(Duration::from_millis(1)) => ticks += 1,
        }
    };
    assert_eq!(rows[0].values, [Value::Integer(3_000_000)]);
    // The read did not block the only thread of this test all the time.
    assert!(ticks > 5, "{ticks} ticks");
}

#[tokio::test]
async fn a_long_read_is_streamed_and_can_be_dropped() {
    let (_dir, database) = database().await;
    let handle = database.open().await.unwrap();
    let sql = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i, zeroblob(1000) FROM n";
    let Answer {
        columns,
        rows: Rows::Stream(mut stream),
    } = handle.execute(sql.to_owned(), vec![]).await.unwrap()
    else {
        panic!("an endless result was collected");
    };
    assert_eq!(columns, ["i", "zeroblob(1000)"]);
    assert_eq!(stream.rows.recv().await.unwrap().values[0], Value::Integer(1));
    assert_eq!(stream.rows.recv().await.unwrap().values[0], Value::Integer(2));
    drop(stream);
    assert_eq!(count(&handle).await, 0, "the connection is free again");
}

#[tokio::test]
async fn sqlites_errors_are_passed_on() {
    let (_dir, database) = database().await;
    let handle = database.open().await.unwrap();
    for (sql, words) in [
        ("SELEC 1", "syntax error"),
        ("SELECT * FROM missing", "no such table"),
        ("INSERT INTO missing VALUES (1)", "no such table"),
        ("SELECT ?", "parameter"),
        ("INSERT INTO t VALUES (?)", "parameter"),
        ("COMMIT", "no transaction"),
    ] {
        let error = run(&handle, sql).await.unwrap_err();
        assert!(
            matches!(&error, Error::Io(message) if message.contains(words)),
            "{sql}: {error:?}"
        );
    }
}

#[tokio::test]
async fn an_in_memory_database_belongs_to_its_handle() {
    let database = Database::new(Place::Memory, false);
    let one = database.open().await.unwrap();
    run(&one, "CREATE TABLE t (a)").await.unwrap();
    drop(one);
    let other = database.open().await.unwrap();
    assert!(run(&other, "SELECT * FROM t").await.is_err());
}

#[tokio::test]
async fn a_replaced_file_is_reopened() {
    let (dir, database) = database().await;
    let old = database.open().await.unwrap();
    run(&old, "BEGIN").await.unwrap();
    for name in ["a.db", "a.db-wal", "a.db-shm"] {
        // The last two may be missing.
        drop(std::fs::rename(
            dir.path().join(name),
            dir.path().join(format!("old-{name}")),
        ));
    }
    let handle = database.open().await.unwrap();
    assert!(run(&handle, "SELECT * FROM t").await.is_err());
    run(&old, "COMMIT").await.unwrap();
    assert!(
        run(&handle, "SELECT * FROM t").await.is_err(),
        "a connection to the old file returned to the pool"
    );
}

#[test]
fn a_file_that_is_not_a_database_is_reported() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.db");
    std::fs::write(
        &path,
        "this is not a database, but it is long enough to be checked as one".repeat(20),
    )
    .unwrap();
    let error = format!(
        "{:#}",
        Database::new(Place::File(path.clone()), false).prepare().unwrap_err()
    );
    assert!(error.contains("a.db") && error.contains("not a database"), "{error}");
    let inside_a_file = Database::new(Place::File(path.join("b.db")), false);
    assert!(format!("{:#}", inside_a_file.prepare().unwrap_err()).contains("a.db"));
}

type Running = tokio::task::JoinHandle<Result<Vec<RowResult>, Error>>;

/// Opens a handle with a transaction, so that all changes wait for its COMMIT.
async fn holder(database: &Arc<Database>) -> Handle {
    let holder = database.open().await.unwrap();
    run(&holder, "BEGIN IMMEDIATE").await.unwrap();
    holder
}

/// Starts a change and waits until it is in the queue.
async fn queue(database: &Arc<Database>, handle: &Handle, sql: &'static str) -> Running {
    let before = database.queue.len();
    let handle = handle.clone();
    let running = tokio::spawn(async move { run(&handle, sql).await });
    until(|| database.queue.len() > before).await;
    running
}

fn assert_error(result: Result<Vec<RowResult>, Error>, words: &str) {
    let error = result.unwrap_err();
    assert!(
        matches!(&error, Error::Io(message) if message.contains(words)),
        "{error:?}"
    );
}

/// Rules without a time limit, so that the groups do not depend on the speed of the machine.
fn synced_by(sync: impl Fn(&Connection) -> Result<(), Error> + Send + Sync + 'static) -> Rules {
    Rules {
        time: Duration::MAX,
        sync: Box::new(sync),
        ..Rules::default()
    }
}

/// Rules that count the syncs instead of doing them.
fn counting() -> (Arc<AtomicU64>, Rules) {
    let count = Arc::new(AtomicU64::new(0));
    let counted = count.clone();
    let sync = move |_: &Connection| {
        counted.fetch_add(1, Relaxed);
        Ok(())
    };
    (count, synced_by(sync))
}

/// Rules with a sync that reports its start on one channel, and takes its result from the other.
fn controlled_sync() -> (
    mpsc::UnboundedReceiver<()>,
    std::sync::mpsc::Sender<Result<(), Error>>,
    Rules,
) {
    let (started, starts) = mpsc::unbounded_channel();
    let (result, results) = std::sync::mpsc::channel();
    let results = StdMutex::new(results);
    let sync = move |_: &Connection| {
        started.send(()).unwrap();
        results.lock().unwrap().recv_timeout(Duration::from_secs(10)).unwrap()
    };
    (starts, result, synced_by(sync))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_is_synced_once_and_each_change_gets_its_own_result() {
    const TABLE: &str = "CREATE TABLE u (a INTEGER PRIMARY KEY, b UNIQUE)";
    const CHANGES: [&str; 7] = [
        "INSERT INTO t VALUES (1), (2), (3)",
        "INSERT INTO u (b) VALUES ('x') RETURNING a, b",
        "INSERT INTO u (b) VALUES ('y'), ('x')",
        "INSERT INTO missing VALUES (1)",
        "INSERT INTO u (a, b) VALUES (7, 'z')",
        "UPDATE t SET a = a WHERE a > 1",
        "INSERT INTO u (b) VALUES ('x') ON CONFLICT DO NOTHING RETURNING a",
    ];
    let (syncs, rules) = counting();
    let (dir, database) = database_with(rules).await;
    let holder = holder(&database).await;
    run(&holder, TABLE).await.unwrap();
    let (mut handles, mut running) = (Vec::new(), Vec::new());
    for sql in CHANGES {
        let handle = database.open().await.unwrap();
        running.push(queue(&database, &handle, sql).await);
        handles.push(handle);
    }
    run(&holder, "COMMIT").await.unwrap();
    let mut results = Vec::new();
    for (running, handle) in running.into_iter().zip(&handles) {
        let result = running.await.unwrap();
        let (changes, rowid) = (handle.changes().await, handle.last_insert_rowid().await);
        results.push((result, changes.unwrap(), rowid.unwrap()));
    }
    assert_eq!(syncs.load(Relaxed), 1);

    // The same changes, each on a connection of its own.
    let place = Place::File(dir.path().join("alone.db"));
    let open = || Connection::open(&place, false).unwrap();
    for sql in ["PRAGMA journal_mode = WAL", "CREATE TABLE t (a INTEGER)", TABLE] {
        open().run(sql, &[]).unwrap();
    }
    let alone = CHANGES.map(|sql| {
        let connection = open();
        let result = connection.run(sql, &[]).map(|table| table.rows);
        (result, connection.changes(), connection.last_insert_rowid())
    });
    assert_eq!(results, alone);
    let failed = results.iter().filter(|(result, ..)| result.is_err()).count();
    assert_eq!(failed, 2);
    let left = run(&holder, "SELECT group_concat(b, ' ') FROM u").await.unwrap();
    assert_eq!(left[0].values, [Value::Text("x z".to_owned())]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_rolls_back_the_transaction_of_its_group_takes_no_other_with_it() {
    let (_dir, database) = database_with(Rules {
        time: Duration::MAX,
        ..Rules::default()
    })
    .await;
    let holder = holder(&database).await;
    run(&holder, "CREATE TABLE u (b UNIQUE)").await.unwrap();
    let mut running = Vec::new();
    for sql in [
        "INSERT INTO u VALUES ('x')",
        "INSERT INTO u VALUES ('y')",
        "INSERT OR ROLLBACK INTO u VALUES ('x')",
        "INSERT INTO u VALUES ('z')",
    ] {
        let handle = database.open().await.unwrap();
        running.push(queue(&database, &handle, sql).await);
    }
    run(&holder, "COMMIT").await.unwrap();
    let mut made = Vec::new();
    for running in running {
        made.push(running.await.unwrap().is_ok());
    }
    assert_eq!(made, [true, true, false, true]);
    let left = run(&holder, "SELECT group_concat(b, ' ' ORDER BY b) FROM u")
        .await
        .unwrap();
    assert_eq!(left[0].values, [Value::Text("x y z".to_owned())]);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_change_is_acknowledged_before_the_sync() {
    let (mut starts, end, rules) = controlled_sync();
    let (_dir, database) = database_with(rules).await;
    let holder = holder(&database).await;
    let (one, other) = (database.open().await.unwrap(), database.open().await.unwrap());
    let running = [
        queue(&database, &one, "INSERT INTO t VALUES (1)").await,
        queue(&database, &other, "INSERT INTO t VALUES (2)").await,
    ];
    run(&holder, "COMMIT").await.unwrap();
    starts.recv().await.unwrap();
    // Both changes have run, and an early answer would have arrived during this query.
    assert_eq!(count(&holder).await, 2);
    assert!(!running.iter().any(Running::is_finished));
    end.send(Ok(())).unwrap();
    for running in running {
        running.await.unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_sync_is_reported_to_the_whole_group() {
    let (_starts, end, mut rules) = controlled_sync();
    let repaired = Arc::new(AtomicU64::new(0));
    let count_repairs = repaired.clone();
    rules.repair = Box::new(move |connection| {
        count_repairs.fetch_add(1, Relaxed);
        connection.empty_log()
    });
    let (dir, database) = database_with(rules).await;
    let holder = holder(&database).await;
    let (one, other) = (database.open().await.unwrap(), database.open().await.unwrap());
    let fails = [
        queue(&database, &one, "INSERT INTO t VALUES (1)").await,
        queue(&database, &other, "INSERT INTO t VALUES (2)").await,
    ];
    let wrong = queue(&database, &other, "INSERT INTO missing VALUES (1)").await;
    end.send(Err(Error::Io("disk I/O error".to_owned()))).unwrap();
    run(&holder, "COMMIT").await.unwrap();
    for running in fails {
        assert_error(running.await.unwrap(), "disk I/O error");
    }
    assert_error(wrong.await.unwrap(), "no such table");
    // The log with the hole is gone before any answer.
    assert_eq!(repaired.load(Relaxed), 1);
    assert_eq!(std::fs::metadata(dir.path().join("a.db-wal")).unwrap().len(), 0);
    end.send(Ok(())).unwrap();
    run(&one, "INSERT INTO t VALUES (3)").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_process_exits_if_a_failed_sync_cannot_be_repaired() {
    let failed = || Err(Error::Io("disk I/O error".to_owned()));
    let exits = Arc::new(AtomicU64::new(0));
    let count_exits = exits.clone();
    let mut rules = synced_by(move |_| failed());
    rules.repair = Box::new(move |_| failed());
    rules.give_up = Box::new(move || {
        count_exits.fetch_add(1, Relaxed);
    });
    let (_dir, database) = database_with(rules).await;
    let handle = database.open().await.unwrap();
    assert_error(run(&handle, "INSERT INTO t VALUES (1)").await, "disk I/O error");
    assert_eq!(exits.load(Relaxed), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_run_in_the_order_of_their_arrival() {
    let (_dir, database) = database().await;
    let holder = holder(&database).await;
    let (one, other) = (database.open().await.unwrap(), database.open().await.unwrap());
    let mut running = vec![
        queue(&database, &one, "INSERT INTO t VALUES (1)").await,
        queue(&database, &other, "INSERT INTO t VALUES (2)").await,
        queue(&database, &one, "INSERT INTO t VALUES (3)").await,
        queue(&database, &other, "INSERT INTO t VALUES (4)").await,
    ];
    // BEGIN waits for the earlier changes of its handle, so that they do not become part of the transaction.
    let begin = one.clone();
    let begin = tokio::spawn(async move { run(&begin, "BEGIN").await });
    until(|| one.0.try_read().is_err()).await;
    let late = one.clone();
    running.push(tokio::spawn(
        async move { run(&late, "INSERT INTO t VALUES (5)").await },
    ));
    run(&holder, "COMMIT").await.unwrap();
    for running in running.drain(..) {
        running.await.unwrap().unwrap();
    }
    begin.await.unwrap().unwrap();
    let order = |handle: Handle| async move {
        let rows = run(&handle, "SELECT group_concat(a) FROM (SELECT a FROM t ORDER BY rowid)").await;
        rows.unwrap()[0].values[0].clone()
    };
    assert_eq!(order(other).await, Value::Text("1,2,3,4".to_owned()));
    assert_eq!(order(one.clone()).await, Value::Text("1,2,3,4,5".to_owned()));
    run(&one, "ROLLBACK").await.unwrap();
    assert_eq!(order(holder).await, Value::Text("1,2,3,4".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_gets_the_write_lock_among_changes_and_holds_it_alone() {
    let (_dir, database) = database().await;
    let stop = Arc::new(AtomicBool::new(false));
    let mut writers = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let (handle, stop) = (database.open().await.unwrap(), stop.clone());
        writers.spawn(async move {
            while !stop.load(Relaxed) {
                run(&handle, "INSERT INTO t VALUES (1)").await.unwrap();
            }
        });
    }
    let one = database.open().await.unwrap();
    let (seen, other) = (database.open().await.unwrap(), database.open().await.unwrap());
    let all = async {
        for _ in 0..20 {
            run(&one, "BEGIN IMMEDIATE").await.unwrap();
            let before = count(&seen).await;
            run(&one, "INSERT INTO t VALUES (2)").await.unwrap();
            assert_eq!(count(&other).await, before);
            run(&one, "COMMIT").await.unwrap();
        }
    };
    tokio::time::timeout(Duration::from_secs(30), all).await.unwrap();
    stop.store(true, Relaxed);
    while let Some(writer) = writers.join_next().await {
        writer.unwrap();
    }
    let twos = run(&one, "SELECT count(*) FROM t WHERE a = 2").await.unwrap();
    assert_eq!(twos[0].values, [Value::Integer(20)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_is_abandoned_in_the_queue_is_not_made() {
    let (_dir, database) = database().await;
    let holder = holder(&database).await;
    let (one, other) = (database.open().await.unwrap(), database.open().await.unwrap());
    let abandoned = queue(&database, &one, "INSERT INTO t VALUES (1)").await;
    let stays = queue(&database, &other, "INSERT INTO t VALUES (2)").await;
    abandoned.abort();
    assert!(abandoned.await.unwrap_err().is_cancelled());
    assert_eq!(database.queue.len(), 1);
    // Its handle is free although the transaction still holds the write lock.
    assert_eq!(count(&one).await, 0);
    run(&holder, "COMMIT").await.unwrap();
    stays.await.unwrap().unwrap();
    assert_eq!(count(&one).await, 1);
    run(&one, "INSERT INTO t VALUES (3)").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_is_abandoned_after_its_start_is_made() {
    let (mut starts, end, rules) = controlled_sync();
    let (_dir, database) = database_with(rules).await;
    let holder = holder(&database).await;
    let (one, other) = (database.open().await.unwrap(), database.open().await.unwrap());
    let abandoned = queue(&database, &one, "INSERT INTO t VALUES (1)").await;
    let stays = queue(&database, &other, "INSERT INTO t VALUES (2)").await;
    run(&holder, "COMMIT").await.unwrap();
    starts.recv().await.unwrap();
    abandoned.abort();
    assert!(abandoned.await.unwrap_err().is_cancelled());
    end.send(Ok(())).unwrap();
    stays.await.unwrap().unwrap();
    assert_eq!(count(&one).await, 2);
    assert_eq!(one.changes().await.unwrap(), 1);
}

#[tokio::test]
async fn a_change_that_has_started_does_not_time_out() {
    let (mut starts, end, rules) = controlled_sync();
    let (_dir, database) = database_with(rules).await;
    let handle = database.open().await.unwrap();
    let slow = tokio::spawn(async move { run(&handle, "INSERT INTO t VALUES (1)").await });
    starts.recv().await.unwrap();
    tokio::time::pause();
    tokio::time::advance(WRITER_TIMEOUT * 3).await;
    tokio::time::resume();
    end.send(Ok(())).unwrap();
    slow.await.unwrap().unwrap();
}

/// The number of syncs for a hundred changes that wait at the same time.
async fn syncs_of_a_hundred(limit: impl FnOnce(&mut Rules)) -> u64 {
    let (syncs, mut rules) = counting();
    limit(&mut rules);
    let (_dir, database) = database_with(rules).await;
    let holder = holder(&database).await;
    let handle = database.open().await.unwrap();
    let mut running = Vec::new();
    for _ in 0..100 {
        running.push(queue(&database, &handle, "INSERT INTO t VALUES (1) RETURNING a").await);
    }
    run(&holder, "COMMIT").await.unwrap();
    for running in running {
        running.await.unwrap().unwrap();
    }
    assert_eq!(count(&handle).await, 100);
    syncs.load(Relaxed)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_size_of_a_group_is_limited() {
    assert_eq!(syncs_of_a_hundred(|_| {}).await, 2);
    assert_eq!(syncs_of_a_hundred(|rules| rules.changes = 10).await, 10);
    assert_eq!(syncs_of_a_hundred(|rules| rules.bytes = 1).await, 100);
    assert_eq!(syncs_of_a_hundred(|rules| rules.time = Duration::ZERO).await, 100);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_plain_changes_in_wal_mode_are_grouped() {
    let (syncs, rules) = counting();
    let (_dir, database) = database_with(rules).await;
    let handle = database.open().await.unwrap();
    run(&handle, "INSERT INTO t VALUES (1)").await.unwrap();
    assert_eq!(syncs.load(Relaxed), 1);
    let level = run(&handle, "PRAGMA synchronous").await.unwrap();
    assert_eq!(
        level[0].values,
        [Value::Integer(2)],
        "the level is lower only within a group"
    );
    for sql in ["BEGIN", "INSERT INTO t VALUES (1)", "COMMIT", "CREATE TABLE u (a)"] {
        run(&handle, sql).await.unwrap();
    }
    assert_eq!(syncs.load(Relaxed), 1, "a transaction syncs itself");
    run(&handle, "PRAGMA synchronous = OFF").await.unwrap();
    run(&handle, "INSERT INTO t VALUES (1)").await.unwrap();
    assert_eq!(syncs.load(Relaxed), 1);
    let level = run(&handle, "PRAGMA synchronous").await.unwrap();
    assert_eq!(level[0].values, [Value::Integer(0)], "the guest's own setting stays");
    drop(handle);
    until(|| Arc::strong_count(&database) == 1).await;
    database.pool.clear();
    let handle = database.open().await.unwrap();
    run(&handle, "PRAGMA journal_mode = DELETE").await.unwrap();
    drop(handle);
    until(|| Arc::strong_count(&database) == 1).await;
    let handle = database.open().await.unwrap();
    run(&handle, "INSERT INTO t VALUES (1)").await.unwrap();
    assert_eq!(syncs.load(Relaxed), 1, "SQLite itself syncs a rollback journal");
    assert_eq!(count(&handle).await, 4);
}

/// A database on a disk whose power can be cut, and a count of how often the process would have exited.
async fn on_a_disk() -> (Disk, Arc<Database>, Arc<AtomicU64>) {
    let disk = Disk::new();
    let exits = Arc::new(AtomicU64::new(0));
    let count_exits = exits.clone();
    let rules = Rules {
        give_up: Box::new(move || {
            count_exits.fetch_add(1, Relaxed);
        }),
        ..Rules::default()
    };
    let database = Database::with_rules(Place::File(disk.path("a.db")), false, rules);
    database.prepare().unwrap();
    let handle = database.open().await.unwrap();
    run(&handle, "PRAGMA journal_mode = WAL").await.unwrap();
    run(&handle, "CREATE TABLE t (a INTEGER)").await.unwrap();
    (disk, database, exits)
}

/// Inserts the numbers and returns those that were acknowledged.
async fn insert(database: &Arc<Database>, numbers: std::ops::Range<i64>) -> Vec<i64> {
    let mut running = tokio::task::JoinSet::new();
    for number in numbers {
        let handle = database.open().await.unwrap();
        running.spawn(async move {
            let result = run(&handle, &format!("INSERT INTO t VALUES ({number})")).await;
            result.is_ok().then_some(number)
        });
    }
    running.join_all().await.into_iter().flatten().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_power_cut_after_a_failed_sync_loses_no_acknowledged_change() {
    let (disk, database, exits) = on_a_disk().await;
    let mut acknowledged = insert(&database, 0..50).await;
    assert_eq!(acknowledged.len(), 50, "an insert failed on a working disk");
    for failures in [1, 2] {
        disk.fail_syncs(failures);
        let start = 1_000 * i64::try_from(failures).unwrap();
        let some = insert(&database, start..start + 50).await;
        assert!(some.len() < 50, "no sync has failed");
        acknowledged.extend(some);
        let later = insert(&database, start + 100..start + 150).await;
        assert_eq!(later.len(), 50, "the database has not recovered");
        acknowledged.extend(later);
        // Also write in a transaction, which SQLite syncs itself.
        let handle = database.open().await.unwrap();
        for sql in ["BEGIN IMMEDIATE", "INSERT INTO t VALUES (1)", "COMMIT"] {
            run(&handle, sql).await.unwrap();
        }
        drop(handle);
        let found = disk.after_power_cut();
        let there = power::numbers(&found.path().join("a.db"));
        let lost: Vec<_> = acknowledged.iter().filter(|number| !there.contains(number)).collect();
        assert!(lost.is_empty(), "{lost:?}");
        assert!(there.contains(&1));
    }
    assert_eq!(exits.load(Relaxed), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_change_is_acknowledged_on_a_disk_that_keeps_failing() {
    let (disk, database, exits) = on_a_disk().await;
    let acknowledged = insert(&database, 0..50).await;
    disk.fail_syncs(usize::MAX);
    assert!(insert(&database, 100..150).await.is_empty());
    assert!(exits.load(Relaxed) > 0, "the process does not exit");
    let found = disk.after_power_cut();
    let there = power::numbers(&found.path().join("a.db"));
    assert!(acknowledged.iter().all(|number| there.contains(number)));
}
