//! Reading the component's variables.

use std::cell::Cell;
use std::thread::LocalKey;
use std::time::{Duration, Instant};

use spin_sdk::variables::{self, Error};

use crate::{clock, log};

/// Longest wait for variables that redirects depend on. linksctl puts them where the runtime has them at hand; elsewhere a
/// provider on another machine may be asked, for which no redirect waits long.
const LIMIT: Duration = Duration::from_millis(250);

/// How long nobody asks again after that.
const PAUSE: Duration = Duration::from_secs(5);

/// The value of one. A provider's message may name its address, but not a value.
pub async fn get(name: &str) -> Result<String, String> {
    variables::get(name).await.map_err(|error| match error {
        Error::InvalidName(message) | Error::Undefined(message) | Error::Provider(message) | Error::Other(message) => {
            format!("{name}: {message}")
        }
    })
}

/// What variables say. They change with the configuration of the runtime, that is with a new process, and an instance
/// lives for some hundred requests: so once read, they are kept.
#[derive(Clone, Copy)]
pub enum Knowledge<T> {
    Unread,
    Read(T),
    Failed(Instant),
}

/// What is known without reading.
pub fn known<T: Copy>(kept: &'static LocalKey<Cell<Knowledge<T>>>) -> Option<T> {
    match kept.get() {
        Knowledge::Read(known) => Some(known),
        Knowledge::Unread | Knowledge::Failed(_) => None,
    }
}

/// What is known, or else what `read` finds. `None`: it failed, now or a moment ago, and the operator was told `without`.
pub async fn once<T: Copy>(
    kept: &'static LocalKey<Cell<Knowledge<T>>>,
    without: &str,
    read: impl AsyncFnOnce() -> Result<T, String>,
) -> Option<T> {
    match kept.get() {
        Knowledge::Read(known) => return Some(known),
        Knowledge::Failed(since) if since.elapsed() < PAUSE => return None,
        Knowledge::Failed(_) | Knowledge::Unread => {}
    }
    let outcome = clock::within(LIMIT, read()).await;
    match outcome.unwrap_or_else(|| Err("no answer in time".to_owned())) {
        Ok(known) => {
            kept.set(Knowledge::Read(known));
            Some(known)
        }
        Err(error) => {
            log::line(&format!("{without}: cannot read its variables"), error);
            kept.set(Knowledge::Failed(Instant::now()));
            None
        }
    }
}
