//! Reads the rows of a statement, and converts values between SQLite and components.

use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{CachedStatement, ToSql};

use super::error::io;
use crate::bindings::sqlite::{Error, RowResult, Value};
use crate::storage::answer::{Answer, Rows};

/// A complete result.
#[derive(Debug)]
pub struct Table {
    pub columns: Vec<String>,
    pub rows: Vec<RowResult>,
}

impl From<Table> for Answer {
    fn from(table: Table) -> Self {
        Self {
            columns: table.columns,
            rows: Rows::All(table.rows),
        }
    }
}

/// The reason why rows ended early.
pub enum Failure {
    Sqlite(rusqlite::Error),
    Other(Error),
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Sqlite(error) => io(&error),
            Failure::Other(error) => error,
        }
    }
}

pub fn columns(statement: &CachedStatement<'_>) -> Vec<String> {
    statement.column_names().map(str::to_owned).collect()
}

/// Runs the statement and passes its rows to `visit` until that returns false. Returns whether all rows were visited.
///
/// # Errors
/// The statement or `visit` fails, or a text value is not UTF-8.
pub fn each_row(
    statement: &mut CachedStatement<'_>,
    parameters: &[Value],
    mut visit: impl FnMut(RowResult) -> Result<bool, Error>,
) -> Result<bool, Failure> {
    let count = statement.column_count();
    let mut rows = statement.query(rusqlite::params_from_iter(parameters.iter().map(Parameter)))?;
    while let Some(row) = rows.next()? {
        let mut values = Vec::with_capacity(count);
        for column in 0..count {
            values.push(value(row.get_ref(column)?).map_err(Failure::Other)?);
        }
        if !visit(RowResult { values }).map_err(Failure::Other)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn value(value: ValueRef<'_>) -> Result<Value, Error> {
    Ok(match value {
        ValueRef::Null => Value::Null,
        ValueRef::Integer(integer) => Value::Integer(integer),
        ValueRef::Real(real) => Value::Real(real),
        ValueRef::Text(text) => {
            let text =
                std::str::from_utf8(text).map_err(|error| Error::Io(format!("a text value is not UTF-8: {error}")))?;
            Value::Text(text.to_owned())
        }
        ValueRef::Blob(blob) => Value::Blob(blob.to_vec()),
    })
}

struct Parameter<'a>(&'a Value);

impl ToSql for Parameter<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self.0 {
            Value::Null => ValueRef::Null,
            Value::Integer(integer) => ValueRef::Integer(*integer),
            Value::Real(real) => ValueRef::Real(*real),
            Value::Text(text) => ValueRef::Text(text.as_bytes()),
            Value::Blob(blob) => ValueRef::Blob(blob),
        }))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic fails the test")]
mod tests {
    use super::*;

    /// The first row of a statement.
    fn first(sql: &str, parameters: &[Value]) -> Result<Vec<Value>, Error> {
        let db = rusqlite::Connection::open_in_memory().unwrap();
        let mut first = vec![];
        let visit = |row: RowResult| {
            first = row.values;
            Ok(false)
        };
        each_row(&mut db.prepare_cached(sql).unwrap(), parameters, visit)?;
        Ok(first)
    }

    #[test]
    fn values_survive_a_round_trip() {
        let values = [
            Value::Integer(i64::MIN),
            Value::Real(0.5),
            Value::Text("ä".into()),
            Value::Blob(vec![0, 255]),
            Value::Null,
        ];
        assert_eq!(first("SELECT ?, ?, ?, ?, ?", &values).unwrap(), values);
    }

    #[test]
    fn text_that_is_not_utf_8_is_an_error() {
        let error = first("SELECT CAST(x'ff' AS TEXT)", &[]).unwrap_err();
        assert!(
            matches!(&error, Error::Io(message) if message.contains("UTF-8")),
            "{error:?}"
        );
    }
}
