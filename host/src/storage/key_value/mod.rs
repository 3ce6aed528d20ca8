//! Key-value stores in SQLite files or on a Redis server.

mod file;
pub mod redis;

use std::sync::Arc;

pub use self::file::StoreFile;
use crate::bindings::key_value::Error;

/// A key-value store.
#[derive(Clone, Debug)]
pub enum Store {
    File(Arc<StoreFile>),
    Redis(Arc<redis::Server>),
}

impl Store {
    /// The name of the storage system in traces.
    pub fn backend(&self) -> String {
        match self {
            Self::File(_) => "SQLite".to_owned(),
            Self::Redis(server) => server.to_string(),
        }
    }

    /// Opens the store, so that a problem is reported before its first use.
    pub async fn open(&self) -> Result<(), Error> {
        match self {
            Self::File(store) => store.handle().await.map(drop),
            Self::Redis(server) => server.open().await,
        }
    }

    pub async fn get(&self, key: String) -> Result<Option<Vec<u8>>, Error> {
        match self {
            Self::File(store) => store.get(key).await,
            Self::Redis(server) => server.get(&key).await,
        }
    }

    pub async fn exists(&self, key: String) -> Result<bool, Error> {
        match self {
            Self::File(store) => store.exists(key).await,
            Self::Redis(server) => server.exists(&key).await,
        }
    }

    pub async fn set(&self, key: String, value: Vec<u8>) -> Result<(), Error> {
        match self {
            Self::File(store) => store.set(key, value).await,
            Self::Redis(server) => server.set(&key, &value).await,
        }
    }

    pub async fn delete(&self, key: String) -> Result<(), Error> {
        match self {
            Self::File(store) => store.delete(key).await,
            Self::Redis(server) => server.delete(&key).await,
        }
    }

    pub async fn keys(&self) -> Result<Vec<String>, Error> {
        match self {
            Self::File(store) => store.keys().await,
            Self::Redis(server) => server.keys().await,
        }
    }
}
