//! A libSQL server for tests: Hrana 3 over HTTP in front of a SQLite file. The real server is in no package registry.
//!
//! Each stream is a SQLite connection. The client names a stream by a baton, which changes with each answer. The first line
//! of output names the address. `PUT /test/delay` sets the delay of every answer in milliseconds, `PUT /test/token` replaces
//! the token, and `GET /test/streams` returns the number of open streams. To simulate a hanging server, send SIGSTOP.
//!
//! <https://github.com/tursodatabase/libsql/blob/main/docs/HRANA_3_SPEC.md>

use std::collections::HashMap;
use std::convert::Infallible;
use std::hash::{BuildHasher as _, RandomState};
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::Parser;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use libsql_hrana::proto::{
    Batch, BatchCond, BatchResult, BatchStreamResp, CloseSqlStreamResp, CloseStreamResp, Col, CursorEntry,
    CursorReqBody, CursorRespBody, DescribeCol, DescribeParam, DescribeResult, DescribeStreamResp, Error,
    ExecuteStreamResp, GetAutocommitStreamResp, PipelineReqBody, PipelineRespBody, Row, SequenceStreamResp,
    StepBeginEntry, StepEndEntry, StepErrorEntry, Stmt, StmtResult, StoreSqlStreamResp, StreamRequest, StreamResponse,
    StreamResult, Value,
};
use rusqlite::types::ValueRef;
use rusqlite::{Connection, ErrorCode, ffi};
use tokio::net::TcpListener;

/// How long a statement waits for a lock that another one holds.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// The maximum size of a request, in bytes.
const MAX_BYTES: usize = 64 << 20;

/// A libSQL server (Hrana 3 over HTTP) in front of a SQLite file, for tests
#[derive(Debug, Parser)]
struct Cli {
    /// Address and port; port 0 picks a free one
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:0")]
    listen: SocketAddr,

    /// The SQLite file
    #[arg(long, value_name = "FILE")]
    database: PathBuf,

    /// The bearer token that clients must send; by default they need none
    #[arg(long, env = "HRANA_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    token: Option<String>,

    /// The minimum time that every answer takes, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 0)]
    delay: u64,

    /// How long a stream may be idle, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 10_000)]
    stream_expiry: u64,
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(serve(cli))
}

async fn serve(cli: Cli) -> Result<()> {
    let server = Arc::new(Server {
        expiry: Duration::from_millis(cli.stream_expiry),
        state: Mutex::new(State {
            delay: Duration::from_millis(cli.delay),
            token: cli.token,
            streams: HashMap::new(),
            number: 0,
        }),
        secret: RandomState::new(),
        database: cli.database,
    });
    let first = open(&server.database)?;
    first
        .pragma_update(None, "journal_mode", "wal")
        .context("Turning on the write-ahead log")?;
    let listener = TcpListener::bind(cli.listen).await.context("Listening")?;
    println!("listening on {}", listener.local_addr()?);
    std::io::stdout().flush()?;
    loop {
        let (stream, _) = listener.accept().await.context("Accepting")?;
        stream.set_nodelay(true)?;
        let server = server.clone();
        let service = service_fn(move |request| {
            let server = server.clone();
            async move { Ok::<_, Infallible>(server.answer(request).await) }
        });
        tokio::spawn(async move {
            let connection = hyper::server::conn::http1::Builder::new();
            if let Err(error) = connection.serve_connection(TokioIo::new(stream), service).await {
                eprintln!("hrana-server: {error}");
            }
        });
    }
}

fn open(database: &Path) -> Result<Connection> {
    let connection = Connection::open(database).with_context(|| format!("Opening {}", database.display()))?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    Ok(connection)
}

struct Server {
    database: PathBuf,
    expiry: Duration,
    /// The key for unguessable batons.
    secret: RandomState,
    state: Mutex<State>,
}

struct State {
    delay: Duration,
    token: Option<String>,
    /// The streams by baton. A stream that is serving a request is not in here.
    streams: HashMap<String, Stream>,
    number: u64,
}

struct Stream {
    connection: Connection,
    sql: HashMap<i32, String>,
    used: Instant,
}

/// An error response.
struct Refusal(StatusCode, String);

type Reply = Response<Full<Bytes>>;

