//! Components: compiling them, giving them what they import, and the instances that serve requests.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use wasmtime::component::{Component, HasSelf, Linker};
use wasmtime::{Cache, Config, Engine, InstanceAllocationStrategy, PoolingAllocationConfig, Store, UpdateDeadline};
use wasmtime_wasi_http::handler::{HandlerState, ProxyHandler, ProxyPre, StoreBundle};
use wasmtime_wasi_http::p3::bindings::ServicePre;

use crate::bindings::Imports;
use crate::clock;
use crate::context::{ComponentState, Context};
use crate::precompiled;
use crate::range::Range;
use crate::stop::Stop;
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
        .and_then(|()| clock::add_to_linker(&mut linker))
        .and_then(|()| wasmtime_wasi_http::p3::add_to_linker(&mut linker))
        .and_then(|()| Imports::add_to_linker::<_, HasSelf<Context>>(&mut linker, |context| context));
    added.map_err(|error| anyhow!("{error:#}"))?;
    Ok(linker)
}

/// Ticks that a component may compute for before it gives way for the first time. The current one may be about to end.
pub const FIRST_TICKS: u64 = 2;

type Handler = ProxyHandler<Serving>;

/// A component that is ready to serve.
pub struct Handlers {
    plain: Handler,
    /// Its instances serve one request at a time: wasmtime 44 does not report which of an instance's requests calls the
    /// host, but with one at a time it is that one.
    traced: Handler,
}

impl Handlers {
    pub fn new(service: ServicePre<Context>, serving: Serving) -> Self {
        let mut one_at_a_time = serving.clone();
        one_at_a_time.reuse.at_a_time = Range::One(1);
        Self {
            plain: ProxyHandler::new(serving, ProxyPre::P3(service.clone())),
            traced: ProxyHandler::new(one_at_a_time, ProxyPre::P3(service)),
        }
    }

    /// For a request with this span.
    pub fn of(&self, span: Option<&Span>) -> &Handler {
        if span.is_some() { &self.traced } else { &self.plain }
    }

    pub fn component(&self) -> &Arc<ComponentState> {
        &self.plain.state().component
    }
}

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
    ServicePre::new(pre).map_err(|error| anyhow!("{error:#}")).with_context(|| {
        format!("{shown} does not serve HTTP with WASI 0.3 (rc 2026-03-15); build it with spin-sdk 6 and #[http_service]")
    })
}

/// Makes the instances of one component.
#[derive(Clone)]
pub struct Serving {
    pub engine: Engine,
    pub component: Arc<ComponentState>,
    pub reuse: Reuse,
    pub stop: Stop,
}

impl HandlerState for Serving {
    type StoreData = Context;

    fn new_store(&self, _request: Option<u64>) -> wasmtime::Result<StoreBundle<Context>> {
        let mut store = Store::new(&self.engine, Context::new(self.component.clone(), self.stop.watch()));
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
        Ok(StoreBundle {
            store,
            write_profile: Box::new(|_| ()),
        })
    }

    fn request_timeout(&self) -> Duration {
        self.reuse
            .request_timeout
            .map_or(Duration::MAX, |timeout| timeout.draw())
    }

    fn idle_instance_timeout(&self) -> Duration {
        self.reuse.idle.draw()
    }

    fn max_instance_reuse_count(&self) -> usize {
        self.reuse.requests.draw()
    }

    fn max_instance_concurrent_reuse_count(&self) -> usize {
        self.reuse.at_a_time.draw()
    }

    fn handle_worker_error(&self, error: wasmtime::Error) {
        tracing::error!(
            "component {}: an instance ended, with all its requests: {error:?}",
            self.component.id
        );
    }
}
