#![allow(clippy::unwrap_used, clippy::panic, reason = "a panic fails the test")]

use std::sync::{Arc, Mutex as StdMutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::stream::DRAIN_TIMEOUT;
use super::{Connection, Server};
use crate::bindings::sqlite::{Error, RowResult, Value};
use crate::storage::answer::Rows;

/// The path and body of each request that the server has received.
type Requests = Arc<StdMutex<Vec<(String, serde_json::Value)>>>;

/// A server that sends these responses (status and body), one to each request. After the last one it stays silent.
async fn server(answers: Vec<(u16, String)>) -> (Arc<Server>, Requests) {
    stalling_server(answers, usize::MAX).await
}

/// Like `server`, but stalls after the first `max_bytes` bytes of each body.
async fn stalling_server(answers: Vec<(u16, String)>, max_bytes: usize) -> (Arc<Server>, Requests) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let requests = Requests::default();
    let server_requests = requests.clone();
    tokio::spawn(async move {
        let mut answers = answers.into_iter();
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let request = request(&mut stream).await;
            server_requests.lock().unwrap().push(request);
            let Some((status, body)) = answers.next() else {
                std::future::pending::<()>().await;
                return;
            };
            let length = body.len();
            let head = format!("HTTP/1.1 {status} X\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n");
            stream.write_all(head.as_bytes()).await.unwrap();
            stream
                .write_all(&body.as_bytes()[..length.min(max_bytes)])
                .await
                .unwrap();
            if length > max_bytes {
                std::future::pending::<()>().await;
            }
        }
    });
    (Server::new(&url, "t0ken".into()).unwrap(), requests)
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

/// The response to a statement that returns one column with these numbers.
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
    let (server, requests) = server(vec![numbers("one", [1]), numbers("two", [2, 3]), closed]).await;
    let connection = server.open();
    assert_eq!(run(&connection, "SELECT 1").await.unwrap(), [1]);
    assert_eq!(run(&connection, "SELECT 2").await.unwrap(), [2, 3]);
    drop(connection);
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while requests.lock().unwrap().len() < 3 {
        assert!(tokio::time::Instant::now() < deadline, "the stream was not closed");
        tokio::task::yield_now().await;
    }
    let requests = requests.lock().unwrap();
    assert_eq!(requests[0].0, "/v3/cursor");
    assert_eq!(requests[0].1["baton"], serde_json::Value::Null);
    assert_eq!(requests[1].1["baton"], "one");
    assert_eq!(requests[1].1["batch"]["steps"][0]["stmt"]["sql"], "SELECT 2");
    assert_eq!(requests[2].0, "/v3/pipeline");
    assert_eq!(requests[2].1["baton"], "two");
    assert_eq!(requests[2].1["requests"][0]["type"], "close");
}

#[tokio::test]
async fn many_rows_are_streamed() {
    let (server, _) = server(vec![numbers("one", 0..1000)]).await;
    let connection = server.open();
    let answer = connection.execute("SELECT a FROM t".into(), vec![]).await.unwrap();
    assert!(matches!(answer.rows, Rows::Stream(_)));
    assert_eq!(answer.columns, ["a"]);
    assert_eq!(answer.collect().await.unwrap().1.len(), 1000);
}

#[tokio::test]
async fn an_expired_stream_is_replaced() {
    let expired = (
        400,
        r#"{"message":"stream expired","code":"STREAM_EXPIRED"}"#.to_owned(),
    );
    let (server, requests) = server(vec![numbers("one", [1]), expired, numbers("two", [2])]).await;
    let connection = server.open();
    run(&connection, "SELECT 1").await.unwrap();
    assert_eq!(run(&connection, "SELECT 2").await.unwrap(), [2]);
    assert_eq!(requests.lock().unwrap()[2].1["baton"], serde_json::Value::Null);
}

#[tokio::test]
async fn a_lost_transaction_is_reported_and_not_continued() {
    let expired = (
        400,
        r#"{"message":"stream expired","code":"STREAM_EXPIRED"}"#.to_owned(),
    );
    let (server, requests) = server(vec![numbers("one", []), expired, numbers("two", [2])]).await;
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
    assert_eq!(requests.lock().unwrap().len(), 2);
    run(&connection, "ROLLBACK").await.unwrap();
    assert_eq!(run(&connection, "SELECT 2").await.unwrap(), [2]);
}

#[tokio::test]
async fn an_abandoned_statement_loses_its_transaction() {
    let (server, requests) = server(vec![numbers("one", [])]).await;
    let connection = server.open();
    run(&connection, "BEGIN").await.unwrap();
    let never = tokio::time::timeout(Duration::from_millis(200), run(&connection, "SELECT 1"));
    assert!(never.await.is_err());
    assert_eq!(requests.lock().unwrap().len(), 2);
    assert!(message(run(&connection, "SELECT 1").await).contains("transaction was lost"));
}

#[tokio::test]
async fn a_silent_server_times_out() {
    // Before the response, and in the middle of it.
    for answers in [vec![], vec![numbers("one", 0..3)]] {
        let (mut server, _) = stalling_server(answers, 200).await;
        Arc::get_mut(&mut server).unwrap().response_timeout = Duration::from_millis(100);
        let error = message(run(&server.open(), "SELECT 1").await);
        assert!(error.contains("no answer within 100ms"), "{error}");
    }
}

#[tokio::test]
async fn a_failed_statement_leaves_its_transaction_open() {
    let refused = "{\"baton\":\"two\",\"base_url\":null}\n{\"type\":\"step_error\",\"step\":0,\"error\":\
        {\"message\":\"UNIQUE constraint failed: t.a\",\"code\":\"SQLITE_CONSTRAINT\"}}\n";
    let answers = vec![numbers("one", []), (200, refused.to_owned()), numbers("three", [])];
    let (server, requests) = server(answers).await;
    let connection = server.open();
    run(&connection, "BEGIN").await.unwrap();
    let error = message(run(&connection, "INSERT INTO t VALUES (1)").await);
    assert!(
        error.contains("UNIQUE constraint failed: t.a (SQLITE_CONSTRAINT)"),
        "{error}"
    );
    run(&connection, "COMMIT").await.unwrap();
    assert_eq!(requests.lock().unwrap()[2].1["baton"], "two");
}

#[tokio::test]
async fn a_truncated_response_is_an_error() {
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
async fn no_error_contains_the_token() {
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

#[tokio::test]
async fn a_server_that_trickles_after_the_end_does_not_delay_the_result() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        request(&mut stream).await;
        let (_, body) = numbers("one", 0..3);
        let head = format!("HTTP/1.1 200 X\r\ncontent-length: {}\r\n\r\n", body.len() + 1_000_000);
        stream.write_all((head + &body).as_bytes()).await.unwrap();
        // Sends until the client gives up.
        while stream.write_all(b"\n").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let server = Server::new(&url, "t0ken".into()).unwrap();
    let connection = server.open();
    let answer = tokio::time::timeout(DRAIN_TIMEOUT * 20, run(&connection, "SELECT 1")).await;
    assert_eq!(answer.unwrap().unwrap(), [0, 1, 2]);
}