impl Server {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn answer(&self, request: Request<Incoming>) -> Reply {
        let result = match (request.method(), request.uri().path()) {
            (&Method::GET, "/health" | "/v3") => Ok(reply(StatusCode::OK, "text/plain", "")),
            (&Method::GET, "/test/streams") => {
                let count = self.state().streams.len();
                Ok(reply(StatusCode::OK, "text/plain", count.to_string()))
            }
            (&Method::PUT, "/test/delay" | "/test/token") => self.set(request).await,
            (&Method::POST, "/v3/pipeline") => self.pipeline(request).await,
            (&Method::POST, "/v3/cursor") => self.cursor(request).await,
            _ => Err(Refusal(
                StatusCode::NOT_FOUND,
                error_json("no such resource", "NOT_FOUND"),
            )),
        };
        result.unwrap_or_else(|Refusal(status, text)| reply(status, "application/json", text))
    }

    async fn set(&self, request: Request<Incoming>) -> Result<Reply, Refusal> {
        let path = request.uri().path().to_owned();
        let body = read(request).await?;
        let text = String::from_utf8_lossy(&body).trim().to_owned();
        let mut state = self.state();
        if path == "/test/token" {
            state.token = Some(text);
        } else {
            let delay = text
                .parse()
                .map_err(|_| bad_request("expected a number of milliseconds"))?;
            state.delay = Duration::from_millis(delay);
        }
        Ok(reply(StatusCode::NO_CONTENT, "text/plain", ""))
    }

    /// Waits for the delay, checks the token, and returns the body.
    async fn admit(&self, request: Request<Incoming>) -> Result<Bytes, Refusal> {
        let (delay, token) = {
            let state = self.state();
            (state.delay, state.token.clone())
        };
        tokio::time::sleep(delay).await;
        if let Some(token) = token {
            let sent = request.headers().get(AUTHORIZATION).map(|value| value.as_bytes());
            if sent != Some(format!("Bearer {token}").as_bytes()) {
                let text = r#"{"error":"Authentication failed: the token is not valid"}"#;
                return Err(Refusal(StatusCode::UNAUTHORIZED, text.to_owned()));
            }
        }
        read(request).await
    }

    /// The stream with this baton, or a new one.
    fn stream(&self, baton: Option<&str>) -> Result<Stream, Refusal> {
        let mut state = self.state();
        state.streams.retain(|_, stream| stream.used.elapsed() < self.expiry);
        match baton {
            Some(baton) => state.streams.remove(baton).ok_or_else(|| {
                let text = error_json("The stream has expired due to inactivity", "STREAM_EXPIRED");
                Refusal(StatusCode::BAD_REQUEST, text)
            }),
            None => {
                let connection = open(&self.database).map_err(|error| {
                    let text = error_json(&format!("{error:#}"), "INTERNAL_ERROR");
                    Refusal(StatusCode::INTERNAL_SERVER_ERROR, text)
                })?;
                Ok(Stream {
                    connection,
                    sql: HashMap::new(),
                    used: Instant::now(),
                })
            }
        }
    }

    /// Stores the stream for its next request, and returns the baton that this request must have.
    fn keep(&self, mut stream: Stream) -> String {
        let mut state = self.state();
        state.number += 1;
        let baton = format!("{}-{:016x}", state.number, self.secret.hash_one(state.number));
        stream.used = Instant::now();
        state.streams.insert(baton.clone(), stream);
        baton
    }

    async fn pipeline(&self, request: Request<Incoming>) -> Result<Reply, Refusal> {
        let body = self.admit(request).await?;
        let request: PipelineReqBody =
            serde_json::from_slice(&body).map_err(|error| bad_request(&error.to_string()))?;
        let mut stream = self.stream(request.baton.as_deref())?;
        let (stream, results, closed) = blocking(move || {
            let mut closed = false;
            let results = request.requests.into_iter().map(|request| {
                closed |= matches!(request, StreamRequest::Close(_));
                match stream.run(request) {
                    Ok(response) => StreamResult::Ok { response },
                    Err(error) => StreamResult::Error { error },
                }
            });
            let results = results.collect();
            (stream, results, closed)
        })
        .await?;
        let baton = if closed { None } else { Some(self.keep(stream)) };
        let answer = PipelineRespBody {
            baton,
            base_url: None,
            results,
        };
        Ok(reply(StatusCode::OK, "application/json", json(&answer)))
    }

