//! The component's variables.

use std::cell::Cell;
use std::pin::{Pin, pin};
use std::thread::LocalKey;
use std::time::Duration;

use crate::sdk::variables::{self, Error};

use crate::time::Instant;
use crate::{clock, log};

/// How long to wait for variables that redirects depend on. linksctl passes them to the runtime directly; elsewhere a provider
/// on another machine may be asked.
const LIMIT: Duration = Duration::from_millis(250);

/// The pause after a failure before the next attempt.
const PAUSE: Duration = Duration::from_secs(5);

/// Reads a variable.
///
/// # Errors
/// The provider's message, which may contain its address but no value.
pub async fn get(name: &str) -> Result<String, String> {
    variables::get(name).await.map_err(|error| match error {
        Error::InvalidName(message) | Error::Undefined(message) | Error::Provider(message) | Error::Other(message) => {
            format!("{name}: {message}")
        }
    })
}

/// A value that an instance parses from variables once. Variables only change when the runtime's process is restarted.
#[derive(Clone, Copy)]
pub enum Cached<T> {
    Unread,
    Read(T),
    Failed(Instant),
}

/// The value, if it has been read.
pub fn cached<T: Copy>(cell: &'static LocalKey<Cell<Cached<T>>>) -> Option<T> {
    match cell.get() {
        Cached::Read(value) => Some(value),
        Cached::Unread | Cached::Failed(_) => None,
    }
}

/// The cached value, or else what `read` returns. `None` if reading failed, now or a moment ago. The log line of a failure
/// begins with its `consequence`.
pub async fn read_once<T: Copy>(
    cell: &'static LocalKey<Cell<Cached<T>>>,
    consequence: &str,
    read: impl AsyncFnOnce() -> Result<T, String>,
) -> Option<T> {
    match cell.get() {
        Cached::Read(value) => return Some(value),
        Cached::Failed(since) if since.elapsed() < PAUSE => return None,
        Cached::Failed(_) | Cached::Unread => {}
    }
    let mut outcome = Err("no answer in time".to_owned());
    {
        // A trait object, so that the time limit is compiled once for all types of values.
        let reading: Pin<&mut dyn Future<Output = ()>> = pin!(async { outcome = read().await });
        clock::within(LIMIT, reading).await;
    }
    match outcome {
        Ok(value) => {
            cell.set(Cached::Read(value));
            Some(value)
        }
        Err(error) => {
            log::line(format_args!("{consequence}: cannot read the variables"), error);
            cell.set(Cached::Failed(Instant::now()));
            None
        }
    }
}
