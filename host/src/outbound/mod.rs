//! Outbound HTTP requests of components, limited to the addresses in `allowed_outbound_hosts`.

mod address;
mod timed_body;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::uri::Scheme;
use http::{HeaderName, Request, Response};
use http_body_util::BodyExt as _;
use tokio::time::timeout;
use wasmtime_wasi_http::{DEFAULT_FORBIDDEN_HEADERS, Error, RequestOptions, WasiBody as Body, WasiHttpHooks};

pub use self::address::Address;
use self::timed_body::TimedBody;
use crate::http_client::{CONNECT_TIMEOUT, Client, Version};

/// The maximum number of clients, each with its own connection pool. A component normally uses few connect timeouts.
const MAX_CLIENTS: usize = 16;

/// The addresses that a component may call, and its connections to them.
#[derive(Debug)]
pub struct Outbound {
    allowed: Vec<Address>,
    /// The clients by TLS (yes or no) and connect timeout, because a client has one connect timeout.
    clients: Mutex<Clients>,
}

type Clients = HashMap<(bool, Duration), Arc<Client<Body>>>;

type Sent = (Response<Body>, Outcome);
type Outcome = Box<dyn Future<Output = Result<(), Error>> + Send>;

impl Outbound {
    pub fn new(allowed: Vec<Address>) -> Self {
        Self {
            allowed,
            clients: Mutex::default(),
        }
    }

    fn client(&self, tls: bool, connect_timeout: Duration) -> Arc<Client<Body>> {
        // Nothing that can panic happens under this lock.
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if clients.len() >= MAX_CLIENTS && !clients.contains_key(&(tls, connect_timeout)) {
            clients.clear();
        }
        let client = clients.entry((tls, connect_timeout));
        let client = client
            .or_insert_with(|| Arc::new(Client::with_tls(tls, Version::Http1).with_connect_timeout(connect_timeout)));
        client.clone()
    }

    async fn send(&self, request: Request<Body>, timeouts: &Timeouts) -> Result<Response<Body>, Error> {
        let uri = request.uri();
        let (scheme, authority) = uri.scheme().zip(uri.authority()).ok_or(Error::HttpRequestUriInvalid)?;
        let address = Address::of(scheme, authority).ok_or(Error::HttpRequestUriInvalid)?;
        if !self.allowed.contains(&address) {
            tracing::warn!(
                "a component requested {scheme}://{authority}, which is not in allowed_outbound_hosts in its spin.toml"
            );
            return Err(Error::HttpRequestDenied);
        }
        let client = self.client(*scheme == Scheme::HTTPS, timeouts.connect);
        let sending = async {
            client.send(request).await.map_err(|error| {
                tracing::debug!("requesting {}:{}: {error:#}", address.host, address.port);
                Error::InternalError(Some(format!("{error:#}")))
            })
        };
        let response = within(timeouts.first_byte, sending).await?;
        let between_bytes = timeouts.between_bytes;
        Ok(response.map(|body| {
            let body = body.map_err(|error| Error::InternalError(Some(error.to_string())));
            match between_bytes {
                Some(limit) => TimedBody::new(body, limit).boxed_unsync(),
                None => body.boxed_unsync(),
            }
        }))
    }
}

/// The timeouts that a component has set for a request.
struct Timeouts {
    connect: Duration,
    first_byte: Option<Duration>,
    between_bytes: Option<Duration>,
}

impl From<Option<RequestOptions>> for Timeouts {
    fn from(options: Option<RequestOptions>) -> Self {
        let options = options.unwrap_or_default();
        Self {
            connect: options.connect_timeout.unwrap_or(CONNECT_TIMEOUT),
            first_byte: options.first_byte_timeout,
            between_bytes: options.between_bytes_timeout,
        }
    }
}

async fn within<T>(limit: Option<Duration>, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    match limit {
        Some(limit) => timeout(limit, work).await.unwrap_or(Err(Error::ConnectionReadTimeout)),
        None => work.await,
    }
}

/// The hook for outbound requests of one instance.
pub struct Requests(pub Arc<Outbound>);

