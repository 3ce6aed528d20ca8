//! Clicks: from nginx's journal into the database.
//!
//! [`line`] reads a line, [`gather`] makes batches of lines, with countries by the [`atlas`], [`courier`] says what to do next, and [`clerk`] does it, with
//! the journal as a file ([`source`]), its names ([`identity`]) and the instances ([`desk`]).

mod atlas;
mod clerk;
mod client;
mod courier;
mod desk;
mod gather;
mod identity;
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
use identity::Host;
pub use traffic::Durations;

/// The thread that counts clicks.
#[derive(Debug)]
pub struct Clicks {
    /// Dropped to end it.
    running: Sender<()>,
    /// Disconnected when it has ended.
    ended: Receiver<()>,
    thread: JoinHandle<()>,
}

/// For the thread to end when it is asked to. It may be in the middle of a request.
const LEAVE: Duration = Duration::from_secs(5);

impl Clicks {
    /// Tells `progress` how it gets on.
    ///
    /// # Errors
    /// The kernel gives no thread.
    pub fn start(layout: Layout, progress: Arc<Mutex<Progress>>) -> anyhow::Result<Self> {
        let (running, asked) = mpsc::channel();
        let (ending, ended) = mpsc::channel::<()>();
        let thread = std::thread::Builder::new()
            .name("clicks".to_owned())
            .spawn(move || {
                let _ending = ending;
                let desk = Instances::new(layout.clone());
                let host = Host::this(&layout);
                work(&mut Clerk::new(layout, host, desk, progress), &asked);
            })
            .context("Starting to count clicks")?;
        Ok(Self { running, ended, thread })
    }

    /// Gives back what is counted. An end in the middle of a request does no harm.
    pub fn stop(self) {
        drop(self.running);
        let _ = self.ended.recv_timeout(LEAVE);
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
            clerk.leave();
            return;
        }
        let event = clerk.perform(action);
        courier.next(event, begun.elapsed());
    }
}

#[cfg(test)]
mod tests;
