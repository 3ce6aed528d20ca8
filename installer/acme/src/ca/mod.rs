//! The certificate authority. A process of its own speaks to it, as user links-acme: it parses what comes from the network, and
//! owns nothing. The process that runs as root reads and writes the files, and never sees the network. The private keys of
//! certificates stay with it; the key of the account, which signs the requests, does not.

pub mod child;
mod error;
mod http;
pub mod network;
pub mod protocol;

use std::time::Duration;

use self::http::HTTP_TIMEOUT;
use crate::words::Attempt;
use protocol::{Reply, Request};

/// Who answers requests about certificates: an authority, through the network process.
pub trait Authority {
    /// Sends a request and waits for the reply.
    ///
    /// # Errors
    /// The authority refuses, or cannot be reached. The order is then lost, except for what the authority remembers.
    fn ask(&mut self, request: &Request) -> Attempt<Reply>;
}

/// How long the authority may take to validate a name, or to issue a certificate.
const PROCESSING_TIMEOUT: Duration = Duration::from_secs(120);

/// How long the network process may take for a reply.
fn deadline(request: &Request) -> Duration {
    match request {
        // The directory twice, a nonce, and the request itself.
        Request::Open(_) => HTTP_TIMEOUT * 4,
        Request::RenewalInfo { .. } | Request::Revoke { .. } | Request::Deactivate => HTTP_TIMEOUT * 2,
        Request::Order(_) => HTTP_TIMEOUT * 4,
        Request::Validate | Request::Finalize { .. } => PROCESSING_TIMEOUT + HTTP_TIMEOUT * 2,
    }
}

/// Checks that these certificates in PEM can be used to trust the authority's server.
///
/// # Errors
/// There is none, or one is damaged.
pub fn check_roots(pem: &str) -> Result<(), String> {
    http::roots_in(pem).map(drop)
}
