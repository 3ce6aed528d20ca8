//! Bounds how long a client may keep the server waiting, both while it sends a request and while it reads the response.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use hyper::body::{Body, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};
use wasmtime_wasi_http::Error;

/// The number of bytes that earn a client another second. A client that stays slower than this is cut off, however steady it
/// is.
const BYTES_PER_SECOND: u32 = 1 << 10;

/// How long a client may still keep the server waiting. Waiting uses it up, and progress restores it.
#[derive(Debug)]
struct Allowance {
    most: Duration,
    left: Duration,
    waiting: Option<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    since: Instant,
    end: Pin<Box<Sleep>>,
}

impl Allowance {
    fn new(most: Duration) -> Self {
        Self {
            most,
            left: most,
            waiting: None,
        }
    }

    /// Ready when the allowance is used up. Until then, the task is woken at that time.
    fn poll_used_up(&mut self, task: &mut Context<'_>) -> Poll<()> {
        let waiting = self.waiting.get_or_insert_with(|| Waiting {
            since: Instant::now(),
            end: Box::pin(sleep(self.left)),
        });
        waiting.end.as_mut().poll(task)
    }

    fn progress(&mut self, bytes: usize) {
        let Some(waiting) = self.waiting.take() else { return };
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let gained = Duration::from_secs(1) * bytes / BYTES_PER_SECOND;
        self.left = self.left.saturating_sub(waiting.since.elapsed());
        self.left = self.left.saturating_add(gained).min(self.most);
    }
}

/// A connection that fails when its client does not read what is sent.
#[derive(Debug)]
pub struct Paced<S> {
    stream: S,
    allowance: Allowance,
}

impl<S> Paced<S> {
    pub fn new(stream: S, timeout: Duration) -> Self {
        Self {
            stream,
            allowance: Allowance::new(timeout),
        }
    }

    fn check_written(&mut self, task: &mut Context<'_>, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match written {
            Poll::Ready(Ok(bytes)) => {
                self.allowance.progress(bytes);
                Poll::Ready(Ok(bytes))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => {
                ready!(self.allowance.poll_used_up(task));
                let problem = "the client does not read the response";
                Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, problem)))
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Paced<S> {
    fn poll_read(self: Pin<&mut Self>, task: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(task, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Paced<S> {
    fn poll_write(self: Pin<&mut Self>, task: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write(task, bytes);
        this.check_written(task, written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        task: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write_vectored(task, pieces);
        this.check_written(task, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(task)
    }

    fn poll_shutdown(self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(task)
    }
}

/// The body of a request, which fails when its client does not send it.
#[derive(Debug)]
pub struct PacedBody<B> {
    body: B,
    allowance: Allowance,
}

impl<B> PacedBody<B> {
    pub fn new(body: B, timeout: Duration) -> Self {
        Self {
            body,
            allowance: Allowance::new(timeout),
        }
    }
}

impl<B: Body<Data = Bytes, Error = hyper::Error> + Unpin> Body for PacedBody<B> {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = self.get_mut();
        match Pin::new(&mut this.body).poll_frame(task) {
            Poll::Ready(Some(Ok(frame))) => {
                this.allowance.progress(frame.data_ref().map_or(0, Bytes::remaining));
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(Error::InternalError(Some(error.to_string()))))),
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending => {
                ready!(this.allowance.poll_used_up(task));
                Poll::Ready(Some(Err(Error::ConnectionReadTimeout)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic fails the test")]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(30);

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_read_is_cut_off() {
        let (_client, server) = duplex(100);
        let mut server = Paced::new(server, TIMEOUT);
        let start = Instant::now();
        let error = server.write_all(&[0; 101]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(start.elapsed().as_secs(), TIMEOUT.as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_reads_a_byte_now_and_then_is_cut_off() {
        let (mut client, server) = duplex(100);
        let mut server = Paced::new(server, TIMEOUT);
        let start = Instant::now();
        tokio::spawn(async move {
            loop {
                sleep(Duration::from_secs(10)).await;
                client.read_u8().await.unwrap();
            }
        });
        assert!(server.write_all(&[0; 1000]).await.is_err());
        assert!(start.elapsed() < TIMEOUT * 2, "{:?}", start.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_on_a_slow_network_gets_the_whole_response() {
        const SIZE: usize = 1 << 20;
        let (mut client, server) = duplex(4096);
        let mut server = Paced::new(server, TIMEOUT);
        let start = Instant::now();
        let reader = tokio::spawn(async move {
            let mut buffer = [0; 2048];
            let mut read = 0;
            while read < SIZE {
                sleep(Duration::from_secs(1)).await;
                read += client.read(&mut buffer).await.unwrap();
            }
        });
        server.write_all(&vec![0; SIZE]).await.unwrap();
        reader.await.unwrap();
        assert!(start.elapsed() > TIMEOUT * 10, "{:?}", start.elapsed());
    }
}
