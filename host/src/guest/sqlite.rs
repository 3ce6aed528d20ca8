//! The interface `spin:sqlite`.

use std::future::ready;
use std::pin::Pin;
use std::task::{Context as Task, Poll};

use opentelemetry::KeyValue;
use wasmtime::StoreContextMut;
use wasmtime::component::{
    Access, Accessor, Destination, FutureReader, HasSelf, Resource, StreamProducer, StreamReader, StreamResult,
    VecBuffer,
};

use super::context::{Context, Denied, calling_span};
use crate::bindings::sqlite::{self, Error, QueryResult, RowResult, Value};
use crate::storage::answer::{Answer, Producer, ROWS_AHEAD, RowStream, Rows};
use crate::storage::database::{Connection, Database};
use crate::telemetry::{Span, within, without_values};

/// The maximum number of connections that an instance may have open. Spin's limit.
const MOST_CONNECTIONS: usize = 256;

type AsyncResult = (Vec<String>, StreamReader<RowResult>, FutureReader<Result<(), Error>>);

impl From<Denied> for Error {
    fn from(denied: Denied) -> Self {
        match denied {
            Denied::NotGranted => Self::AccessDenied,
            Denied::Unknown => Self::NoSuchDatabase,
        }
    }
}

/// The table's handle of the connection behind a resource. Both have the same number.
fn opened(resource: &Resource<sqlite::Connection>) -> Resource<Connection> {
    Resource::new_own(resource.rep())
}

impl Context {
    fn push_connection(&mut self, handle: Connection) -> Result<Resource<sqlite::Connection>, Error> {
        let too_many = || Error::Io("too many connections opened".to_owned());
        if self.connections >= MOST_CONNECTIONS {
            return Err(too_many());
        }
        let resource = self.table.push(handle).map_err(|_| too_many())?;
        self.connections += 1;
        Ok(Resource::new_own(resource.rep()))
    }

    fn connection(&self, resource: &Resource<sqlite::Connection>) -> Result<Connection, Error> {
        self.table
            .get(&opened(resource))
            .cloned()
            .map_err(|_| Error::InvalidConnection)
    }
}

fn handle<T>(
    accessor: &Accessor<T, HasSelf<Context>>,
    resource: &Resource<sqlite::Connection>,
) -> Result<Connection, Error> {
    accessor.with(|mut access| access.get().connection(resource))
}

/// The database, and the span of opening it.
fn opening<T>(access: &mut Access<'_, T, HasSelf<Context>>, database: &str) -> Result<(Database, Option<Span>), Error> {
    let attributes = || vec![KeyValue::new("db.system", "sqlite")];
    let database = access.get().component.database(database)?.clone();
    let span = calling_span(access).map(|span| span.call("spin_sqlite.open".to_owned(), attributes()));
    Ok((database, span))
}

/// The span of a statement, named by its text without values.
fn executing<T>(
    access: &mut Access<'_, T, HasSelf<Context>>,
    connection: &Connection,
    statement: &str,
) -> Option<Span> {
    calling_span(access).map(|span| {
        let text = without_values(statement);
        let attributes = vec![
            KeyValue::new("db.system", "sqlite"),
            KeyValue::new("sqlite.backend", connection.backend()),
            KeyValue::new("db.query.text", text.clone()),
        ];
        span.call(text, attributes)
    })
}

impl sqlite::Host for Context {
    fn convert_error(&mut self, error: Error) -> wasmtime::Result<Error> {
        Ok(error)
    }
}

impl sqlite::HostConnection for Context {
    async fn last_insert_rowid(&mut self, connection: Resource<sqlite::Connection>) -> wasmtime::Result<i64> {
        Ok(self.connection(&connection)?.last_insert_rowid().await?)
    }

    async fn changes(&mut self, connection: Resource<sqlite::Connection>) -> wasmtime::Result<u64> {
        Ok(self.connection(&connection)?.changes().await?)
    }

    async fn drop(&mut self, connection: Resource<sqlite::Connection>) -> wasmtime::Result<()> {
        self.table.delete(opened(&connection))?;
        self.connections -= 1;
        Ok(())
    }
}

