//! Carries clicks from nginx's journal into the database.
//!
//! [`pipeline`] decides what to do next, and [`executor`] does it. [`search`] finds the journal, [`identity`] names it, and
//! [`source`] reads it. [`mod@line`] parses its lines, and [`reader`] hands them to the [`aggregator`], which adds them to the
//! [`sums`], with countries from [`geoip`]. [`batch`] cuts the sums into batches, which [`sink`] sends to an instance.
//! [`removal`] removes what is counted.

mod aggregator;
mod batch;
mod client;
mod executor;
mod geoip;
mod identity;
mod inode;
mod journal;
pub(super) mod line;
mod names;
mod pipeline;
mod progress;
mod reader;
mod referrer;
mod removal;
mod report;
mod salts;
mod search;
mod sink;
mod source;
mod sums;
mod traffic;
mod visitor;

use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context as _;

use super::instances::Instances;
use super::limits::Limits;
use executor::Executor;
use identity::Host;
use links_base::layout::Layout;
use pipeline::{Action, Pipeline};
pub use progress::Progress;
use sink::Sink;
pub use traffic::Durations;

/// The thread that counts clicks.
#[derive(Debug)]
pub struct Clicks {
    /// Dropped to end the thread.
    running: Sender<()>,
    /// Disconnected when the thread has ended.
    ended: Receiver<()>,
    thread: JoinHandle<()>,
}

/// How long to wait for the thread to end. It may be in the middle of a request.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

impl Clicks {
    /// Starts the thread, which keeps `progress` up to date and reports the requests to `limits`.
    ///
    /// # Errors
    /// Fails if the kernel refuses to create a thread.
    pub fn start(layout: Layout, progress: Arc<Mutex<Progress>>, limits: Arc<Mutex<Limits>>) -> anyhow::Result<Self> {
        let (running, asked) = mpsc::channel();
        let (ending, ended) = mpsc::channel::<()>();
        let thread = std::thread::Builder::new()
            .name("clicks".to_owned())
            .spawn(move || {
                let _ending = ending;
                let sink = Instances::new(layout.clone());
                let host = Host::this(&layout);
                work(
                    &mut Executor::new(layout, host, sink, progress).limiting(limits),
                    &asked,
                );
            })
            .context("Starting the thread that counts clicks")?;
        Ok(Self { running, ended, thread })
    }

    /// Ends the thread, which releases what is counted. Being interrupted in the middle of a request does no harm.
    pub fn stop(self) {
        drop(self.running);
        // A timeout is as harmless as any other interruption.
        let _ = self.ended.recv_timeout(STOP_TIMEOUT);
    }

    /// Whether the thread has panicked, so nobody counts any more.
    pub fn is_gone(&self) -> bool {
        self.thread.is_finished()
    }
}

/// Runs the pipeline until the other end of `running` is dropped. Stopping is safe at any step, because the next agent
/// continues from the database's position.
fn work(executor: &mut Executor<impl Sink>, running: &Receiver<()>) {
    let begun = Instant::now();
    let mut pipeline = Pipeline::new();
    loop {
        let action = pipeline.action();
        let pause = match action {
            Action::Wait(time) => time,
            _ => Duration::ZERO,
        };
        if running.recv_timeout(pause) == Err(RecvTimeoutError::Disconnected) {
            executor.leave();
            return;
        }
        let event = executor.perform(action);
        pipeline.next(event, begun.elapsed());
    }
}

#[cfg(test)]
mod tests;
