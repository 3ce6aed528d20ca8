use std::future::poll_fn;
use std::pin::pin;

use futures_channel::oneshot;

use crate::sdk::wit_bindgen::spawn;

/// A task that does nothing until this is dropped. While it exists, the runtime calls the component once for each event.
///
/// Without it there would be two calls: wit-bindgen keeps the tasks of a request in a `FuturesUnordered`, which wakes itself when
/// it has polled every task that it holds (<https://github.com/rust-lang/futures-rs/pull/2333>), and so asks to be called again
/// at once. A task that waits is not polled, so one is always left over.
pub struct IdleTask(#[expect(dead_code, reason = "dropping it ends the task")] oneshot::Sender<()>);

impl IdleTask {
    /// Completes `answer`. If it has to wait, there is an idle task from then on, which the caller keeps for as long as the
    /// request waits for something. An answer that is ready at once, such as most redirects, needs none.
    pub async fn beside<T>(answer: impl Future<Output = T>) -> (T, Option<IdleTask>) {
        let mut answer = pin!(answer);
        let mut idle_task = None;
        let value = poll_fn(|context| {
            let poll = answer.as_mut().poll(context);
            if poll.is_pending() && idle_task.is_none() {
                idle_task = Some(IdleTask::spawn());
            }
            poll
        })
        .await;
        (value, idle_task)
    }

    /// Spawns the task. The runtime considers the request unfinished until it ends.
    fn spawn() -> IdleTask {
        let (sender, receiver) = oneshot::channel();
        spawn(async move {
            // It only ends by the sender being dropped, which is an error.
            let _ = receiver.await;
        });
        IdleTask(sender)
    }
}