impl<T: Send> sqlite::HostConnectionWithStore<T> for HasSelf<Context> {
    async fn open(mut access: Access<'_, T, Self>, database: String) -> Result<Resource<sqlite::Connection>, Error> {
        let (database, span) = opening(&mut access, &database)?;
        let handle = within(span, database.open()).await?;
        access.get().push_connection(handle)
    }

    async fn open_async(accessor: &Accessor<T, Self>, database: String) -> Result<Resource<sqlite::Connection>, Error> {
        let (database, span) = accessor.with(|mut access| opening(&mut access, &database))?;
        let handle = within(span, database.open()).await?;
        accessor.with(|mut access| access.get().push_connection(handle))
    }

    async fn execute(
        mut access: Access<'_, T, Self>,
        connection: Resource<sqlite::Connection>,
        statement: String,
        parameters: Vec<Value>,
    ) -> Result<QueryResult, Error> {
        let handle = access.get().connection(&connection)?;
        let span = executing(&mut access, &handle, &statement);
        let (columns, rows) = within(span, handle.execute_all(statement, parameters)).await?;
        Ok(QueryResult { columns, rows })
    }

    async fn execute_async(
        accessor: &Accessor<T, Self>,
        connection: Resource<sqlite::Connection>,
        statement: String,
        parameters: Vec<Value>,
    ) -> Result<AsyncResult, Error> {
        let (handle, span) = accessor.with(|mut access| {
            let handle = access.get().connection(&connection)?;
            let span = executing(&mut access, &handle, &statement);
            Ok::<_, Error>((handle, span))
        })?;
        let Answer { columns, rows } = within(span, handle.execute(statement, parameters)).await?;
        let readers = accessor.with(|mut access| -> wasmtime::Result<_> {
            Ok(match rows {
                Rows::All(rows) => {
                    let end = ready(Ok::<_, wasmtime::Error>(Ok(())));
                    (
                        StreamReader::new(&mut access, rows)?,
                        FutureReader::new(&mut access, end)?,
                    )
                }
                Rows::Stream(RowStream { rows, end, abandon }) => {
                    let rows = RowProducer {
                        rows,
                        _abandon: abandon,
                    };
                    (
                        StreamReader::new(&mut access, rows)?,
                        FutureReader::new(&mut access, end)?,
                    )
                }
            })
        });
        let (rows, end) = readers.map_err(|error| Error::Io(error.to_string()))?;
        Ok((columns, rows, end))
    }

    async fn last_insert_rowid_async(
        accessor: &Accessor<T, Self>,
        connection: Resource<sqlite::Connection>,
    ) -> wasmtime::Result<i64> {
        Ok(handle(accessor, &connection)?.last_insert_rowid().await?)
    }

    async fn changes_async(
        accessor: &Accessor<T, Self>,
        connection: Resource<sqlite::Connection>,
    ) -> wasmtime::Result<u64> {
        Ok(handle(accessor, &connection)?.changes().await?)
    }
}

/// Passes rows to the component as they arrive.
struct RowProducer {
    rows: tokio::sync::mpsc::Receiver<RowResult>,
    _abandon: Producer,
}

impl<D> StreamProducer<D> for RowProducer {
    type Item = RowResult;
    type Buffer = VecBuffer<RowResult>;

    fn poll_produce<'a>(
        mut self: Pin<&mut Self>,
        task: &mut Task<'_>,
        store: StoreContextMut<'a, D>,
        mut destination: Destination<'a, RowResult, VecBuffer<RowResult>>,
        finish: bool,
    ) -> Poll<wasmtime::Result<StreamResult>> {
        // A read of zero items only asks whether the stream is ready; the next read waits for rows.
        if destination.remaining(store) == Some(0) {
            return Poll::Ready(Ok(StreamResult::Completed));
        }
        let mut rows = Vec::new();
        match self.rows.poll_recv_many(task, &mut rows, ROWS_AHEAD) {
            Poll::Ready(0) => Poll::Ready(Ok(StreamResult::Dropped)),
            Poll::Ready(_) => {
                destination.set_buffer(rows.into());
                Poll::Ready(Ok(StreamResult::Completed))
            }
            Poll::Pending if finish => Poll::Ready(Ok(StreamResult::Cancelled)),
            Poll::Pending => Poll::Pending,
        }
    }
}
