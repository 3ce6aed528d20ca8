//! The instances of components, which handle the requests.

use std::future::pending;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;
use tokio::time::sleep;
use wasmtime::component::GuestTaskId;
use wasmtime::{Engine, Store, StoreContextMut, UpdateDeadline};
use wasmtime_wasi_http::WasiHttpView as _;
use wasmtime_wasi_http::handler::{HandlerState, Instance, Proxy, ProxyHandler, ShouldAccept, WorkerState};
use wasmtime_wasi_http::p3::bindings::ServicePre;

use super::range::Range;
use super::stop::{Expiration, Stop};
use crate::guest::context::{self, ComponentState, Context};
use crate::telemetry::Span;

/// How instances are reused.
#[derive(Clone, Copy, Debug)]
pub struct Reuse {
    /// How many requests an instance handles in total.
    pub requests: Range<usize>,
    /// How many requests an instance handles at once.
    pub at_a_time: Range<usize>,
    /// How long an instance lives without requests.
    pub idle: Range<Duration>,
    pub request_timeout: Option<Range<Duration>>,
}

/// How many epoch ticks a component may compute before it first yields. Two, because the current tick may be about to end.
const FIRST_TICKS: u64 = 2;

/// A component that is ready to handle requests.
pub type Handler = ProxyHandler<Serving>;

/// Creates the instances of one component.
pub struct Serving {
    pub engine: Engine,
    pub service: ServicePre<Context>,
    pub component: Arc<ComponentState>,
    pub reuse: Reuse,
    pub stop: Stop,
}

impl Serving {
    fn store(&self) -> Store<Context> {
        let mut store = Store::new(&self.engine, Context::new(self.component.clone()));
        store.limiter(|context| &mut context.limits);
        if self.component.instances.is_some() {
            store.call_hook(|mut store, hook| {
                store.data_mut().cpu_time.at(hook);
                Ok(())
            });
        }
        store.set_epoch_deadline(FIRST_TICKS);
        store.epoch_deadline_callback(|store| {
            tracing::trace!("component {}: yields its thread", store.data().component.id);
            Ok(UpdateDeadline::Yield(1))
        });
        store
    }
}

impl HandlerState for Serving {
    type StoreData = Context;
    type WorkerExpiration = Expiration;
    type WorkerState = InstanceState;

    async fn instantiate(&self) -> wasmtime::Result<Instance<Context, Expiration, InstanceState>> {
        let mut store = self.store();
        let service = self.service.instantiate_async(&mut store).await?;
        let context = store.data_mut();
        context.memory_on_init = context.limits.memory();
        let request_timeout = self.reuse.request_timeout.map(|timeout| timeout.draw());
        Ok(Instance {
            store,
            proxy: Proxy::P3(service),
            view: Context::http,
            expiration: self.stop.expiration(self.reuse.idle.draw(), request_timeout),
            state: InstanceState {
                component: self.component.clone(),
                requests: self.reuse.requests.draw(),
                at_a_time: self.reuse.at_a_time.draw(),
                request_timeout,
            },
        })
    }
}

/// The limits of an instance.
pub struct InstanceState {
    component: Arc<ComponentState>,
    requests: usize,
    at_a_time: usize,
    request_timeout: Option<Duration>,
}

/// What accompanies a request to its instance.
pub struct RequestData {
    /// Released when the component has responded or ended, even if the client has disconnected before that.
    pub permit: Arc<OwnedSemaphorePermit>,
    pub span: Option<Span>,
}

impl WorkerState for InstanceState {
    type StoreData = Context;
    type RequestData = RequestData;

    fn should_accept_request(&self, at_a_time: usize, requests: usize) -> ShouldAccept {
        if requests >= self.requests {
            ShouldAccept::Never
        } else if at_a_time >= self.at_a_time {
            ShouldAccept::No
        } else {
            ShouldAccept::Yes
        }
    }

    fn on_request_start(
        &self,
        mut store: StoreContextMut<'_, Context>,
        data: RequestData,
        task: GuestTaskId,
    ) -> Pin<Box<dyn Future<Output = ()> + Send + Sync>> {
        // The deadline is absolute. After an idle time it has passed, and the component would yield at once.
        store.set_epoch_deadline(FIRST_TICKS);
        context::begin_request(store, task, data.span);
        let (permit, limit) = (data.permit, self.request_timeout);
        Box::pin(async move {
            let _permit = permit;
            match limit {
                Some(limit) => sleep(limit).await,
                None => pending().await,
            }
        })
    }

    fn drop(&self, store: Store<Context>, result: wasmtime::Result<()>) {
        if let Err(error) = result {
            let id = &self.component.id;
            tracing::error!("component {id}: an instance failed, and all its requests with it: {error:?}");
        }
        drop(store);
    }
}
