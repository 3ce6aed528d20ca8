//! Decides when instances end: after an idle time, when a request takes too long, or at shutdown. Shutdown waits for busy
//! instances, including those that still work after their last response.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;
use wasmtime_wasi_http::handler::{WorkerExpiration, WorkerStatus};

use super::lazy_timer::LazyTimer;

/// Ends the instances at shutdown. Clones share their state.
#[derive(Clone, Debug, Default)]
pub struct Stop {
    stopped: CancellationToken,
    instances: TaskTracker,
}

impl Stop {
    /// The expiration of a new instance, with its maximum idle time and an optional time limit for each request.
    pub fn expiration(&self, idle: Duration, request: Option<Duration>) -> Expiration {
        Expiration {
            idle,
            request,
            timer: LazyTimer::after(idle),
            stopped: Box::pin(self.stopped.clone().cancelled_owned()),
            _instance: self.instances.token(),
        }
    }

    /// Ends all instances, each once it is idle, and waits until none is left.
    pub async fn done(&self) {
        self.stopped.cancel();
        self.instances.close();
        self.instances.wait().await;
    }
}

/// Decides when an instance ends.
#[derive(Debug)]
pub struct Expiration {
    idle: Duration,
    request: Option<Duration>,
    timer: LazyTimer,
    stopped: Pin<Box<WaitForCancellationFutureOwned>>,
    _instance: TaskTrackerToken,
}

impl WorkerExpiration for Expiration {
    fn poll(
        mut self: Pin<&mut Self>,
        task: &mut Context<'_>,
        status: WorkerStatus,
        since: std::time::Instant,
    ) -> Poll<()> {
        let limit = match status {
            WorkerStatus::Idle if self.stopped.as_mut().poll(task).is_ready() => return Poll::Ready(()),
            WorkerStatus::Idle => Some(self.idle),
            WorkerStatus::Requests | WorkerStatus::PostReturn => self.request,
        };
        let Some(end) = limit.and_then(|limit| Instant::from_std(since).checked_add(limit)) else {
            return Poll::Pending;
        };
        self.timer.poll_until(end, task)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    const IDLE: Duration = Duration::from_secs(1);
    const REQUEST: Duration = Duration::from_secs(75);

    fn poll(expiration: &mut Expiration, task: &mut Context<'_>, status: WorkerStatus, since: Instant) -> Poll<()> {
        Pin::new(expiration).poll(task, status, since.into_std())
    }

    /// Whether an instance that has had this status since now ends within this time.
    async fn ends(expiration: &mut Expiration, status: WorkerStatus, within: Duration) -> bool {
        let since = Instant::now();
        let ended = poll_fn(|task| poll(expiration, task, status, since));
        tokio::time::timeout(within, ended).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn an_instance_ends_after_its_idle_time_whatever_it_did_before() {
        let mut expiration = Stop::default().expiration(IDLE, Some(REQUEST));
        for _ in 0..3 {
            assert!(!ends(&mut expiration, WorkerStatus::Idle, IDLE * 9 / 10).await);
            assert!(!ends(&mut expiration, WorkerStatus::Requests, IDLE * 3).await);
        }
        assert!(ends(&mut expiration, WorkerStatus::Idle, IDLE * 2).await);
    }

    #[tokio::test(start_paused = true)]
    async fn the_time_limit_applies_to_a_request_and_again_to_the_work_after_its_response() {
        let stop = Stop::default();
        for status in [WorkerStatus::Requests, WorkerStatus::PostReturn] {
            let mut expiration = stop.expiration(IDLE, Some(REQUEST));
            assert!(!ends(&mut expiration, status, REQUEST * 9 / 10).await);
            assert!(ends(&mut expiration, status, REQUEST * 2).await);
            let mut expiration = stop.expiration(IDLE, None);
            assert!(!ends(&mut expiration, status, REQUEST * 1000).await);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_busy_instance_outlives_the_stop_until_it_is_idle() {
        let stop = Stop::default();
        let mut expiration = stop.expiration(REQUEST, None);
        let mut done = Box::pin(stop.done());
        let mut is_done = async || tokio::time::timeout(IDLE, &mut done).await.is_ok();
        assert!(!is_done().await);
        assert!(!ends(&mut expiration, WorkerStatus::Requests, IDLE).await);
        assert!(!ends(&mut expiration, WorkerStatus::PostReturn, IDLE).await);
        assert!(ends(&mut expiration, WorkerStatus::Idle, IDLE).await);
        assert!(!is_done().await);
        drop(expiration);
        assert!(is_done().await);
    }

    #[tokio::test(start_paused = true)]
    async fn the_stop_wakes_an_idle_instance() {
        let stop = Stop::default();
        let mut expiration = stop.expiration(REQUEST, None);
        let since = Instant::now();
        let instance = tokio::spawn(async move {
            poll_fn(|task| poll(&mut expiration, task, WorkerStatus::Idle, since)).await;
        });
        tokio::task::yield_now().await;
        stop.done().await;
        assert!(instance.await.is_ok());
        assert!(since.elapsed() < REQUEST);
    }
}
