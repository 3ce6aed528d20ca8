//! Components: compiling them, giving them what they import, and the instances that serve requests.

use std::future::pending;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::sleep;
use wasmtime::component::{Component, GuestTaskId, HasSelf, Linker};
use wasmtime::{
    Cache, Config, Engine, InstanceAllocationStrategy, PoolingAllocationConfig, Store, StoreContextMut, UpdateDeadline,
};
use wasmtime_wasi_http::WasiHttpView as _;
use wasmtime_wasi_http::handler::{HandlerState, Instance, Proxy, ProxyHandler, ShouldAccept, WorkerState};
use wasmtime_wasi_http::p3::bindings::ServicePre;

use crate::bindings::Imports;
use crate::context::{self, ComponentState, Context};
use crate::precompiled;
use crate::range::Range;
use crate::stop::{Expiration, Stop};
use crate::telemetry::Span;

/// How often a component that computes without a pause lets others have its thread. Spin's value.
const TICK: Duration = Duration::from_millis(10);
/// Instances that can live at once. Spin's default.
pub const MOST_INSTANCES: u32 = 1_000;
/// Memory of a free slot that is cleared by hand rather than given back to the kernel, in bytes. Spin keeps 2 MiB; but an
/// instance serves many requests, so that making one is rare, and the memory counts.
const KEEP_RESIDENT: usize = 64 << 10;
/// Free slots that keep such memory: as many as a burst of requests uses, not a hundred as in Spin.
const WARM_SLOTS: u32 = 32;

/// Where compiled code is kept between starts.
#[derive(Debug)]
pub enum CodeCache {
    Off,
    /// $XDG_CACHE_HOME/wasmtime
    Default,
    /// As this configuration file of wasmtime says.
    Configured(PathBuf),
}

/// How instances are used again.
#[derive(Clone, Copy, Debug)]
pub struct Reuse {
    pub requests: Range<usize>,
    pub at_a_time: Range<usize>,
    pub idle: Range<Duration>,
    pub request_timeout: Option<Range<Duration>>,
}

/// # Errors
/// The cache's configuration, or too little address space for the pool.
pub fn engine(cache: &CodeCache, pooling: bool) -> Result<Engine> {
    let mut config = Config::new();
    config
        .wasm_component_model(true)
        .wasm_component_model_async(true)
        .epoch_interruption(true);
    config.cache(code_cache(cache)?);
    if pooling {
        config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool()));
    }
    let engine = Engine::new(&config)
        .map_err(|error| anyhow!("{error:#}"))
        .context("Preparing the pool of instances; with little address space, use --disable-pooling")?;
    let weak = engine.weak();
    // The tick must come when every thread of the executor is busy with components: it needs a thread of its own.
    std::thread::Builder::new().name("tick".to_owned()).spawn(move || {
        while let Some(engine) = weak.upgrade() {
            engine.increment_epoch();
            drop(engine);
            std::thread::sleep(TICK);
        }
    })?;
    Ok(engine)
}

fn code_cache(cache: &CodeCache) -> Result<Option<Cache>> {
    match cache {
        CodeCache::Off => Ok(None),
        CodeCache::Configured(file) => {
            let cache = Cache::from_file(Some(file)).map_err(|error| anyhow!("{error:#}"));
            cache
                .with_context(|| format!("Reading the cache configuration {}", file.display()))
                .map(Some)
        }
        CodeCache::Default => Ok(match Cache::from_file(None) {
            Ok(cache) => Some(cache),
            Err(error) => {
                tracing::warn!("compiled code is not kept, every start compiles anew (set XDG_CACHE_HOME): {error:#}");
                None
            }
        }),
    }
}

fn pool() -> PoolingAllocationConfig {
    let mut pool = PoolingAllocationConfig::default();
    pool.total_component_instances(MOST_INSTANCES)
        .total_memories(MOST_INSTANCES)
        .total_tables(2 * MOST_INSTANCES)
        .total_stacks(MOST_INSTANCES)
        .total_core_instances(4 * MOST_INSTANCES)
        .table_elements(100_000)
        .max_component_instance_size(10 << 20)
        .max_core_instance_size(10 << 20)
        .max_core_instances_per_component(200)
        .max_tables_per_component(64)
        .max_memories_per_component(32)
        .max_tables_per_module(2)
        .max_memories_per_module(2)
        .max_memory_size(4 << 30)
        .max_unused_warm_slots(WARM_SLOTS)
        .linear_memory_keep_resident(KEEP_RESIDENT)
        .table_keep_resident(KEEP_RESIDENT);
    pool
}

