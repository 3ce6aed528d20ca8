//! The set-up of new connections, and migrations.

use std::cell::Cell;

use links_platform::database::error::{ErrorKind, is_duplicate_column, is_unsupported};
use links_platform::database::{Connection, Setup, Value};
use links_platform::{log, variables};

use crate::checkpoints::{BY_AGENT, Engine, checkpoints_safely};
use crate::schema::SCHEMA;
use crate::sql::{AUTOMATIC_CHECKPOINT, NEVER_CHECKPOINT, SCHEMA_VERSION, SQLITE_VERSION, WRITE_AHEAD};

thread_local! {
    /// Whether the agent checkpoints the write-ahead log; `None` before the first connection.
    static AGENT_CHECKPOINTS: Cell<Option<bool>> = const { Cell::new(None) };
}

pub struct Tables;

impl Setup for Tables {
    /// Turns off automatic checkpoints if the runtime's SQLite cannot do them safely and the agent does them instead. Without
    /// an agent they stay on, because nothing else would stop the write-ahead log from growing.
    async fn connected(connection: &Connection) -> Result<(), String> {
        let agent_checkpoints = match AGENT_CHECKPOINTS.get() {
            Some(known) => known,
            None => {
                // If the variable cannot be read, a growing log is better than lost commits.
                let wanted = variables::get("checkpoints").await.map_or(true, |who| who == BY_AGENT);
                let known = wanted && !checkpoints_safely(&version(connection).await?);
                AGENT_CHECKPOINTS.set(Some(known));
                known
            }
        };
        if agent_checkpoints {
            connection.rows(NEVER_CHECKPOINT, &[]).await?;
        }
        Ok(())
    }

    async fn migrate(connection: &Connection) -> Result<(), String> {
        let missing = SCHEMA.get(schema_version(connection).await?..).unwrap_or_default();
        if !missing.is_empty() {
            write_ahead(connection).await?;
        }
        for script in missing {
            apply(connection, script).await?;
        }
        Ok(())
    }
}

/// The SQLite behind a connection.
///
/// # Errors
/// Fails with the database's message.
pub async fn engine(connection: &Connection) -> Result<Engine, String> {
    let pages = connection.rows(AUTOMATIC_CHECKPOINT, &[]).await?;
    Ok(Engine {
        version: version(connection).await?,
        checkpoints: pages.first().and_then(|row| row.get::<i64>(0)) != Some(0),
    })
}

async fn version(connection: &Connection) -> Result<String, String> {
    let rows = connection.rows(SQLITE_VERSION, &[]).await?;
    match rows.into_iter().next().and_then(|row| row.values.into_iter().next()) {
        Some(Value::Text(version)) => Ok(version),
        _ => Err("sqlite_version() did not return text".to_owned()),
    }
}

/// The version of the tables; 0 if there are none.
async fn schema_version(connection: &Connection) -> Result<usize, String> {
    match connection.rows(SCHEMA_VERSION, &[]).await {
        Ok(rows) => {
            let version = rows.first().and_then(|row| row.get::<i64>(0));
            Ok(version.and_then(|version| version.try_into().ok()).unwrap_or(0))
        }
        Err(error) if ErrorKind::of(&error) == ErrorKind::NoSchema => Ok(0),
        Err(error) => Err(error),
    }
}

async fn write_ahead(connection: &Connection) -> Result<(), String> {
    match connection.rows(WRITE_AHEAD, &[]).await {
        Err(error) if ErrorKind::of(&error) == ErrorKind::Busy => return Err(error),
        Err(error) if !is_unsupported(&error) => log::line("continuing without a write-ahead log", error),
        _ => {}
    }
    Ok(())
}

/// Runs a script. Another process may be doing the same, so each statement may already have been run.
async fn apply(connection: &Connection, script: &[&str]) -> Result<(), String> {
    for statement in script {
        match connection.rows(statement, &[]).await {
            Err(error) if !is_duplicate_column(&error) => return Err(error),
            _ => {}
        }
    }
    Ok(())
}
