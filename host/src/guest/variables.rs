//! The interface `spin:variables`.

use opentelemetry::KeyValue;
use wasmtime::component::{Accessor, HasSelf};

use super::context::{Context, calling_span};
use crate::bindings::variables::{self, Error};
use crate::telemetry::within;

impl variables::Host for Context {
    fn convert_error(&mut self, error: Error) -> wasmtime::Result<Error> {
        Ok(error)
    }
}

impl<T: Send> variables::HostWithStore<T> for HasSelf<Context> {
    async fn get(accessor: &Accessor<T, Self>, name: String) -> Result<String, Error> {
        let (component, span) = accessor.with(|mut access| (access.get().component.clone(), calling_span(&mut access)));
        let span = span.map(|span| {
            span.call(
                "spin_variables.get".to_owned(),
                vec![KeyValue::new("key", name.clone())],
            )
        });
        within(span, component.variables.get(&name)).await
    }
}
