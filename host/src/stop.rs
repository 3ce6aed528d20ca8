//! The end of instances: after a time without requests, with a request that takes too long, or when serving ends. One that
//! works is waited for, also on what it does after its last response.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;
use wasmtime_wasi_http::handler::{WorkerExpiration, WorkerStatus};

/// Tells every instance that serving ends.
#[derive(Clone, Debug, Default)]
pub struct Stop {
    stopped: CancellationToken,
    instances: TaskTracker,
}

impl Stop {
    /// For a new instance, which may be idle for so long, and take so long for a request if there is a limit.
    pub fn expiration(&self, idle: Duration, request: Option<Duration>) -> Expiration {
        Expiration {
            idle,
            request,
            timer: Box::pin(sleep(idle)),
            stopped: Box::pin(self.stopped.clone().cancelled_owned()),
            _instance: self.instances.token(),
        }
    }

    /// Waits until no instance is left: one that works ends once it is idle.
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
    timer: Pin<Box<Sleep>>,
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
        // A timer that runs out too early is set anew then: setting it for each request would cost more.
        if self.timer.deadline() > end {
            self.timer.as_mut().reset(end);
        }
        while self.timer.as_mut().poll(task).is_ready() {
            if self.timer.deadline() >= end {
                return Poll::Ready(());
            }
            self.timer.as_mut().reset(end);
        }
        Poll::Pending
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

    /// Whether an instance that has this status since now ends within this time.
    async fn ends(expiration: &mut Expiration, status: WorkerStatus, within: Duration) -> bool {
        let since = Instant::now();
        let ended = poll_fn(|task| poll(expiration, task, status, since));
        tokio::time::timeout(within, ended).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn an_instance_ends_after_its_idle_time_whatever_came_before() {
        let mut expiration = Stop::default().expiration(IDLE, Some(REQUEST));
        for _ in 0..3 {
            assert!(!ends(&mut expiration, WorkerStatus::Idle, IDLE * 9 / 10).await);
            assert!(!ends(&mut expiration, WorkerStatus::Requests, IDLE * 3).await);
        }
        assert!(ends(&mut expiration, WorkerStatus::Idle, IDLE * 2).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_has_its_limit_and_what_follows_it_the_same_again() {
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
    async fn an_instance_that_works_outlasts_the_stop_until_it_is_idle() {
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
    async fn an_idle_instance_is_woken_by_the_stop() {
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
