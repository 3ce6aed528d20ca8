//! Databases on a libSQL server (Turso, sqld), over Hrana 3 over HTTP like the `libsql` crate that Spin uses.
//!
//! That crate itself is not used because its remote client brings a second HTTP stack (hyper 0.14, rustls 0.22), does not
//! limit the size of rows, and does not distinguish a lost transaction from none. The subset of the protocol is small: each
//! statement opens a cursor, which streams its rows.
//!
//! <https://github.com/tursodatabase/libsql/blob/main/docs/HRANA_3_SPEC.md>

mod protocol;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, anyhow, ensure};
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use tokio::sync::{Mutex, OwnedMutexGuard, mpsc, oneshot};
use url::Url;

use self::protocol::{Entry, Head, Lines};
use crate::bindings::sqlite::{Error, RowResult, Value};
use crate::http_client::{self, Client, Version, below, causes};
use crate::storage::answer::{AbortOnDrop, Answer, MAX_RESULT_BYTES, ROWS_AHEAD, RowStream, Rows, size, too_large};
use crate::storage::statement::{begins_transaction, ends_transaction, is_rollback};

/// How much of a result is read before the rest is streamed, in bytes.
const AT_ONCE_BYTES: usize = 256 << 10;
/// How long the server may stay silent. A statement may wait there for the lock of another one, by default for 5 s.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the request to close a stream may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long to read the rest of a response after the end of its statement.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// A libSQL server.
pub struct Server {
    url: Url,
    token: String,
    authorization: HeaderValue,
    client: Client,
    response_timeout: Duration,
}

impl Server {
    /// # Errors
    /// The URL or the token is invalid. The error quotes neither.
    pub fn new(url: &str, token: String) -> Result<Arc<Self>> {
        // The `libsql` crate uses TLS for this scheme.
        let url = match url.strip_prefix("libsql://") {
            Some(rest) => format!("https://{rest}"),
            None => url.to_owned(),
        };
        let schemes = ["libsql", "https", "http"];
        let url = http_client::server_url(&url, &schemes, "put the token into `token`")?;
        let mut authorization = HeaderValue::try_from(format!("Bearer {token}")).map_err(|_| {
            anyhow!("token contains a character that is not allowed in an HTTP header; does it end with a line break?")
        })?;
        authorization.set_sensitive(true);
        ensure!(token.trim() == token, "token starts or ends with a space");
        Ok(Arc::new(Self {
            client: Client::new(&url, Version::Http1),
            url,
            token,
            authorization,
            response_timeout: RESPONSE_TIMEOUT,
        }))
    }

    /// Creates a connection without sending anything.
    pub fn open(self: &Arc<Self>) -> Connection {
        let stream = Stream {
            server: self.clone(),
            base_url: self.url.clone(),
            baton: None,
            transaction: Transaction::None,
        };
        Connection {
            server: self.clone(),
            stream: Arc::new(Mutex::new(stream)),
        }
    }

    async fn post(&self, base_url: &Url, path: &str, body: Vec<u8>) -> Result<Response<Incoming>> {
        let request = Request::post(below(base_url, path))
            .header(AUTHORIZATION, self.authorization.clone())
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))?;
        self.client.send(request).await
    }

    fn timed_out(&self) -> Error {
        self.error(format_args!("no answer within {:?}", self.response_timeout))
    }

    fn error(&self, problem: impl std::fmt::Display) -> Error {
        let mut problem = problem.to_string();
        // A server may quote the token.
        if !self.token.is_empty() {
            problem = problem.replace(&self.token, "***");
        }
        Error::Io(format!("{self}: {problem}"))
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

impl std::fmt::Display for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "libSQL at {}", self.url.as_str().trim_end_matches('/'))
    }
}

/// A connection that a component has opened. Statements on it run one after the other.
#[derive(Clone, Debug)]
pub struct Connection {
    server: Arc<Server>,
    stream: Arc<Mutex<Stream>>,
}

/// A stream in Hrana's terms: a SQLite connection on the server. The first statement creates it.
#[derive(Debug)]
struct Stream {
    server: Arc<Server>,
    /// The URL for the next request, which the server may change.
    base_url: Url,
    /// Identifies the stream and changes with each response. None before the first statement, while a statement runs, and
    /// after a statement whose outcome is unknown.
    baton: Option<String>,
    transaction: Transaction,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Transaction {
    None,
    Open,
    /// The transaction was open on a stream that is gone, so the server rolls it back. Statements fail until the component
    /// acknowledges this with ROLLBACK.
    Lost,
}

impl Transaction {
    /// The state after `sql` has succeeded. Releasing an outermost savepoint also ends a transaction in SQLite, but here it
    /// counts as open, which is the safe assumption.
    fn after(self, sql: &str) -> Self {
        if begins_transaction(sql) {
            Self::Open
        } else if ends_transaction(sql) {
            Self::None
        } else {
            self
        }
    }
}

impl Connection {
    /// The server, as shown in traces.
    pub fn server(&self) -> String {
        self.server.to_string()
    }

