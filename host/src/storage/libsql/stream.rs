//! A stream and the statement that runs on it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use url::Url;

use super::protocol::{self, Entry, Head, Lines};
use super::server::{Server, may_have_token};
use super::transaction::Transaction;
use crate::bindings::sqlite::{Error, RowResult, Value};
use crate::http_client::{self, causes};
use crate::storage::answer::{MAX_RESULT_BYTES, too_large};
use crate::storage::statement::is_rollback;

/// How long the request to close a stream may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// The maximum size of the response to that request, in bytes.
const MAX_CLOSED: usize = 256 << 10;
/// How long to read the rest of a response after the end of its statement.
pub(super) const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// A stream in Hrana's terms: a SQLite connection on the server. The first statement creates it.
#[derive(Debug)]
pub struct Stream {
    server: Arc<Server>,
    /// The URL for the next request, which the server may change.
    base_url: Url,
    /// Identifies the stream and changes with each response. None before the first statement, while a statement runs, and
    /// after a statement whose outcome is unknown.
    baton: Option<String>,
    transaction: Transaction,
}

/// A statement whose rows are being read.
#[derive(Debug)]
pub struct Running {
    server: Arc<Server>,
    body: Incoming,
    lines: Lines,
    head: Head,
    pub columns: Vec<String>,
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
    /// A stream that does not exist on the server yet.
    pub fn new(server: Arc<Server>) -> Self {
        Self {
            base_url: server.url.clone(),
            server,
            baton: None,
            transaction: Transaction::None,
        }
    }

    /// Sends a statement and waits for its columns. Returns none if there is nothing to do.
    ///
    /// # Errors
    /// The server cannot be reached or reports an error, or the transaction is lost.
    pub async fn begin(&mut self, sql: &str, parameters: &[Value]) -> Result<Option<Running>, Error> {
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
    pub fn finish(&mut self, running: Running, sql: &str) {
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
                http_client::read(response.into_body(), MAX_CLOSED).await
            });
            if let Ok(Err(error)) = answer.await {
                tracing::debug!("{server}: {error}");
            }
        });
    }
}

impl Running {
    /// Returns the next row, or none after the last one.
    ///
    /// # Errors
    /// The statement fails, or the response breaks off.
    pub async fn row(&mut self) -> Result<Option<RowResult>, Error> {
        loop {
            match self.entry().await? {
                Entry::Row { row } => {
                    let values = row.into_iter().map(protocol::value).collect::<Result<Vec<_>, _>>();
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
