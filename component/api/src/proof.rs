//! Whether a request comes from the agent or through nginx. An instance reads the two variables once, and only for a request
//! that claims to come from one of them.

use std::cell::Cell;

use futures_util::future::try_join;
use links_platform::request::Request;
use links_platform::variables::{self, Cached};
use links_web::problem::Problem;
use links_web::proof::{AGENT_HEADER, PROXY_HEADER, Proof};

use links_web::settings::unreadable;

#[derive(Clone, Copy)]
struct Proofs {
    agent: Proof,
    proxy: Proof,
}

thread_local! {
    static PROOFS: Cell<Cached<Proofs>> = const { Cell::new(Cached::Unread) };
}

async fn proofs() -> Option<Proofs> {
    variables::read_once(&PROOFS, "the agent and nginx are not recognised", read).await
}

async fn read() -> Result<Proofs, String> {
    let (agent, proxy) = try_join(variables::get("agent_secret"), variables::get("proxy_secret")).await?;
    Ok(Proofs {
        agent: Proof::of(&agent),
        proxy: Proof::of(&proxy),
    })
}

/// The proof that nginx gives; `None` if the variables cannot be read.
pub async fn of_proxy() -> Option<Proof> {
    proofs().await.map(|proofs| proofs.proxy)
}

/// Whether the agent sent the request.
///
/// # Errors
/// Fails with 503 if the request claims to come from the agent and the variables cannot be read.
pub async fn is_from_agent(request: &Request) -> Result<bool, Problem> {
    match request.header(AGENT_HEADER) {
        Some(secret) => Ok(proofs().await.ok_or_else(unreadable)?.agent.is_given_by(&secret)),
        None => Ok(false),
    }
}

/// Whether the request came through nginx.
///
/// # Errors
/// Fails with 503 if the request claims to come through nginx and the variables cannot be read.
pub async fn is_through_nginx(request: &Request) -> Result<bool, Problem> {
    match request.header(PROXY_HEADER) {
        Some(secret) => Ok(proofs().await.ok_or_else(unreadable)?.proxy.is_given_by(&secret)),
        None => Ok(false),
    }
}
