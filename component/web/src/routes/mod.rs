//! The meaning of methods and paths, for each component.
//!
//! The manifest (component/spin.toml) routes `/shorten`, `/api/...` and `/internal/...` to the API and the rest to the
//! redirects.

pub mod api;
pub mod redirect;

use crate::problem::Problem;

/// Allows only `GET` and `HEAD`.
fn read_only(method: &str) -> Result<(), Problem> {
    match method {
        "GET" | "HEAD" => Ok(()),
        _ => Err(not_allowed("GET, HEAD")),
    }
}

fn not_allowed(allow: &'static str) -> Problem {
    Problem::new(405, format!("This address only supports these methods: {allow}.")).with_header("allow", allow)
}
