//! `probe`: what a TLS server really serves. linksctl asks nginx after a reload.

use std::io::{self, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use data_encoding::HEXLOWER;
use links_base::http::{Method, PROXY_UNKNOWN, Request, Response, exchange, left};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, StreamOwned};
use sha2::{Digest as _, Sha256};

use crate::certificate::Parsed;
use links_config::acme::{Handshake, ProbeRequest, Probed};

/// The maximum number of bytes of a response body that is printed.
const LONGEST_BODY: usize = 64 << 10;
/// The maximum length of the requests in bytes.
const LONGEST_INPUT: u64 = 1 << 20;

/// Reads the requests, a JSON array.
///
/// # Errors
/// It is none.
pub fn read_requests(input: impl io::Read) -> anyhow::Result<Vec<ProbeRequest>> {
    let requests: Vec<ProbeRequest> =
        serde_json::from_reader(input.take(LONGEST_INPUT)).context("Reading the requests on standard input")?;
    for request in &requests {
        anyhow::ensure!(
            !request.h2 || request.path.is_none(),
            "{}: `path` is requested over HTTP/1, so `h2` must be false",
            request.address
        );
    }
    Ok(requests)
}

/// Asks all servers at the same time. The results are in the order of the requests.
pub fn probe(requests: Vec<ProbeRequest>) -> Vec<Probed> {
    let asking: Vec<_> = requests
        .into_iter()
        .map(|request| {
            let unanswered = unanswered(&request);
            (thread::spawn(move || ask(&request)), unanswered)
        })
        .collect();
    let answers = asking.into_iter().map(|(thread, unanswered)| {
        // A thread that has panicked has no answer.
        thread.join().unwrap_or_else(|_| Probed {
            error: Some("links-acme has panicked".to_owned()),
            ..unanswered
        })
    });
    answers.collect()
}

fn unanswered(request: &ProbeRequest) -> Probed {
    Probed {
        address: request.address,
        name: request.name.clone(),
        tls: None,
        status: None,
        body: None,
        error: None,
    }
}

fn ask(request: &ProbeRequest) -> Probed {
    let mut probed = unanswered(request);
    match exchange_with(request, &mut probed) {
        Ok(None) => {}
        Ok(Some(response)) => {
            probed.status = Some(response.status);
            probed.body = Some(response.body);
        }
        Err(error) => probed.error = Some(format!("{error:#}")),
    }
    probed
}

fn exchange_with(request: &ProbeRequest, probed: &mut Probed) -> anyhow::Result<Option<Response>> {
    let deadline = Instant::now() + Duration::from_millis(request.timeout_ms);
    let name = ServerName::try_from(request.name.clone()).context("Reading the name")?;
    let mut connection = ClientConnection::new(Arc::new(config(request.h2)?), name)?;
    let mut socket = TcpStream::connect_timeout(&request.address, left(deadline)?)?;
    let limited = socket.try_clone()?;
    let limit_time = || {
        let left = left(deadline)?;
        limited.set_write_timeout(Some(left))?;
        limited.set_read_timeout(Some(left))
    };
    if request.proxy_protocol {
        limit_time()?;
        socket.write_all(PROXY_UNKNOWN)?;
    }
    while connection.is_handshaking() {
        limit_time()?;
        connection.complete_io(&mut socket).map_err(timed_out)?;
    }
    probed.tls = Some(handshake(&connection)?);
    let Some(path) = &request.path else {
        return Ok(None);
    };
    let headers: Vec<_> = request
        .headers
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    let http = Request {
        method: Method::Get,
        host: &request.name,
        path,
        headers: &headers,
        limit: LONGEST_BODY,
    };
    let mut stream = StreamOwned::new(connection, socket);
    Ok(Some(exchange(&mut stream, &http, limit_time)?))
}

/// `WouldBlock` is how a socket reports its timeout (socket(7), SO_RCVTIMEO).
fn timed_out(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::WouldBlock => io::ErrorKind::TimedOut.into(),
        _ => error,
    }
}

fn handshake(connection: &ClientConnection) -> anyhow::Result<Handshake> {
    let version = connection.protocol_version().context("the handshake has no version")?;
    let leaf = connection
        .peer_certificates()
        .and_then(|chain| chain.first())
        .context("the server has no certificate")?;
    Ok(Handshake {
        version: match version {
            rustls::ProtocolVersion::TLSv1_2 => "TLSv1.2".to_owned(),
            rustls::ProtocolVersion::TLSv1_3 => "TLSv1.3".to_owned(),
            other => format!("{other:?}"),
        },
        alpn: connection
            .alpn_protocol()
            .map(|protocol| String::from_utf8_lossy(protocol).into_owned()),
        sha256: HEXLOWER.encode(&Sha256::digest(leaf)),
        certificate: Parsed::from_der(leaf).map(|leaf| leaf.facts().clone()),
    })
}

