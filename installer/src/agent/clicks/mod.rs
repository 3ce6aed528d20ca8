//! Clicks: from nginx's journal into the database.
//!
//! [`line`] reads a line, [`gather`] makes batches of lines, with countries by the [`atlas`], [`courier`] says what to do next, and [`clerk`] does it, with
//! the journal as a file ([`source`]) and the instances ([`desk`]).

mod atlas;
mod clerk;
mod client;
mod courier;
mod desk;
mod gather;
pub(super) mod line;
mod referrer;
mod source;
mod traffic;

use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context as _;

use super::instances::Instances;
use crate::layout::Layout;
use clerk::Clerk;
pub use clerk::Progress;
use courier::{Action, Courier};
use desk::Desk;
pub use traffic::Durations;

/// The thread that counts clicks.
#[derive(Debug)]
pub struct Clicks {
    /// Dropped to end it.
    _running: Sender<()>,
    thread: JoinHandle<()>,
}

impl Clicks {
    /// Tells `progress` how it gets on.
    ///
    /// # Errors
    /// The kernel gives no thread.
    pub fn start(layout: Layout, progress: Arc<Mutex<Progress>>) -> anyhow::Result<Self> {
        let (running, ended) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("clicks".to_owned())
            .spawn(move || {
                let desk = Instances::new(layout.clone());
                work(&mut Clerk::new(layout, desk, progress), &ended);
            })
            .context("Starting to count clicks")?;
        Ok(Self {
            _running: running,
            thread,
        })
    }

    /// It panicked: nobody counts any more.
    pub fn is_gone(&self) -> bool {
        self.thread.is_finished()
    }
}

/// Until the other end of `running` is dropped. It may be left at any step: what comes next begins where the database is.
fn work(clerk: &mut Clerk<impl Desk>, running: &Receiver<()>) {
    let begun = Instant::now();
    let mut courier = Courier::new();
    loop {
        let action = courier.action();
        let pause = match action {
            Action::Wait(time) => time,
            _ => Duration::ZERO,
        };
        if running.recv_timeout(pause) == Err(RecvTimeoutError::Disconnected) {
            return;
        }
        let event = clerk.perform(action);
        courier.next(event, begun.elapsed());
    }
}

#[cfg(test)]
mod tests;
