//! The network process: speaks to the authority, and to the process that started it over standard input and output.

use std::io::{self, BufRead as _, Write as _};
use std::time::Duration;

use anyhow::Context as _;
use data_encoding::{BASE64, BASE64URL_NOPAD};
use instant_acme::{
    Account, AccountCredentials, AuthorizationStatus, CertificateIdentifier, ChallengeType, Error, ExternalAccountKey,
    Identifier, NewAccount, Order, OrderStatus, Problem, RevocationReason, RevocationRequest,
};
use rustls::pki_types::CertificateDer;
use serde::Deserialize;
use tokio::time::{Instant, sleep};

use super::PROCESSING_TIMEOUT;
use super::error::{self, Context, too_slow};
use super::http::{Http, NoResponse};
use super::protocol::{Challenge, Credentials, Eab, NewOrder, Open, Opened, Ordered, Reply, Request, Stage, Window};
use crate::certificate::CertificateId;
use crate::words::{Attempt, During, failure};
use links_base::process::Parent;
use links_base::{clock, privileges};
use links_config::acme::{Failure, FailureKind};

/// How often a request is sent again because of its nonce, beyond the two times of instant-acme.
const NONCE_RETRIES: u32 = 3;
/// The pauses between two questions about an order, unless the authority names one.
const FIRST_POLL: Duration = Duration::from_millis(500);
const LONGEST_POLL: Duration = Duration::from_secs(5);
const LONGEST_REQUESTED_POLL: u64 = 30;

/// Answers requests until standard input ends. With `as_user`, the process first becomes one of user links-acme.
///
/// # Errors
/// The user does not exist, or the other process does not follow the protocol.
pub fn serve(as_user: bool) -> anyhow::Result<()> {
    let parent = Parent::of_this_process();
    if as_user {
        privileges::give_up_for_network()?;
    }
    parent.end_with()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut session = None;
    for line in io::stdin().lock().lines() {
        let request = serde_json::from_str(&line?).context("Parsing a request")?;
        let reply = runtime
            .block_on(answer(&mut session, request))
            .unwrap_or_else(Reply::Failed);
        let mut stdout = io::stdout().lock();
        writeln!(stdout, "{}", serde_json::to_string(&reply)?)?;
        stdout.flush()?;
    }
    Ok(())
}

/// The connection to an authority.
struct Link {
    /// The host of the directory.
    authority: String,
    http: Http,
}

impl Link {
    fn failed(&self, error: &Error, name: Option<&str>, during: During) -> Box<Failure> {
        let seen = self.http.seen();
        error::of(
            error,
            &Context {
                authority: &self.authority,
                name,
                during,
                seen: &seen,
            },
        )
    }

    fn refused(&self, error: &Error) -> Box<Failure> {
        self.failed(error, None, During::Request)
    }

    /// How long to wait before the next question about an order.
    fn poll_pause(&self, otherwise: Duration) -> Duration {
        let asked_for = self.http.seen().retry_after;
        let seconds = asked_for.and_then(|text| error::seconds(&text, clock::now()));
        seconds.map_or(otherwise, |seconds| {
            Duration::from_secs(seconds.clamp(1, LONGEST_REQUESTED_POLL))
        })
    }
}

struct Session {
    link: Link,
    account: Account,
    profiles: Vec<String>,
    order: Option<NamedOrder>,
}

struct NamedOrder {
    name: String,
    order: Order,
}

async fn answer(session: &mut Option<Session>, request: Request) -> Attempt<Reply> {
    let Some(session) = session else {
        let Request::Open(open) = request else {
            return Err(out_of_turn());
        };
        let (opened, reply) = Session::open(open).await?;
        *session = Some(opened);
        return Ok(Reply::Opened(reply));
    };
    match request {
        Request::Open(open) => {
            let (opened, reply) = Session::open(open).await?;
            *session = opened;
            Ok(Reply::Opened(reply))
        }
        Request::RenewalInfo { certificate } => session.renewal_info(&certificate).await,
        Request::Order(order) => session.order(order).await.map(Reply::Ordered),
        Request::Validate => session.validate().await.map(|()| Reply::Validated),
        Request::Finalize { csr } => {
            let chain = session.finalize(&decoded(&csr)?).await?;
            Ok(Reply::Certificate { chain })
        }
        Request::Revoke { certificate } => session.revoke(decoded(&certificate)?).await.map(|()| Reply::Done),
        Request::Deactivate => session.deactivate().await.map(|()| Reply::Done),
    }
}

