//! The subset of Hrana 3 over HTTP that a one-statement cursor needs. Integers travel as strings because JSON numbers cannot
//! hold 64 bits portably.

use anyhow::{Context as _, Result, bail};
use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use bytes::{Bytes, BytesMut};
use memchr::memchr;
use serde::{Deserialize, Serialize};

use crate::bindings::sqlite;

/// Padding is not sent, and is optional in responses.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new()
        .with_encode_padding(false)
        .with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The request to open a cursor.
///
/// # Errors
/// A parameter is an infinite number, which JSON cannot represent.
pub fn cursor(baton: Option<&str>, sql: &str, parameters: &[sqlite::Value]) -> Result<Vec<u8>> {
    #[derive(Serialize)]
    struct Request<'a> {
        baton: Option<&'a str>,
        batch: Batch<'a>,
    }
    #[derive(Serialize)]
    struct Batch<'a> {
        steps: [Step<'a>; 1],
    }
    #[derive(Serialize)]
    struct Step<'a> {
        stmt: Statement<'a>,
    }
    #[derive(Serialize)]
    struct Statement<'a> {
        sql: &'a str,
        args: Vec<Value>,
        want_rows: bool,
    }
    let args = parameters.iter().map(argument).collect::<Result<_>>()?;
    let stmt = Statement {
        sql,
        args,
        want_rows: true,
    };
    let steps = [Step { stmt }];
    Ok(serde_json::to_vec(&Request {
        baton,
        batch: Batch { steps },
    })?)
}

/// The request to close a stream.
pub fn close(baton: &str) -> Vec<u8> {
    serde_json::json!({ "baton": baton, "requests": [{ "type": "close" }] })
        .to_string()
        .into_bytes()
}

/// The first line of the response to a cursor request.
#[derive(Debug, Default, Deserialize)]
pub struct Head {
    pub baton: Option<String>,
    pub base_url: Option<String>,
}

/// Any further line of the response.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Entry {
    StepBegin {
        cols: Vec<Column>,
    },
    Row {
        row: Vec<Value>,
    },
    StepEnd,
    StepError {
        error: Problem,
    },
    Error {
        error: Problem,
    },
    #[serde(other)]
    Other,
}

#[derive(Debug, Deserialize)]
pub struct Column {
    pub name: Option<String>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Value {
    Null,
    Integer { value: String },
    Float { value: f64 },
    Text { value: String },
    Blob { base64: String },
}

/// An error from the server. For a statement it is an object; other errors may be plain strings.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub enum Problem {
    Full { message: String, code: Option<String> },
    Text(String),
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Full {
                message,
                code: Some(code),
            } if !code.is_empty() => write!(f, "{message} ({code})"),
            Self::Full { message, .. } | Self::Text(message) => f.write_str(message),
        }
    }
}

/// Parses the first line of a response.
///
/// # Errors
/// The line does not conform to Hrana 3.
pub fn head(line: &[u8]) -> Result<Head> {
    serde_json::from_slice(line).context("the response is not from a libSQL server")
}

/// Parses any further line of a response.
///
/// # Errors
/// The line does not conform to Hrana 3.
pub fn entry(line: &[u8]) -> Result<Entry> {
    serde_json::from_slice(line).context("the response holds an unexpected entry")
}

/// The message in the response to a refused request.
pub fn message(body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Refusal {
        Nested { error: Problem },
        Flat(Problem),
    }
    match serde_json::from_slice(body).ok()? {
        Refusal::Nested { error } | Refusal::Flat(error) => Some(error.to_string()),
    }
}

fn argument(value: &sqlite::Value) -> Result<Value> {
    Ok(match value {
        sqlite::Value::Null => Value::Null,
        sqlite::Value::Integer(value) => Value::Integer {
            value: value.to_string(),
        },
        // SQLite also stores NaN as NULL.
        sqlite::Value::Real(value) if value.is_nan() => Value::Null,
        sqlite::Value::Real(value) if value.is_infinite() => bail!("{value} cannot be sent to the database"),
        sqlite::Value::Real(value) => Value::Float { value: *value },
        sqlite::Value::Text(value) => Value::Text { value: value.clone() },
        sqlite::Value::Blob(value) => Value::Blob {
            base64: BASE64.encode(value),
        },
    })
}

/// Converts a value from a response.
///
/// # Errors
/// An integer or a blob is malformed.
pub fn value(value: Value) -> Result<sqlite::Value> {
    Ok(match value {
        Value::Null => sqlite::Value::Null,
        Value::Integer { value } => {
            sqlite::Value::Integer(value.parse().context("the response holds an invalid integer")?)
        }
        Value::Float { value } => sqlite::Value::Real(value),
        Value::Text { value } => sqlite::Value::Text(value),
        Value::Blob { base64 } => {
            sqlite::Value::Blob(BASE64.decode(base64).context("the response holds an invalid blob")?)
        }
    })
}

