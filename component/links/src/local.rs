//! What the instances of this machine leave for each other, in the key-value store "local". An instance of the component
//! lives for a second or two, and what it learns would go with it. All of it can be had elsewhere, for a price, so no
//! fault here is ever a caller's.

use std::cell::Cell;

use crate::kv::Place;
use crate::log;

thread_local! {
    static COMPLAINED: Cell<bool> = const { Cell::new(false) };
}

pub async fn get(key: &str) -> Option<Vec<u8>> {
    tolerate(Place::Local.get(key).await).flatten()
}

pub async fn set(key: &str, value: &str) {
    tolerate(Place::Local.set(key, value).await);
}

fn tolerate<T>(outcome: Result<T, String>) -> Option<T> {
    outcome
        .inspect_err(|error| {
            if !COMPLAINED.replace(true) {
                log::line("going on without the key-value store \"local\"", error);
            }
        })
        .ok()
}
