//! Whether a request comes through nginx. The variable is read once by an instance, and only for requests that claim to: no
//! redirect waits for it.

use std::cell::Cell;

use links_platform::request::Request;
use links_platform::variables::{self, Cached};
use links_web::problem::Problem;
use links_web::proof::{PROXY_HEADER, Proof};

thread_local! {
    static PROOF: Cell<Cached<Proof>> = const { Cell::new(Cached::Unread) };
}

/// nginx's proof, where it can be read.
pub async fn proof() -> Option<Proof> {
    variables::read_once(&PROOF, "nobody is taken for nginx", async || {
        Ok(Proof::of(&variables::get("proxy_secret").await?))
    })
    .await
}

/// # Errors
/// 503: it claims to, and the variable cannot be read.
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