fn out_of_turn() -> Box<Failure> {
    failure(
        FailureKind::Other,
        "links-acme got an unexpected reply from its network process.",
        "Please report this as a bug of links.",
    )
}

fn decoded(base64: &str) -> Attempt<Vec<u8>> {
    BASE64.decode(base64.as_bytes()).map_err(|_| out_of_turn())
}

/// What instant-acme does not pass on of a directory (RFC 8555, section 7.1.1).
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Directory {
    meta: Meta,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Meta {
    terms_of_service: Option<String>,
    external_account_required: bool,
}

/// Repeats a request that the authority refuses for its nonce, with which it has then done nothing (RFC 8555, section 6.5).
async fn again<T>(mut request: impl AsyncFnMut() -> Result<T, Error>) -> Result<T, Error> {
    for _ in 0..NONCE_RETRIES {
        match request().await {
            Err(Error::Api(problem)) if is(&problem, "badNonce") => {}
            result => return result,
        }
    }
    request().await
}

fn is(problem: &Problem, name: &str) -> bool {
    problem
        .r#type
        .as_deref()
        .and_then(|found| found.strip_prefix("urn:ietf:params:acme:error:"))
        == Some(name)
}

impl Session {
    async fn open(open: Open) -> Attempt<(Self, Opened)> {
        let url: url::Url = open.directory.parse().map_err(|error| {
            failure(
                FailureKind::Other,
                format!("{} is not a URL: {error}.", open.directory),
                "Check `directory` in [tls].",
            )
        })?;
        let http = Http::new(open.roots.as_deref()).map_err(|error| {
            failure(
                FailureKind::Tls,
                format!("The file of certificates for {url} cannot be used: {error}."),
                "Check `ca_file` in [tls].",
            )
        })?;
        let link = Link {
            authority: url.host_str().unwrap_or_default().to_owned(),
            http,
        };
        link.http
            .get(&open.directory)
            .await
            .map_err(|error| link.refused(&error))?;
        let directory: Directory =
            serde_json::from_slice(&link.http.seen().fetched).map_err(|error| link.refused(&Error::Json(error)))?;
        let contacts: Vec<_> = open.emails.iter().map(|email| format!("mailto:{email}")).collect();
        let contacts: Vec<_> = contacts.iter().map(String::as_str).collect();
        let (account, created) = match open.account {
            Some(credentials) => {
                let account = existing(&link, credentials).await?;
                if open.contacts_changed {
                    let updated = again(async || account.update_contacts(&contacts).await).await;
                    updated.map_err(|error| link.refused(&error))?;
                }
                (account, None)
            }
            None => {
                if directory.meta.external_account_required && open.eab.is_none() {
                    return Err(link.refused(&eab_required()));
                }
                let eab = open.eab.as_ref().map(eab_key).transpose()?;
                let (account, credentials) = create(&link, &contacts, &open.directory, eab.as_ref()).await?;
                (account, Some(credentials))
            }
        };
        let opened = Opened {
            url: account.id().to_owned(),
            created,
            terms_of_service: directory.meta.terms_of_service,
        };
        let profiles = account.profiles().map(|profile| profile.name.to_owned()).collect();
        let session = Self {
            link,
            account,
            profiles,
            order: None,
        };
        Ok((session, opened))
    }

    async fn renewal_info(&self, certificate: &CertificateId) -> Attempt<Reply> {
        let id = identifier(certificate);
        match self.account.renewal_info(&id).await {
            Ok((info, wait)) => {
                let seconds = |time: i64| u64::try_from(time).unwrap_or_default();
                let (start, end) = (
                    seconds(info.suggested_window.start.unix_timestamp()),
                    seconds(info.suggested_window.end.unix_timestamp()),
                );
                Ok(Reply::RenewalInfo {
                    // A window that does not end after it starts counts as none (RFC 9773, section 4.2).
                    window: (start < end).then_some(Window {
                        start,
                        end,
                        explanation: info.explanation_url,
                    }),
                    wait: Some(wait.as_secs()),
                })
            }
            Err(error) if is_temporary(&error, self.link.http.seen().status) => Err(self.link.refused(&error)),
            // The authority has no windows, or does not know this certificate.
            Err(_) => Ok(Reply::RenewalInfo {
                window: None,
                wait: None,
            }),
        }
    }

    async fn order(&mut self, new: NewOrder) -> Attempt<Ordered> {
        let NewOrder {
            name,
            profile,
            replaces,
            resume,
        } = new;
        if let Some(profile) = profile
            .as_deref()
            .filter(|it| !self.profiles.iter().any(|known| known == it))
        {
            return Err(unknown_profile(&self.link.authority, profile, &self.profiles));
        }
        let failed = |error| self.link.failed(&error, Some(&name), During::Request);
        let resumed = match resume {
            Some(url) => resumed(&self.account, &url).await.map_err(failed)?,
            None => None,
        };
        let mut order = match resumed {
            Some(order) => order,
            None => self
                .new_order(&name, profile.as_deref(), replaces.as_ref())
                .await
                .map_err(failed)?,
        };
        let stage = match order.state().status {
            OrderStatus::Pending => again(async || challenge_of(&mut order).await)
                .await
                .map_err(failed)?
                .map_or(Stage::Ready, Stage::Challenge),
            _ => Stage::Ready,
        };
        let url = order.url().to_owned();
        self.order = Some(NamedOrder { name, order });
        Ok(Ordered { url, stage })
    }

    async fn new_order(
        &self,
        name: &str,
        profile: Option<&str>,
        replaces: Option<&CertificateId>,
    ) -> Result<Order, Error> {
        let identifiers = [name
            .parse()
            .map_or_else(|_| Identifier::Dns(name.to_owned()), Identifier::Ip)];
        let new = || {
            let new = instant_acme::NewOrder::new(&identifiers);
            match profile {
                Some(profile) => new.profile(profile),
                None => new,
            }
        };
        if let Some(replaces) = replaces {
            let replacing = again(async || self.account.new_order(&new().replaces(identifier(replaces))).await).await;
            match replacing {
                Ok(order) => return Ok(order),
                Err(Error::Other(error)) if error.is::<NoResponse>() => return Err(Error::Other(error)),
                Err(Error::Api(problem)) if is(&problem, "rateLimited") => return Err(Error::Api(problem)),
                // The authority does not know the certificate, or it was replaced before. What counts is the new one.
                Err(_) => {}
            }
        }
        again(async || self.account.new_order(&new()).await).await
    }

    async fn validate(&mut self) -> Attempt<()> {
        let Self { link, order, .. } = self;
        let NamedOrder { name, order } = order.as_mut().ok_or_else(out_of_turn)?;
        let failed = |error| link.failed(&error, Some(name), During::Validation);
        again(async || set_ready(order).await).await.map_err(failed)?;
        match poll(link, order, |status| status != OrderStatus::Pending).await {
            Ok(Some(OrderStatus::Invalid)) => {}
            Ok(Some(_)) => return Ok(()),
            Ok(None) => return Err(too_slow(&link.authority)),
            Err(error) => return Err(link.failed(&error, Some(name), During::Request)),
        }
        // The order only says that it is invalid; its challenge says why.
        let reason = again(async || challenge_error(order).await).await;
        Err(failed(match reason {
            Ok(Some(problem)) => Error::Api(problem),
            Ok(None) => Error::Str("the reason of a failed validation"),
            Err(error) => error,
        }))
    }

    async fn finalize(&mut self, csr: &[u8]) -> Attempt<String> {
        let Self { link, order, .. } = self;
        let NamedOrder { name, order } = order.as_mut().ok_or_else(out_of_turn)?;
        let failed = |error: Error| link.failed(&error, Some(name), During::Request);
        if order.state().status == OrderStatus::Pending {
            let ready = poll(link, order, |status| status != OrderStatus::Pending).await;
            ready.map_err(failed)?.ok_or_else(|| too_slow(&link.authority))?;
        }
        if order.state().status == OrderStatus::Ready {
            again(async || order.finalize_csr(csr).await).await.map_err(failed)?;
        }
        let is_done = |status| matches!(status, OrderStatus::Valid | OrderStatus::Invalid);
        if !is_done(order.state().status) {
            let done = poll(link, order, is_done).await;
            done.map_err(failed)?.ok_or_else(|| too_slow(&link.authority))?;
        }
        let chain = again(async || order.certificate().await).await.map_err(failed)?;
        chain.ok_or_else(|| too_slow(&link.authority))
    }

    async fn revoke(&self, certificate: Vec<u8>) -> Attempt<()> {
        let certificate = CertificateDer::from(certificate);
        let revoked = again(async || {
            let request = RevocationRequest {
                certificate: &certificate,
                reason: Some(RevocationReason::CessationOfOperation),
            };
            self.account.revoke(&request).await
        });
        match revoked.await {
            Err(Error::Api(problem)) if is(&problem, "alreadyRevoked") => Ok(()),
            result => result.map_err(|error| self.link.refused(&error)),
        }
    }

    async fn deactivate(&self) -> Attempt<()> {
        let deactivated = again(async || self.account.clone().deactivate().await).await;
        deactivated.map_err(|error| self.link.refused(&error))?;
        // instant-acme ignores the status.
        match self.link.http.seen().status {
            Some(200..300) => Ok(()),
            _ => Err(self.link.refused(&Error::Str("a confirmation"))),
        }
    }
}

/// Whether the authority may answer the same request later. Until then its earlier answer counts (RFC 9773, section 4.3.3).
/// `status` is that of its response.
fn is_temporary(error: &Error, status: Option<u16>) -> bool {
    match error {
        // Nothing was sent.
        Error::Unsupported(_) => false,
        Error::Other(error) if error.is::<NoResponse>() => true,
        _ => matches!(status, Some(429 | 500..)),
    }
}

fn identifier(certificate: &CertificateId) -> CertificateIdentifier<'static> {
    CertificateIdentifier {
        authority_key_identifier: certificate.authority_key_identifier.clone().into(),
        serial: certificate.serial.clone().into(),
    }
}

