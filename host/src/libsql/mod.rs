//! Databases on a libSQL server (Turso, sqld): Hrana 3 over HTTP, as the crate `libsql` speaks it that Spin uses.
//!
//! Not that crate itself: its remote part brings a second HTTP stack (hyper 0.14, rustls 0.22), and it neither bounds rows
//! nor tells a transaction that is lost from none. What is spoken is small: each statement is a cursor, which gives
//! its rows as they come.
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
use crate::sqlite::{
    AbortOnDrop, Answer, MOST_BYTES, Producer, ROWS_AHEAD, RowStream, Rows, size, starts_with, too_large,
};

/// How much is read of a result before it becomes a stream, in bytes.
const AT_ONCE_BYTES: usize = 256 << 10;
/// How long the server may say nothing. A statement may wait there for another one's lock, for 5 s by default.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long telling the server that a connection is not needed any more may take.
const GOODBYE: Duration = Duration::from_secs(2);
/// How long what follows the end of a statement is read.
const DRAIN: Duration = Duration::from_secs(1);

/// A libSQL server.
pub struct Server {
    url: Url,
    token: String,
    authorization: HeaderValue,
    client: Client,
    patience: Duration,
}

impl Server {
    /// # Errors
    /// A URL or a token that cannot be used; the error quotes neither.
    pub fn new(url: &str, token: String) -> Result<Arc<Self>> {
        // The client's own scheme means TLS.
        let url = match url.strip_prefix("libsql://") {
            Some(rest) => format!("https://{rest}"),
            None => url.to_owned(),
        };
        let schemes = ["libsql", "https", "http"];
        let url = http_client::server_url(&url, &schemes, "the token goes into token")?;
        let mut authorization = HeaderValue::try_from(format!("Bearer {token}"))
            .map_err(|_| anyhow!("token holds what no HTTP header may hold; is it followed by a new line?"))?;
        authorization.set_sensitive(true);
        ensure!(token.trim() == token, "token begins or ends with a space");
        Ok(Arc::new(Self {
            client: Client::new(&url, Version::Http1),
            url,
            token,
            authorization,
            patience: PATIENCE,
        }))
    }

    /// A connection, which nothing is sent for yet.
    pub fn open(self: &Arc<Self>) -> Connection {
        let stream = Stream {
            server: self.clone(),
            at: self.url.clone(),
            baton: None,
            transaction: Transaction::None,
        };
        Connection {
            server: self.clone(),
            stream: Arc::new(Mutex::new(stream)),
        }
    }

    async fn post(&self, at: &Url, path: &str, body: Vec<u8>) -> Result<Response<Incoming>> {
        let request = Request::post(below(at, path))
            .header(AUTHORIZATION, self.authorization.clone())
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))?;
        self.client.send(request).await
    }

    fn silent(&self) -> Error {
        self.error(format_args!("no answer within {:?}", self.patience))
    }

    fn error(&self, problem: impl std::fmt::Display) -> Error {
        let mut problem = problem.to_string();
        // A server may quote what it was sent.
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

/// What the server calls a stream: a SQLite connection there. It exists from the first statement on.
#[derive(Debug)]
struct Stream {
    server: Arc<Server>,
    /// Where the server wants the next request.
    at: Url,
    /// Names the stream; another one with each answer. None before the first statement, while one runs, and after one
    /// that nobody knows the end of.
    baton: Option<String>,
    transaction: Transaction,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Transaction {
    None,
    Open,
    /// It was open on a stream that is gone: the server rolls it back. The component has to hear of it before anything
    /// else is done in its name.
    Lost,
}

impl Transaction {
    /// After `sql` has succeeded. Where SQLite knows better, because a savepoint was the outermost, it stays open, which is
    /// the careful answer.
    fn after(self, sql: &str) -> Self {
        if starts_with(sql, &["BEGIN", "SAVEPOINT"]) {
            Self::Open
        } else if starts_with(sql, &["COMMIT", "END"]) || is_rollback(sql) {
            Self::None
        } else {
            self
        }
    }
}

/// Of all, not to a savepoint.
fn is_rollback(sql: &str) -> bool {
    let to = |word: &str| word.trim_end_matches(';').eq_ignore_ascii_case("TO");
    starts_with(sql, &["ROLLBACK"]) && !sql.split_whitespace().any(to)
}

impl Connection {
    /// What is on the other side.
    pub fn server(&self) -> String {
        self.server.to_string()
    }

    /// Runs a statement.
    ///
    /// # Errors
    /// The server's, with its words, and those on the way to it. Never the token.
    pub async fn execute(&self, sql: String, parameters: Vec<Value>) -> Result<Answer, Error> {
        let begin = async {
            let mut stream = self.stream.clone().lock_owned().await;
            let running = stream.begin(&sql, &parameters).await?;
            Ok((stream, running))
        };
        let begun = tokio::time::timeout(self.server.patience, begin).await;
        let (mut stream, running) = begun.unwrap_or_else(|_| Err(self.server.silent()))?;
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
                    stream.settle(running, &sql);
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
            rows: Rows::Stream(hand_on(stream, running, rows, sql)),
        })
    }
}

