//! The interface `spin:key-value`.

use opentelemetry::KeyValue;
use wasmtime::component::{Accessor, FutureReader, HasSelf, Resource, StreamReader};

use super::context::{Context, Denied, calling_span};
use crate::bindings::key_value::{self, Error};
use crate::storage::key_value::Store;
use crate::telemetry::{Span, within};

/// The maximum number of stores that an instance may have open. Spin's limit.
const MOST_STORES: usize = 256;

/// The table's handle of the store behind a resource. Both have the same number.
fn stored(resource: &Resource<key_value::Store>) -> Resource<Store> {
    Resource::new_own(resource.rep())
}

impl From<Denied> for Error {
    fn from(denied: Denied) -> Self {
        match denied {
            Denied::NotGranted => Self::AccessDenied,
            Denied::Unknown => Self::NoSuchStore,
        }
    }
}

/// The store behind a resource, and the span of the function `call` on it.
fn store<T>(
    accessor: &Accessor<T, HasSelf<Context>>,
    resource: &Resource<key_value::Store>,
    call: &str,
) -> Result<(Store, Option<Span>), Error> {
    accessor.with(|mut access| {
        let store = access.get().table.get(&stored(resource)).cloned();
        let store = store.map_err(|_| Error::NoSuchStore)?;
        let span = calling_span(&mut access).map(|span| calling(&span, &store, call));
        Ok((store, span))
    })
}

/// The span of a function call on a store. It contains neither keys nor values.
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
    async fn drop(&mut self, store: Resource<key_value::Store>) -> wasmtime::Result<()> {
        self.table.delete(stored(&store))?;
        self.stores -= 1;
        Ok(())
    }
}

impl<T: Send> key_value::HostStoreWithStore<T> for HasSelf<Context> {
    async fn open(accessor: &Accessor<T, Self>, label: String) -> Result<Resource<key_value::Store>, Error> {
        let (store, span) = accessor.with(|mut access| {
            let store = access.get().component.store(&label).cloned()?;
            let span = calling_span(&mut access).map(|span| calling(&span, &store, "open"));
            Ok::<_, Error>((store, span))
        })?;
        // Report a broken file now, not at the first access.
        within(span, store.open()).await?;
        accessor.with(|mut access| {
            let context = access.get();
            if context.stores >= MOST_STORES {
                return Err(Error::StoreTableFull);
            }
            let resource = context.table.push(store).map_err(|_| Error::StoreTableFull)?;
            context.stores += 1;
            Ok(Resource::new_own(resource.rep()))
        })
    }

    async fn get(
        accessor: &Accessor<T, Self>,
        resource: Resource<key_value::Store>,
        key: String,
    ) -> Result<Option<Vec<u8>>, Error> {
        let (store, span) = store(accessor, &resource, "get")?;
        within(span, store.get(key)).await
    }

    async fn set(
        accessor: &Accessor<T, Self>,
        resource: Resource<key_value::Store>,
        key: String,
        value: Vec<u8>,
    ) -> Result<(), Error> {
        let (store, span) = store(accessor, &resource, "set")?;
        within(span, store.set(key, value)).await
    }

    async fn delete(
        accessor: &Accessor<T, Self>,
        resource: Resource<key_value::Store>,
        key: String,
    ) -> Result<(), Error> {
        let (store, span) = store(accessor, &resource, "delete")?;
        within(span, store.delete(key)).await
    }

    async fn exists(
        accessor: &Accessor<T, Self>,
        resource: Resource<key_value::Store>,
        key: String,
    ) -> Result<bool, Error> {
        let (store, span) = store(accessor, &resource, "exists")?;
        within(span, store.exists(key)).await
    }

    async fn get_keys(
        accessor: &Accessor<T, Self>,
        resource: Resource<key_value::Store>,
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
