//! `wasi:clocks/monotonic-clock` as wasmtime has it, except that a component that waits on it counts as working.

use std::time::Duration;

use wasmtime::component::{Accessor, HasData, Linker};
use wasmtime_wasi::clocks::WasiClocksView as _;
use wasmtime_wasi::p3::bindings::clocks::monotonic_clock::{self, Host, HostWithStore, Mark};

use crate::context::Context;

/// Takes the place of the clock that the linker has.
///
/// # Errors
/// The linker does not allow it.
pub fn add_to_linker(linker: &mut Linker<Context>) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    let added = monotonic_clock::add_to_linker::<_, Clock>(linker, |context| View(context));
    linker.allow_shadowing(false);
    added
}

struct Clock;

impl HasData for Clock {
    type Data<'a> = View<'a>;
}

struct View<'a>(&'a mut Context);

impl Host for View<'_> {
    fn now(&mut self) -> wasmtime::Result<Mark> {
        self.0.clocks().now()
    }

    fn get_resolution(&mut self) -> wasmtime::Result<u64> {
        self.0.clocks().get_resolution()
    }
}

impl HostWithStore for Clock {
    async fn wait_until<T: Send>(accessor: &Accessor<T, Self>, when: Mark) -> wasmtime::Result<()> {
        let now = accessor.with(|mut access| access.get().now())?;
        Self::wait_for(accessor, when.saturating_sub(now)).await
    }

    async fn wait_for<T: Send>(accessor: &Accessor<T, Self>, nanoseconds: u64) -> wasmtime::Result<()> {
        let _work = accessor.with(|mut access| access.get().0.work.clone());
        tokio::time::sleep(Duration::from_nanos(nanoseconds)).await;
        Ok(())
    }
}
