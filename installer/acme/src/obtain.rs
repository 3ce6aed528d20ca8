//! Gets one certificate, from the order to the file. Whatever kills this, either the old certificate is in place or the new
//! one, and the next run continues the order.

use std::io::{self, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use data_encoding::BASE64;
use links_base::http::{self, PROXY_UNKNOWN, Response};
use links_base::log;
use rcgen::{CertificateParams, DistinguishedName, KeyPair};

use crate::ca::Authority;
use crate::ca::protocol::{Challenge, NewOrder, Ordered, Reply, Request, Stage};
use crate::certificate::{self, CertificateId, Parsed};
use crate::name::Name;
use crate::store::{Issued, Pending, PendingOrder, Store};
use crate::words::{Attempt, failure};
use links_config::acme::{Event, Failure, FailureKind, Step};

/// The path below which an authority looks for answers (RFC 8555, section 8.3).
const WELL_KNOWN: &str = "/.well-known/acme-challenge/";
/// How long nginx may take to serve an answer to this machine itself.
const SELF_CHECK_TIMEOUT: Duration = Duration::from_secs(5);

/// The certificate that is wanted.
#[derive(Debug)]
pub struct Wanted<'a> {
    pub name: &'a Name,
    pub issued: &'a Issued,
    /// The URL of the account.
    pub account: &'a str,
    /// The certificate that the new one replaces.
    pub replaces: Option<CertificateId>,
    /// Where this machine serves the answers, if that is checked before the authority is asked.
    pub self_check: Option<SelfCheck>,
}

/// Where nginx serves the answers on this machine.
#[derive(Clone, Copy, Debug)]
pub struct SelfCheck {
    pub address: SocketAddr,
    /// Whether nginx expects the PROXY protocol there.
    pub proxy_protocol: bool,
}

/// Gets the certificate and puts it in place. Returns its ID.
///
/// # Errors
/// The authority refuses it, or cannot be reached, or a file cannot be written.
pub fn obtain(
    authority: &mut dyn Authority,
    store: &Store,
    wanted: &Wanted<'_>,
    report: &mut dyn FnMut(Event),
) -> Attempt<String> {
    let name = wanted.name.to_string();
    let result = order(authority, store, wanted, &name, report);
    let is_over = match &result {
        Ok(_) => true,
        Err(failure) => !can_continue(failure.kind),
    };
    if is_over && let Err(error) = store.remove_pending(&name) {
        // The next run finds an order that is over, and starts another.
        log::error!("{error:#}");
    }
    result
}

/// Whether the order may be continued by a later run.
fn can_continue(kind: FailureKind) -> bool {
    use FailureKind as Kind;
    matches!(
        kind,
        Kind::Network
            | Kind::Tls
            | Kind::Clock
            | Kind::Server
            | Kind::BadNonce
            | Kind::Storage
            | Kind::NotServed
            | Kind::Other
    )
}

fn order(
    authority: &mut dyn Authority,
    store: &Store,
    wanted: &Wanted<'_>,
    name: &str,
    report: &mut dyn FnMut(Event),
) -> Attempt<String> {
    let mut step = |step| {
        report(Event::Step {
            name: name.to_owned(),
            step,
        });
    };
    let earlier = store.pending(name).map_err(|error| storage(&error))?;
    let earlier =
        earlier.filter(|earlier| earlier.order.issued == *wanted.issued && earlier.order.account == wanted.account);
    let key = match earlier.as_ref().map(|earlier| KeyPair::from_pem(&earlier.key)) {
        Some(Ok(key)) => key,
        _ => KeyPair::generate().map_err(|error| cryptography(&error))?,
    };
    let Ordered { url, stage } = expect_order(authority.ask(&Request::Order(NewOrder {
        name: name.to_owned(),
        profile: wanted.issued.profile.clone(),
        replaces: wanted.replaces.clone(),
        resume: earlier.map(|earlier| earlier.order.url),
    }))?)?;
    let pending = Pending {
        order: PendingOrder {
            url,
            account: wanted.account.to_owned(),
            issued: wanted.issued.clone(),
        },
        key: key.serialize_pem(),
    };
    store.save_pending(name, &pending).map_err(|error| storage(&error))?;
    step(Step::Order);

    if let Stage::Challenge(challenge) = &stage {
        if !challenge.is_safe() {
            return Err(unexpected("its challenge has a token that RFC 8555 does not allow"));
        }
        store.present(challenge).map_err(|error| storage(&error))?;
        step(Step::Challenge);
        let validated = self_check(wanted, name, challenge).and_then(|()| authority.ask(&Request::Validate));
        // Nobody needs the answer any more, and the next run would remove it.
        store
            .withdraw(challenge)
            .map_err(|error| storage(&anyhow::Error::new(error)))?;
        validated?;
        step(Step::Validation);
    }

    let csr = csr(name, &key).map_err(|error| cryptography(&error))?;
    let Reply::Certificate { chain } = authority.ask(&Request::Finalize { csr })? else {
        return Err(unexpected("it sent no certificate"));
    };
    step(Step::Finalization);
    let leaf = check(&chain, wanted.name, pending.key.as_bytes())?;
    let id = store.install(name, &leaf, &chain, &pending.key, wanted.issued);
    let id = id.map_err(|error| storage(&error))?;
    step(Step::Stored);
    Ok(id)
}

