//! Whether a request comes from the agent, or through nginx. The two variables are read once by an instance, and only for
//! requests that claim to: no redirect waits for them.

use std::cell::Cell;

use futures_util::future::try_join;
use http::HeaderMap;
use links_core::problem::Problem;
use links_core::proof::{AGENT_HEADER, PROXY_HEADER, Proof};
use spin_sdk::wasip3::http::types;

use crate::respond;
use crate::variable::{self, Knowledge};

#[derive(Clone, Copy)]
struct Known {
    agent: Proof,
    proxy: Proof,
}

thread_local! {
    static KNOWN: Cell<Knowledge<Known>> = const { Cell::new(Knowledge::Unread) };
}

async fn known() -> Option<Known> {
    variable::once(&KNOWN, "nobody is taken for the agent or for nginx", read).await
}

async fn read() -> Result<Known, String> {
    let (agent, proxy) = try_join(variable::get("agent_secret"), variable::get("proxy_secret")).await?;
    Ok(Known {
        agent: Proof::of(&agent),
        proxy: Proof::of(&proxy),
    })
}

/// The secret that the instances share with the agent, where it can be read.
pub async fn of_agent() -> Option<Proof> {
    known().await.map(|known| known.agent)
}

/// # Errors
/// 503: it claims to, and the variable cannot be read.
pub async fn is_from_agent(request: &types::Request) -> Result<bool, Problem> {
    match respond::raw_header(request, AGENT_HEADER) {
        Some(secret) => Ok(known().await.ok_or_else(unavailable)?.agent.is_given_by(&secret)),
        None => Ok(false),
    }
}

/// # Errors
/// 503: it claims to, and the variable cannot be read.
pub async fn is_through_nginx(headers: &HeaderMap) -> Result<bool, Problem> {
    is_of_proxy(headers.get(PROXY_HEADER).map(|secret| secret.as_bytes())).await
}

/// The same for a request whose headers were not fetched.
///
/// # Errors
/// 503
pub async fn comes_through_nginx(request: &types::Request) -> Result<bool, Problem> {
    is_of_proxy(respond::raw_header(request, PROXY_HEADER).as_deref()).await
}

async fn is_of_proxy(secret: Option<&[u8]>) -> Result<bool, Problem> {
    match secret {
        Some(secret) => Ok(known().await.ok_or_else(unavailable)?.proxy.is_given_by(secret)),
        None => Ok(false),
    }
}

fn unavailable() -> Problem {
    Problem::unavailable("The server cannot read its configuration at the moment. Try again.")
}
