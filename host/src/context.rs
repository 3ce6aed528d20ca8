//! What one instance of a component has: its WASI context, its resources and its grants.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use wasmtime::component::{Access, GuestTaskId, HasSelf, ResourceTable};
use wasmtime::{AsContextMut as _, StoreContextMut};
use wasmtime_wasi::{WasiCtx, WasiCtxBuilder, WasiCtxView, WasiView};
use wasmtime_wasi_http::{WasiHttpCtx, WasiHttpCtxView, WasiHttpView};

use crate::database::Database;
use crate::key_value::Store;
use crate::outbound::{Outbound, Requests};
use crate::telemetry::{Instances, Logs, Span, Stream, output};
use crate::usage::{CpuTime, Limits};
use crate::variables::ComponentVariables;

/// What a component may use, and how it is set up; the same for all its instances.
#[derive(Debug)]
pub struct ComponentState {
    pub id: String,
    pub variables: ComponentVariables,
    pub environment: Vec<(String, String)>,
    pub granted_databases: HashSet<String>,
    pub granted_stores: HashSet<String>,
    /// What it may ask by HTTP.
    pub outbound: Arc<Outbound>,
    /// All that the configuration defines.
    pub databases: Arc<HashMap<String, Database>>,
    pub stores: Arc<HashMap<String, Store>>,
    pub quiet: bool,
    pub max_memory: Option<usize>,
    /// None: what instances use is not recorded.
    pub instances: Option<Arc<Instances>>,
    /// None: what instances write goes to this process's own output alone.
    pub logs: Option<Logs>,
}

/// Why a component does not get what it asks for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Denied {
    NotGranted,
    Unknown,
}

impl ComponentState {
    pub fn database(&self, name: &str) -> Result<&Database, Denied> {
        grant(&self.granted_databases, &self.databases, name)
    }

    pub fn store(&self, label: &str) -> Result<&Store, Denied> {
        grant(&self.granted_stores, &self.stores, label)
    }
}

/// The grant is looked at first: what exists is nothing for a component without one to find out.
fn grant<'a, T>(granted: &HashSet<String>, defined: &'a HashMap<String, T>, name: &str) -> Result<&'a T, Denied> {
    if !granted.contains(name) {
        return Err(Denied::NotGranted);
    }
    defined.get(name).ok_or(Denied::Unknown)
}

/// The data of a store.
pub struct Context {
    pub component: Arc<ComponentState>,
    pub table: ResourceTable,
    /// Open SQLite connections.
    pub connections: usize,
    /// Open key-value stores.
    pub stores: usize,
    pub limits: Limits,
    pub cpu_time: CpuTime,
    /// How much memory it had before its first request, in bytes.
    pub memory_on_init: u64,
    spans: Spans,
    wasi: WasiCtx,
    http: WasiHttpCtx,
    outbound: Requests,
}

impl Context {
    pub fn new(component: Arc<ComponentState>) -> Self {
        let mut wasi = WasiCtxBuilder::new();
        if !component.quiet {
            let output = |stream| output(component.logs.as_ref(), stream);
            wasi.stdout(output(Stream::Stdout)).stderr(output(Stream::Stderr));
        }
        wasi.envs(&component.environment);
        let outbound = Requests(component.outbound.clone());
        Self {
            limits: Limits::new(component.max_memory),
            cpu_time: CpuTime::default(),
            memory_on_init: 0,
            spans: Spans::default(),
            component,
            table: ResourceTable::new(),
            connections: 0,
            stores: 0,
            wasi: wasi.build(),
            http: WasiHttpCtx::new(),
            outbound,
        }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        if let Some(instances) = &self.component.instances {
            instances.record(self.cpu_time.total(), self.limits.memory(), self.memory_on_init);
        }
    }
}

/// The requests of an instance that are traced, each with the task that answers it.
#[derive(Default)]
struct Spans(Vec<(GuestTaskId, Span)>);

/// Begins a request: what `task` asks for is part of its span, if it has one.
pub fn begin_request(mut store: StoreContextMut<'_, Context>, task: GuestTaskId, span: Option<Span>) {
    let Spans(spans) = &mut store.data_mut().spans;
    // The number of a task that has ended is given to another.
    spans.retain(|(other, span)| *other != task && span.is_recording());
    spans.extend(span.map(|span| (task, span)));
}

/// The span of the request for which the component calls the host. It is known only until the first `await`.
pub fn calling_span<T>(access: &mut Access<'_, T, HasSelf<Context>>) -> Option<Span> {
    if access.get().spans.0.is_empty() {
        return None;
    }
    let tasks: Vec<_> = access.as_context_mut().async_call_stack().ok()?.collect();
    let Spans(spans) = &access.get().spans;
    let of_caller = spans.iter().find(|(task, _)| tasks.contains(task));
    of_caller.map(|(_, span)| span.clone())
}

impl WasiView for Context {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView {
            ctx: &mut self.wasi,
            table: &mut self.table,
        }
    }
}

impl WasiHttpView for Context {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView {
            hooks: &mut self.outbound,
            table: &mut self.table,
            ctx: &mut self.http,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grant_comes_before_a_definition() {
        let granted = HashSet::from(["default".to_owned(), "missing".to_owned()]);
        let defined = HashMap::from([("default".to_owned(), 1), ("other".to_owned(), 2)]);
        assert_eq!(grant(&granted, &defined, "default"), Ok(&1));
        assert_eq!(grant(&granted, &defined, "other"), Err(Denied::NotGranted));
        assert_eq!(grant(&granted, &defined, "missing"), Err(Denied::Unknown));
        assert_eq!(grant(&granted, &defined, "nowhere"), Err(Denied::NotGranted));
    }
}