fn expect_order(reply: Reply) -> Attempt<Ordered> {
    match reply {
        Reply::Ordered(ordered) => Ok(ordered),
        _ => Err(unexpected("it confirmed no order")),
    }
}

/// The request for a certificate, DER in base64.
fn csr(name: &str, key: &KeyPair) -> Result<String, rcgen::Error> {
    let mut params = CertificateParams::new([name.to_owned()])?;
    // Authorities take the names from the extension.
    params.distinguished_name = DistinguishedName::new();
    Ok(BASE64.encode(params.serialize_request(key)?.der()))
}

/// Checks that the authority has issued what was asked for. Returns the first certificate of the chain.
fn check(chain: &str, name: &Name, key: &[u8]) -> Attempt<Parsed> {
    let mut certificates = certificate::chain(chain.as_bytes())
        .map_err(|error| unexpected(&format!("its certificate cannot be used: {error}")))?;
    let leaf = certificates.swap_remove(0);
    let public = certificate::public_key(key).map_err(|error| cryptography(&error))?;
    if !leaf.belongs_to(&public) {
        return Err(unexpected("it sent a certificate of another key"));
    }
    if !name.is_covered_by(&leaf.facts().names) {
        return Err(unexpected("it sent a certificate for other names"));
    }
    Ok(leaf)
}

/// Fetches the answer as the authority will, but from this machine. An answer that nginx does not serve would cost one of the
/// few failed validations that authorities allow.
fn self_check(wanted: &Wanted<'_>, name: &str, challenge: &Challenge) -> Attempt<()> {
    let Some(SelfCheck {
        address,
        proxy_protocol,
    }) = wanted.self_check
    else {
        return Ok(());
    };
    let path = format!("{WELL_KNOWN}{}", challenge.token);
    let request = http::Request {
        host: name,
        ..http::Request::get(&path)
    };
    let fetch = || -> io::Result<Response> {
        let deadline = Instant::now() + SELF_CHECK_TIMEOUT;
        let mut connection = TcpStream::connect_timeout(&address, SELF_CHECK_TIMEOUT)?;
        if proxy_protocol {
            connection.write_all(PROXY_UNKNOWN)?;
        }
        http::send(connection.into(), &request, deadline)
    };
    let why = match fetch() {
        Ok(response) if response.status == 200 && response.body.trim_end() == challenge.key_authorization => {
            return Ok(());
        }
        Ok(response) if response.status == 200 => "the response is another one".to_owned(),
        Ok(response) => format!("the response has status {}", response.status),
        Err(error) => error.to_string(),
    };
    Err(failure(
        FailureKind::NotServed,
        format!("http://{name}{path} is not served by this machine ({address}): {why}."),
        "`linksctl check` shows which site of nginx takes the name.",
    ))
}

fn storage(error: &anyhow::Error) -> Box<Failure> {
    failure(
        FailureKind::Storage,
        format!("{error:#}."),
        "Check the free space and the file system of /var/lib/links.",
    )
}

fn unexpected(what: &str) -> Box<Failure> {
    failure(
        FailureKind::Protocol,
        format!("The authority's response is not what was asked for: {what}."),
        "Check `directory` in [tls].",
    )
}

fn cryptography(error: &dyn std::error::Error) -> Box<Failure> {
    failure(
        FailureKind::Other,
        format!("The key of the certificate cannot be used: {error}."),
        "links tries again later with another key.",
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic, reason = "a test may end at the first surprise")]
mod tests {
    use std::fs;

    use links_base::layout::{Layout, temporary};
    use links_base::testing::Server;
    use rcgen::{CertificateSigningRequestParams, Issuer};

    use super::*;

    const NAME: &str = "s.example.org";

    /// An authority without a network, which fails at the request with this name.
    struct Fake {
        fails_at: &'static str,
        kind: FailureKind,
        asked: Vec<&'static str>,
        resumed: Vec<Option<String>>,
        challenge: Challenge,
        names: Vec<String>,
    }

    impl Fake {
        fn new(fails_at: &'static str, kind: FailureKind) -> Self {
            Self {
                fails_at,
                kind,
                asked: vec![],
                resumed: vec![],
                challenge: Challenge {
                    token: "token".to_owned(),
                    key_authorization: format!("token.{}", "A".repeat(43)),
                },
                names: vec![NAME.to_owned()],
            }
        }

        fn issue(&self, csr: &str) -> String {
            let key = KeyPair::generate().unwrap();
            let mut authority = CertificateParams::default();
            authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            let der = BASE64.decode(csr.as_bytes()).unwrap();
            let public = CertificateSigningRequestParams::from_der(&der.into()).unwrap();
            let leaf = CertificateParams::new(self.names.clone()).unwrap();
            leaf.signed_by(&public.public_key, &Issuer::new(authority, key))
                .unwrap()
                .pem()
        }
    }

