use futures_channel::oneshot;

use crate::sdk::wit_bindgen::spawn;

/// A task that does nothing until this is dropped. While it exists, the runtime calls the component once for each event.
///
/// Without it there would be two calls: wit-bindgen keeps the tasks of a request in a `FuturesUnordered`, which wakes itself when
/// it has polled every task that it holds (<https://github.com/rust-lang/futures-rs/pull/2333>), and so asks to be called again
/// at once. A task that waits is not polled, so one is always left over.
pub struct IdleTask(#[expect(dead_code, reason = "dropping it ends the task")] oneshot::Sender<()>);

impl IdleTask {
    /// Spawns the task. The runtime considers the request unfinished until it ends.
    pub fn spawn() -> IdleTask {
        let (sender, receiver) = oneshot::channel();
        spawn(async move {
            // It only ends by the sender being dropped, which is an error.
            let _ = receiver.await;
        });
        IdleTask(sender)
    }
}