async fn existing(link: &Link, credentials: Credentials) -> Attempt<Account> {
    let credentials: AccountCredentials = serde_json::from_value(credentials.0).map_err(|error| {
        failure(
            FailureKind::Storage,
            format!("The file of the account at {} is damaged: {error}.", link.authority),
            "Remove it from /var/lib/links/tls/accounts; the next attempt creates a new account.",
        )
    })?;
    let builder = Account::builder_with_http(Box::new(link.http.clone()));
    builder
        .from_credentials(credentials)
        .await
        .map_err(|error| link.refused(&error))
}

async fn create(
    link: &Link,
    contacts: &[&str],
    directory: &str,
    eab: Option<&ExternalAccountKey>,
) -> Attempt<(Account, Credentials)> {
    let created = again(async || {
        let new = NewAccount {
            contact: contacts,
            terms_of_service_agreed: true,
            only_return_existing: false,
        };
        let builder = Account::builder_with_http(Box::new(link.http.clone()));
        builder.create(&new, directory.to_owned(), eab).await
    });
    let (account, credentials) = created.await.map_err(|error| link.refused(&error))?;
    let credentials = serde_json::to_value(&credentials).map_err(|error| link.refused(&Error::Json(error)))?;
    Ok((account, Credentials(credentials)))
}

