//! Passes the output of components on to this process's standard output and error.
//!
//! The reader may stall, as journald does while its disk is full, and no request may wait for that. So a separate thread
//! writes, and output that does not fit into its queue is dropped and counted.

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, LazyLock, mpsc};
use std::time::Duration;

/// The maximum amount of queued output for each stream, in bytes.
const MAX_QUEUED_BYTES: usize = 1 << 20;
/// How long `flush` waits for each stream.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

static STDOUT: LazyLock<Queue> = LazyLock::new(|| Queue::new(io::stdout()));
static STDERR: LazyLock<Queue> = LazyLock::new(|| Queue::new(io::stderr()));

pub fn to_stdout(bytes: &[u8]) {
    STDOUT.write(bytes);
}

pub fn to_stderr(bytes: &[u8]) {
    STDERR.write(bytes);
}

/// Waits until all queued output is written, at most one second for each stream.
pub fn flush() {
    for queue in [&STDOUT, &STDERR] {
        queue.flush(FLUSH_TIMEOUT);
    }
}

enum Message {
    Write(Vec<u8>),
    Flush(mpsc::Sender<()>),
}

struct Queue {
    messages: mpsc::Sender<Message>,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    /// The size of the queued output, in bytes.
    queued: AtomicUsize,
    /// The number of writes dropped since the last report.
    dropped: AtomicU64,
}

impl Queue {
    fn new(mut output: impl Write + Send + 'static) -> Self {
        let (messages, received) = mpsc::channel();
        let state = Arc::new(State::default());
        let shared = state.clone();
        let run = move || {
            for message in received {
                match message {
                    Message::Write(bytes) => {
                        // If the output is closed, the error cannot be reported anywhere.
                        let _ = output.write_all(&bytes).and_then(|()| output.flush());
                        shared.queued.fetch_sub(bytes.len(), Relaxed);
                        let dropped = shared.dropped.swap(0, Relaxed);
                        if dropped > 0 {
                            let report =
                                format!("links-host: {dropped} writes of components were dropped: output blocked\n");
                            let _ = output.write_all(report.as_bytes());
                        }
                    }
                    Message::Flush(done) => drop(done),
                }
            }
        };
        // Without the thread, the channel is closed and all output is dropped.
        if let Err(error) = std::thread::Builder::new().name("output".to_owned()).spawn(run) {
            tracing::error!("component output is lost, its thread cannot be started: {error}");
        }
        Self { messages, state }
    }

    fn write(&self, bytes: &[u8]) {
        let queued = self.state.queued.fetch_add(bytes.len(), Relaxed);
        let is_sent =
            queued + bytes.len() <= MAX_QUEUED_BYTES && self.messages.send(Message::Write(bytes.to_vec())).is_ok();
        if !is_sent {
            self.state.queued.fetch_sub(bytes.len(), Relaxed);
            self.state.dropped.fetch_add(1, Relaxed);
        }
    }

    fn flush(&self, limit: Duration) {
        let (done, is_done) = mpsc::channel();
        if self.messages.send(Message::Flush(done)).is_ok() {
            // The thread drops `done` when it gets there, which ends the wait with an error.
            let _ = is_done.recv_timeout(limit);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic fails the test")]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// An output that blocks while `written` is locked.
    #[derive(Clone, Default)]
    struct Output {
        written: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Output {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.written.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn writers_do_not_wait_for_a_blocked_output() {
        let output = Output::default();
        let queue = Queue::new(output.clone());
        let blocked = output.written.lock().unwrap();
        // Four writes fill the queue, including the one that the thread is writing; the others are dropped.
        for _ in 0..20 {
            queue.write(&vec![b'x'; MAX_QUEUED_BYTES / 4]);
        }
        drop(blocked);
        queue.flush(Duration::from_secs(60));
        queue.write(b"again");
        queue.flush(Duration::from_secs(60));
        let written = String::from_utf8(output.written.lock().unwrap().clone()).unwrap();
        assert_eq!(written.matches('x').count(), MAX_QUEUED_BYTES);
        assert!(
            written.contains("16 writes of components were dropped"),
            "{}",
            written.trim_matches('x')
        );
        assert!(written.ends_with("again"));
    }
}