    /// Runs a statement.
    ///
    /// # Errors
    /// The server cannot be reached or reports an error. The error contains its message, but never the token.
    pub async fn execute(&self, sql: String, parameters: Vec<Value>) -> Result<Answer, Error> {
        let begin = async {
            let mut stream = self.stream.clone().lock_owned().await;
            let running = stream.begin(&sql, &parameters).await?;
            Ok((stream, running))
        };
        let begun = tokio::time::timeout(self.server.response_timeout, begin).await;
        let (mut stream, running) = begun.unwrap_or_else(|_| Err(self.server.timed_out()))?;
        let Some(mut running) = running else {
            return Ok(Answer {
                columns: Vec::new(),
                rows: Rows::All(Vec::new()),
            });
        };
        let mut rows = Vec::new();
        let mut bytes = 0;
        while rows.len() < ROWS_AHEAD && bytes < AT_ONCE_BYTES {
            match running.row().await {
                Ok(Some(row)) => {
                    bytes += size(&row.values);
                    rows.push(row);
                }
                ended => {
                    let columns = std::mem::take(&mut running.columns);
                    stream.finish(running, &sql);
                    ended?;
                    return Ok(Answer {
                        columns,
                        rows: Rows::All(rows),
                    });
                }
            }
        }
        let columns = std::mem::take(&mut running.columns);
        Ok(Answer {
            columns,
            rows: Rows::Stream(stream_rows(stream, running, rows, sql)),
        })
    }
}

/// Streams `first` and then the remaining rows, until the receiver is dropped.
fn stream_rows(
    mut stream: OwnedMutexGuard<Stream>,
    mut running: Running,
    first: Vec<RowResult>,
    sql: String,
) -> RowStream {
    let (sender, rows) = mpsc::channel(ROWS_AHEAD);
    let (end_sender, end) = oneshot::channel();
    let task = tokio::spawn(async move {
        // Sending fails only if the receiver was dropped, which also aborts this task.
        for row in first {
            if sender.send(row).await.is_err() {
                return;
            }
        }
        let ended = loop {
            match running.row().await {
                Ok(Some(row)) => {
                    if sender.send(row).await.is_err() {
                        return;
                    }
                }
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        stream.finish(running, &sql);
        drop(stream);
        drop(end_sender.send(ended));
    });
    RowStream {
        rows,
        end,
        abandon: Box::new(AbortOnDrop(task.abort_handle())),
    }
}

/// A statement whose rows are being read.
#[derive(Debug)]
struct Running {
    server: Arc<Server>,
    body: Incoming,
    lines: Lines,
    head: Head,
    columns: Vec<String>,
    before: Transaction,
    outcome: Option<Outcome>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Outcome {
    Success,
    /// The statement failed, but its stream is still usable.
    Failure,
}

impl Stream {
    /// Sends a statement and waits for its columns. Returns none if there is nothing to do.
    async fn begin(&mut self, sql: &str, parameters: &[Value]) -> Result<Option<Running>, Error> {
        let server = self.server.clone();
        let before = self.transaction;
        if before == Transaction::Lost {
            if is_rollback(sql) {
                self.transaction = Transaction::None;
                return Ok(None);
            }
            return Err(server.error(
                "the transaction was lost with its connection and is rolled back: run ROLLBACK, then begin again",
            ));
        }
        let mut baton = self.baton.take();
        // The caller may abandon the statement at any time, so assume the worst until its response has arrived.
        if before == Transaction::Open {
            self.transaction = Transaction::Lost;
        }
        let response = loop {
            let body = protocol::cursor(baton.as_deref(), sql, parameters).map_err(|problem| server.error(problem))?;
            let response = server
                .post(&self.base_url, "v3/cursor", body)
                .await
                .map_err(|error| server.error(error))?;
            if response.status().is_success() {
                break response;
            }
            // The server has dropped the idle stream, so the statement has not started and can be repeated.
            let expired = matches!(response.status().as_u16(), 400 | 404 | 410);
            if baton.take().is_some() && expired && before == Transaction::None {
                self.base_url = server.url.clone();
                continue;
            }
            return Err(server.error(http_client::refusal(response, protocol::message).await));
        };
        let mut running = Running {
            body: response.into_body(),
            lines: Lines::default(),
            head: Head::default(),
            columns: Vec::new(),
            before,
            outcome: None,
            server,
        };
        let head = running.line().await?.ok_or_else(|| running.truncated())?;
        running.head = protocol::head(&head).map_err(|problem| running.server.error(problem))?;
        match running.entry().await? {
            Entry::StepBegin { cols } => {
                running.columns = cols.into_iter().map(|col| col.name.unwrap_or_default()).collect()
            }
            Entry::StepError { error } => {
                running.outcome = Some(Outcome::Failure);
                running.drain().await;
                let error = running.server.error(error);
                self.finish(running, sql);
                return Err(error);
            }
            Entry::Error { error } => return Err(running.server.error(error)),
            _ => {
                return Err(running
                    .server
                    .error("the response starts with neither columns nor an error"));
            }
        }
        Ok(Some(running))
    }

    /// Updates the stream after a statement. Without an outcome, the stream has no baton and is lost.
    fn finish(&mut self, running: Running, sql: &str) {
        let Some(outcome) = running.outcome else { return };
        self.transaction = match outcome {
            Outcome::Success => running.before.after(sql),
            Outcome::Failure => running.before,
        };
        if let Some(url) = running.head.base_url.as_deref().and_then(|url| Url::parse(url).ok())
            && may_have_token(&url, &self.server.url)
        {
            self.base_url = url;
        }
        self.baton = running.head.baton;
        if self.baton.is_none() && self.transaction == Transaction::Open {
            self.transaction = Transaction::Lost;
        }
    }
}

/// Whether the token may be sent to `url`, which the server has requested. The host must be the configured one or one of its
/// subdomains, and the scheme must be the configured one.
fn may_have_token(url: &Url, configured: &Url) -> bool {
    let (Some(host), Some(requested)) = (configured.domain(), url.domain()) else {
        return url.scheme() == configured.scheme() && url.host() == configured.host();
    };
    let is_below = requested
        .strip_suffix(host)
        .is_some_and(|below| below.is_empty() || below.ends_with('.'));
    url.scheme() == configured.scheme() && is_below
}

impl Running {
    async fn row(&mut self) -> Result<Option<RowResult>, Error> {
        loop {
            match self.entry().await? {
                Entry::Row { row } => {
                    let values = row.into_iter().map(protocol::value).collect::<Result<_>>();
                    let values = values.map_err(|problem| self.server.error(problem))?;
                    return Ok(Some(RowResult { values }));
                }
                Entry::StepEnd => {
                    self.outcome = Some(Outcome::Success);
                    self.drain().await;
                    return Ok(None);
                }
                Entry::StepError { error } => {
                    self.outcome = Some(Outcome::Failure);
                    self.drain().await;
                    return Err(self.server.error(error));
                }
                Entry::Error { error } => return Err(self.server.error(error)),
                Entry::StepBegin { .. } | Entry::Other => {}
            }
        }
    }

    /// Reads the rest of the response, so that the HTTP connection can be reused. If this fails or takes too long, the
    /// connection is closed.
    async fn drain(&mut self) {
        let rest = async { while let Ok(Some(_)) = self.line().await {} };
        // The statement has ended, so the rest may be lost.
        let _ = tokio::time::timeout(DRAIN_TIMEOUT, rest).await;
    }

    async fn entry(&mut self) -> Result<Entry, Error> {
        let line = self.line().await?.ok_or_else(|| self.truncated())?;
        protocol::entry(&line).map_err(|problem| self.server.error(problem))
    }

    /// Returns the next line, or none at the end of the response.
    async fn line(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            if let Some(line) = self.lines.next() {
                return Ok(Some(line));
            }
            if self.lines.waiting() > MAX_RESULT_BYTES {
                return Err(too_large());
            }
            let frame = tokio::time::timeout(self.server.response_timeout, self.body.frame());
            match frame.await.map_err(|_| self.server.timed_out())? {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.lines.add(&data);
                    }
                }
                Some(Err(error)) => {
                    return Err(self
                        .server
                        .error(format_args!("the response ended early: {}", causes(&error))));
                }
                None => return Ok(self.lines.rest()),
            }
        }
    }

    fn truncated(&self) -> Error {
        self.server.error("the response ended early")
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let Some(baton) = self.baton.take() else { return };
        // Without a runtime, the server closes the stream itself when it has been idle for a while.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        let (server, base_url) = (self.server.clone(), self.base_url.clone());
        runtime.spawn(async move {
            let close = protocol::close(&baton);
            let answer = tokio::time::timeout(CLOSE_TIMEOUT, async {
                let response = server.post(&base_url, "v3/pipeline", close).await?;
                http_client::read(response.into_body(), AT_ONCE_BYTES).await
            });
            if let Ok(Err(error)) = answer.await {
                tracing::debug!("{server}: {error}");
            }
        });
    }
}
