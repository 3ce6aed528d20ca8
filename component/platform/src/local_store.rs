//! What the instances of this machine leave for each other in the key-value store "local". An instance lives for a second or
//! two, and what it has learnt would be lost with it. All of it can be learnt again at some cost, so callers never see a
//! failure.

use std::cell::Cell;

use crate::kv::{Request, Store};
use crate::log;

thread_local! {
    static IS_FAILURE_LOGGED: Cell<bool> = const { Cell::new(false) };
}

pub async fn get(key: &str) -> Option<Vec<u8>> {
    request(Request::Get { key }).await
}

pub async fn set(key: &str, value: &str) {
    request(Request::Set { key, value }).await;
}

async fn request(request: Request<'_>) -> Option<Vec<u8>> {
    let outcome = Store::Local.request(request).await;
    let outcome = outcome.inspect_err(|error| {
        if !IS_FAILURE_LOGGED.replace(true) {
            log::line("continuing without the key-value store \"local\"", error);
        }
    });
    outcome.ok().flatten()
}
