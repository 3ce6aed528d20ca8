#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a statement that fails here is a failed test"
)]

use std::sync::Mutex as StdMutex;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::*;

/// The requests that were made: path and body.
type Seen = Arc<StdMutex<Vec<(String, serde_json::Value)>>>;

/// A server with these answers, one to a request, status and body; after them it answers nothing.
async fn server(answers: Vec<(u16, String)>) -> (Arc<Server>, Seen) {
    stalling_server(answers, usize::MAX).await
}

/// The same, but of each body it sends only so many bytes, and then nothing more.
async fn stalling_server(answers: Vec<(u16, String)>, most: usize) -> (Arc<Server>, Seen) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let seen = Seen::default();
    let seen_there = seen.clone();
    tokio::spawn(async move {
        let mut answers = answers.into_iter();
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let request = request(&mut stream).await;
            seen_there.lock().unwrap().push(request);
            let Some((status, body)) = answers.next() else {
                std::future::pending::<()>().await;
                return;
            };
            let length = body.len();
            let head = format!("HTTP/1.1 {status} X\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n");
            stream.write_all(head.as_bytes()).await.unwrap();
            stream.write_all(&body.as_bytes()[..length.min(most)]).await.unwrap();
            if length > most {
                std::future::pending::<()>().await;
            }
        }
    });
    (Server::new(&url, "t0ken".into()).unwrap(), seen)
}

async fn request(stream: &mut TcpStream) -> (String, serde_json::Value) {
    let mut bytes = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            assert!(head.contains("authorization: Bearer t0ken"), "{head}");
            let length = head
                .lines()
                .find_map(|line| line.strip_prefix("content-length: "))
                .unwrap();
            if body.len() >= length.parse().unwrap() {
                let path = head.split(' ').nth(1).unwrap().to_owned();
                return (path, serde_json::from_str(body).unwrap());
            }
        }
        assert_ne!(stream.read_buf(&mut bytes).await.unwrap(), 0, "{text}");
    }
}

/// The answer to a statement with one column and these numbers in it.
fn numbers(baton: &str, numbers: impl IntoIterator<Item = i64>) -> (u16, String) {
    let mut text = format!("{{\"baton\":\"{baton}\",\"base_url\":null}}\n");
    text.push_str("{\"type\":\"step_begin\",\"step\":0,\"cols\":[{\"name\":\"a\"}]}\n");
    for number in numbers {
        text.push_str(&format!(
            "{{\"type\":\"row\",\"row\":[{{\"type\":\"integer\",\"value\":\"{number}\"}}]}}\n"
        ));
    }
    text.push_str("{\"type\":\"step_end\",\"affected_row_count\":0,\"last_insert_rowid\":null}\n");
    (200, text)
}

async fn run(connection: &Connection, sql: &str) -> Result<Vec<i64>, Error> {
    let (_, rows) = connection.execute(sql.to_owned(), vec![]).await?.collect().await?;
    let number = |row: &RowResult| match row.values[0] {
        Value::Integer(number) => number,
        ref other => panic!("{other:?}"),
    };
    Ok(rows.iter().map(number).collect())
}

