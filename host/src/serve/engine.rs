//! The engine, which compiles components, and the pool that their instances are allocated from.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use wasmtime::component::{HasSelf, Linker};
use wasmtime::{Cache, Config, Engine, InstanceAllocationStrategy, PoolingAllocationConfig};

use super::address_space::{self, MAX_INSTANCES};
use crate::bindings::Imports;
use crate::guest::context::Context;
use crate::guest::usage;

/// The interval at which a component that computes without a pause yields its thread. Spin's value.
const TICK: Duration = Duration::from_millis(10);
/// How many bytes of a free slot are zeroed and kept instead of being returned to the kernel. Spin keeps 2 MiB. Here an
/// instance serves many requests, so creating one is rare, and memory matters more.
const KEEP_RESIDENT: usize = 64 << 10;
/// The maximum number of free slots that keep such memory: enough for a burst of requests. Spin keeps a hundred.
const WARM_SLOTS: u32 = 32;

/// Where compiled code is cached between starts.
#[derive(Debug)]
pub enum CodeCache {
    Off,
    /// In `$XDG_CACHE_HOME/wasmtime`.
    Default,
    /// As configured by this wasmtime cache configuration file.
    Configured(PathBuf),
}

/// The engine, and how many instances can exist at once.
pub struct Prepared {
    pub engine: Engine,
    pub max_instances: u32,
}

/// Creates the engine and starts the thread that advances its epoch.
///
/// # Errors
/// The cache configuration is invalid, or there is too little address space for the pool.
pub fn prepare(cache: &CodeCache, pooling: bool) -> Result<Prepared> {
    let mut config = Config::new();
    config
        .wasm_component_model(true)
        .wasm_component_model_async(true)
        .epoch_interruption(true);
    config.cache(code_cache(cache)?);
    let mut max_instances = MAX_INSTANCES;
    if pooling {
        max_instances = address_space::max_instances().context("Preparing the instance pool")?;
        config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool(max_instances)));
    }
    let engine = Engine::new(&config)
        .map_err(|error| anyhow!("{error:#}"))
        .context("Preparing the instance pool")?;
    let weak = engine.weak();
    // The epoch must advance even while components occupy every executor thread, so it has its own thread.
    std::thread::Builder::new().name("tick".to_owned()).spawn(move || {
        while let Some(engine) = weak.upgrade() {
            engine.increment_epoch();
            usage::tick();
            drop(engine);
            std::thread::sleep(TICK);
        }
    })?;
    Ok(Prepared { engine, max_instances })
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
                tracing::warn!(
                    "compiled code is not cached, so every start compiles again; set XDG_CACHE_HOME: {error:#}"
                );
                None
            }
        }),
    }
}

fn pool(instances: u32) -> PoolingAllocationConfig {
    let mut pool = PoolingAllocationConfig::default();
    pool.total_component_instances(instances)
        .total_memories(instances)
        .total_tables(2 * instances)
        .total_stacks(instances)
        .total_core_instances(4 * instances)
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

/// Provides everything that components may import.
///
/// # Errors
/// An import is defined twice, which is a bug.
pub fn linker(engine: &Engine) -> Result<Linker<Context>> {
    let mut linker = Linker::new(engine);
    let added = wasmtime_wasi::p2::add_to_linker_async(&mut linker)
        .and_then(|()| wasmtime_wasi::p3::add_to_linker(&mut linker))
        .and_then(|()| wasmtime_wasi_http::p3::add_to_linker(&mut linker))
        .and_then(|()| Imports::add_to_linker::<_, HasSelf<Context>>(&mut linker, |context| context));
    added.map_err(|error| anyhow!("{error:#}"))?;
    Ok(linker)
}
