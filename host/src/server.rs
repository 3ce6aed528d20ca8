//! Connections: accepting them, and ending without cutting off what is being answered.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, anyhow};
use http::HeaderValue;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;

use crate::respond::App;

/// Connections that the kernel accepts before we do.
const BACKLOG: u32 = 1024;
/// How long a client may take to send the head of a request, and how long a connection may be unused.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// After an accept that failed for want of descriptors or memory: try again at the latest then.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// SIGTERM and SIGINT.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// # Errors
    /// The handlers cannot be installed.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Waits for either; its name.
    pub async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// Takes the address without accepting connections yet: a taken port shows before anything is compiled.
///
/// # Errors
/// Names the address.
pub fn bind(address: SocketAddr) -> Result<TcpSocket> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()
    } else {
        TcpSocket::new_v6()
    };
    let bound = socket.and_then(|socket| {
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        Ok(socket)
    });
    bound.map_err(|error| unable(address, &error))
}

/// # Errors
/// Names the address.
pub fn listen(socket: TcpSocket, address: SocketAddr) -> Result<TcpListener> {
    socket.listen(BACKLOG).map_err(|error| unable(address, &error))
}

fn unable(address: SocketAddr, error: &io::Error) -> anyhow::Error {
    if error.kind() == io::ErrorKind::AddrInUse {
        anyhow!("{address} is already in use: stop what listens there, or choose another address with --listen")
    } else {
        anyhow!("Unable to listen on {address}: {error}")
    }
}

/// How serving has ended.
#[derive(Debug, PartialEq)]
pub enum End {
    /// Everything in flight was finished.
    Complete,
    /// The time was up, or a second signal came.
    CutOff,
}

/// Serves until a signal comes, then finishes what is in flight, for `limit` at most.
pub async fn serve(listener: TcpListener, app: Arc<App>, mut signals: Signals, limit: Duration) -> End {
    let connections = GracefulShutdown::new();
    let closed = Arc::new(Notify::new());
    let mut server = Builder::new(TokioExecutor::new());
    server
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT);
    server.http2().timer(TokioTimer::new());
    let name = loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            name = signals.next() => break name,
        };
        match accepted {
            Ok((stream, peer)) => connect(stream, peer, &server, &connections, &app, &closed),
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                tracing::warn!("a connection could not be accepted: {error}");
                // A connection that ends gives its descriptor back.
                tokio::select! {
                    () = closed.notified() => {}
                    () = tokio::time::sleep(ACCEPT_PAUSE) => {}
                }
            }
        }
    };
    tracing::info!("{name}: finishing what is in flight");
    drop(listener);
    let finish = async move {
        connections.shutdown().await;
        app.done().await;
    };
    tokio::select! {
        finished = tokio::time::timeout(limit, finish) => match finished {
            Ok(()) => End::Complete,
            Err(_) => {
                tracing::warn!("not everything was finished in {limit:?}: ending all the same");
                End::CutOff
            }
        },
        name = signals.next() => {
            tracing::warn!("{name} again: ending at once");
            End::CutOff
        }
    }
}

fn connect(
    stream: TcpStream,
    peer: SocketAddr,
    server: &Builder<TokioExecutor>,
    connections: &GracefulShutdown,
    app: &Arc<App>,
    closed: &Arc<Notify>,
) {
    // Without it answers are only slower.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!("{peer}: {error}");
    }
    // An address and a port are always a header value.
    let address = HeaderValue::from_str(&peer.to_string()).unwrap_or_else(|_| HeaderValue::from_static(""));
    let (app, closed) = (app.clone(), closed.clone());
    let service = service_fn(move |request| {
        let (app, address) = (app.clone(), address.clone());
        async move { Ok::<_, Infallible>(app.respond(request, address).await) }
    });
    let connection = server.serve_connection(TokioIo::new(stream), service).into_owned();
    let connection = connections.watch(connection);
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!("{peer}: {error}");
        }
        closed.notify_one();
    });
}

/// Errors of `accept` that concern only the connection that was to be accepted (accept(2)).
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused
    )
}
