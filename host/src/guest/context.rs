//! The state of a component instance: its WASI context, its resources and its grants.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use wasmtime::component::{Access, GuestTaskId, HasSelf, ResourceTable};
use wasmtime::{AsContextMut as _, StoreContextMut};
use wasmtime_wasi::{WasiCtx, WasiCtxBuilder, WasiCtxView, WasiView};
use wasmtime_wasi_http::{WasiHttpCtx, WasiHttpCtxView, WasiHttpView};

use super::usage::{CpuTime, Limits};
use crate::outbound::{Outbound, Requests};
use crate::storage::database::Database;
use crate::storage::key_value::Store;
use crate::telemetry::{Instances, Logs, Span, Stream, output};
use crate::variables::ComponentVariables;

/// The grants and settings of a component, shared by all its instances.
#[derive(Debug)]
pub struct ComponentState {
    pub id: String,
    pub variables: ComponentVariables,
    pub environment: Vec<(String, String)>,
    pub granted_databases: HashSet<String>,
    pub granted_stores: HashSet<String>,
    /// Which hosts the component may send HTTP requests to.
    pub outbound: Arc<Outbound>,
    /// All databases that the configuration defines, granted or not.
    pub databases: Arc<HashMap<String, Database>>,
    /// All key-value stores that the configuration defines, granted or not.
    pub stores: Arc<HashMap<String, Store>>,
    /// Whether the output of the component is discarded.
    pub quiet: bool,
    /// The maximum size of a linear memory, in bytes.
    pub max_memory: Option<usize>,
    /// `None` if the resource usage of instances is not recorded.
    pub instances: Option<Arc<Instances>>,
    /// `None` if the output of instances goes only to the output of this process.
    pub logs: Option<Logs>,
}

/// Why a component does not get a database or a key-value store.
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

/// Checks the grant first, so that a component without one cannot find out what exists.
fn grant<'a, T>(granted: &HashSet<String>, defined: &'a HashMap<String, T>, name: &str) -> Result<&'a T, Denied> {
    if !granted.contains(name) {
        return Err(Denied::NotGranted);
    }
    defined.get(name).ok_or(Denied::Unknown)
}

/// The data of a wasmtime store.
pub struct Context {
    pub component: Arc<ComponentState>,
    pub table: ResourceTable,
    /// The number of open SQLite connections.
    pub connections: usize,
    /// The number of open key-value stores.
    pub stores: usize,
    pub limits: Limits,
    pub cpu_time: CpuTime,
    /// How much memory the instance used before its first request, in bytes.
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

/// The spans of the traced requests of an instance, each with the guest task that handles the request.
#[derive(Default)]
struct Spans(Vec<(GuestTaskId, Span)>);

/// Begins a request: the host calls of `task` become children of `span`, if there is one.
pub fn begin_request(mut store: StoreContextMut<'_, Context>, task: GuestTaskId, span: Option<Span>) {
    let Spans(spans) = &mut store.data_mut().spans;
    // The ID of a task that has ended is reused.
    spans.retain(|(other, span)| *other != task && span.is_recording());
    spans.extend(span.map(|span| (task, span)));
}

/// The span of the request for which the component calls the host. Only valid before the first `await` of the host call.
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
    fn a_component_without_a_grant_does_not_learn_what_is_defined() {
        let granted = HashSet::from(["default".to_owned(), "missing".to_owned()]);
        let defined = HashMap::from([("default".to_owned(), 1), ("other".to_owned(), 2)]);
        assert_eq!(grant(&granted, &defined, "default"), Ok(&1));
        assert_eq!(grant(&granted, &defined, "other"), Err(Denied::NotGranted));
        assert_eq!(grant(&granted, &defined, "missing"), Err(Denied::Unknown));
        assert_eq!(grant(&granted, &defined, "nowhere"), Err(Denied::NotGranted));
    }
}
