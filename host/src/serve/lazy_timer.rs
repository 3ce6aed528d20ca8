//! Timers for deadlines that are set again and again, but rarely reached.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::rt::{Sleep, Timer};
use tokio::time::{Instant, sleep, sleep_until};

/// A timer that stays registered when its deadline moves. It may then expire too early, and is reset at that point. Registering
/// it for each deadline would lock the timers of the whole runtime.
#[derive(Debug)]
pub struct LazyTimer(Pin<Box<tokio::time::Sleep>>);

impl LazyTimer {
    /// A timer that expires after `duration`, which may be of any length, unless its deadline moves.
    pub fn after(duration: Duration) -> Self {
        Self(Box::pin(sleep(duration)))
    }

    fn at(deadline: Instant) -> Self {
        Self(Box::pin(sleep_until(deadline)))
    }

    /// Ready at the deadline. Until then, the task is woken at that time or earlier.
    pub fn poll_until(&mut self, deadline: Instant, task: &mut Context<'_>) -> Poll<()> {
        if self.0.deadline() > deadline {
            self.0.as_mut().reset(deadline);
        }
        while self.0.as_mut().poll(task).is_ready() {
            if self.0.deadline() >= deadline {
                return Poll::Ready(());
            }
            self.0.as_mut().reset(deadline);
        }
        Poll::Pending
    }
}

/// The timer of a connection, for hyper, which makes a sleep for the head of each request and drops it when the head has
/// arrived. The sleeps share one [`LazyTimer`].
#[derive(Clone, Debug, Default)]
pub struct ConnectionTimer {
    /// The timer while no sleep uses it.
    idle: Arc<Mutex<Option<LazyTimer>>>,
}

impl ConnectionTimer {
    fn replace(&self, timer: Option<LazyTimer>) -> Option<LazyTimer> {
        // Nothing that can panic happens under this lock.
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *idle, timer)
    }
}

impl Timer for ConnectionTimer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Sleep>> {
        self.sleep_until(self.now() + duration)
    }

    fn sleep_until(&self, deadline: std::time::Instant) -> Pin<Box<dyn Sleep>> {
        Box::pin(ConnectionSleep {
            deadline: deadline.into(),
            timer: self.replace(None),
            connection: self.clone(),
        })
    }

    fn now(&self) -> std::time::Instant {
        Instant::now().into()
    }
}

struct ConnectionSleep {
    deadline: Instant,
    timer: Option<LazyTimer>,
    connection: ConnectionTimer,
}

impl Sleep for ConnectionSleep {}

impl Future for ConnectionSleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        let timer = this.timer.get_or_insert_with(|| LazyTimer::at(this.deadline));
        timer.poll_until(this.deadline, task)
    }
}

impl Drop for ConnectionSleep {
    fn drop(&mut self) {
        if let Some(timer) = self.timer.take() {
            self.connection.replace(Some(timer));
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic fails the test")]
mod tests {
    use std::future::poll_fn;

    use tokio::time::timeout;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn the_deadline_may_move_in_both_directions() {
        let start = Instant::now();
        let mut timer = LazyTimer::after(SECOND * 10);
        for (deadline, within) in [(30, 20), (20, 10)] {
            let until = poll_fn(|task| timer.poll_until(start + SECOND * deadline, task));
            assert!(timeout(SECOND * within / 4, until).await.is_err());
        }
        poll_fn(|task| timer.poll_until(start + SECOND * 15, task)).await;
        assert_eq!(start.elapsed().as_secs(), 15);
        poll_fn(|task| timer.poll_until(start + SECOND * 40, task)).await;
        assert_eq!(start.elapsed().as_secs(), 40);
    }

    #[tokio::test(start_paused = true)]
    async fn each_sleep_of_a_connection_takes_its_own_time() {
        let timer = ConnectionTimer::default();
        let start = Instant::now();
        for _ in 0..3 {
            // The head of a request arrives before the end of its sleep.
            assert!(timeout(SECOND * 9, timer.sleep(SECOND * 10)).await.is_err());
        }
        timer.sleep(SECOND * 10).await;
        assert_eq!(start.elapsed().as_secs(), 37);
    }
}
