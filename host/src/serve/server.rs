//! Accepts connections, and shuts down gracefully.

use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::server::conn::http1::Builder;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;

use super::lazy_timer::ConnectionTimer;
use super::listen::{Listener, Peer};
use super::pace::Paced;
use super::respond::App;
use super::stream::Stream;

/// How long to wait before accepting again when descriptors or memory ran out and no connection has ended.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// How long a client may keep the server waiting.
    pub client: Duration,
    /// How long the requests in flight may take after a shutdown signal.
    pub shutdown: Duration,
}

/// The shutdown signals, SIGTERM and SIGINT.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// # Errors
    /// A signal handler cannot be installed.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Waits for the next signal and returns its name.
    pub async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// How serving ended.
#[derive(Debug, PartialEq)]
pub enum End {
    /// All requests in flight were finished.
    Complete,
    /// The shutdown timeout expired, or a second signal arrived.
    CutOff,
}

/// Serves until a signal arrives, then finishes the requests in flight.
pub async fn serve(listeners: Vec<Listener>, app: Arc<App>, mut signals: Signals, timeouts: &Timeouts) -> End {
    let limit = timeouts.shutdown;
    let server = Server::new(app, timeouts.client);
    let name = loop {
        let accepted = tokio::select! {
            accepted = accept(&listeners) => accepted,
            name = signals.next() => break name,
        };
        match accepted {
            Ok((stream, peer)) => server.connect(stream, peer),
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                tracing::warn!("a connection could not be accepted: {error}");
                // Closing any connection frees a descriptor.
                tokio::select! {
                    () = server.closed.notified() => {}
                    () = tokio::time::sleep(ACCEPT_PAUSE) => {}
                }
            }
        }
    };
    tracing::info!("received {name}: finishing the requests in flight");
    // Connections in the backlog may already carry a request.
    listeners.iter().for_each(Listener::hide);
    while let Some(Ok((stream, peer))) = accept_now(&listeners).await {
        server.connect(stream, peer);
    }
    drop(listeners);
    tokio::select! {
        finished = tokio::time::timeout(limit, server.finish()) => match finished {
            Ok(()) => End::Complete,
            Err(_) => {
                tracing::warn!("not all work finished within {limit:?}: exiting anyway");
                End::CutOff
            }
        },
        name = signals.next() => {
            tracing::warn!("received {name} again: exiting at once");
            End::CutOff
        }
    }
}

/// Waits for the next connection on any of the listeners.
async fn accept(listeners: &[Listener]) -> io::Result<(Stream, Peer)> {
    poll_fn(|task| poll_accept(listeners, task)).await
}

/// Accepts a connection that is already in a backlog, if there is one.
async fn accept_now(listeners: &[Listener]) -> Option<io::Result<(Stream, Peer)>> {
    poll_fn(|task| match poll_accept(listeners, task) {
        Poll::Ready(accepted) => Poll::Ready(Some(accepted)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

fn poll_accept(listeners: &[Listener], task: &mut Context<'_>) -> Poll<io::Result<(Stream, Peer)>> {
    let mut polled = listeners.iter().map(|listener| listener.poll_accept(task));
    polled.find(Poll::is_ready).unwrap_or(Poll::Pending)
}

/// What all connections share.
struct Server {
    connections: GracefulShutdown,
    /// Notified whenever a connection has closed.
    closed: Arc<Notify>,
    app: Arc<App>,
    timeout: Duration,
}

impl Server {
    fn new(app: Arc<App>, timeout: Duration) -> Self {
        Self {
            connections: GracefulShutdown::new(),
            closed: Arc::new(Notify::new()),
            app,
            timeout,
        }
    }

    fn connect(&self, stream: Stream, peer: Peer) {
        let (app, closed) = (self.app.clone(), self.closed.clone());
        let shown = peer.address.clone();
        let service = service_fn(move |request| {
            let (app, peer) = (app.clone(), peer.clone());
            async move { Ok::<_, Infallible>(app.respond(request, peer).await) }
        });
        let mut http = Builder::new();
        // This timeout starts with the connection, so it also bounds the wait for the first byte and for the next request.
        http.timer(ConnectionTimer::default()).header_read_timeout(self.timeout);
        let connection = http.serve_connection(TokioIo::new(Paced::new(stream, self.timeout)), service);
        let connection = self.connections.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!("{shown:?}: {error}");
            }
            closed.notify_one();
        });
    }

    async fn finish(self) {
        self.connections.shutdown().await;
        self.app.done().await;
    }
}

/// Whether an error of `accept` concerns only the connection that was about to be accepted, see accept(2).
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused
    )
}