/// # Errors
/// The same import twice, which cannot be.
pub fn linker(engine: &Engine) -> Result<Linker<Context>> {
    let mut linker = Linker::new(engine);
    let added = wasmtime_wasi::p2::add_to_linker_async(&mut linker)
        .and_then(|()| wasmtime_wasi::p3::add_to_linker(&mut linker))
        .and_then(|()| wasmtime_wasi_http::p3::add_to_linker(&mut linker))
        .and_then(|()| Imports::add_to_linker::<_, HasSelf<Context>>(&mut linker, |context| context));
    added.map_err(|error| anyhow!("{error:#}"))?;
    Ok(linker)
}

/// Ticks that a component may compute for before it gives way for the first time. The current one may be about to end.
const FIRST_TICKS: u64 = 2;

/// A component that is ready to serve.
pub type Handler = ProxyHandler<Serving>;

/// Takes the component as it was compiled before, from `precompiled` or from the cache; otherwise compiles it.
///
/// # Errors
/// Names the file: it cannot be read, is no component, imports what links-host lacks, or does not serve HTTP.
pub fn load(
    linker: &Linker<Context>,
    id: &str,
    file: &Path,
    precompiled: Option<&Path>,
) -> Result<ServicePre<Context>> {
    let shown = file.display();
    let bytes = std::fs::read(file).with_context(|| format!("Reading the component {shown}"))?;
    let ready = precompiled.and_then(|directory| {
        let ready = precompiled::load(directory, linker.engine(), id, &bytes);
        let problem = match ready {
            Ok(Some(component)) => return Some(component),
            Ok(None) => format!("{} holds nothing that fits", directory.display()),
            Err(error) => format!("{error:#}"),
        };
        tracing::warn!("component {id} is compiled at the start, which takes time and memory: {problem}");
        None
    });
    let component = match ready {
        Some(component) => component,
        None => Component::new(linker.engine(), &bytes)
            .map_err(|error| anyhow!("{error:#}"))
            .with_context(|| format!("{shown} is not a WebAssembly component; build it again, or install it again"))?,
    };
    let pre = linker
        .instantiate_pre(&component)
        .map_err(|error| anyhow!("{error:#}"))
        .with_context(|| {
            format!("{shown} imports what links-host does not have; run it on Spin, or build it without")
        })?;
    ServicePre::new(pre)
        .map_err(|error| anyhow!("{error:#}"))
        .with_context(|| {
            format!("{shown} does not serve HTTP with WASI 0.3.0; build it with spin-sdk 7 and #[http_service]")
        })
}

/// Makes the instances of one component.
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
            tracing::trace!("component {}: gives way to others", store.data().component.id);
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

/// What an instance may do.
pub struct InstanceState {
    component: Arc<ComponentState>,
    requests: usize,
    at_a_time: usize,
    request_timeout: Option<Duration>,
}

/// What belongs to a request besides the request itself.
pub struct Turn {
    /// Given back when the component has answered, or has ended: its client may be gone by then.
    pub permit: Arc<OwnedSemaphorePermit>,
    pub span: Option<Span>,
}

impl WorkerState for InstanceState {
    type StoreData = Context;
    type RequestData = Turn;

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
        turn: Turn,
        task: GuestTaskId,
    ) -> Pin<Box<dyn Future<Output = ()> + Send + Sync>> {
        // The deadline is absolute: after a pause it has passed, and the component would give way at once.
        store.set_epoch_deadline(FIRST_TICKS);
        context::begin_request(store, task, turn.span);
        let (permit, limit) = (turn.permit, self.request_timeout);
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
            tracing::error!("component {id}: an instance ended, with all its requests: {error:?}");
        }
        drop(store);
    }
}
