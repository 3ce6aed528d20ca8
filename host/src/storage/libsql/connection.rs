//! Connections, through which components run statements.

use std::sync::Arc;

use tokio::sync::{Mutex, OwnedMutexGuard, mpsc, oneshot};

use super::server::Server;
use super::stream::{Running, Stream};
use crate::bindings::sqlite::{Error, RowResult, Value};
use crate::storage::answer::{AbortOnDrop, Answer, ROWS_AHEAD, RowStream, Rows, size};

/// How much of a result is read before the rest is streamed, in bytes.
const AT_ONCE_BYTES: usize = 256 << 10;

/// A connection that a component has opened. Statements on it run one after the other.
#[derive(Clone, Debug)]
pub struct Connection {
    server: Arc<Server>,
    stream: Arc<Mutex<Stream>>,
}

impl Server {
    /// Creates a connection without sending anything.
    pub fn open(self: &Arc<Self>) -> Connection {
        Connection {
            server: self.clone(),
            stream: Arc::new(Mutex::new(Stream::new(self.clone()))),
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
