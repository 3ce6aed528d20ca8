//! The end of serving, as instances see it: one that works is waited for, one that is only kept for a next request is not.
//!
//! A component may go on after its last answer. wasmtime 44 does not tell whether it does, but then it waits for the host:
//! for a database or for a clock. So those calls are counted.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use wasmtime::component::{Accessor, AccessorTask};

use crate::context::Context;

/// How often an instance is asked whether it still works.
const ASK_AGAIN: Duration = Duration::from_millis(2);

/// Tells every instance that the end has come.
#[derive(Clone)]
pub struct Stop(Arc<watch::Sender<bool>>);

impl Stop {
    pub fn new() -> Self {
        Self(Arc::new(watch::Sender::new(false)))
    }

    /// For one instance, for as long as it lives or until it is done after the end.
    pub fn watch(&self) -> Watch {
        Watch(self.0.subscribe())
    }

    /// Waits until no instance works any more.
    pub async fn done(&self) {
        self.0.send_replace(true);
        self.0.closed().await;
    }
}

/// The calls of one instance that the host is working on: each keeps a clone.
#[derive(Clone, Debug, Default)]
pub struct Work(Arc<()>);

impl Work {
    fn is_going_on(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }
}

/// Runs inside an instance, beside its requests.
pub struct Watch(watch::Receiver<bool>);

impl AccessorTask<Context> for Watch {
    async fn run(mut self, accessor: &Accessor<Context>) -> wasmtime::Result<()> {
        // An error means that nobody is left who could wait for this.
        if self.0.wait_for(|stopped| *stopped).await.is_ok() {
            // Twice, because between a call that has ended and the next one the component has yet to run.
            let mut idle = 0;
            while idle < 2 {
                let works = accessor.with(|mut access| access.get().work.is_going_on());
                idle = if works { 0 } else { idle + 1 };
                tokio::time::sleep(ASK_AGAIN).await;
            }
            // Nobody waits for the end of an instance that is only kept.
            accessor.with(|mut access| access.get().record_use());
        }
        Ok(())
    }
}