fn message<T: std::fmt::Debug>(result: Result<T, Error>) -> String {
    match result {
        Err(Error::Io(message)) => message,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn one_stream_serves_a_connection_and_is_closed_with_it() {
    let closed = (200, r#"{"baton":null,"base_url":null,"results":[]}"#.to_owned());
    let (server, seen) = server(vec![numbers("one", [1]), numbers("two", [2, 3]), closed]).await;
    let connection = server.open();
    assert_eq!(run(&connection, "SELECT 1").await.unwrap(), [1]);
    assert_eq!(run(&connection, "SELECT 2").await.unwrap(), [2, 3]);
    drop(connection);
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while seen.lock().unwrap().len() < 3 {
        assert!(tokio::time::Instant::now() < deadline, "it was not closed");
        tokio::task::yield_now().await;
    }
    let seen = seen.lock().unwrap();
    assert_eq!(seen[0].0, "/v3/cursor");
    assert_eq!(seen[0].1["baton"], serde_json::Value::Null);
    assert_eq!(seen[1].1["baton"], "one");
    assert_eq!(seen[1].1["batch"]["steps"][0]["stmt"]["sql"], "SELECT 2");
    assert_eq!(seen[2].0, "/v3/pipeline");
    assert_eq!(seen[2].1["baton"], "two");
    assert_eq!(seen[2].1["requests"][0]["type"], "close");
}

#[tokio::test]
async fn many_rows_are_a_stream() {
    let (server, _) = server(vec![numbers("one", 0..1000)]).await;
    let connection = server.open();
    let answer = connection.execute("SELECT a FROM t".into(), vec![]).await.unwrap();
    assert!(matches!(answer.rows, Rows::Stream(_)));
    assert_eq!(answer.columns, ["a"]);
    assert_eq!(answer.collect().await.unwrap().1.len(), 1000);
}

#[tokio::test]
async fn a_stream_that_the_server_forgot_is_replaced() {
    let forgotten = (
        400,
        r#"{"message":"stream expired","code":"STREAM_EXPIRED"}"#.to_owned(),
    );
    let (server, seen) = server(vec![numbers("one", [1]), forgotten, numbers("two", [2])]).await;
    let connection = server.open();
    run(&connection, "SELECT 1").await.unwrap();
    assert_eq!(run(&connection, "SELECT 2").await.unwrap(), [2]);
    assert_eq!(seen.lock().unwrap()[2].1["baton"], serde_json::Value::Null);
}

#[tokio::test]
async fn a_lost_transaction_is_told_and_not_gone_on_with() {
    let forgotten = (
        400,
        r#"{"message":"stream expired","code":"STREAM_EXPIRED"}"#.to_owned(),
    );
    let (server, seen) = server(vec![numbers("one", []), forgotten, numbers("two", [2])]).await;
    let connection = server.open();
    run(&connection, "BEGIN IMMEDIATE").await.unwrap();
    assert!(message(run(&connection, "INSERT INTO t VALUES (1)").await).contains("STREAM_EXPIRED"));
    for sql in ["INSERT INTO t VALUES (2)", "COMMIT", "ROLLBACK TO x"] {
        assert!(
            message(run(&connection, sql).await).contains("transaction was lost"),
            "{sql}"
        );
    }
    // None of these was sent.
    assert_eq!(seen.lock().unwrap().len(), 2);
    run(&connection, "ROLLBACK").await.unwrap();
    assert_eq!(run(&connection, "SELECT 2").await.unwrap(), [2]);
}

#[tokio::test]
async fn a_statement_that_is_given_up_takes_its_transaction_with_it() {
    let (server, seen) = server(vec![numbers("one", [])]).await;
    let connection = server.open();
    run(&connection, "BEGIN").await.unwrap();
    let never = tokio::time::timeout(Duration::from_millis(200), run(&connection, "SELECT 1"));
    assert!(never.await.is_err());
    assert_eq!(seen.lock().unwrap().len(), 2);
    assert!(message(run(&connection, "SELECT 1").await).contains("transaction was lost"));
}

#[tokio::test]
async fn a_server_that_falls_silent_is_not_waited_for_without_end() {
    // Before its answer, and in the middle of it.
    for answers in [vec![], vec![numbers("one", 0..3)]] {
        let (mut server, _) = stalling_server(answers, 200).await;
        Arc::get_mut(&mut server).unwrap().patience = Duration::from_millis(100);
        let error = message(run(&server.open(), "SELECT 1").await);
        assert!(error.contains("no answer within 100ms"), "{error}");
    }
}

#[tokio::test]
async fn a_refused_statement_leaves_its_transaction_open() {
    let refused = "{\"baton\":\"two\",\"base_url\":null}\n{\"type\":\"step_error\",\"step\":0,\"error\":\
        {\"message\":\"UNIQUE constraint failed: t.a\",\"code\":\"SQLITE_CONSTRAINT\"}}\n";
    let answers = vec![numbers("one", []), (200, refused.to_owned()), numbers("three", [])];
    let (server, seen) = server(answers).await;
    let connection = server.open();
    run(&connection, "BEGIN").await.unwrap();
    let error = message(run(&connection, "INSERT INTO t VALUES (1)").await);
    assert!(
        error.contains("UNIQUE constraint failed: t.a (SQLITE_CONSTRAINT)"),
        "{error}"
    );
    run(&connection, "COMMIT").await.unwrap();
    assert_eq!(seen.lock().unwrap()[2].1["baton"], "two");
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_an_error() {
    let (_, whole) = numbers("one", [1, 2]);
    let cut = whole[..whole.len() / 2].to_owned();
    for body in [
        String::new(),
        cut,
        "<html>proxy</html>".to_owned(),
        "{}\n{\"type\":\"row\",\"row\":[]}\n".to_owned(),
    ] {
        let (server, _) = server(vec![(200, body.clone())]).await;
        assert!(
            message(run(&server.open(), "SELECT 1").await).starts_with("libSQL at http://127.0.0.1:"),
            "{body}"
        );
    }
}

#[tokio::test]
async fn the_token_is_in_no_error() {
    let (server, _) = server(vec![(401, r#"{"error":"t0ken is not valid"}"#.to_owned())]).await;
    let error = message(run(&server.open(), "SELECT 1").await);
    assert!(error.contains("HTTP 401: *** is not valid"), "{error}");
    assert!(!format!("{server:?}").contains("t0ken"));
    for (url, token) in [
        ("http://db", "t0k\nen"),
        ("http://db", "t0ken "),
        ("http://t0ken@db", "t0ken"),
    ] {
        let error = format!("{:?}", Server::new(url, token.to_owned()).unwrap_err());
        assert!(!error.contains("t0k"), "{error}");
    }
}

#[test]
fn the_urls_of_the_client_are_understood() {
    let shown = |url| Server::new(url, String::new()).unwrap().to_string();
    assert_eq!(
        shown("libsql://name-org.turso.io"),
        "libSQL at https://name-org.turso.io"
    );
    assert_eq!(shown("http://127.0.0.1:8080/"), "libSQL at http://127.0.0.1:8080");
    assert!(Server::new("ws://db", String::new()).is_err());
}

#[test]
fn transactions_begin_and_end_by_their_words() {
    use Transaction::{None, Open};
    for (before, sql, after) in [
        (None, "BEGIN", Open),
        (None, " -- x\n begin immediate", Open),
        (None, "SAVEPOINT a", Open),
        (None, "INSERT INTO t VALUES ('BEGIN')", None),
        (Open, "INSERT INTO t VALUES (1)", Open),
        (Open, "RELEASE a", Open),
        (Open, "ROLLBACK TO a", Open),
        (Open, "ROLLBACK TRANSACTION TO SAVEPOINT a", Open),
        (Open, "COMMIT", None),
        (Open, "END TRANSACTION", None),
        (Open, "rollback;", None),
    ] {
        assert_eq!(before.after(sql), after, "{sql}");
    }
}

#[test]
fn the_token_stays_with_the_configured_server() {
    let may = |at: &str, configured: &str| may_have_token(&Url::parse(at).unwrap(), &Url::parse(configured).unwrap());
    let configured = "https://db.example.org";
    assert!(may("https://db.example.org:8443/x", configured));
    assert!(may("https://eu-1.db.example.org", configured));
    for elsewhere in [
        "https://evil.example",
        "https://example.org",
        "https://evil-db.example.org",
        "http://db.example.org",
        "https://10.0.0.1",
    ] {
        assert!(!may(elsewhere, configured), "{elsewhere}");
    }
    assert!(may("http://127.0.0.1:8080", "http://127.0.0.1"));
    assert!(!may("http://1.127.0.0.1.example", "http://127.0.0.1"));
}

#[tokio::test]
async fn a_server_that_trickles_after_the_end_is_not_waited_for() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        request(&mut stream).await;
        let (_, body) = numbers("one", 0..3);
        let head = format!("HTTP/1.1 200 X\r\ncontent-length: {}\r\n\r\n", body.len() + 1_000_000);
        stream.write_all((head + &body).as_bytes()).await.unwrap();
        // Until the client gives up.
        while stream.write_all(b"\n").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let server = Server::new(&url, "t0ken".into()).unwrap();
    let connection = server.open();
    let answer = tokio::time::timeout(DRAIN * 20, run(&connection, "SELECT 1")).await;
    assert_eq!(answer.unwrap().unwrap(), [0, 1, 2]);
}