fn eab_required() -> Error {
    Error::Api(Problem {
        r#type: Some("urn:ietf:params:acme:error:externalAccountRequired".to_owned()),
        detail: None,
        status: None,
        subproblems: vec![],
    })
}

fn eab_key(eab: &Eab) -> Attempt<ExternalAccountKey> {
    // Authorities show the key in base64url, most without padding.
    let key = eab.key.trim().trim_end_matches('=').replace('+', "-").replace('/', "_");
    let key = BASE64URL_NOPAD.decode(key.as_bytes()).map_err(|_| {
        failure(
            FailureKind::EabRequired,
            "The key of the external account binding is not in base64url.",
            "Write it to its file as the authority shows it.",
        )
    })?;
    Ok(ExternalAccountKey::new(eab.kid.clone(), &key))
}

fn unknown_profile(authority: &str, profile: &str, known: &[String]) -> Box<Failure> {
    let hint = match known {
        [] => "Remove `profile` from [tls].".to_owned(),
        known => format!("Set `profile` in [tls] to one of: {}.", known.join(", ")),
    };
    failure(
        FailureKind::Profile,
        format!("{authority} does not offer the profile {profile}."),
        hint,
    )
}

/// The order of an earlier run, if it can be continued.
async fn resumed(account: &Account, url: &str) -> Result<Option<Order>, Error> {
    match again(async || account.order(url.to_owned()).await).await {
        Ok(mut order) => {
            let is_alive = order.state().status != OrderStatus::Invalid;
            Ok(is_alive.then_some(order))
        }
        // It belonged to another account, or has expired.
        Err(Error::Api(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The challenge that is still to be answered. `None` if the authority remembers an earlier validation.
async fn challenge_of(order: &mut Order) -> Result<Option<Challenge>, Error> {
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization?;
        if authorization.status == AuthorizationStatus::Valid {
            continue;
        }
        let Some(challenge) = authorization.challenge(ChallengeType::Http01) else {
            return Err(Error::Unsupported("the challenge HTTP-01 for this name"));
        };
        return Ok(Some(Challenge {
            token: challenge.token.clone(),
            key_authorization: challenge.key_authorization().as_str().to_owned(),
        }));
    }
    Ok(None)
}

async fn set_ready(order: &mut Order) -> Result<(), Error> {
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization?;
        if authorization.status == AuthorizationStatus::Pending
            && let Some(mut challenge) = authorization.challenge(ChallengeType::Http01)
        {
            challenge.set_ready().await?;
        }
    }
    Ok(())
}

/// Why the authority has not accepted the answer.
async fn challenge_error(order: &mut Order) -> Result<Option<Problem>, Error> {
    let of_order = order.state().error.clone();
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization?;
        let state = authorization.refresh().await?;
        if let Some(problem) = state.challenges.iter().find_map(|challenge| challenge.error.clone()) {
            return Ok(Some(problem));
        }
    }
    Ok(of_order)
}

/// Asks for the order until its status is as wished, and returns it. `None` if that takes too long.
async fn poll(
    link: &Link,
    order: &mut Order,
    is_wished: impl Fn(OrderStatus) -> bool,
) -> Result<Option<OrderStatus>, Error> {
    let deadline = Instant::now() + PROCESSING_TIMEOUT;
    let mut pause = FIRST_POLL;
    loop {
        let status = again(async || order.refresh().await.map(|state| state.status)).await?;
        if is_wished(status) {
            return Ok(Some(status));
        }
        let wait = link.poll_pause(pause);
        if Instant::now() + wait > deadline {
            return Ok(None);
        }
        sleep(wait).await;
        pause = LONGEST_POLL.min(pause.mul_f32(1.5));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic, reason = "a test may end at the first surprise")]
mod tests {
    use std::io::{BufReader, Read as _};
    use std::net::{SocketAddr, TcpListener};
    use std::sync::{Arc, Mutex};
    use std::thread;

    use rustls::pki_types::PrivateKeyDer;
    use rustls::pki_types::pem::PemObject as _;
    use rustls::{ServerConfig, ServerConnection, StreamOwned};

    use super::*;
    use crate::certificate::tests::issued;

    /// What the authority answers a new order, or a question about a renewal, with: a status, header fields with their CRLF, and
    /// a body.
    type Answer = (u16, &'static str, String);

    /// As much of an authority as orders need.
    struct Fake {
        address: SocketAddr,
        /// The certificate that it is trusted by.
        root: String,
        /// The payloads of the orders.
        orders: Arc<Mutex<Vec<String>>>,
    }

    impl Fake {
        fn start(answer: Answer) -> Self {
            let (chain, key) = issued(&["127.0.0.1"], clock::now() - 3600, 86_400);
            let certificates: Vec<_> = CertificateDer::pem_slice_iter(chain.as_bytes())
                .map(Result::unwrap)
                .collect();
            let end = "-----END CERTIFICATE-----";
            let root = chain.rsplit_once(&format!("{end}\n-----BEGIN")).unwrap().1;
            let root = format!("-----BEGIN{root}");
            let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(certificates, PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap())
                .unwrap();
            let config = Arc::new(config);
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap();
            let orders = Arc::<Mutex<Vec<String>>>::default();
            let taken = Arc::clone(&orders);
            thread::spawn(move || {
                for socket in listener.incoming().flatten() {
                    let connection = ServerConnection::new(Arc::clone(&config)).unwrap();
                    // The client does not trust every server of these tests.
                    let _ = serve_one(StreamOwned::new(connection, socket), address, &answer, &taken);
                }
            });
            Self { address, root, orders }
        }

        fn open(&self) -> Open {
            Open {
                directory: format!("https://{}/directory", self.address),
                roots: Some(self.root.clone()),
                emails: vec![],
                eab: None,
                account: None,
                contacts_changed: false,
            }
        }

        /// Opens an account and orders a certificate.
        fn order(&self, profile: Option<&str>) -> Attempt<Reply> {
            self.ask(Request::Order(NewOrder {
                name: "s.example.org".to_owned(),
                profile: profile.map(str::to_owned),
                replaces: None,
                resume: None,
            }))
        }

        /// Opens an account and asks for the rest.
        fn ask(&self, request: Request) -> Attempt<Reply> {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let mut session = None;
                let opened = answer(&mut session, Request::Open(self.open())).await?;
                assert!(matches!(opened, Reply::Opened(_)), "{opened:?}");
                answer(&mut session, request).await
            })
        }
    }

    fn serve_one(
        mut stream: StreamOwned<ServerConnection, std::net::TcpStream>,
        address: SocketAddr,
        answer: &Answer,
        orders: &Mutex<Vec<String>>,
    ) -> io::Result<()> {
        let mut lines = vec![];
        let mut reader = BufReader::new(&mut stream);
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            match line.trim_end() {
                "" => break,
                line => lines.push(line.to_ascii_lowercase()),
            }
        }
        let length = lines.iter().find_map(|line| line.strip_prefix("content-length: "));
        let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
        reader.read_exact(&mut body)?;
        let url = |path: &str| format!("https://{address}/{path}");
        let path = lines
            .first()
            .and_then(|line| line.split(' ').nth(1))
            .unwrap_or_default();
        let (status, fields, body) = match path {
            "/directory" => {
                let directory = serde_json::json!({
                    "newNonce": url("nonce"),
                    "newAccount": url("account"),
                    "newOrder": url("order"),
                    "renewalInfo": url("renewal"),
                    "meta": { "profiles": { "shortlived": "6 days" } },
                });
                (200, String::new(), directory.to_string())
            }
            "/account" => (201, format!("location: {}\r\n", url("account/1")), "{}".to_owned()),
            "/order" => {
                let jose: serde_json::Value = serde_json::from_slice(&body).unwrap();
                let payload = BASE64URL_NOPAD
                    .decode(jose["payload"].as_str().unwrap().as_bytes())
                    .unwrap();
                orders.lock().unwrap().push(String::from_utf8(payload).unwrap());
                (answer.0, answer.1.to_owned(), answer.2.clone())
            }
            _ if path.starts_with("/renewal/") => (answer.0, answer.1.to_owned(), answer.2.clone()),
            _ => (200, String::new(), String::new()),
        };
        let length = body.len();
        write!(
            stream,
            "HTTP/1.1 {status} X\r\nreplay-nonce: nonce\r\n{fields}content-length: {length}\r\nconnection: close\r\n\r\n{body}"
        )?;
        stream.conn.send_close_notify();
        stream.flush()
    }

    fn problem(name: &str) -> String {
        serde_json::json!({ "type": format!("urn:ietf:params:acme:error:{name}"), "detail": "no" }).to_string()
    }

    fn refusal(answer: Answer) -> Box<Failure> {
        Fake::start(answer).order(None).unwrap_err()
    }

    #[test]
    fn a_rate_limit_says_until_when() {
        let failure = refusal((429, "retry-after: 7200\r\n", problem("rateLimited")));
        assert_eq!(failure.kind, FailureKind::RateLimited);
        let left = failure.retry_after.unwrap().saturating_sub(clock::now());
        assert!((7100..=7200).contains(&left), "{left}");
    }

    #[test]
    fn refusals_and_breakdowns_are_told_apart() {
        use FailureKind as Kind;
        for (answer, kind) in [
            ((403, "", problem("caa")), Kind::Caa),
            ((400, "", problem("accountDoesNotExist")), Kind::Account),
            ((503, "", "<html>busy</html>".to_owned()), Kind::Server),
            ((200, "", "<html>welcome</html>".to_owned()), Kind::Protocol),
            ((400, "", problem("badNonce")), Kind::BadNonce),
        ] {
            let fake = Fake::start(answer);
            assert_eq!(fake.order(None).unwrap_err().kind, kind);
            // instant-acme sends a request three times.
            let sent = fake.orders.lock().unwrap().len();
            assert_eq!(sent > 3, kind == Kind::BadNonce, "{sent}");
        }
    }

    #[test]
    fn an_authority_that_is_busy_takes_no_window_back() {
        let ask = |answer| {
            let certificate = CertificateId {
                authority_key_identifier: "AQ".to_owned(),
                serial: "Ag".to_owned(),
            };
            Fake::start(answer).ask(Request::RenewalInfo { certificate })
        };
        let wait = "retry-after: 60\r\n";
        for answer in [
            (503, "", "busy".to_owned()),
            (500, wait, problem("serverInternal")),
            (429, wait, problem("rateLimited")),
        ] {
            assert!(ask(answer).is_err());
        }
        for answer in [(404, "", "no".to_owned()), (404, wait, problem("malformed"))] {
            let reply = ask(answer).unwrap();
            assert!(matches!(reply, Reply::RenewalInfo { window: None, .. }), "{reply:?}");
        }
    }

    #[test]
    fn a_response_without_end_is_cut_off() {
        let failure = refusal((201, "", "x".repeat(1 << 20)));
        assert_eq!(failure.kind, FailureKind::Network);
    }

    #[test]
    fn a_profile_is_ordered_if_the_authority_has_it() {
        let fake = Fake::start((403, "", problem("caa")));
        assert_eq!(fake.order(Some("shortlived")).unwrap_err().kind, FailureKind::Caa);
        let order: serde_json::Value = serde_json::from_str(&fake.orders.lock().unwrap()[0]).unwrap();
        assert_eq!(order["profile"], "shortlived");
        let unknown = fake.order(Some("gold")).unwrap_err();
        assert_eq!(unknown.kind, FailureKind::Profile);
        assert!(unknown.hint.contains("shortlived"), "{}", unknown.hint);
        assert_eq!(fake.orders.lock().unwrap().len(), 1);
    }

    #[test]
    fn an_authority_that_is_not_trusted_gets_no_account() {
        let fake = Fake::start((403, "", problem("caa")));
        let other = Fake::start((403, "", problem("caa")));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let open = Open {
            roots: Some(other.root.clone()),
            ..fake.open()
        };
        let failure = runtime.block_on(answer(&mut None, Request::Open(open))).unwrap_err();
        assert_eq!(failure.kind, FailureKind::Tls, "{failure:?}");
        assert!(
            runtime.block_on(answer(&mut None, Request::Validate)).is_err(),
            "before it is open"
        );
    }
}
