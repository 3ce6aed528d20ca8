//! What components write, on its way to this process's standard output and error.
//!
//! Whoever reads may stop reading, as journald does while its disk is full. No request may wait for that, so a thread of its
//! own writes, and what exceeds the queue is dropped and counted.

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, LazyLock, mpsc};
use std::time::Duration;

/// How much waits to be written, in bytes.
const MOST_QUEUED: usize = 1 << 20;
/// How long the rest may take at the end.
const FLUSH: Duration = Duration::from_secs(1);

static STDOUT: LazyLock<Queue> = LazyLock::new(|| Queue::new(io::stdout()));
static STDERR: LazyLock<Queue> = LazyLock::new(|| Queue::new(io::stderr()));

pub fn to_stdout(bytes: &[u8]) {
    STDOUT.write(bytes);
}

pub fn to_stderr(bytes: &[u8]) {
    STDERR.write(bytes);
}

/// Waits until everything is written, for a second at most.
pub fn flush() {
    for queue in [&STDOUT, &STDERR] {
        queue.flush(FLUSH);
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
    /// In bytes.
    queued: AtomicUsize,
    /// Writes since this was last reported.
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
                        // Where nobody reads any more nothing can be reported either.
                        let _ = output.write_all(&bytes).and_then(|()| output.flush());
                        shared.queued.fetch_sub(bytes.len(), Relaxed);
                        let dropped = shared.dropped.swap(0, Relaxed);
                        if dropped > 0 {
                            let report =
                                format!("links-host: {dropped} writes of components were dropped: nobody read\n");
                            let _ = output.write_all(report.as_bytes());
                        }
                    }
                    Message::Flush(done) => drop(done),
                }
            }
        };
        // Without a thread the queue fills up, and what comes then is dropped.
        if let Err(error) = std::thread::Builder::new().name("output".to_owned()).spawn(run) {
            tracing::error!("the output of components is lost: {error}");
        }
        Self { messages, state }
    }

    fn write(&self, bytes: &[u8]) {
        let queued = self.state.queued.fetch_add(bytes.len(), Relaxed);
        let is_sent = queued + bytes.len() <= MOST_QUEUED && self.messages.send(Message::Write(bytes.to_vec())).is_ok();
        if !is_sent {
            self.state.queued.fetch_sub(bytes.len(), Relaxed);
            self.state.dropped.fetch_add(1, Relaxed);
        }
    }

    fn flush(&self, limit: Duration) {
        let (done, is_done) = mpsc::channel();
        if self.messages.send(Message::Flush(done)).is_ok() {
            // It is dropped in its turn, which ends this with an error.
            let _ = is_done.recv_timeout(limit);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "what goes wrong here is a failed test")]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Writes once it may.
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
    fn nobody_waits_for_an_output_that_is_not_read() {
        let output = Output::default();
        let queue = Queue::new(output.clone());
        let blocked = output.written.lock().unwrap();
        // The first is on its way, the others fill the queue or are dropped.
        for _ in 0..20 {
            queue.write(&vec![b'x'; MOST_QUEUED / 4]);
        }
        drop(blocked);
        queue.flush(Duration::from_secs(60));
        queue.write(b"again");
        queue.flush(Duration::from_secs(60));
        let written = String::from_utf8(output.written.lock().unwrap().clone()).unwrap();
        assert_eq!(written.matches('x').count(), MOST_QUEUED);
        assert!(
            written.contains("16 writes of components were dropped"),
            "{}",
            written.trim_matches('x')
        );
        assert!(written.ends_with("again"));
    }
}
