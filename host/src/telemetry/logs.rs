//! Exports the output of components as log records, one per line, besides writing it to the output of this process.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::SystemTime;

use bytes::Bytes;
use opentelemetry::logs::{LogRecord as _, Logger as _};
use opentelemetry_sdk::logs::SdkLogger;
use tokio::io::AsyncWrite;
use wasmtime_wasi::async_trait;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamResult};

use crate::output;

/// The maximum size of a record, in bytes. A longer line becomes several records.
const MAX_LINE: usize = 8 << 10;
/// How many bytes a component may write at once: a fraction of what the output queue holds.
const MAX_WRITE: usize = 64 << 10;

/// A destination of lines.
trait Sink: Clone + Send + Sync + Unpin + 'static {
    fn line(&self, line: &[u8], stream: Stream);
}

/// Emits the log records of a component.
#[derive(Clone, Debug)]
pub struct Logs {
    pub(super) logger: SdkLogger,
    pub(super) component: String,
}

/// The output stream of a component. It writes to the same stream of this process, and to `logs` if there are any.
pub fn output(logs: Option<&Logs>, stream: Stream) -> impl StdoutStream + use<> {
    Output {
        sink: logs.cloned(),
        stream,
    }
}

impl<S: Sink> Sink for Option<S> {
    fn line(&self, line: &[u8], stream: Stream) {
        if let Some(sink) = self {
            sink.line(line, stream);
        }
    }
}

impl Sink for Logs {
    fn line(&self, line: &[u8], stream: Stream) {
        let mut record = self.logger.create_log_record();
        record.set_timestamp(SystemTime::now());
        record.set_body(String::from_utf8_lossy(line).into_owned().into());
        record.add_attribute("component_id", self.component.clone());
        // From OpenTelemetry's semantic conventions, "General logs attributes".
        record.add_attribute("log.iostream", stream.name());
        self.logger.emit(record);
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }

    fn write(self, bytes: &[u8]) {
        match self {
            Self::Stdout => output::to_stdout(bytes),
            Self::Stderr => output::to_stderr(bytes),
        }
    }
}

#[derive(Clone, Debug)]
struct Output<S> {
    sink: S,
    stream: Stream,
}

impl<S: Sink> Output<S> {
    fn writer(&self) -> Box<Writer<S>> {
        Box::new(Writer {
            output: self.clone(),
            line: Vec::new(),
        })
    }
}

impl<S: Sink> IsTerminal for Output<S> {
    fn is_terminal(&self) -> bool {
        match self.stream {
            Stream::Stdout => io::stdout().is_terminal(),
            Stream::Stderr => io::stderr().is_terminal(),
        }
    }
}

impl<S: Sink> StdoutStream for Output<S> {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        self.writer()
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        self.writer()
    }
}

/// Assembles lines, because `eprintln!` writes each of its parts separately.
struct Writer<S: Sink> {
    output: Output<S>,
    /// The line so far.
    line: Vec<u8>,
}

impl<S: Sink> Writer<S> {
    fn take(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let room = MAX_LINE - self.line.len();
            let (part, ends) = match bytes.iter().take(room).position(|byte| *byte == b'\n') {
                Some(end) => (end + 1, true),
                None => (room.min(bytes.len()), room <= bytes.len()),
            };
            let (now, later) = bytes.split_at(part);
            self.line.extend_from_slice(now);
            bytes = later;
            if ends {
                self.end();
            }
        }
    }

    fn end(&mut self) {
        let line = self.line.trim_ascii_end();
        if !line.is_empty() {
            self.output.sink.line(line, self.output.stream);
        }
        self.line.clear();
    }
}

impl<S: Sink> Drop for Writer<S> {
    fn drop(&mut self) {
        self.end();
    }
}

impl<S: Sink> OutputStream for Writer<S> {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.take(&bytes);
        self.output.stream.write(&bytes);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(MAX_WRITE)
    }
}

#[async_trait]
impl<S: Sink> Pollable for Writer<S> {
    async fn ready(&mut self) {}
}

impl<S: Sink> AsyncWrite for Writer<S> {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.take(bytes);
        self.output.stream.write(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic fails the test")]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<String>>>);

    impl Sink for Lines {
        fn line(&self, line: &[u8], _: Stream) {
            self.0.lock().unwrap().push(String::from_utf8_lossy(line).into_owned());
        }
    }

    fn lines(parts: &[&str]) -> Vec<String> {
        let sink = Lines::default();
        let output = Output {
            sink: sink.clone(),
            stream: Stream::Stderr,
        };
        let mut writer = output.writer();
        for part in parts {
            writer.take(part.as_bytes());
        }
        drop(writer);
        let lines = sink.0.lock().unwrap();
        lines.clone()
    }

    #[test]
    fn each_line_is_a_record_however_it_was_written() {
        assert_eq!(lines(&["links: ", "no", " answer", "\n"]), ["links: no answer"]);
        assert_eq!(lines(&["one\r\ntwo\n\n", "three"]), ["one", "two", "three"]);
        assert_eq!(lines(&["", "\n", " \n"]), [""; 0]);
    }

    #[test]
    fn an_overlong_line_is_split() {
        let long = "x".repeat(2 * MAX_LINE + 1);
        let lengths: Vec<_> = lines(&[&long, "\n"]).iter().map(String::len).collect();
        assert_eq!(lengths, [MAX_LINE, MAX_LINE, 1]);
    }
}
