#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a statement that fails here is a failed test"
)]

use std::time::Instant;

use tempfile::TempDir;

use super::*;

/// A database in a file, in WAL mode, with a table t (a INTEGER).
async fn database() -> (TempDir, Arc<Database>) {
    let dir = tempfile::tempdir().unwrap();
    let database = Database::new(Place::File(dir.path().join("a.db")), false);
    database.prepare().unwrap();
    let handle = database.open().await.unwrap();
    run(&handle, "PRAGMA journal_mode = WAL").await.unwrap();
    run(&handle, "CREATE TABLE t (a INTEGER)").await.unwrap();
    (dir, database)
}

async fn run(handle: &Handle, sql: &str) -> Result<Vec<RowResult>, Error> {
    Ok(handle.execute_all(sql.to_owned(), vec![]).await?.1)
}

async fn count(handle: &Handle) -> i64 {
    match run(handle, "SELECT count(*) FROM t").await.unwrap()[0].values[0] {
        Value::Integer(count) => count,
        ref other => panic!("{other:?}"),
    }
}

/// Waits until no session is left that has to roll back or close.
async fn idle(database: &Arc<Database>, connections: usize) {
    let wait = async {
        while database.idle().len() < connections {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), wait).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_is_used_again_as_good_as_new() {
    let (_dir, database) = database().await;
    let handle = database.open().await.unwrap();
    run(&handle, "INSERT INTO t VALUES (1)").await.unwrap();
    run(&handle, "BEGIN").await.unwrap();
    run(&handle, "INSERT INTO t VALUES (2), (3)").await.unwrap();
    assert_eq!(handle.changes().await.unwrap(), 2);
    assert_eq!(handle.last_insert_rowid().await.unwrap(), 3);
    drop(handle);
    idle(&database, 1).await;
    let handle = database.open().await.unwrap();
    assert_eq!(database.idle().len(), 0, "the connection came from the pool");
    assert_eq!(count(&handle).await, 1, "the transaction was rolled back");
    assert_eq!(handle.changes().await.unwrap(), 0);
    assert_eq!(handle.last_insert_rowid().await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn handles_are_apart() {
    let (_dir, database) = database().await;
    let (one, other) = (database.open().await.unwrap(), database.open().await.unwrap());
    run(&one, "BEGIN").await.unwrap();
    run(&one, "INSERT INTO t VALUES (1)").await.unwrap();
    assert_eq!(count(&other).await, 0);
    run(&one, "COMMIT").await.unwrap();
    assert_eq!(count(&other).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn writers_of_two_processes_never_find_it_locked() {
    let (dir, one) = database().await;
    // Another lock of its own: for SQLite, and for us, the same as another process.
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
async fn a_transaction_writes_on_while_others_wait_for_it() {
    let (_dir, database) = database().await;
    let (one, other) = (database.open().await.unwrap(), database.open().await.unwrap());
    run(&one, "BEGIN IMMEDIATE").await.unwrap();
    let waiting = tokio::spawn(async move { run(&other, "INSERT INTO t VALUES (3)").await });
    let start = Instant::now();
    run(&one, "INSERT INTO t VALUES (1)").await.unwrap();
    run(&one, "INSERT INTO t VALUES (2)").await.unwrap();
    run(&one, "COMMIT").await.unwrap();
    waiting.await.unwrap().unwrap();
    assert!(start.elapsed() < WRITER_TIMEOUT, "nobody waited for a timeout");
    assert_eq!(count(&one).await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handle_that_goes_gives_its_turn_back() {
    let (_dir, database) = database().await;
    let (one, other) = (database.open().await.unwrap(), database.open().await.unwrap());
    run(&one, "BEGIN IMMEDIATE").await.unwrap();
    drop(one);
    let start = Instant::now();
    run(&other, "INSERT INTO t VALUES (1)").await.unwrap();
    assert!(start.elapsed() < WRITER_TIMEOUT);
}

#[tokio::test]
async fn who_waits_for_a_stuck_transaction_is_told() {
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
async fn a_slow_read_leaves_the_thread_to_others() {
    let (_dir, database) = database().await;
    let handle = database.open().await.unwrap();
    let sql =
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000000) SELECT count(*) FROM n";
    let mut slow = tokio::spawn(async move { run(&handle, sql).await });
    let (mut last, mut longest, mut turns) = (Instant::now(), Duration::ZERO, 0);
    let rows = loop {
        tokio::select! {
            biased;
            rows = &mut slow => break rows.unwrap().unwrap(),
            () = tokio::time::sleep(Duration::from_millis(1)) => turns += 1,
        }
        longest = longest.max(last.elapsed());
        last = Instant::now();
    };
    assert_eq!(rows[0].values, [Value::Integer(3_000_000)]);
    // The one thread of this test was held for a few milliseconds at a time, not for the whole read.
    assert!(
        turns > 5 && longest < Duration::from_millis(100),
        "{turns} turns, the longest {longest:?}"
    );
}

#[tokio::test]
async fn a_long_read_is_a_stream_that_may_be_dropped() {
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
async fn errors_are_sqlites() {
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
async fn a_database_in_memory_belongs_to_its_handle() {
    let database = Database::new(Place::Memory, false);
    let one = database.open().await.unwrap();
    run(&one, "CREATE TABLE t (a)").await.unwrap();
    drop(one);
    let other = database.open().await.unwrap();
    assert!(run(&other, "SELECT * FROM t").await.is_err());
}

#[tokio::test]
async fn a_replaced_file_is_opened_anew() {
    let (dir, database) = database().await;
    drop(database.open().await.unwrap());
    for name in ["a.db", "a.db-wal", "a.db-shm"] {
        // The last two may not be there.
        drop(std::fs::rename(
            dir.path().join(name),
            dir.path().join(format!("old-{name}")),
        ));
    }
    let handle = database.open().await.unwrap();
    assert!(run(&handle, "SELECT * FROM t").await.is_err());
}

#[test]
fn a_file_that_is_no_database_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.db");
    std::fs::write(
        &path,
        "this is no database, but it is long enough to be looked at as one".repeat(20),
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
