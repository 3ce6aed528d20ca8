//! Key-value stores: in SQLite files, in the same table as Spin's, or on a Redis server; and the interface `spin:key-value`.

pub mod redis;

use std::sync::Arc;

use opentelemetry::KeyValue;
use tokio::sync::OnceCell;
use wasmtime::component::{Accessor, FutureReader, HasSelf, Resource, StreamReader};

use crate::bindings::key_value::{self, Error};
use crate::bindings::sqlite::{self, RowResult, Value};
use crate::config::Place;
use crate::context::{Context, Denied, calling_span};
use crate::sqlite::{Database, Handle};
use crate::telemetry::{Span, within};

/// How many stores one instance may have open. Spin's limit.
const MOST_STORES: usize = 256;

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

/// A store that a component has opened, or may open.
#[derive(Clone, Debug)]
pub enum Store {
    File(Arc<StoreFile>),
    Redis(Arc<redis::Server>),
}

/// A store in a file.
#[derive(Debug)]
pub struct StoreFile {
    label: String,
    database: Arc<Database>,
    in_memory: bool,
    /// Set once the table is there: for a store in memory, the handle that is the store.
    ready: OnceCell<Option<Handle>>,
}

impl Store {
    /// Where it is, as traces show it.
    fn backend(&self) -> String {
        match self {
            Self::File(_) => "SQLite".to_owned(),
            Self::Redis(server) => server.to_string(),
        }
    }

    /// So that a fault shows before it is used.
    async fn open(&self) -> Result<(), Error> {
        match self {
            Self::File(store) => store.handle().await.map(drop),
            Self::Redis(server) => server.open().await,
        }
    }

    async fn get(&self, key: String) -> Result<Option<Vec<u8>>, Error> {
        match self {
            Self::File(store) => store.get(key).await,
            Self::Redis(server) => server.get(&key).await,
        }
    }

    async fn exists(&self, key: String) -> Result<bool, Error> {
        match self {
            Self::File(store) => store.exists(key).await,
            Self::Redis(server) => server.exists(&key).await,
        }
    }

    async fn set(&self, key: String, value: Vec<u8>) -> Result<(), Error> {
        match self {
            Self::File(store) => store.set(key, value).await,
            Self::Redis(server) => server.set(&key, &value).await,
        }
    }

    async fn delete(&self, key: String) -> Result<(), Error> {
        match self {
            Self::File(store) => store.delete(key).await,
            Self::Redis(server) => server.delete(&key).await,
        }
    }

    async fn keys(&self) -> Result<Vec<String>, Error> {
        match self {
            Self::File(store) => store.keys().await,
            Self::Redis(server) => server.keys().await,
        }
    }
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

    /// # Errors
    /// Names the file.
    pub fn prepare(&self) -> anyhow::Result<()> {
        self.database.prepare()
    }

