//! An OTLP collector for HTTP and gRPC. It records what it receives, and can be stopped or made to hang.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Empty, Full};
use hyper::body::Incoming;
use hyper::header::{HeaderMap, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::sync::{oneshot, watch};

use crate::namespace::NetNamespace;

/// A request that the collector received.
#[derive(Clone, Debug)]
pub struct Collected {
    pub path: String,
    pub headers: HashMap<String, String>,
    /// The message, without the gRPC frame.
    pub message: Bytes,
}

/// A collector that listens until it is dropped.
#[derive(Debug)]
pub struct Collector {
    collected: Arc<Mutex<Vec<Collected>>>,
    hanging: watch::Sender<bool>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Collector {
    /// Starts a collector in a machine's network.
    ///
    /// # Errors
    /// Fails if the port is in use.
    pub fn start(network: &NetNamespace, port: u16) -> Result<Self> {
        Ok(Self::listen(Some(network.clone()), port)?.0)
    }

    /// Starts a collector in this process's own network, on a free port.
    ///
    /// # Errors
    /// Fails if there is no free port.
    pub fn here() -> Result<(Self, SocketAddr)> {
        Self::listen(None, 0)
    }

    fn listen(network: Option<NetNamespace>, port: u16) -> Result<(Self, SocketAddr)> {
        let collected = Arc::<Mutex<Vec<Collected>>>::default();
        let (hanging, hangs) = watch::channel(false);
        let (stop, stopped) = oneshot::channel();
        let (bound, binding) = std::sync::mpsc::channel();
        let taken = Arc::clone(&collected);
        let thread = std::thread::spawn(move || {
            let listen = || {
                if let Some(network) = network {
                    network.enter()?;
                }
                let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
                listener.set_nonblocking(true)?;
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                std::io::Result::Ok((listener.local_addr()?, listener, runtime))
            };
            match listen() {
                Ok((address, listener, runtime)) => {
                    // The receiver is still waiting for this.
                    let _ = bound.send(Ok(address));
                    // When the runtime ends, it drops the connections.
                    runtime.block_on(async {
                        tokio::spawn(accept(listener, taken, hangs));
                        let _ = stopped.await;
                    });
                }
                Err(error) => drop(bound.send(Err(error))),
            }
        });
        let address = binding.recv().context("the collector's thread ended")??;
        let collector = Self {
            collected,
            hanging,
            stop: Some(stop),
            thread: Some(thread),
        };
        Ok((collector, address))
    }

    /// Makes the collector accept connections without answering them, like a stopped process, or lets it answer again.
    pub fn hang(&self, hangs: bool) {
        self.hanging.send_replace(hangs);
    }

    pub fn collected(&self) -> Vec<Collected> {
        locked(&self.collected).clone()
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        drop(self.stop.take());
        // If the thread panicked, the panic has been printed already.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn locked(collected: &Mutex<Vec<Collected>>) -> MutexGuard<'_, Vec<Collected>> {
    collected.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn accept(listener: TcpListener, collected: Arc<Mutex<Vec<Collected>>>, hangs: watch::Receiver<bool>) {
    let Ok(listener) = tokio::net::TcpListener::from_std(listener) else {
        return;
    };
    while let Ok((stream, _)) = listener.accept().await {
        let (collected, hangs) = (Arc::clone(&collected), hangs.clone());
        tokio::spawn(async move {
            let service = service_fn(|request| answer(request, Arc::clone(&collected), hangs.clone()));
            let builder = auto::Builder::new(TokioExecutor::new());
            // An error only means that the client gave up, which is expected while the collector hangs.
            let _ = builder.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn answer(
    request: Request<Incoming>,
    collected: Arc<Mutex<Vec<Collected>>>,
    mut hangs: watch::Receiver<bool>,
) -> Result<Response<BoxBody<Bytes, Infallible>>, hyper::Error> {
    // The sender exists as long as the runtime does.
    let _ = hangs.wait_for(|hangs| !hangs).await;
    let (head, body) = request.into_parts();
    let mut message = body.collect().await?.to_bytes();
    let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let headers: HashMap<_, _> = head
        .headers
        .iter()
        .map(|(name, value)| (name.to_string(), text(value)))
        .collect();
    let grpc = headers
        .get("content-type")
        .is_some_and(|kind| kind == "application/grpc");
    if grpc {
        message = message.slice(5.min(message.len())..);
    }
    locked(&collected).push(Collected {
        path: head.uri.path().to_owned(),
        headers,
        message,
    });
    if !grpc {
        return Ok(Response::new(Empty::new().boxed()));
    }
    // An empty gRPC message, followed by the status in the trailers.
    let trailers = HeaderMap::from_iter([(
        hyper::header::HeaderName::from_static("grpc-status"),
        HeaderValue::from_static("0"),
    )]);
    let body = Full::new(Bytes::from_static(&[0; 5])).with_trailers(async { Some(Ok(trailers)) });
    let mut response = Response::new(body.boxed());
    response
        .headers_mut()
        .insert("content-type", HeaderValue::from_static("application/grpc"));
    Ok(response)
}