/// Splits a byte stream into lines.
#[derive(Debug, Default)]
pub struct Lines {
    bytes: BytesMut,
    /// The length of the prefix that is known to hold no line break.
    searched: usize,
}

impl Lines {
    pub fn add(&mut self, data: &[u8]) {
        self.bytes.extend_from_slice(data);
    }

    /// The size of the incomplete line in bytes, as far as it has been searched.
    pub fn waiting(&self) -> usize {
        self.searched
    }

    /// Returns the next complete line without its line break. Empty lines are skipped.
    pub fn next(&mut self) -> Option<Bytes> {
        loop {
            let Some(found) = memchr(b'\n', &self.bytes[self.searched..]) else {
                self.searched = self.bytes.len();
                return None;
            };
            let mut line = self.bytes.split_to(self.searched + found + 1);
            self.searched = 0;
            line.truncate(line.len() - 1);
            if !line.trim_ascii().is_empty() {
                return Some(line.freeze());
            }
        }
    }

    /// Returns the last line, which need not end with a line break.
    pub fn rest(&mut self) -> Option<Bytes> {
        self.searched = 0;
        let line = self.bytes.split().freeze();
        (!line.trim_ascii().is_empty()).then_some(line)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic, reason = "a panic fails the test")]
mod tests {
    use super::*;

    #[test]
    fn values_survive_a_round_trip() {
        let values = [
            sqlite::Value::Null,
            sqlite::Value::Integer(i64::MIN),
            sqlite::Value::Integer(9_007_199_254_740_993),
            sqlite::Value::Real(0.1),
            sqlite::Value::Text("ä\n\"".into()),
            sqlite::Value::Blob(vec![0, 255, 7, 9]),
        ];
        for expected in values {
            let sent = serde_json::to_string(&argument(&expected).unwrap()).unwrap();
            assert_eq!(value(serde_json::from_str(&sent).unwrap()).unwrap(), expected, "{sent}");
        }
        assert!(argument(&sqlite::Value::Real(f64::INFINITY)).is_err());
        assert!(matches!(argument(&sqlite::Value::Real(f64::NAN)).unwrap(), Value::Null));
    }

    #[test]
    fn blobs_may_be_padded() {
        for text in ["AP8H", "AP8=", "AP8"] {
            let parsed = serde_json::from_str(&format!(r#"{{"type":"blob","base64":"{text}"}}"#)).unwrap();
            let sqlite::Value::Blob(blob) = value(parsed).unwrap() else {
                panic!("{text}")
            };
            assert_eq!(blob[..2], [0, 255], "{text}");
        }
    }

    #[test]
    fn lines_are_found_wherever_the_network_splits_them() {
        let text = b"{\"a\":1}\n\n{\"b\":2}\r\nend";
        for cut in 0..text.len() {
            let mut lines = Lines::default();
            let mut found = Vec::new();
            for part in [&text[..cut], &text[cut..]] {
                lines.add(part);
                found.extend(std::iter::from_fn(|| lines.next()));
            }
            found.extend(lines.rest());
            assert_eq!(found, [&b"{\"a\":1}"[..], b"{\"b\":2}\r", b"end"], "{cut}");
        }
    }

    #[test]
    fn entries_are_parsed_and_unknown_ones_skipped() {
        let begin = entry(br#"{"type":"step_begin","step":0,"cols":[{"name":"a","decltype":"TEXT"},{"name":null}]}"#);
        assert!(matches!(begin.unwrap(), Entry::StepBegin { cols } if cols.len() == 2));
        let end = entry(br#"{"type":"step_end","affected_row_count":1,"last_insert_rowid":"7"}"#);
        assert!(matches!(end.unwrap(), Entry::StepEnd));
        assert!(matches!(
            entry(br#"{"type":"replication_index","replication_index":null}"#).unwrap(),
            Entry::Other
        ));
        let error =
            entry(br#"{"type":"step_error","step":0,"error":{"message":"no such table: t","code":"SQLITE_ERROR"}}"#);
        assert!(
            matches!(error.unwrap(), Entry::StepError { error } if error.to_string() == "no such table: t (SQLITE_ERROR)")
        );
        assert!(
            matches!(entry(br#"{"type":"error","error":"gone"}"#).unwrap(), Entry::Error { error } if error.to_string() == "gone")
        );
        assert!(entry(b"<html>").is_err());
    }

    #[test]
    fn error_messages_are_found_in_all_their_forms() {
        assert_eq!(message(br#"{"error":"bad token"}"#).as_deref(), Some("bad token"));
        assert_eq!(
            message(br#"{"message":"expired","code":"AUTH_EXPIRED"}"#).as_deref(),
            Some("expired (AUTH_EXPIRED)")
        );
        assert_eq!(
            message(br#"{"error":{"message":"no","code":""}}"#).as_deref(),
            Some("no")
        );
        assert_eq!(message(b"Bad Gateway"), None);
    }
}
