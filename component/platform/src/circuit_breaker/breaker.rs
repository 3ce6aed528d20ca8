use std::cell::Cell;
use std::thread::LocalKey;
use std::time::Duration;

use super::state::{Outage, SharedState, decode_end, encode_end};
use crate::time::milliseconds;
use crate::{clock, local_store, log};

pub struct CircuitBreaker {
    /// The service's name in log lines: "NAME does not answer".
    pub name: &'static str,
    /// The key of the latest outage in the key-value store "local".
    pub outage_key: &'static str,
    /// The key of an outage's end in the key-value store "local".
    pub end_key: &'static str,
    /// The pause between two attempts while the service does not answer.
    pub pause: Duration,
    /// The minimum time between two reads of the shared state by successful requests. Zero, for a service that is rarely asked,
    /// means that each of them reads it.
    pub peek_interval: Duration,
    pub memory: &'static LocalKey<Memory>,
}

/// What this instance knows about a service.
pub struct Memory {
    outage: Cell<Option<Outage>>,
    /// Whether instances share what they know.
    is_shared: Cell<bool>,
    /// Whether the shared state has been read.
    has_peeked: Cell<bool>,
    /// When the shared state was last read, in Unix milliseconds.
    peeked_at: Cell<i64>,
}

impl Memory {
    /// A memory without an outage. For `is_shared` see [`CircuitBreaker::share`].
    pub const fn new(is_shared: bool) -> Memory {
        Memory {
            outage: Cell::new(None),
            is_shared: Cell::new(is_shared),
            has_peeked: Cell::new(false),
            peeked_at: Cell::new(0),
        }
    }
}

impl CircuitBreaker {
    /// Sets whether instances share what they know. Sharing pays if callers have a fallback during an outage. Without it, no
    /// store is asked for anything.
    pub fn share(&self, is_shared: bool) {
        self.memory.with(|memory| memory.is_shared.set(is_shared));
    }

    /// Whether the service failed a moment ago and should be left alone. If not, the caller has to try it, and the breaker
    /// stays open to others for another pause.
    pub async fn is_open(&self) -> bool {
        let Some(outage) = self.outage().await else {
            return false;
        };
        let now = clock::now_in_milliseconds();
        if outage.is_open(now, self.pause) {
            return true;
        }
        // Remembered before the first await, so that no other request of this instance tries, too.
        self.remember(Some(outage.record_attempt(now)));
        let state = self.shared_state().await;
        // Another instance may have found that the service answers, and logged it, and the next outage may have begun since.
        match state.map_or(Some(outage), |state| state.outage(Some(outage), now)) {
            Some(outage) => self.publish(outage.record_attempt(now)).await,
            None => self.remember(None),
        }
        false
    }

    /// Whether a success would be recorded. If no outage is known and instances share nothing, it says nothing new.
    pub fn expects_success(&self) -> bool {
        self.is_shared() || self.memory.with(|memory| memory.outage.get().is_some())
    }

    /// Records that the service answered, `took` after it was asked. Even an instance that knows of no outage reads the shared
    /// state now and then. The instance that found an outage may be gone, and the next outage would then be taken for a part of
    /// that one.
    pub async fn record_success(&self, took: Duration) {
        let known = self.memory.with(|memory| memory.outage.take());
        if known.is_none() && !(self.is_shared() && self.is_time_to_peek()) {
            return;
        }
        let ended = if self.is_shared() {
            // A request that was sent before the latest failed attempt proves nothing. If the outage is already over, another
            // instance found out first and logged it.
            let asked = clock::now_in_milliseconds().saturating_sub(milliseconds(took));
            match self.shared_state().await {
                Some(SharedState::Open(outage)) if known.is_some() || outage.tried <= asked => {
                    let end = encode_end(clock::now_in_milliseconds());
                    local_store::set(self.end_key, &end).await;
                    Some(outage)
                }
                _ => None,
            }
        } else {
            known
        };
        if let Some(outage) = ended {
            let seconds = outage.seconds(clock::now_in_milliseconds());
            log::line(
                format_args!("{} answers again", self.name),
                format_args!("after {seconds} s"),
            );
        }
    }

    /// Records that the service failed, `took` after it was asked. This is logged once per outage.
    pub async fn record_failure(&self, why: &str, took: Duration) {
        let now = clock::now_in_milliseconds();
        let known = self.memory.with(|memory| memory.outage.get());
        let known = known.filter(|outage| outage.lasts(now));
        // Done before the first await, so that other requests of this instance that fail now see the outage.
        self.remember(Some(
            known.map_or_else(|| Outage::begin(now), |outage| outage.record_attempt(now)),
        ));
        let state = self.shared_state().await;
        if state.is_some_and(|state| state.explains(now.saturating_sub(milliseconds(took)))) {
            self.remember(None);
            return;
        }
        let outage = state.map_or(known, |state| state.outage(known, now));
        if outage.is_none() {
            log::line(format_args!("{} does not answer", self.name), why);
        }
        let outage = outage.map_or_else(|| Outage::begin(now), |outage| outage.record_attempt(now));
        self.publish(outage).await;
    }

    fn is_time_to_peek(&self) -> bool {
        let now = clock::now_in_milliseconds();
        self.memory.with(|memory| {
            let is_recent = (0..milliseconds(self.peek_interval)).contains(&now.saturating_sub(memory.peeked_at.get()));
            if !is_recent {
                memory.peeked_at.set(now);
            }
            !is_recent
        })
    }

    async fn outage(&self) -> Option<Outage> {
        if self.is_shared() && !self.memory.with(|memory| memory.has_peeked.get()) {
            self.memory
                .with(|memory| memory.peeked_at.set(clock::now_in_milliseconds()));
            let state = self.shared_state().await;
            // Concurrent requests have read the shared state, too, and may know more by now.
            if !self.memory.with(|memory| memory.has_peeked.replace(true))
                && let Some(SharedState::Open(outage)) = state
            {
                self.remember(Some(outage));
            }
        }
        self.memory.with(|memory| memory.outage.get())
    }

    /// `None` if instances share nothing, or if none has shared an outage yet.
    async fn shared_state(&self) -> Option<SharedState> {
        if !self.is_shared() {
            return None;
        }
        let outage = Outage::decode(&local_store::get(self.outage_key).await?)?;
        let end = local_store::get(self.end_key).await;
        let end = end.and_then(|end| decode_end(&end));
        Some(SharedState::new(outage, end, clock::now_in_milliseconds()))
    }

    async fn publish(&self, outage: Outage) {
        self.remember(Some(outage));
        if self.is_shared() {
            local_store::set(self.outage_key, &outage.encode()).await;
        }
    }

    fn remember(&self, outage: Option<Outage>) {
        self.memory.with(|memory| memory.outage.set(outage));
    }

    fn is_shared(&self) -> bool {
        self.memory.with(|memory| memory.is_shared.get())
    }
}
