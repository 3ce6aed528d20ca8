//! Who checkpoints the database: the runtime's SQLite after a commit, or linksctl's agent in its place.

use std::cell::Cell;

use links_core::sqlite::{BY_AGENT, Engine, checkpoints_safely};
use spin_sdk::sqlite::Value;

use crate::connection::Connection;
use crate::variable;

const VERSION: &str = include_str!("../../sql/sqlite_version.sql");
const AUTOMATIC: &str = include_str!("../../sql/automatic_checkpoint.sql");
const NEVER: &str = include_str!("../../sql/never_checkpoint.sql");

thread_local! {
    /// Whether the agent checkpoints; `None`: not known yet.
    static BY_THE_AGENT: Cell<Option<bool>> = const { Cell::new(None) };
}

/// Keeps a new connection from checkpoints that its SQLite cannot do safely. Without an agent they stay on: otherwise
/// nothing would ever end the growth of the write-ahead log.
///
/// # Errors
/// The database's words.
pub async fn set_up(connection: &Connection) -> Result<(), String> {
    let by_the_agent = match BY_THE_AGENT.get() {
        Some(known) => known,
        None => {
            // Where the variable cannot be read, it is better that the log grows than that commits are lost.
            let told = variable::get("checkpoints").await.map_or(true, |told| told == BY_AGENT);
            let known = told && !checkpoints_safely(&version(connection).await?);
            BY_THE_AGENT.set(Some(known));
            known
        }
    };
    if by_the_agent {
        connection.rows(NEVER, &[]).await?;
    }
    Ok(())
}

/// The SQLite behind a connection.
///
/// # Errors
/// The database's words.
pub async fn engine(connection: &Connection) -> Result<Engine, String> {
    let pages = connection.rows(AUTOMATIC, &[]).await?;
    Ok(Engine {
        version: version(connection).await?,
        checkpoints: pages.first().and_then(|row| row.get::<i64>(0)) != Some(0),
    })
}

async fn version(connection: &Connection) -> Result<String, String> {
    let rows = connection.rows(VERSION, &[]).await?;
    match rows.into_iter().next().and_then(|row| row.values.into_iter().next()) {
        Some(Value::Text(version)) => Ok(version),
        _ => Err("sqlite_version() gave no text".to_owned()),
    }
}