    async fn handle(&self) -> Result<Handle, Error> {
        let create = || async {
            let handle = self.database.open().await?;
            // With a rollback journal each write waits for the disk several times and locks readers out. It is a property of
            // the file; while another process uses that, it stays as it is until the next start.
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

    /// Runs a statement with the label and then `parameters`; the rows it gives.
    async fn query(&self, sql: &str, parameters: impl IntoIterator<Item = Value>) -> Result<Vec<RowResult>, Error> {
        let parameters = std::iter::once(Value::Text(self.label.clone()))
            .chain(parameters)
            .collect();
        let answer = self.handle().await?.execute(sql.to_owned(), parameters).await?;
        let (_, rows) = answer.collect().await?;
        Ok(rows)
    }

    async fn get(&self, key: String) -> Result<Option<Vec<u8>>, Error> {
        Ok(
            match self
                .query(GET, [Value::Text(key)])
                .await?
                .pop()
                .and_then(|mut row| row.values.pop())
            {
                Some(Value::Blob(value)) => Some(value),
                // Written by another program.
                Some(Value::Text(value)) => Some(value.into_bytes()),
                Some(_) => return Err(Error::Other("the stored value is a number".to_owned())),
                None => None,
            },
        )
    }

    async fn exists(&self, key: String) -> Result<bool, Error> {
        Ok(!self.query(EXISTS, [Value::Text(key)]).await?.is_empty())
    }

    async fn set(&self, key: String, value: Vec<u8>) -> Result<(), Error> {
        self.query(SET, [Value::Text(key), Value::Blob(value)]).await.map(drop)
    }

    async fn delete(&self, key: String) -> Result<(), Error> {
        self.query(DELETE, [Value::Text(key)]).await.map(drop)
    }

    async fn keys(&self) -> Result<Vec<String>, Error> {
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

impl From<Denied> for Error {
    fn from(denied: Denied) -> Self {
        match denied {
            Denied::NotGranted => Self::AccessDenied,
            Denied::Unknown => Self::NoSuchStore,
        }
    }
}

/// The store, and what goes on with it: `call` names that for traces.
fn store<T>(
    accessor: &Accessor<T, HasSelf<Context>>,
    resource: &Resource<Store>,
    call: &str,
) -> Result<(Store, Option<Span>), Error> {
    accessor.with(|mut access| {
        let store = access.get().table.get(resource).cloned();
        let store = store.map_err(|_| Error::NoSuchStore)?;
        let span = calling_span(&mut access).map(|span| calling(&span, &store, call));
        Ok((store, span))
    })
}

/// A part of the request; neither keys nor values are told.
fn calling(span: &Span, store: &Store, call: &str) -> Span {
    let attributes = vec![KeyValue::new("kv.backend", store.backend())];
    span.call(format!("spin_key_value.{call}"), attributes)
}

impl key_value::Host for Context {
    fn convert_error(&mut self, error: Error) -> wasmtime::Result<Error> {
        Ok(error)
    }
}

impl key_value::HostStore for Context {
    async fn drop(&mut self, store: Resource<Store>) -> wasmtime::Result<()> {
        self.table.delete(store)?;
        self.stores -= 1;
        Ok(())
    }
}

impl<T: Send> key_value::HostStoreWithStore<T> for HasSelf<Context> {
    async fn open(accessor: &Accessor<T, Self>, label: String) -> Result<Resource<Store>, Error> {
        let (store, span) = accessor.with(|mut access| {
            let store = access.get().component.store(&label).cloned()?;
            let span = calling_span(&mut access).map(|span| calling(&span, &store, "open"));
            Ok::<_, Error>((store, span))
        })?;
        // So that a fault of the file shows here.
        within(span, store.open()).await?;
        accessor.with(|mut access| {
            let context = access.get();
            if context.stores >= MOST_STORES {
                return Err(Error::StoreTableFull);
            }
            let resource = context.table.push(store).map_err(|_| Error::StoreTableFull)?;
            context.stores += 1;
            Ok(resource)
        })
    }

    async fn get(
        accessor: &Accessor<T, Self>,
        resource: Resource<Store>,
        key: String,
    ) -> Result<Option<Vec<u8>>, Error> {
        let (store, span) = store(accessor, &resource, "get")?;
        within(span, store.get(key)).await
    }

    async fn set(
        accessor: &Accessor<T, Self>,
        resource: Resource<Store>,
        key: String,
        value: Vec<u8>,
    ) -> Result<(), Error> {
        let (store, span) = store(accessor, &resource, "set")?;
        within(span, store.set(key, value)).await
    }

    async fn delete(accessor: &Accessor<T, Self>, resource: Resource<Store>, key: String) -> Result<(), Error> {
        let (store, span) = store(accessor, &resource, "delete")?;
        within(span, store.delete(key)).await
    }

    async fn exists(accessor: &Accessor<T, Self>, resource: Resource<Store>, key: String) -> Result<bool, Error> {
        let (store, span) = store(accessor, &resource, "exists")?;
        within(span, store.exists(key)).await
    }

    async fn get_keys(
        accessor: &Accessor<T, Self>,
        resource: Resource<Store>,
    ) -> wasmtime::Result<(StreamReader<String>, FutureReader<Result<(), Error>>)> {
        let keys = match store(accessor, &resource, "get_keys") {
            Ok((store, span)) => within(span, store.keys()).await,
            Err(error) => Err(error),
        };
        let (keys, end) = match keys {
            Ok(keys) => (keys, Ok(())),
            Err(error) => (Vec::new(), Err(error)),
        };
        let end = std::future::ready(Ok::<_, wasmtime::Error>(end));
        accessor.with(|mut access| {
            Ok((
                StreamReader::new(&mut access, keys)?,
                FutureReader::new(&mut access, end)?,
            ))
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a store that fails here is a failed test")]
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
    async fn what_is_set_is_got_until_it_is_deleted() {
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
    async fn stores_in_one_file_are_apart() {
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
