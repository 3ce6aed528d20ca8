//! Key-value stores in SQLite files, which are compatible with Spin's, or in memory.

use std::sync::Arc;

use tokio::sync::OnceCell;

use crate::bindings::key_value::Error;
use crate::bindings::sqlite::{self, RowResult, Value};
use crate::storage::place::Place;
use crate::storage::sqlite::{Database, Handle};

const WRITE_AHEAD: &str = "PRAGMA journal_mode = WAL";
const CREATE: &str = "CREATE TABLE IF NOT EXISTS spin_key_value (
    store TEXT NOT NULL,
    key   TEXT NOT NULL,
    value BLOB NOT NULL,
    PRIMARY KEY (store, key)
)";
const GET: &str = "SELECT value FROM spin_key_value WHERE store = ? AND key = ?";
const EXISTS: &str = "SELECT 1 FROM spin_key_value WHERE store = ? AND key = ?";
const SET: &str = "INSERT INTO spin_key_value (store, key, value) VALUES (?1, ?2, ?3)
    ON CONFLICT (store, key) DO UPDATE SET value = ?3";
const DELETE: &str = "DELETE FROM spin_key_value WHERE store = ? AND key = ?";
const KEYS: &str = "SELECT key FROM spin_key_value WHERE store = ?";

/// A store in a SQLite file or in memory.
#[derive(Debug)]
pub struct StoreFile {
    label: String,
    database: Arc<Database>,
    in_memory: bool,
    /// Set once the table exists. A store in memory lives as long as the handle that is kept here.
    ready: OnceCell<Option<Handle>>,
}

impl StoreFile {
    pub fn new(label: String, place: Place) -> Arc<Self> {
        let in_memory = place == Place::Memory;
        Arc::new(Self {
            label,
            database: Database::relaxed(place),
            in_memory,
            ready: OnceCell::new(),
        })
    }

    /// Creates the directory of the file and checks that the file can be opened.
    ///
    /// # Errors
    /// The file cannot be used. The error names it.
    pub fn prepare(&self) -> anyhow::Result<()> {
        self.database.prepare()
    }

    /// # Errors
    /// The file cannot be opened, or the table cannot be created.
    pub async fn handle(&self) -> Result<Handle, Error> {
        let create = || async {
            let handle = self.database.open().await?;
            // With a rollback journal, each write waits for the disk several times and blocks readers. The journal mode is a
            // property of the file. It cannot change while another process uses the file; then the next start tries again.
            if let Err(error) = handle.execute(WRITE_AHEAD.to_owned(), vec![]).await {
                tracing::debug!("key-value store {:?}: {error}", self.label);
            }
            handle.execute(CREATE.to_owned(), vec![]).await?.collect().await?;
            Ok::<_, sqlite::Error>(self.in_memory.then_some(handle))
        };
        match self.ready.get_or_try_init(create).await? {
            Some(handle) => Ok(handle.clone()),
            None => Ok(self.database.open().await?),
        }
    }

    /// Runs a statement whose parameters are the label and then `parameters`, and returns its rows.
    async fn query(&self, sql: &str, parameters: impl IntoIterator<Item = Value>) -> Result<Vec<RowResult>, Error> {
        let parameters = std::iter::once(Value::Text(self.label.clone()))
            .chain(parameters)
            .collect();
        let answer = self.handle().await?.execute(sql.to_owned(), parameters).await?;
        let (_, rows) = answer.collect().await?;
        Ok(rows)
    }

    pub async fn get(&self, key: String) -> Result<Option<Vec<u8>>, Error> {
        Ok(
            match self
                .query(GET, [Value::Text(key)])
                .await?
                .pop()
                .and_then(|mut row| row.values.pop())
            {
                Some(Value::Blob(value)) => Some(value),
                // Only another program stores text.
                Some(Value::Text(value)) => Some(value.into_bytes()),
                Some(_) => return Err(Error::Other("the stored value is a number".to_owned())),
                None => None,
            },
        )
    }

    pub async fn exists(&self, key: String) -> Result<bool, Error> {
        Ok(!self.query(EXISTS, [Value::Text(key)]).await?.is_empty())
    }

    pub async fn set(&self, key: String, value: Vec<u8>) -> Result<(), Error> {
        self.query(SET, [Value::Text(key), Value::Blob(value)]).await.map(drop)
    }

    pub async fn delete(&self, key: String) -> Result<(), Error> {
        self.query(DELETE, [Value::Text(key)]).await.map(drop)
    }

    pub async fn keys(&self) -> Result<Vec<String>, Error> {
        let rows = self.query(KEYS, []).await?;
        let key = |mut row: RowResult| match row.values.pop() {
            Some(Value::Text(key)) => Some(key),
            _ => None,
        };
        Ok(rows.into_iter().filter_map(key).collect())
    }
}

impl From<sqlite::Error> for Error {
    fn from(error: sqlite::Error) -> Self {
        match error {
            sqlite::Error::Io(message) => Self::Other(message),
            other => Self::Other(other.to_string()),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic fails the test")]
mod tests {
    use super::*;

    async fn round_trip(place: Place) {
        let store = StoreFile::new("default".into(), place.clone());
        assert_eq!(store.get("a".into()).await.unwrap(), None);
        store.set("a".into(), vec![1, 0, 255]).await.unwrap();
        store.set("a".into(), vec![2]).await.unwrap();
        store.set("b".into(), vec![]).await.unwrap();
        assert_eq!(store.get("a".into()).await.unwrap(), Some(vec![2]));
        assert_eq!(store.get("b".into()).await.unwrap(), Some(vec![]));
        let mut keys = store.keys().await.unwrap();
        keys.sort();
        assert_eq!(keys, ["a", "b"]);
        store.delete("a".into()).await.unwrap();
        assert!(!store.exists("a".into()).await.unwrap());
        assert!(store.exists("b".into()).await.unwrap());
    }

    #[tokio::test]
    async fn a_value_can_be_read_until_it_is_deleted() {
        round_trip(Place::Memory).await;
        let dir = tempfile::tempdir().unwrap();
        round_trip(Place::File(dir.path().join("kv.db"))).await;
    }

    #[tokio::test]
    async fn the_file_has_a_write_ahead_log() {
        let dir = tempfile::tempdir().unwrap();
        let store = StoreFile::new("default".into(), Place::File(dir.path().join("kv.db")));
        store.set("a".into(), vec![1]).await.unwrap();
        let handle = store.handle().await.unwrap();
        let answer = handle.execute("PRAGMA journal_mode".to_owned(), vec![]).await.unwrap();
        let (_, rows) = answer.collect().await.unwrap();
        assert_eq!(rows[0].values, [Value::Text("wal".into())]);
    }

    #[tokio::test]
    async fn stores_in_one_file_are_separate() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place::File(dir.path().join("kv.db"));
        let (one, other) = (
            StoreFile::new("one".into(), place.clone()),
            StoreFile::new("other".into(), place),
        );
        one.set("a".into(), vec![1]).await.unwrap();
        assert_eq!(other.get("a".into()).await.unwrap(), None);
        assert!(other.keys().await.unwrap().is_empty());
    }
}