    impl Authority for Fake {
        fn ask(&mut self, request: &Request) -> Attempt<Reply> {
            let (asked, reply) = match request {
                Request::Order(order) => {
                    self.resumed.push(order.resume.clone());
                    let ordered = Ordered {
                        url: "https://ca.example/order/1".to_owned(),
                        stage: Stage::Challenge(Challenge {
                            token: self.challenge.token.clone(),
                            key_authorization: self.challenge.key_authorization.clone(),
                        }),
                    };
                    ("order", Reply::Ordered(ordered))
                }
                Request::Validate => ("validate", Reply::Validated),
                Request::Finalize { csr } => ("finalize", Reply::Certificate { chain: self.issue(csr) }),
                other => panic!("{other:?}"),
            };
            self.asked.push(asked);
            match asked == self.fails_at {
                true => Err(failure(self.kind, "", "")),
                false => Ok(reply),
            }
        }
    }

    fn run(fake: &mut Fake, layout: &Layout, served_at: Option<SocketAddr>) -> (Attempt<String>, Vec<Step>) {
        let store = Store::new(layout);
        store.prepare().unwrap();
        let mut steps = vec![];
        let issued = Issued {
            directory: "https://ca.example/dir".to_owned(),
            profile: None,
        };
        let wanted = Wanted {
            name: &NAME.parse().unwrap(),
            issued: &issued,
            account: "https://ca.example/account/1",
            replaces: None,
            self_check: served_at.map(|address| SelfCheck {
                address,
                proxy_protocol: false,
            }),
        };
        let result = obtain(fake, &store, &wanted, &mut |event| match event {
            Event::Step { step, .. } => steps.push(step),
            other => panic!("{other:?}"),
        });
        assert!(
            fs::read_dir(layout.tls_challenges_dir()).unwrap().next().is_none(),
            "an answer is left"
        );
        (result, steps)
    }

    #[test]
    fn a_certificate_is_ordered_proved_issued_and_stored() {
        let (_root, layout) = temporary(&[]);
        let mut fake = Fake::new("", FailureKind::Other);
        let (id, steps) = run(&mut fake, &layout, None);
        assert_eq!(
            steps,
            [
                Step::Order,
                Step::Challenge,
                Step::Validation,
                Step::Finalization,
                Step::Stored
            ]
        );
        let store = Store::new(&layout);
        assert_eq!(store.live(NAME).unwrap().unwrap().id, id.unwrap());
        assert_eq!(store.pending(NAME).unwrap(), None);
    }

    #[test]
    fn an_order_is_continued_unless_the_authority_has_refused_it() {
        for (fails_at, kind, continues) in [
            ("validate", FailureKind::Network, true),
            ("finalize", FailureKind::Server, true),
            ("validate", FailureKind::Dns, false),
        ] {
            let (_root, layout) = temporary(&[]);
            let (failed, _) = run(&mut Fake::new(fails_at, kind), &layout, None);
            assert_eq!(failed.unwrap_err().kind, kind);
            let pending = Store::new(&layout).pending(NAME).unwrap();
            assert_eq!(pending.is_some(), continues, "{fails_at} {kind:?}");

            let mut fake = Fake::new("", FailureKind::Other);
            run(&mut fake, &layout, None).0.unwrap();
            let url = "https://ca.example/order/1".to_owned();
            assert_eq!(fake.resumed, [continues.then_some(url)]);
            let key = fs::read_to_string(layout.tls_key(NAME)).unwrap();
            assert_eq!(pending.is_some_and(|pending| pending.key == key), continues);
        }
    }

    #[test]
    fn what_was_not_asked_for_is_not_stored() {
        let (_root, layout) = temporary(&[]);
        let mut fake = Fake::new("", FailureKind::Other);
        fake.names = vec!["other.example".to_owned()];
        assert_eq!(run(&mut fake, &layout, None).0.unwrap_err().kind, FailureKind::Protocol);
        fake.challenge.token = "../../etc/passwd".to_owned();
        assert_eq!(run(&mut fake, &layout, None).0.unwrap_err().kind, FailureKind::Protocol);
        assert_eq!(Store::new(&layout).live(NAME).unwrap(), None);
    }

    #[test]
    fn the_authority_is_not_asked_to_look_at_what_is_not_served() {
        let (_root, layout) = temporary(&[]);
        let challenges = layout.tls_challenges_dir();
        let server = Server::start(move |request| {
            let token = request.path.strip_prefix(WELL_KNOWN).unwrap_or("none");
            match fs::read_to_string(challenges.join(token)) {
                Ok(answer) if request.header("host") == Some(NAME) => (200, answer),
                _ => (404, String::new()),
            }
        });
        let mut fake = Fake::new("", FailureKind::Other);
        run(&mut fake, &layout, Some(server.address())).0.unwrap();

        let elsewhere = Server::start(|_| (404, String::new()));
        let mut fake = Fake::new("", FailureKind::Other);
        let (failed, _) = run(&mut fake, &layout, Some(elsewhere.address()));
        assert_eq!(failed.unwrap_err().kind, FailureKind::NotServed);
        assert_eq!(fake.asked, ["order"]);
    }
}
