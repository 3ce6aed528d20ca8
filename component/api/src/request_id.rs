//! Request ids.

use links_domain::request_id::RequestId;
use links_platform::random;
use links_platform::request::Request;
use links_web::problem::Problem;
use links_web::request_id::HEADER;

use crate::proof;

/// The id that nginx gave to this request, which is the same in each of nginx's attempts. A request that did not come through
/// nginx gets a new id, which is the same in each attempt at the database.
///
/// # Errors
/// Fails with 503 if there are no random numbers, or if it cannot be checked whether the request came through nginx.
pub async fn of(request: &Request) -> Result<RequestId, Problem> {
    let given = match proof::is_through_nginx(request).await? {
        true => request.header(HEADER).and_then(|value| RequestId::parse(&value)),
        false => None,
    };
    given.map_or_else(new, Ok)
}

/// A new random id.
///
/// # Errors
/// Fails with 503 if there are no random numbers.
pub fn new() -> Result<RequestId, Problem> {
    let bytes = random::bytes();
    bytes
        .map(RequestId::new)
        .ok_or_else(|| Problem::unavailable("The server cannot generate a request id at the moment. Try again."))
}
