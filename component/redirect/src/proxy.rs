//! Whether a request comes through nginx. An instance reads the variable once, and only for a request that claims to come
//! through nginx, so no redirect waits for it.

use std::cell::Cell;

use links_platform::request::Request;
use links_platform::variables::{self, Cached};
use links_web::problem::Problem;
use links_web::proof::{PROXY_HEADER, Proof};

thread_local! {
    static PROOF: Cell<Cached<Proof>> = const { Cell::new(Cached::Unread) };
}

/// The proof that nginx gives; `None` if the variable cannot be read.
pub async fn proof() -> Option<Proof> {
    variables::read_once(&PROOF, "requests through nginx are not recognised", async || {
        Ok(Proof::of(&variables::get("proxy_secret").await?))
    })
    .await
}

/// Whether nginx sent the request.
///
/// # Errors
/// Fails with 503 if the request claims to come through nginx and the variable cannot be read.
pub async fn is_sender(request: &Request) -> Result<bool, Problem> {
    match request.header(PROXY_HEADER) {
        Some(secret) => {
            let proof = proof().await.ok_or_else(|| {
                Problem::unavailable("The server cannot read its configuration at the moment. Try again.")
            })?;
            Ok(proof.is_given_by(&secret))
        }
        None => Ok(false),
    }
}
