//! A client for libSQL servers (Hrana 3 over HTTP). Each statement is a separate request to `/v3/pipeline`.

use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};
use thiserror::Error;

use crate::remote;

/// A value of a row, limited to the types that our statements select.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Cell {
    Null,
    Integer(i64),
    Text(String),
}

#[derive(Debug, Error)]
pub enum Error {
    #[error("does not answer: {0}")]
    Silent(String),
    #[error("refuses the token")]
    Refused,
    #[error("answers with status {0}")]
    Status(u16),
    #[error("is not a libSQL server that speaks Hrana 3 (POST /v3/pipeline)")]
    Foreign,
    /// The database's own message.
    #[error("reports: {0}")]
    Sql(String),
}

#[derive(Debug)]
pub struct Client {
    client: remote::Client,
    pipeline: String,
    authorization: Option<String>,
}

impl Client {
    /// `url` starts with https or http. An empty `token` means no token. `limit` bounds each statement.
    pub fn new(url: &str, token: &str, limit: Duration) -> Self {
        Self {
            client: remote::Client::new(limit),
            pipeline: format!("{}/v3/pipeline", url.trim_end_matches('/')),
            authorization: (!token.is_empty()).then(|| format!("Bearer {token}")),
        }
    }

    /// Executes one statement and returns its rows.
    ///
    /// # Errors
    /// The statement fails, or the server does not answer, refuses the token, or is not a libSQL server.
    pub fn rows(&self, sql: &str, arguments: &[Cell]) -> Result<Vec<Vec<Cell>>, Error> {
        let arguments: Vec<_> = arguments.iter().map(argument).collect();
        let body = json!({
            "requests": [
                { "type": "execute", "stmt": { "sql": sql, "args": arguments, "want_rows": true } },
                { "type": "close" },
            ]
        });
        let header = self.authorization.as_deref().map(|value| ("authorization", value));
        let answer = self
            .client
            .post_json(&self.pipeline, header.as_slice(), &body.to_string())
            .map_err(Error::Silent)?;
        match answer.status {
            200 => rows(&answer.body),
            401 | 403 => Err(Error::Refused),
            404 => Err(Error::Foreign),
            status => Err(Error::Status(status)),
        }
    }
}

fn argument(cell: &Cell) -> Value {
    match cell {
        Cell::Null => json!({ "type": "null" }),
        // Integers travel as strings, because JSON numbers cannot hold 64 bits portably.
        Cell::Integer(integer) => json!({ "type": "integer", "value": integer.to_string() }),
        Cell::Text(text) => json!({ "type": "text", "value": text }),
    }
}

fn rows(body: &str) -> Result<Vec<Vec<Cell>>, Error> {
    let answer: Value = serde_json::from_str(body).map_err(|_| Error::Foreign)?;
    let result = &answer["results"][0];
    if let Some(message) = result["error"]["message"].as_str() {
        return Err(Error::Sql(message.to_owned()));
    }
    let rows = result["response"]["result"]["rows"].as_array().ok_or(Error::Foreign)?;
    let cells = |row: &Value| row.as_array()?.iter().map(cell).collect::<Option<Vec<_>>>();
    rows.iter().map(|row| cells(row).ok_or(Error::Foreign)).collect()
}

