#![allow(clippy::unwrap_used, clippy::panic, reason = "a panic fails the test")]

use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;

use super::stream::DRAIN_TIMEOUT;
use super::{Connection, Server};
use crate::bindings::sqlite::{Error, RowResult, Value};
use crate::storage::answer::Rows;
use crate::testing::{self, Request, Response};

/// A connection's server, and the fake one that sends these responses.
async fn server(responses: Vec<Response>) -> (Arc<Server>, testing::Server) {
    let fake = testing::Server::with(responses).await;
    (Server::new(&fake.url(), "t0ken".into()).unwrap(), fake)
}

/// The bodies of the requests, all of which carry the token.
fn bodies(fake: &testing::Server) -> Vec<serde_json::Value> {
    let body = |request: Request| {
        assert!(request.head.contains("authorization: Bearer t0ken\r\n"), "{request:?}");
        serde_json::from_str(&request.body).unwrap()
    };
    fake.requests().into_iter().map(body).collect()
}

/// The response to a statement that returns one column with these numbers.
fn numbers(baton: &str, numbers: impl IntoIterator<Item = i64>) -> Response {
    Response::new(200, numbers_text(baton, numbers))
}

fn numbers_text(baton: &str, numbers: impl IntoIterator<Item = i64>) -> String {
    let mut text = format!("{{\"baton\":\"{baton}\",\"base_url\":null}}\n");
    text.push_str("{\"type\":\"step_begin\",\"step\":0,\"cols\":[{\"name\":\"a\"}]}\n");
    for number in numbers {
        text.push_str(&format!(
            "{{\"type\":\"row\",\"row\":[{{\"type\":\"integer\",\"value\":\"{number}\"}}]}}\n"
        ));
    }
    text.push_str("{\"type\":\"step_end\",\"affected_row_count\":0,\"last_insert_rowid\":null}\n");
    text
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
    let closed = Response::new(200, r#"{"baton":null,"base_url":null,"results":[]}"#);
    let (server, fake) = server(vec![numbers("one", [1]), numbers("two", [2, 3]), closed]).await;
    let connection = server.open();
    assert_eq!(run(&connection, "SELECT 1").await.unwrap(), [1]);
    assert_eq!(run(&connection, "SELECT 2").await.unwrap(), [2, 3]);
    drop(connection);
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while fake.requests().len() < 3 {
        assert!(tokio::time::Instant::now() < deadline, "the stream was not closed");
        tokio::task::yield_now().await;
    }
    let requests = fake.requests();
    assert_eq!([requests[0].path(), requests[2].path()], ["/v3/cursor", "/v3/pipeline"]);
    let bodies = bodies(&fake);
    assert_eq!(bodies[0]["baton"], serde_json::Value::Null);
    assert_eq!(bodies[1]["baton"], "one");
    assert_eq!(bodies[1]["batch"]["steps"][0]["stmt"]["sql"], "SELECT 2");
    assert_eq!(bodies[2]["baton"], "two");
    assert_eq!(bodies[2]["requests"][0]["type"], "close");
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
    let expired = Response::new(400, r#"{"message":"stream expired","code":"STREAM_EXPIRED"}"#);
    let (server, fake) = server(vec![numbers("one", [1]), expired, numbers("two", [2])]).await;
    let connection = server.open();
    run(&connection, "SELECT 1").await.unwrap();
    assert_eq!(run(&connection, "SELECT 2").await.unwrap(), [2]);
    assert_eq!(bodies(&fake)[2]["baton"], serde_json::Value::Null);
}

#[tokio::test]
async fn a_lost_transaction_is_reported_and_not_continued() {
    let expired = Response::new(400, r#"{"message":"stream expired","code":"STREAM_EXPIRED"}"#);
    let (server, fake) = server(vec![numbers("one", []), expired, numbers("two", [2])]).await;
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
    assert_eq!(fake.requests().len(), 2);
    run(&connection, "ROLLBACK").await.unwrap();
    assert_eq!(run(&connection, "SELECT 2").await.unwrap(), [2]);
}

#[tokio::test]
async fn an_abandoned_statement_loses_its_transaction() {
    let (server, fake) = server(vec![numbers("one", [])]).await;
    let connection = server.open();
    run(&connection, "BEGIN").await.unwrap();
    let never = tokio::time::timeout(Duration::from_millis(200), run(&connection, "SELECT 1"));
    assert!(never.await.is_err());
    assert_eq!(fake.requests().len(), 2);
    assert!(message(run(&connection, "SELECT 1").await).contains("transaction was lost"));
}

#[tokio::test]
async fn a_silent_server_times_out() {
    // Before the response, and in the middle of it.
    for responses in [vec![], vec![numbers("one", 0..3).stalling_after(200)]] {
        let (mut server, _) = server(responses).await;
        Arc::get_mut(&mut server).unwrap().response_timeout = Duration::from_millis(100);
        let error = message(run(&server.open(), "SELECT 1").await);
        assert!(error.contains("no answer within 100ms"), "{error}");
    }
}

#[tokio::test]
async fn a_failed_statement_leaves_its_transaction_open() {
    let refused = "{\"baton\":\"two\",\"base_url\":null}\n{\"type\":\"step_error\",\"step\":0,\"error\":\
        {\"message\":\"UNIQUE constraint failed: t.a\",\"code\":\"SQLITE_CONSTRAINT\"}}\n";
    let answers = vec![numbers("one", []), Response::new(200, refused), numbers("three", [])];
    let (server, fake) = server(answers).await;
    let connection = server.open();
    run(&connection, "BEGIN").await.unwrap();
    let error = message(run(&connection, "INSERT INTO t VALUES (1)").await);
    assert!(
        error.contains("UNIQUE constraint failed: t.a (SQLITE_CONSTRAINT)"),
        "{error}"
    );
    run(&connection, "COMMIT").await.unwrap();
    assert_eq!(bodies(&fake)[2]["baton"], "two");
}

#[tokio::test]
async fn a_truncated_response_is_an_error() {
    let whole = numbers_text("one", [1, 2]);
    let cut = whole[..whole.len() / 2].to_owned();
    for body in [
        String::new(),
        cut,
        "<html>proxy</html>".to_owned(),
        "{}\n{\"type\":\"row\",\"row\":[]}\n".to_owned(),
    ] {
        let (server, _) = server(vec![Response::new(200, body.clone())]).await;
        assert!(
            message(run(&server.open(), "SELECT 1").await).starts_with("libSQL at http://127.0.0.1:"),
            "{body}"
        );
    }
}

#[tokio::test]
async fn no_error_contains_the_token() {
    let (server, _) = server(vec![Response::new(401, r#"{"error":"t0ken is not valid"}"#)]).await;
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
        Request::read(&mut stream).await;
        let body = numbers_text("one", 0..3);
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