impl WasiHttpHooks for Requests {
    /// Same as the default implementation, which allocates for each name.
    fn is_forbidden_header(&mut self, name: &HeaderName) -> bool {
        DEFAULT_FORBIDDEN_HEADERS.contains(name)
    }

    fn send_request(
        &mut self,
        request: Request<Body>,
        options: Option<RequestOptions>,
        _outcome: Outcome,
    ) -> Box<dyn Future<Output = Result<Sent, Error>> + Send> {
        let outbound = self.0.clone();
        Box::new(async move {
            let response = outbound.send(request, &options.into()).await;
            let done: Outcome = Box::new(std::future::ready(Ok(())));
            Ok((response?, done))
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic fails the test")]
mod tests {
    use http_body_util::Empty;
    use tokio::net::TcpListener;

    use super::*;
    use crate::testing::{Response, Server};

    fn allowed(entries: &[&str]) -> Outbound {
        Outbound::new(entries.iter().map(|entry| Address::parse(entry).unwrap()).collect())
    }

    async fn ask(outbound: &Outbound, url: &str) -> Result<u16, Error> {
        let body = Empty::new().map_err(|never| match never {}).boxed_unsync();
        let request = Request::get(url).body(body).unwrap();
        let response = outbound.send(request, &None.into()).await;
        response.map(|response| response.status().as_u16())
    }

    #[tokio::test]
    async fn a_stalled_response_body_times_out() {
        let server = Server::with(vec![Response::new(200, "half of it").stalling_after(4)]).await;
        let url = server.url();
        let body = Empty::new().map_err(|never| match never {}).boxed_unsync();
        let timeouts = Timeouts {
            between_bytes: Some(Duration::from_millis(50)),
            ..None.into()
        };
        let request = Request::get(&url).body(body).unwrap();
        let response = allowed(&[&url]).send(request, &timeouts).await.unwrap();
        let ended = timeout(Duration::from_secs(30), response.into_body().collect())
            .await
            .unwrap();
        assert!(matches!(ended, Err(Error::ConnectionReadTimeout)), "{ended:?}");
    }

    #[tokio::test]
    async fn the_components_connect_timeout_applies() {
        // The backlog is full, so the kernel drops further SYNs.
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(0).unwrap();
        let address = listener.local_addr().unwrap();
        let _first = tokio::net::TcpStream::connect(address).await.unwrap();
        let url = format!("http://{address}");
        let body = Empty::new().map_err(|never| match never {}).boxed_unsync();
        let timeouts = Timeouts {
            connect: Duration::from_millis(50),
            ..None.into()
        };
        let start = std::time::Instant::now();
        let request = Request::get(&url).body(body).unwrap();
        let failed = allowed(&[&url]).send(request, &timeouts).await;
        assert!(failed.is_err());
        assert!(start.elapsed() < CONNECT_TIMEOUT, "{:?}", start.elapsed());
    }

    #[tokio::test]
    async fn only_allowed_addresses_are_requested() {
        let server = || Server::start(|_| Some(Response::new(204, "")));
        let [port, other] = [server().await.port(), server().await.port()];
        let outbound = allowed(&[&format!("http://127.0.0.1:{port}")]);
        assert_eq!(
            ask(&outbound, &format!("http://127.0.0.1:{port}/x")).await.unwrap(),
            204
        );
        for url in [
            format!("http://127.0.0.1:{other}/x"),
            format!("http://localhost:{port}/x"),
            format!("https://127.0.0.1:{port}/x"),
            "http://127.0.0.1/x".to_owned(),
        ] {
            let refused = ask(&outbound, &url).await;
            assert!(matches!(refused, Err(Error::HttpRequestDenied)), "{url}: {refused:?}");
        }
        let nothing = allowed(&[]);
        let refused = ask(&nothing, &format!("http://127.0.0.1:{port}/x")).await;
        assert!(matches!(refused, Err(Error::HttpRequestDenied)), "{refused:?}");
    }

    #[tokio::test]
    async fn a_refused_connection_is_reported() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let url = format!("http://127.0.0.1:{port}");
        let failed = ask(&allowed(&[&url]), &url).await;
        assert!(
            matches!(&failed, Err(Error::InternalError(Some(message))) if message.contains("refused")),
            "{failed:?}"
        );
    }
}
