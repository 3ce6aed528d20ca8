//! The result of a statement, for local and remote databases.

use tokio::sync::{mpsc, oneshot};

use crate::bindings::sqlite::{Error, RowResult, Value};

/// The number of rows that are read ahead of a component and passed to it at once.
pub const ROWS_AHEAD: usize = 64;
/// The maximum size of one result in memory, in bytes. Same as Spin's limit.
pub const MAX_RESULT_BYTES: usize = 128 << 20;

/// The result of a statement.
#[derive(Debug)]
pub struct Answer {
    pub columns: Vec<String>,
    pub rows: Rows,
}

#[derive(Debug)]
pub enum Rows {
    All(Vec<RowResult>),
    Stream(RowStream),
}

/// Rows that are still being read. Dropping the stream ends the statement.
#[derive(Debug)]
pub struct RowStream {
    pub rows: mpsc::Receiver<RowResult>,
    pub end: oneshot::Receiver<Result<(), Error>>,
    pub abandon: Producer,
}

/// Keeps the reading of rows alive. Dropping it ends the reading.
pub type Producer = Box<dyn std::fmt::Debug + Send + Sync>;

/// Aborts a task when dropped.
#[derive(Debug)]
pub struct AbortOnDrop(pub tokio::task::AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Answer {
    /// Returns the columns and all rows.
    ///
    /// # Errors
    /// Reading the rows failed, or the result exceeds [`MAX_RESULT_BYTES`].
    pub async fn collect(self) -> Result<(Vec<String>, Vec<RowResult>), Error> {
        let rows = match self.rows {
            Rows::All(rows) => rows,
            Rows::Stream(stream) => stream.collect().await?,
        };
        Ok((self.columns, rows))
    }
}

impl RowStream {
    async fn collect(mut self) -> Result<Vec<RowResult>, Error> {
        let (mut rows, mut bytes) = (Vec::new(), 0);
        while let Some(row) = self.rows.recv().await {
            bytes += size(&row.values);
            if bytes > MAX_RESULT_BYTES {
                return Err(too_large());
            }
            rows.push(row);
        }
        self.end.await.map_err(|_| broken())??;
        Ok(rows)
    }
}

/// The error for a task that ended without a result.
pub fn broken() -> Error {
    Error::Io("internal runtime error".to_owned())
}

/// The memory size of a row, in bytes.
pub fn size(values: &[Value]) -> usize {
    let payload = |value: &Value| match value {
        Value::Text(text) => text.len(),
        Value::Blob(blob) => blob.len(),
        Value::Integer(_) | Value::Real(_) | Value::Null => 0,
    };
    values
        .iter()
        .map(|value| size_of::<Value>() + payload(value))
        .sum::<usize>()
        + size_of::<RowResult>()
}

pub fn too_large() -> Error {
    Error::Io(format!("query result exceeds limit of {MAX_RESULT_BYTES} bytes"))
}
