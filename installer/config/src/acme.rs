//! What links-acme prints: one [`Event`] per line, as JSON. linksctl runs it, because it contains no TLS itself.
//!
//! Times are in seconds since 1970.

use std::fmt;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// The certificate authority that is asked by default: Let's Encrypt.
pub const DEFAULT_DIRECTORY: &str = "https://acme-v02.api.letsencrypt.org/directory";

/// Exit status of links-acme: another one is at work (EX_TEMPFAIL, sysexits(3)).
pub const EX_TEMPFAIL: u8 = 75;

/// A line of links-acme's output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// `--dry-run`: what would be done for a name.
    Plan(Planned),
    /// The account at the certificate authority.
    Account(AccountInUse),
    /// A name has reached this step.
    Step {
        name: String,
        step: Step,
    },
    /// What came of a name. There is one for each.
    Result(NameResult),
    /// The last line of `issue` and `renew`.
    End(End),
    Status(NameStatus),
    Files(CheckedFiles),
    Probe(Probed),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Planned {
    pub name: String,
    pub action: Action,
    pub why: Why,
    /// The time of the next attempt. `None` if that is now.
    pub at: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Get the first certificate.
    Issue,
    /// Replace the certificate.
    Renew,
    /// The certificate is not due.
    Keep,
    /// The pause after a failure is not over.
    Pause,
}

/// The reason for the time of the next attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// There is no certificate.
    Missing,
    Expired,
    /// The certificate authority suggests this time (RFC 9773).
    Ari,
    /// A third of the lifetime is left.
    Lifetime,
    /// The certificate is from another authority, or of another profile, than is asked for.
    Settings,
    /// The pause after the last failure.
    Retry,
    /// `--force`
    Forced,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountInUse {
    pub directory: String,
    /// The URL of the account.
    pub account: String,
    /// Whether this run has created it.
    pub created: bool,
    /// The terms of service that the account has agreed to.
    pub terms_of_service: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// The authority has accepted the order.
    Order,
    /// The answer to the challenge is in place.
    Challenge,
    /// The authority has seen the answer.
    Validation,
    /// The authority has issued the certificate.
    Finalization,
    /// The certificate is in place.
    Stored,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameResult {
    pub name: String,
    pub outcome: Outcome,
    pub status: NameStatus,
    pub error: Option<Failure>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Issued,
    Renewed,
    Kept,
    Paused,
    Failed,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// The certificates that nginx has not loaded yet, as the arguments of `links-acme loaded`.
    pub reload: Vec<String>,
    pub failed: Vec<String>,
}

/// What is known about a name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameStatus {
    pub name: String,
    /// Identifies the certificate in place.
    pub id: Option<String>,
    /// Whether nginx has loaded it, according to `links-acme loaded`.
    pub loaded: bool,
    pub certificate: Option<Certificate>,
    pub state: State,
    pub next: Next,
    /// When the authority suggests to renew. `None` if it suggests nothing.
    pub ari: Option<Ari>,
    /// The number of failed attempts since the last success.
    pub attempts: u32,
    /// The time of the last of these attempts.
    pub last_attempt: Option<u64>,
    /// The error of the last of these attempts.
    pub error: Option<Failure>,
}

impl NameStatus {
    /// The argument of `links-acme loaded` for the certificate in place.
    pub fn loaded_argument(&self) -> Option<String> {
        self.id.as_ref().map(|id| format!("{}={id}", self.name))
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    /// The common name of the issuer, or the whole name if it has none.
    pub issuer: String,
    /// The DNS names and addresses.
    pub names: Vec<String>,
    /// In hexadecimal.
    pub serial: String,
    /// The digest of the certificate, in hexadecimal.
    pub sha256: String,
    pub self_signed: bool,
    pub not_before: u64,
    pub not_after: u64,
    /// Whether clients expect a stapled OCSP response (RFC 7633).
    pub must_staple: bool,
    /// The OCSP responder of the issuer, which nginx needs for stapling.
    pub ocsp: Option<String>,
    /// The directory of the authority that was asked. `None` if links-acme did not get the certificate.
    pub directory: Option<String>,
    pub profile: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    Missing,
    Valid,
    NotYetValid,
    Expired,
}

impl State {
    /// The state at the time `now`. A certificate is valid in its last second too (RFC 5280, section 4.1.2.5).
    pub fn at(now: u64, not_before: u64, not_after: u64) -> Self {
        match now {
            _ if now < not_before => Self::NotYetValid,
            _ if now > not_after => Self::Expired,
            _ => Self::Valid,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Next {
    pub at: u64,
    pub why: Why,
}

/// The window in which the authority suggests to renew.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ari {
    pub start: u64,
    pub end: u64,
    /// When the authority was asked.
    pub checked: u64,
    /// A page that explains the window.
    pub explanation: Option<String>,
}

/// Why an attempt failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub struct Failure {
    pub kind: FailureKind,
    /// The authority's type of the problem (RFC 8555, section 6.7).
    pub acme_type: Option<String>,
    /// The authority's own words.
    pub detail: Option<String>,
    /// A sentence about what happened.
    pub message: String,
    /// A sentence about what to do next.
    pub hint: String,
    /// The authority refuses further attempts until this time.
    pub retry_after: Option<u64>,
    #[serde(default)]
    pub subproblems: Vec<Subproblem>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.message, self.hint)
    }
}