/// Goes on reading for as long as somebody wants the rows.
fn hand_on(mut stream: OwnedMutexGuard<Stream>, mut running: Running, first: Vec<RowResult>, sql: String) -> RowStream {
    let (sender, rows) = mpsc::channel(ROWS_AHEAD);
    let (end_sender, end) = oneshot::channel();
    let task = tokio::spawn(async move {
        // That nobody receives any more ends this task anyway.
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
        stream.settle(running, &sql);
        drop(stream);
        drop(end_sender.send(ended));
    });
    RowStream {
        rows,
        end,
        abandon: Producer::Task(AbortOnDrop(task.abort_handle())),
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
    ended: Option<Ended>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Ended {
    Well,
    /// The statement failed, its stream did not.
    Refused,
}

impl Stream {
    /// Sends a statement and waits for its columns. None where there is nothing to do.
    async fn begin(&mut self, sql: &str, parameters: &[Value]) -> Result<Option<Running>, Error> {
        let server = self.server.clone();
        let before = self.transaction;
        if before == Transaction::Lost {
            if is_rollback(sql) {
                self.transaction = Transaction::None;
                return Ok(None);
            }
            return Err(server.error(
                "the transaction was lost with its connection, nothing of it is kept: ROLLBACK, then begin again",
            ));
        }
        let mut baton = self.baton.take();
        // Until its answer has come: it may be given up at any time.
        if before == Transaction::Open {
            self.transaction = Transaction::Lost;
        }
        let response = loop {
            let body = protocol::cursor(baton.as_deref(), sql, parameters).map_err(|problem| server.error(problem))?;
            let response = server
                .post(&self.at, "v3/cursor", body)
                .await
                .map_err(|error| server.error(error))?;
            if response.status().is_success() {
                break response;
            }
            // A stream that was not used for a while is gone, and then the statement has not begun.
            let expired = matches!(response.status().as_u16(), 400 | 404 | 410);
            if baton.take().is_some() && expired && before == Transaction::None {
                self.at = server.url.clone();
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
            ended: None,
            server,
        };
        let head = running.line().await?.ok_or_else(|| running.breaks_off())?;
        running.head = protocol::head(&head).map_err(|problem| running.server.error(problem))?;
        match running.entry().await? {
            Entry::StepBegin { cols } => {
                running.columns = cols.into_iter().map(|col| col.name.unwrap_or_default()).collect()
            }
            Entry::StepError { error } => {
                running.ended = Some(Ended::Refused);
                running.drain().await;
                let error = running.server.error(error);
                self.settle(running, sql);
                return Err(error);
            }
            Entry::Error { error } => return Err(running.server.error(error)),
            _ => {
                return Err(running
                    .server
                    .error("the answer begins with neither columns nor an error"));
            }
        }
        Ok(Some(running))
    }

    /// Takes the stream back from a statement that has ended; one that has not takes it with it.
    fn settle(&mut self, running: Running, sql: &str) {
        let Some(ended) = running.ended else { return };
        self.transaction = match ended {
            Ended::Well => running.before.after(sql),
            Ended::Refused => running.before,
        };
        if let Some(at) = running.head.base_url.as_deref().and_then(|at| Url::parse(at).ok())
            && may_have_token(&at, &self.server.url)
        {
            self.at = at;
        }
        self.baton = running.head.baton;
        if self.baton.is_none() && self.transaction == Transaction::Open {
            self.transaction = Transaction::Lost;
        }
    }
}

/// Whether requests may go on to `at`, where the server wants them. The token is for the server that is configured and its
/// sub-domains, by the protection that is configured.
fn may_have_token(at: &Url, configured: &Url) -> bool {
    let (Some(host), Some(wanted)) = (configured.domain(), at.domain()) else {
        return at.scheme() == configured.scheme() && at.host() == configured.host();
    };
    let is_below = wanted
        .strip_suffix(host)
        .is_some_and(|below| below.is_empty() || below.ends_with('.'));
    at.scheme() == configured.scheme() && is_below
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
                    self.ended = Some(Ended::Well);
                    self.drain().await;
                    return Ok(None);
                }
                Entry::StepError { error } => {
                    self.ended = Some(Ended::Refused);
                    self.drain().await;
                    return Err(self.server.error(error));
                }
                Entry::Error { error } => return Err(self.server.error(error)),
                Entry::StepBegin { .. } | Entry::Other => {}
            }
        }
    }

    /// Reads what follows the end of the statement, so that the HTTP connection can be used again. If that fails or takes too
    /// long, the connection is closed.
    async fn drain(&mut self) {
        let rest = async { while let Ok(Some(_)) = self.line().await {} };
        // The statement has ended: nothing that is left out here is missed.
        let _ = tokio::time::timeout(DRAIN, rest).await;
    }

    async fn entry(&mut self) -> Result<Entry, Error> {
        let line = self.line().await?.ok_or_else(|| self.breaks_off())?;
        protocol::entry(&line).map_err(|problem| self.server.error(problem))
    }

    /// None at the end.
    async fn line(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            if let Some(line) = self.lines.next() {
                return Ok(Some(line));
            }
            if self.lines.waiting() > MOST_BYTES {
                return Err(too_large());
            }
            let frame = tokio::time::timeout(self.server.patience, self.body.frame());
            match frame.await.map_err(|_| self.server.silent())? {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.lines.add(&data);
                    }
                }
                Some(Err(error)) => {
                    return Err(self
                        .server
                        .error(format_args!("the answer breaks off: {}", causes(&error))));
                }
                None => return Ok(self.lines.rest()),
            }
        }
    }

    fn breaks_off(&self) -> Error {
        self.server.error("the answer breaks off")
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let Some(baton) = self.baton.take() else { return };
        // Without a runtime there is no hurry: the server forgets streams that nobody uses.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        let (server, at) = (self.server.clone(), self.at.clone());
        runtime.spawn(async move {
            let close = protocol::close(&baton);
            let answer = tokio::time::timeout(GOODBYE, async {
                let response = server.post(&at, "v3/pipeline", close).await?;
                http_client::read(response.into_body(), AT_ONCE_BYTES).await
            });
            if let Ok(Err(error)) = answer.await {
                tracing::debug!("{server}: {error}");
            }
        });
    }
}
