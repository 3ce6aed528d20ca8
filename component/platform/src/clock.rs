//! Time of day, and time limits.

use std::pin::pin;
use std::time::Duration;

use futures_util::future::{Either, select};

use crate::time::{milliseconds, since_1970};

/// Unix seconds; 0 on a clock set before 1970.
pub fn now() -> i64 {
    now_in_milliseconds() / 1000
}

/// Unix milliseconds; 0 on a clock set before 1970.
pub fn now_in_milliseconds() -> i64 {
    milliseconds(since_1970())
}

/// The outcome of `work`, or `None` if it takes longer than `limit`. `work` is then dropped, which cancels the runtime call
/// that it waits for.
pub async fn within<T>(limit: Duration, work: impl Future<Output = T>) -> Option<T> {
    before(sleep(limit), work).await
}

/// The outcome of `work`, or `None` if `end` comes first. `end` is polled second, so work that finishes at once never starts it.
pub async fn before<T>(end: impl Future<Output = ()>, work: impl Future<Output = T>) -> Option<T> {
    match select(pin!(work), pin!(end)).await {
        Either::Left((outcome, _)) => Some(outcome),
        Either::Right(((), _)) => None,
    }
}

pub async fn sleep(duration: Duration) {
    crate::sdk::time::sleep(duration).await;
}