fn cell(value: &Value) -> Option<Cell> {
    Some(match value["type"].as_str()? {
        "null" => Cell::Null,
        "integer" => Cell::Integer(value["value"].as_str()?.parse().ok()?),
        "text" => Cell::Text(value["value"].as_str()?.to_owned()),
        _ => return None,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
pub mod tests {
    use std::sync::{Arc, Mutex};

    use rusqlite::types::{ToSql, Value as Sql};

    use super::*;
    use links_base::testing::{Request, Server};

    pub const TOKEN: &str = "a-token-of-libsql";

    /// Serves Hrana from one SQLite connection, for pipelines of one statement.
    pub fn serve(connection: &Arc<Mutex<rusqlite::Connection>>) -> Server {
        let connection = Arc::clone(connection);
        Server::start(move |request| answer(&connection.lock().unwrap(), request))
    }

    fn answer(connection: &rusqlite::Connection, request: &Request) -> (u16, String) {
        if request.path != "/v3/pipeline" {
            return (404, "no such path".to_owned());
        }
        if request.header("authorization") != Some(&format!("Bearer {TOKEN}")) {
            return (401, "{\"error\":\"Unauthorized\"}".to_owned());
        }
        let body: Value = serde_json::from_str(&request.body).unwrap();
        let statement = &body["requests"][0]["stmt"];
        let result = match execute(connection, statement) {
            Ok(rows) => json!({ "type": "ok", "response": { "type": "execute", "result": { "rows": rows } } }),
            Err(error) => json!({ "type": "error", "error": { "message": error.to_string() } }),
        };
        (200, json!({ "baton": null, "results": [result] }).to_string())
    }

    fn execute(connection: &rusqlite::Connection, statement: &Value) -> rusqlite::Result<Vec<Value>> {
        let arguments: Vec<Sql> = statement["args"]
            .as_array()
            .unwrap()
            .iter()
            .map(|value| match value["type"].as_str().unwrap() {
                "null" => Sql::Null,
                "integer" => Sql::Integer(value["value"].as_str().unwrap().parse().unwrap()),
                _ => Sql::Text(value["value"].as_str().unwrap().to_owned()),
            })
            .collect();
        let arguments: Vec<&dyn ToSql> = arguments.iter().map(|value| value as &dyn ToSql).collect();
        let mut prepared = connection.prepare(statement["sql"].as_str().unwrap())?;
        let columns = prepared.column_count();
        let mut rows = prepared.query(arguments.as_slice())?;
        let mut found = vec![];
        while let Some(row) = rows.next()? {
            let cells: rusqlite::Result<Vec<Value>> = (0..columns)
                .map(|index| {
                    Ok(match row.get(index)? {
                        Sql::Null => json!({ "type": "null" }),
                        Sql::Integer(integer) => json!({ "type": "integer", "value": integer.to_string() }),
                        Sql::Real(real) => json!({ "type": "float", "value": real }),
                        Sql::Text(text) => json!({ "type": "text", "value": text }),
                        Sql::Blob(_) => json!({ "type": "blob", "base64": "" }),
                    })
                })
                .collect();
            found.push(json!(cells?));
        }
        Ok(found)
    }

    fn memory() -> Arc<Mutex<rusqlite::Connection>> {
        Arc::new(Mutex::new(rusqlite::Connection::open_in_memory().unwrap()))
    }

    fn client(server: &Server, token: &str) -> Client {
        Client::new(&server.url("/"), token, Duration::from_secs(5))
    }

    #[test]
    fn cells_come_back_as_they_were_sent() {
        let server = serve(&memory());
        let cells = vec![
            Cell::Integer(i64::MAX),
            Cell::Text("ünï \"x\"\n".to_owned()),
            Cell::Null,
        ];
        assert_eq!(
            client(&server, TOKEN).rows("SELECT ?1, ?2, ?3", &cells).unwrap(),
            [cells]
        );
    }

    #[test]
    fn each_failure_has_its_own_error() {
        let server = serve(&memory());
        for token in ["", "another"] {
            let error = client(&server, token).rows("SELECT 1", &[]).unwrap_err();
            assert!(matches!(error, Error::Refused), "{error}");
        }
        let error = client(&server, TOKEN).rows("SELECT * FROM links", &[]).unwrap_err();
        assert_eq!(error.to_string(), "reports: no such table: links");
        let foreign = Server::start(|_| (200, "<html>".to_owned()));
        for server in [&foreign, &Server::start(|_| (404, String::new()))] {
            let error = client(server, TOKEN).rows("SELECT 1", &[]).unwrap_err();
            assert!(matches!(error, Error::Foreign), "{error}");
        }
        let broken = Server::start(|_| (500, String::new()));
        let error = client(&broken, TOKEN).rows("SELECT 1", &[]).unwrap_err();
        assert!(matches!(error, Error::Status(500)), "{error}");
    }
}
