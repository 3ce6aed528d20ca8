//! The protocol between the two processes: a request and a reply per line, as JSON.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::certificate::CertificateId;
use links_config::acme::Failure;

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub enum Request {
    /// Must be the first.
    Open(Open),
    /// When should this certificate be renewed?
    RenewalInfo { certificate: CertificateId },
    /// Starts a certificate for a name. The following requests are about this order.
    Order(NewOrder),
    /// The answer to the challenge is in place.
    Validate,
    /// Issue the certificate. `csr` is DER in base64, and needed unless the order was finalized before.
    Finalize { csr: String },
    /// The certificate is DER in base64.
    Revoke { certificate: String },
    /// Ends the account.
    Deactivate,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Open {
    pub directory: String,
    /// The certificates, in PEM, that the authority's server is trusted by. `None`: those of this machine.
    pub roots: Option<String>,
    /// The contacts of the account.
    pub emails: Vec<String>,
    /// For a new account.
    pub eab: Option<Eab>,
    /// `None`: a new account.
    pub account: Option<Credentials>,
    /// Whether the contacts of an existing account have changed.
    pub contacts_changed: bool,
}

/// The key of an external account (RFC 8555, section 7.3.4).
#[derive(Serialize, Deserialize)]
pub struct Eab {
    pub kid: String,
    /// In base64url.
    pub key: String,
}

/// An account's URL and its private key, in the form of instant-acme.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Credentials(pub serde_json::Value);

// Neither is ever printed.
impl fmt::Debug for Eab {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Eab").field("kid", &self.kid).finish_non_exhaustive()
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(..)")
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub struct NewOrder {
    pub name: String,
    pub profile: Option<String>,
    /// The certificate that the new one replaces (RFC 9773, section 5).
    pub replaces: Option<CertificateId>,
    /// The URL of an order of an earlier run, which is continued if it can be.
    pub resume: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum Reply {
    Opened(Opened),
    /// The window, if the authority has one, and in how many seconds to ask again.
    RenewalInfo {
        window: Option<Window>,
        wait: Option<u64>,
    },
    Ordered(Ordered),
    Validated,
    /// The chain in PEM.
    Certificate {
        chain: String,
    },
    Done,
    Failed(Box<Failure>),
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Opened {
    /// The URL of the account.
    pub url: String,
    /// Of a new account.
    pub created: Option<Credentials>,
    pub terms_of_service: Option<String>,
}

/// The time in which the authority suggests to renew, in seconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    pub start: u64,
    pub end: u64,
    pub explanation: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Ordered {
    pub url: String,
    pub stage: Stage,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// The authority will look for this answer.
    Challenge(Challenge),
    /// The authority remembers an earlier validation, or the earlier run got this far.
    Ready,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Challenge {
    pub token: String,
    pub key_authorization: String,
}

impl Challenge {
    /// Whether the token is a file name, and the answer nothing that nginx should not serve: characters of base64url
    /// (RFC 8555, sections 8.1 and 8.3).
    pub fn is_safe(&self) -> bool {
        let is_base64url = |text: &str| {
            text.bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
        };
        let thumbprint = self
            .key_authorization
            .strip_prefix(&self.token)
            .and_then(|rest| rest.strip_prefix('.'));
        (1..=255).contains(&self.token.len())
            && is_base64url(&self.token)
            // A SHA-256 digest.
            && thumbprint.is_some_and(|thumbprint| thumbprint.len() == 43 && is_base64url(thumbprint))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_answer_in_base64url_is_written_to_a_file() {
        let thumbprint = "A".repeat(43);
        let is_safe = |token: &str, answer: String| {
            Challenge {
                token: token.to_owned(),
                key_authorization: answer,
            }
            .is_safe()
        };
        assert!(is_safe(
            "evaGxfADs6pSRb2LAv9IZf-_",
            format!("evaGxfADs6pSRb2LAv9IZf-_.{thumbprint}")
        ));
        for token in ["", "..", "../x", "a/b", ".x", "a b", "a\n"] {
            assert!(!is_safe(token, format!("{token}.{thumbprint}")), "{token:?}");
        }
        let long = "a".repeat(256);
        assert!(!is_safe(&long, format!("{long}.{thumbprint}")));
        assert!(!is_safe("a", format!("b.{thumbprint}")));
        assert!(!is_safe("a", format!("a.{}", "<".repeat(43))));
        assert!(!is_safe("a", format!("a.{thumbprint}A")));
    }

    #[test]
    fn secrets_are_not_in_debug_output() {
        let eab = Eab {
            kid: "kid-1".to_owned(),
            key: "HUSH".to_owned(),
        };
        let open = Request::Open(Open {
            directory: String::new(),
            roots: None,
            emails: vec![],
            eab: Some(eab),
            account: Some(Credentials(serde_json::json!({ "key_pkcs8": "HUSH" }))),
            contacts_changed: false,
        });
        let shown = format!("{open:?}");
        assert!(shown.contains("kid-1") && !shown.contains("HUSH"), "{shown}");
    }
}