    async fn cursor(&self, request: Request<Incoming>) -> Result<Reply, Refusal> {
        let body = self.admit(request).await?;
        let request: CursorReqBody = serde_json::from_slice(&body).map_err(|error| bad_request(&error.to_string()))?;
        let stream = self.stream(request.baton.as_deref())?;
        let (stream, entries) = blocking(move || {
            let mut entries = Vec::new();
            stream.batch(&request.batch, &mut |entry| entries.push(entry));
            (stream, entries)
        })
        .await?;
        let head = CursorRespBody {
            baton: Some(self.keep(stream)),
            base_url: None,
        };
        let mut text = json(&head) + "\n";
        for entry in &entries {
            text.push_str(&json(entry));
            text.push('\n');
        }
        Ok(reply(StatusCode::OK, "application/x-ndjson", text))
    }
}

async fn read(request: Request<Incoming>) -> Result<Bytes, Refusal> {
    let body = Limited::new(request.into_body(), MAX_BYTES).collect().await;
    Ok(body.map_err(|error| bad_request(&error.to_string()))?.to_bytes())
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Refusal> {
    tokio::task::spawn_blocking(work).await.map_err(|error| {
        let text = error_json(&error.to_string(), "INTERNAL_ERROR");
        Refusal(StatusCode::INTERNAL_SERVER_ERROR, text)
    })
}

fn bad_request(problem: &str) -> Refusal {
    Refusal(StatusCode::BAD_REQUEST, error_json(problem, "BAD_REQUEST"))
}

fn error_json(message: &str, code: &str) -> String {
    serde_json::json!({ "message": message, "code": code }).to_string()
}

/// Serializes a protocol type, which cannot fail.
fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

fn reply(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Reply {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let kind = hyper::header::HeaderValue::from_static(kind);
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

impl Stream {
    fn run(&mut self, request: StreamRequest) -> Result<StreamResponse, Error> {
        Ok(match request {
            StreamRequest::None => return Err(problem("no request", "BAD_REQUEST")),
            StreamRequest::Close(_) => StreamResponse::Close(CloseStreamResp {}),
            StreamRequest::Execute(request) => StreamResponse::Execute(ExecuteStreamResp {
                result: self.execute(&request.stmt)?,
            }),
            StreamRequest::Batch(request) => {
                let mut result = BatchResult::default();
                for _ in &request.batch.steps {
                    result.step_results.push(None);
                    result.step_errors.push(None);
                }
                let mut columns = Vec::new();
                let mut rows = Vec::new();
                let mut at = 0;
                self.batch(&request.batch, &mut |entry| match entry {
                    CursorEntry::StepBegin(begin) => {
                        at = begin.step as usize;
                        columns = begin.cols;
                        rows = Vec::new();
                    }
                    CursorEntry::Row { row } => rows.push(row),
                    CursorEntry::StepEnd(end) => {
                        let (cols, rows) = (std::mem::take(&mut columns), std::mem::take(&mut rows));
                        result.step_results[at] = Some(StmtResult {
                            affected_row_count: end.affected_row_count,
                            last_insert_rowid: end.last_insert_rowid,
                            ..whole(cols, rows)
                        });
                    }
                    CursorEntry::StepError(failed) => {
                        result.step_errors[failed.step as usize] = Some(failed.error);
                    }
                    _ => {}
                });
                StreamResponse::Batch(BatchStreamResp { result })
            }
            StreamRequest::Sequence(request) => {
                let sql = self.text(request.sql.as_deref(), request.sql_id)?;
                self.connection.execute_batch(&sql).map_err(|error| sqlite(&error))?;
                StreamResponse::Sequence(SequenceStreamResp {})
            }
            StreamRequest::Describe(request) => {
                let sql = self.text(request.sql.as_deref(), request.sql_id)?;
                let statement = self.connection.prepare(&sql).map_err(|error| sqlite(&error))?;
                let params = (1..=statement.parameter_count()).map(|at| DescribeParam {
                    name: statement.parameter_name(at).map(str::to_owned),
                });
                let cols = statement.column_names().map(|name| DescribeCol {
                    name: name.to_owned(),
                    decltype: None,
                });
                StreamResponse::Describe(DescribeStreamResp {
                    result: DescribeResult {
                        params: params.collect(),
                        cols: cols.collect(),
                        is_explain: statement.is_explain() != 0,
                        is_readonly: statement.readonly(),
                    },
                })
            }
            StreamRequest::StoreSql(request) => {
                self.sql.insert(request.sql_id, request.sql);
                StreamResponse::StoreSql(StoreSqlStreamResp {})
            }
            StreamRequest::CloseSql(request) => {
                self.sql.remove(&request.sql_id);
                StreamResponse::CloseSql(CloseSqlStreamResp {})
            }
            StreamRequest::GetAutocommit(_) => StreamResponse::GetAutocommit(GetAutocommitStreamResp {
                is_autocommit: self.connection.is_autocommit(),
            }),
        })
    }

    fn text(&self, sql: Option<&str>, id: Option<i32>) -> Result<String, Error> {
        match (sql, id) {
            (Some(sql), None) => Ok(sql.to_owned()),
            (None, Some(id)) => {
                let sql = self.sql.get(&id).cloned();
                sql.ok_or_else(|| problem(&format!("SQL text {id} not found"), "SQL_NOT_FOUND"))
            }
            _ => Err(problem("expected either sql or sql_id", "BAD_REQUEST")),
        }
    }

    fn execute(&self, stmt: &Stmt) -> Result<StmtResult, Error> {
        let mut columns = Vec::new();
        let mut rows = Vec::new();
        let (affected_row_count, last_insert_rowid) =
            self.step(stmt, &mut |cols| columns = cols, &mut |row| rows.push(row))?;
        Ok(StmtResult {
            affected_row_count,
            last_insert_rowid: Some(last_insert_rowid),
            ..whole(columns, rows)
        })
    }

    /// Runs the steps whose conditions hold, in order, and passes each entry of the result to `emit`.
    fn batch(&self, batch: &Batch, emit: &mut dyn FnMut(CursorEntry)) {
        let mut outcomes: Vec<Option<bool>> = Vec::new();
        for (step, at) in batch.steps.iter().zip(0_u32..) {
            let runs = step
                .condition
                .as_ref()
                .is_none_or(|condition| self.holds(condition, &outcomes));
            if !runs {
                outcomes.push(None);
                continue;
            }
            let mut head = None;
            let mut rows = Vec::new();
            let done = self.step(&step.stmt, &mut |cols| head = Some(cols), &mut |row| rows.push(row));
            if let Some(cols) = head {
                emit(CursorEntry::StepBegin(StepBeginEntry { step: at, cols }));
                rows.into_iter().for_each(|row| emit(CursorEntry::Row { row }));
            }
            outcomes.push(Some(done.is_ok()));
            emit(match done {
                Ok((affected_row_count, last_insert_rowid)) => CursorEntry::StepEnd(StepEndEntry {
                    affected_row_count,
                    last_insert_rowid: Some(last_insert_rowid),
                }),
                Err(error) => CursorEntry::StepError(StepErrorEntry { step: at, error }),
            });
        }
    }

    fn holds(&self, condition: &BatchCond, outcomes: &[Option<bool>]) -> bool {
        let outcome = |step: u32| outcomes.get(step as usize).copied().flatten();
        match condition {
            BatchCond::None => true,
            BatchCond::Ok { step } => outcome(*step) == Some(true),
            BatchCond::Error { step } => outcome(*step) == Some(false),
            BatchCond::Not { cond } => !self.holds(cond, outcomes),
            BatchCond::And(list) => list.conds.iter().all(|condition| self.holds(condition, outcomes)),
            BatchCond::Or(list) => list.conds.iter().any(|condition| self.holds(condition, outcomes)),
            BatchCond::IsAutocommit {} => self.connection.is_autocommit(),
        }
    }

    /// Runs a statement. Returns the number of rows that it changed, and the row ID of the last insert.
    fn step(
        &self,
        stmt: &Stmt,
        head: &mut dyn FnMut(Vec<Col>),
        emit: &mut dyn FnMut(Row),
    ) -> Result<(u64, i64), Error> {
        let sql = self.text(stmt.sql.as_deref(), stmt.sql_id)?;
        // The real server refuses this statement too.
        let words: String = sql
            .split_whitespace()
            .take(3)
            .collect::<Vec<_>>()
            .join(" ")
            .to_ascii_lowercase();
        if words.starts_with("pragma journal_mode") {
            return Err(problem("unsupported statement", "SQL_PARSE_ERROR"));
        }
        let mut statement = self.connection.prepare(&sql).map_err(|error| sqlite(&error))?;
        let positional = stmt.args.iter().zip(1_usize..).map(|(value, at)| Ok((at, value)));
        let named = stmt.named_args.iter().map(|argument| {
            let found = [":", "@", "$", ""].iter().find_map(|prefix| {
                let name = format!("{prefix}{}", argument.name);
                statement.parameter_index(&name).ok().flatten()
            });
            let unknown = || problem(&format!("no parameter {}", argument.name), "ARGS_INVALID");
            Ok((found.ok_or_else(unknown)?, &argument.value))
        });
        let arguments = positional.chain(named).collect::<Result<Vec<_>, Error>>()?;
        for (at, value) in arguments {
            if at > statement.parameter_count() {
                return Err(problem("too many arguments", "ARGS_INVALID"));
            }
            statement
                .raw_bind_parameter(at, bound(value))
                .map_err(|error| sqlite(&error))?;
        }
        let cols = statement.column_names().map(|name| Col {
            name: Some(name.to_owned()),
            decltype: None,
        });
        let cols: Vec<_> = cols.collect();
        let (count, changes) = (cols.len(), !statement.readonly());
        head(cols);
        let mut rows = statement.raw_query();
        while let Some(row) = rows.next().map_err(|error| sqlite(&error))? {
            if stmt.want_rows == Some(false) {
                continue;
            }
            let mut values = Vec::with_capacity(count);
            for at in 0..count {
                values.push(value(row.get_ref(at).map_err(|error| sqlite(&error))?));
            }
            emit(Row { values });
        }
        let affected = if changes { self.connection.changes() } else { 0 };
        Ok((affected, self.connection.last_insert_rowid()))
    }
}

fn whole(cols: Vec<Col>, rows: Vec<Row>) -> StmtResult {
    StmtResult {
        cols,
        rows,
        affected_row_count: 0,
        last_insert_rowid: None,
        replication_index: None,
        rows_read: 0,
        rows_written: 0,
        query_duration_ms: 0.0,
    }
}

fn bound(value: &Value) -> rusqlite::types::Value {
    use rusqlite::types::Value as Bound;
    match value {
        Value::None | Value::Null => Bound::Null,
        Value::Integer { value } => Bound::Integer(*value),
        Value::Float { value } => Bound::Real(*value),
        Value::Text { value } => Bound::Text(value.to_string()),
        Value::Blob { value } => Bound::Blob(value.to_vec()),
    }
}

fn value(value: ValueRef<'_>) -> Value {
    match value {
        ValueRef::Null => Value::Null,
        ValueRef::Integer(value) => Value::Integer { value },
        ValueRef::Real(value) => Value::Float { value },
        ValueRef::Text(text) => Value::Text {
            value: String::from_utf8_lossy(text).into(),
        },
        ValueRef::Blob(blob) => Value::Blob {
            value: Bytes::copy_from_slice(blob),
        },
    }
}

fn problem(message: &str, code: &str) -> Error {
    Error {
        message: message.to_owned(),
        code: code.to_owned(),
    }
}

/// SQLite's message, with the name of its error code.
fn sqlite(error: &rusqlite::Error) -> Error {
    let code = match error {
        rusqlite::Error::MultipleStatement => {
            return problem("SQL string contains more than one statement", "SQL_MANY_STATEMENTS");
        }
        rusqlite::Error::SqliteFailure(ffi::Error { code, .. }, _) => match code {
            ErrorCode::ConstraintViolation => "SQLITE_CONSTRAINT",
            ErrorCode::DatabaseBusy => "SQLITE_BUSY",
            ErrorCode::DatabaseLocked => "SQLITE_LOCKED",
            ErrorCode::ReadOnly => "SQLITE_READONLY",
            ErrorCode::DiskFull => "SQLITE_FULL",
            _ => "SQLITE_ERROR",
        },
        _ => "SQLITE_ERROR",
    };
    problem(&format!("SQLite error: {error}"), code)
}
