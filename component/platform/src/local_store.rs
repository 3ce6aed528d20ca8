//! What the instances of this machine leave for each other in the key-value store "local". An instance lives for a second or
//! two, and what it has learnt would be lost with it. All of it can be learnt again at some cost, so callers never see a
//! failure.

use std::cell::Cell;

use crate::kv::Store;
use crate::log;

thread_local! {
    static IS_FAILURE_LOGGED: Cell<bool> = const { Cell::new(false) };
}

pub async fn get(key: &str) -> Option<Vec<u8>> {
    tolerate(Store::Local.get(key).await).flatten()
}

pub async fn set(key: &str, value: &str) {
    tolerate(Store::Local.set(key, value).await);
}

fn tolerate<T>(outcome: Result<T, String>) -> Option<T> {
    outcome
        .inspect_err(|error| {
            if !IS_FAILURE_LOGGED.replace(true) {
                log::line("continuing without the key-value store \"local\"", error);
            }
        })
        .ok()
}