fn config(h2: bool) -> anyhow::Result<ClientConfig> {
    let provider = Arc::new(ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
        .with_no_client_auth();
    config.alpn_protocols = match h2 {
        true => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
        false => vec![b"http/1.1".to_vec()],
    };
    Ok(config)
}

/// Accepts every certificate: the caller compares its digest. That the server has its key is verified.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _leaf: &CertificateDer<'_>,
        _issuers: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use std::io::Read as _;
    use std::net::{SocketAddr, TcpListener};

    use rustls::pki_types::PrivateKeyDer;
    use rustls::pki_types::pem::PemObject as _;
    use rustls::{ServerConfig, ServerConnection, Stream};

    use super::*;
    use crate::certificate::tests::issued;

    /// A TLS server that answers every request with the path of it.
    fn server(chain: &str, key: &str, expects_proxy: bool) -> SocketAddr {
        let chain: Vec<_> = CertificateDer::pem_slice_iter(chain.as_bytes())
            .map(Result::unwrap)
            .collect();
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let config = Arc::new(config);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            for mut socket in listener.incoming().flatten() {
                let config = Arc::clone(&config);
                thread::spawn(move || {
                    let mut line = vec![0; if expects_proxy { PROXY_UNKNOWN.len() } else { 0 }];
                    if socket.read_exact(&mut line).is_err() || (expects_proxy && line != PROXY_UNKNOWN) {
                        return;
                    }
                    let mut connection = ServerConnection::new(config).unwrap();
                    let mut stream = Stream::new(&mut connection, &mut socket);
                    let mut request = [0; 4096];
                    let Ok(length @ 1..) = stream.read(&mut request) else {
                        return;
                    };
                    let request = String::from_utf8_lossy(&request[..length]).into_owned();
                    let path = request.split(' ').nth(1).unwrap_or_default();
                    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{path}", path.len());
                    let _ = stream.write_all(head.as_bytes());
                });
            }
        });
        address
    }

    fn request(address: SocketAddr) -> ProbeRequest {
        ProbeRequest {
            address,
            name: "s.example.org".to_owned(),
            path: None,
            headers: vec![],
            h2: false,
            proxy_protocol: false,
            timeout_ms: 5000,
        }
    }

    #[test]
    fn a_probe_shows_the_certificate_and_the_response() {
        let (chain, key) = issued(&["s.example.org"], 1_800_000_000, 86_400);
        let address = server(&chain, &key, false);
        let with_path = ProbeRequest {
            path: Some("/health".to_owned()),
            ..request(address)
        };
        let with_h2 = ProbeRequest {
            h2: true,
            ..request(address)
        };
        let behind_a_proxy = ProbeRequest {
            proxy_protocol: true,
            ..request(server(&chain, &key, true))
        };
        let answers = probe(vec![with_path, with_h2, behind_a_proxy]);
        let leaf = crate::certificate::chain(chain.as_bytes()).unwrap().swap_remove(0);
        for (answer, alpn) in answers.iter().zip(["http/1.1", "h2", "http/1.1"]) {
            let tls = answer.tls.as_ref().unwrap();
            assert_eq!((&*tls.version, tls.alpn.as_deref()), ("TLSv1.3", Some(alpn)));
            assert_eq!(tls.certificate.as_ref(), Some(leaf.facts()));
            assert_eq!(tls.sha256, leaf.facts().sha256);
            assert_eq!(answer.error, None);
        }
        assert_eq!(
            (answers[0].status, answers[0].body.as_deref()),
            (Some(200), Some("/health"))
        );
        assert_eq!(answers[1].status, None);
    }

    #[test]
    fn a_server_that_is_absent_silent_or_not_tls_is_an_error_of_its_own() {
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let plain = links_base::testing::Server::start(|_| (200, String::new()));
        let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let requests = [silent.local_addr().unwrap(), plain.address(), closed].map(|address| ProbeRequest {
            timeout_ms: 300,
            ..request(address)
        });
        let begun = Instant::now();
        let answers = probe(requests.to_vec());
        assert!(begun.elapsed() < Duration::from_secs(5));
        for answer in answers {
            assert!(answer.tls.is_none() && answer.error.is_some(), "{answer:?}");
        }
    }

    #[test]
    fn the_requests_are_a_json_array() {
        let requests =
            read_requests(&br#"[{"address":"127.0.0.1:443","name":"a.example","timeout_ms":1}]"#[..]).unwrap();
        assert_eq!((requests[0].path.as_ref(), requests[0].h2), (None, false));
        assert!(read_requests(&b"{}"[..]).is_err());
        let both = br#"[{"address":"127.0.0.1:443","name":"a.example","path":"/","h2":true,"timeout_ms":1}]"#;
        assert!(read_requests(&both[..]).is_err());
    }
}
