#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a statement that fails here is a failed test"
)]

use std::sync::atomic::AtomicBool;
use std::time::Instant;

use tempfile::TempDir;

use super::power::{self, Disk};
use super::*;

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

/// How many connections there are that nobody uses.
fn unused(database: &Database) -> usize {
    database.pool().connections.len()
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
    assert_eq!(unused(&database), 0);
    drop(handle);
    until(|| unused(&database) == 1).await;
    let handle = database.open().await.unwrap();
    assert_eq!(count(&handle).await, 1, "the transaction was rolled back");
    assert_eq!(unused(&database), 1, "it was the same connection");
    assert_eq!(handle.changes().await.unwrap(), 0);
    assert_eq!(handle.last_insert_rowid().await.unwrap(), 0);
}

#[tokio::test]
async fn handles_share_a_connection_as_if_each_had_its_own() {
    const TABLE: &str = "CREATE TABLE u (a INTEGER PRIMARY KEY, b UNIQUE)";
    /// The number of the handle, and what it runs.
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
        assert_eq!(unused(&database), 1, "after {sql}");
    }
}

#[tokio::test]
async fn what_belongs_to_a_connection_stays_with_the_handle() {
    let (_dir, database) = database().await;
    let (one, other) = (database.open().await.unwrap(), database.open().await.unwrap());
    run(&one, "BEGIN").await.unwrap();
    run(&one, "INSERT INTO t VALUES (1)").await.unwrap();
    assert_eq!(count(&other).await, 0);
    assert_eq!(count(&one).await, 1);
    assert_eq!(unused(&database), 1, "the transaction has its own");
    run(&one, "COMMIT").await.unwrap();
    assert_eq!(unused(&database), 2, "and no longer");
    run(&one, "CREATE TEMP TABLE x (a)").await.unwrap();
    run(&other, "PRAGMA foreign_keys = OFF").await.unwrap();
    run(&one, "INSERT INTO x VALUES (1)").await.unwrap();
    says(run(&other, "SELECT * FROM x").await, "no such table");
    for (handle, foreign_keys) in [(&one, 1), (&other, 0), (&database.open().await.unwrap(), 1)] {
        let rows = run(handle, "PRAGMA foreign_keys").await.unwrap();
        assert_eq!(rows[0].values, [Value::Integer(foreign_keys)]);
    }
    drop((one, other));
    until(|| Arc::strong_count(&database) == 1).await;
    assert_eq!(unused(&database), 1, "nobody else gets those that were changed");
}