/// A problem with one identifier of several (RFC 8555, section 6.7.1).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subproblem {
    pub acme_type: Option<String>,
    pub identifier: Option<String>,
    pub detail: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// This machine does not serve the answer to the challenge.
    NotServed,
    RateLimited,
    Caa,
    Dns,
    /// The authority cannot connect to this machine.
    Connection,
    /// The authority got a wrong answer to the challenge.
    Unauthorized,
    RejectedIdentifier,
    EabRequired,
    TermsOfService,
    /// The account is unknown or deactivated.
    Account,
    /// The authority has no such profile.
    Profile,
    BadNonce,
    /// The authority cannot be reached.
    Network,
    /// The certificate of the authority's own server is not trusted.
    Tls,
    /// This machine's clock is wrong.
    Clock,
    /// The authority has an internal problem.
    Server,
    /// The authority's response is not what RFC 8555 describes.
    Protocol,
    /// A file cannot be written.
    Storage,
    Other,
}

/// The result of `check-files`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckedFiles {
    /// Whether there is no problem. Warnings are allowed.
    pub usable: bool,
    pub certificate: Option<Certificate>,
    pub state: State,
    pub problems: Vec<FileProblem>,
    pub warnings: Vec<FileProblem>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileProblem {
    pub kind: FileProblemKind,
    pub message: String,
    pub hint: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileProblemKind {
    Unreadable,
    NoCertificate,
    NoKey,
    EncryptedKey,
    KeyMismatch,
    Expired,
    NotYetValid,
    /// A name is not in the certificate.
    NameMissing,
    /// The certificates are not in the order leaf, issuer, issuer's issuer.
    ChainOrder,
    ExpiresSoon,
    /// The issuer's certificate is missing.
    NoChain,
    SelfSigned,
    /// Others than root may read the key.
    KeyReadable,
    /// The key is of a type that links-acme cannot compare with the certificate.
    UnsupportedKey,
    MustStaple,
}

/// A request to `probe`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeRequest {
    pub address: SocketAddr,
    /// The name that the client asks for (SNI), and that `Host` contains.
    pub name: String,
    /// What to request after the handshake, over HTTP/1.0.
    #[serde(default)]
    pub path: Option<String>,
    #[serde(default)]
    pub headers: Vec<(String, String)>,
    /// Asks for HTTP/2 in the handshake.
    #[serde(default)]
    pub h2: bool,
    /// Whether the server expects a line of the PROXY protocol before the handshake.
    #[serde(default)]
    pub proxy_protocol: bool,
    pub timeout_ms: u64,
}

/// The result of `probe` for one request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probed {
    pub address: SocketAddr,
    pub name: String,
    /// `None` if the handshake failed.
    pub tls: Option<Handshake>,
    pub status: Option<u16>,
    pub body: Option<String>,
    pub error: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handshake {
    /// For example `TLSv1.3`.
    pub version: String,
    /// The protocol that both sides have agreed on (RFC 7301).
    pub alpn: Option<String>,
    /// The digest of the server's certificate, in hexadecimal.
    pub sha256: String,
    /// `None` if it cannot be parsed.
    pub certificate: Option<Certificate>,
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use super::*;

    #[test]
    fn a_line_names_its_event_beside_its_fields() {
        let event = Event::Plan(Planned {
            name: "s.example.org".to_owned(),
            action: Action::Keep,
            why: Why::Ari,
            at: Some(1),
        });
        let line = serde_json::to_string(&event).unwrap();
        assert_eq!(
            line,
            r#"{"event":"plan","name":"s.example.org","action":"keep","why":"ari","at":1}"#
        );
        assert_eq!(serde_json::from_str::<Event>(&line).unwrap(), event);
    }

    #[test]
    fn a_certificate_is_valid_from_its_first_second_to_its_last() {
        for (now, state) in [
            (9, State::NotYetValid),
            (10, State::Valid),
            (20, State::Valid),
            (21, State::Expired),
        ] {
            assert_eq!(State::at(now, 10, 20), state, "{now}");
        }
    }
}