#[tokio::test]
async fn who_waits_for_the_turn_has_no_connection() {
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
    until(|| database.waiters.load(Relaxed) == 20).await;
    assert!(unused(&database) > 0, "those who wait have them all");
    run(&holder, "COMMIT").await.unwrap();
    waiting.join_all().await;
    assert_eq!(count(&holder).await, 20);
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
    let mut turns = 0;
    let rows = loop {
        tokio::select! {
            biased;
            rows = &mut slow => break rows.unwrap().unwrap(),
            () = tokio::time::sleep(Duration::from_millis(1)) => turns += 1,
        }
    };
    assert_eq!(rows[0].values, [Value::Integer(3_000_000)]);
    // The one thread of this test was not held for the whole read.
    assert!(turns > 5, "{turns} turns");
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
    let old = database.open().await.unwrap();
    run(&old, "BEGIN").await.unwrap();
    for name in ["a.db", "a.db-wal", "a.db-shm"] {
        // The last two may not be there.
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
        "nor by a connection that was in use meanwhile"
    );
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

type Running = tokio::task::JoinHandle<Result<Vec<RowResult>, Error>>;

/// A handle with a transaction, so that all changes wait for its COMMIT.
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

fn says(result: Result<Vec<RowResult>, Error>, words: &str) {
    let error = result.unwrap_err();
    assert!(
        matches!(&error, Error::Io(message) if message.contains(words)),
        "{error:?}"
    );
}

/// Groups that end for want of changes only, however slow the machine is.
fn synced_by(sync: impl Fn(&Connection) -> Result<(), Error> + Send + Sync + 'static) -> Rules {
    Rules {
        time: Duration::MAX,
        sync: Box::new(sync),
        ..Rules::default()
    }
}

/// Counts the syncs instead of doing them.
fn counting() -> (Arc<AtomicU64>, Rules) {
    let count = Arc::new(AtomicU64::new(0));
    let counted = count.clone();
    let sync = move |_: &Connection| {
        counted.fetch_add(1, Relaxed);
        Ok(())
    };
    (count, synced_by(sync))
}

/// A sync that says when it has begun, and ends as it is told.
fn told() -> (
    mpsc::UnboundedReceiver<()>,
    std::sync::mpsc::Sender<Result<(), Error>>,
    Rules,
) {
    let (begun, begins) = mpsc::unbounded_channel();
    let (end, ends) = std::sync::mpsc::channel();
    let ends = StdMutex::new(ends);
    let sync = move |_: &Connection| {
        begun.send(()).unwrap();
        ends.lock().unwrap().recv_timeout(Duration::from_secs(10)).unwrap()
    };
    (begins, end, synced_by(sync))
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_that_wait_are_synced_once_and_each_is_told_its_own() {
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
    let mut told = Vec::new();
    for (running, handle) in running.into_iter().zip(&handles) {
        let result = running.await.unwrap();
        let (changes, rowid) = (handle.changes().await, handle.last_insert_rowid().await);
        told.push((result, changes.unwrap(), rowid.unwrap()));
    }
    assert_eq!(syncs.load(Relaxed), 1);

    // The same, each alone on a connection of its own.
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
    assert_eq!(told, alone);
    let failed = told.iter().filter(|(result, ..)| result.is_err()).count();
    assert_eq!(failed, 2);
    let left = run(&holder, "SELECT group_concat(b, ' ') FROM u").await.unwrap();
    assert_eq!(left[0].values, [Value::Text("x z".to_owned())]);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_answered_before_the_sync() {
    let (mut begins, end, rules) = told();
    let (_dir, database) = database_with(rules).await;
    let holder = holder(&database).await;
    let (one, other) = (database.open().await.unwrap(), database.open().await.unwrap());
    let running = [
        queue(&database, &one, "INSERT INTO t VALUES (1)").await,
        queue(&database, &other, "INSERT INTO t VALUES (2)").await,
    ];
    run(&holder, "COMMIT").await.unwrap();
    begins.recv().await.unwrap();
    // Both have run, and an answer would have had the time that this takes.
    assert_eq!(count(&holder).await, 2);
    assert!(!running.iter().any(Running::is_finished));
    end.send(Ok(())).unwrap();
    for running in running {
        running.await.unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_sync_is_told_to_everyone_of_the_group() {
    let (_begins, end, mut rules) = told();
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
        says(running.await.unwrap(), "disk I/O error");
    }
    says(wrong.await.unwrap(), "no such table");
    // Before anybody is answered again, the log with a hole in it is gone.
    assert_eq!(repaired.load(Relaxed), 1);
    assert_eq!(std::fs::metadata(dir.path().join("a.db-wal")).unwrap().len(), 0);
    end.send(Ok(())).unwrap();
    run(&one, "INSERT INTO t VALUES (3)").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_process_ends_when_a_failed_sync_cannot_be_repaired() {
    let failed = || Err(Error::Io("disk I/O error".to_owned()));
    let ended = Arc::new(AtomicU64::new(0));
    let count_ends = ended.clone();
    let mut rules = synced_by(move |_| failed());
    rules.repair = Box::new(move |_| failed());
    rules.give_up = Box::new(move || {
        count_ends.fetch_add(1, Relaxed);
    });
    let (_dir, database) = database_with(rules).await;
    let handle = database.open().await.unwrap();
    says(run(&handle, "INSERT INTO t VALUES (1)").await, "disk I/O error");
    assert_eq!(ended.load(Relaxed), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_are_made_in_the_order_in_which_they_came() {
    let (_dir, database) = database().await;
    let holder = holder(&database).await;
    let (one, other) = (database.open().await.unwrap(), database.open().await.unwrap());
    let mut running = vec![
        queue(&database, &one, "INSERT INTO t VALUES (1)").await,
        queue(&database, &other, "INSERT INTO t VALUES (2)").await,
        queue(&database, &one, "INSERT INTO t VALUES (3)").await,
        queue(&database, &other, "INSERT INTO t VALUES (4)").await,
    ];
    // What is no change waits for those before it on its handle, so that they are no part of the transaction.
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
async fn a_transaction_gets_its_turn_among_changes_and_has_it_alone() {
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
async fn a_change_that_is_given_up_before_its_turn_is_not_made() {
    let (_dir, database) = database().await;
    let holder = holder(&database).await;
    let (one, other) = (database.open().await.unwrap(), database.open().await.unwrap());
    let given_up = queue(&database, &one, "INSERT INTO t VALUES (1)").await;
    let stays = queue(&database, &other, "INSERT INTO t VALUES (2)").await;
    given_up.abort();
    assert!(given_up.await.unwrap_err().is_cancelled());
    assert_eq!(database.queue.len(), 1);
    // Its handle is free while the turn is still another's.
    assert_eq!(count(&one).await, 0);
    run(&holder, "COMMIT").await.unwrap();
    stays.await.unwrap().unwrap();
    assert_eq!(count(&one).await, 1);
    run(&one, "INSERT INTO t VALUES (3)").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_is_given_up_when_it_has_begun_is_made() {
    let (mut begins, end, rules) = told();
    let (_dir, database) = database_with(rules).await;
    let holder = holder(&database).await;
    let (one, other) = (database.open().await.unwrap(), database.open().await.unwrap());
    let given_up = queue(&database, &one, "INSERT INTO t VALUES (1)").await;
    let stays = queue(&database, &other, "INSERT INTO t VALUES (2)").await;
    run(&holder, "COMMIT").await.unwrap();
    begins.recv().await.unwrap();
    given_up.abort();
    assert!(given_up.await.unwrap_err().is_cancelled());
    end.send(Ok(())).unwrap();
    stays.await.unwrap().unwrap();
    assert_eq!(count(&one).await, 2);
    assert_eq!(one.changes().await.unwrap(), 1);
}

#[tokio::test]
async fn a_change_that_has_begun_is_waited_for() {
    let (mut begins, end, rules) = told();
    let (_dir, database) = database_with(rules).await;
    let handle = database.open().await.unwrap();
    let slow = tokio::spawn(async move { run(&handle, "INSERT INTO t VALUES (1)").await });
    begins.recv().await.unwrap();
    tokio::time::pause();
    tokio::time::advance(WRITER_TIMEOUT * 3).await;
    tokio::time::resume();
    end.send(Ok(())).unwrap();
    slow.await.unwrap().unwrap();
}

/// How many syncs a hundred changes take that wait at the same time.
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
async fn a_group_has_an_end() {
    assert_eq!(syncs_of_a_hundred(|_| {}).await, 2);
    assert_eq!(syncs_of_a_hundred(|rules| rules.changes = 10).await, 10);
    assert_eq!(syncs_of_a_hundred(|rules| rules.bytes = 1).await, 100);
    assert_eq!(syncs_of_a_hundred(|rules| rules.time = Duration::ZERO).await, 100);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_plain_changes_of_a_write_ahead_log_are_grouped() {
    let (syncs, rules) = counting();
    let (_dir, database) = database_with(rules).await;
    let handle = database.open().await.unwrap();
    run(&handle, "INSERT INTO t VALUES (1)").await.unwrap();
    assert_eq!(syncs.load(Relaxed), 1);
    let level = run(&handle, "PRAGMA synchronous").await.unwrap();
    assert_eq!(level[0].values, [Value::Integer(2)], "it is only lower within a group");
    for sql in ["BEGIN", "INSERT INTO t VALUES (1)", "COMMIT", "CREATE TABLE u (a)"] {
        run(&handle, sql).await.unwrap();
    }
    assert_eq!(syncs.load(Relaxed), 1, "a transaction syncs by itself");
    run(&handle, "PRAGMA synchronous = OFF").await.unwrap();
    run(&handle, "INSERT INTO t VALUES (1)").await.unwrap();
    assert_eq!(syncs.load(Relaxed), 1);
    let level = run(&handle, "PRAGMA synchronous").await.unwrap();
    assert_eq!(level[0].values, [Value::Integer(0)], "the guest's own setting stays");
    drop(handle);
    until(|| Arc::strong_count(&database) == 1).await;
    database.pool().connections.clear();
    let handle = database.open().await.unwrap();
    run(&handle, "PRAGMA journal_mode = DELETE").await.unwrap();
    drop(handle);
    until(|| Arc::strong_count(&database) == 1).await;
    let handle = database.open().await.unwrap();
    run(&handle, "INSERT INTO t VALUES (1)").await.unwrap();
    assert_eq!(syncs.load(Relaxed), 1, "a rollback journal is SQLite's affair");
    assert_eq!(count(&handle).await, 4);
}

/// A database on a disk whose power can be cut. `ended` counts how often the process would have ended.
async fn on_a_disk() -> (Disk, Arc<Database>, Arc<AtomicU64>) {
    let disk = Disk::new();
    let ended = Arc::new(AtomicU64::new(0));
    let count_ends = ended.clone();
    let rules = Rules {
        give_up: Box::new(move || {
            count_ends.fetch_add(1, Relaxed);
        }),
        ..Rules::default()
    };
    let database = Database::with_rules(Place::File(disk.path("a.db")), false, rules);
    database.prepare().unwrap();
    let handle = database.open().await.unwrap();
    run(&handle, "PRAGMA journal_mode = WAL").await.unwrap();
    run(&handle, "CREATE TABLE t (a INTEGER)").await.unwrap();
    (disk, database, ended)
}

/// Those of the numbers whose insertion was acknowledged.
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
async fn a_power_cut_after_a_failed_sync_takes_nothing_that_was_acknowledged() {
    let (disk, database, ended) = on_a_disk().await;
    let mut acknowledged = insert(&database, 0..50).await;
    assert_eq!(acknowledged.len(), 50, "nothing has failed yet");
    for failures in [1, 2] {
        disk.fail_syncs(failures);
        let start = 1_000 * i64::try_from(failures).unwrap();
        let some = insert(&database, start..start + 50).await;
        assert!(some.len() < 50, "no sync has failed");
        acknowledged.extend(some);
        let later = insert(&database, start + 100..start + 150).await;
        assert_eq!(later.len(), 50, "it has recovered");
        acknowledged.extend(later);
        // Another way to write: a transaction, which SQLite syncs itself.
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
    assert_eq!(ended.load(Relaxed), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_acknowledged_on_a_disk_that_fails_for_good() {
    let (disk, database, ended) = on_a_disk().await;
    let acknowledged = insert(&database, 0..50).await;
    disk.fail_syncs(usize::MAX);
    assert!(insert(&database, 100..150).await.is_empty());
    assert!(ended.load(Relaxed) > 0, "the process ends");
    let found = disk.after_power_cut();
    let there = power::numbers(&found.path().join("a.db"));
    assert!(acknowledged.iter().all(|number| there.contains(number)));
}
