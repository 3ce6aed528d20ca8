//! Bodies of requests.

use std::time::Duration;

use links_platform::request::{BodyError, FetchedRequest, header, read_body};
use links_web::body::{MediaType, check_length, too_large};
use links_web::problem::Problem;

/// How long a client may take to send the body. nginx has received it whole before it sends it on.
const LIMIT: Duration = Duration::from_secs(10);

/// Checks the declared type and length of a body.
///
/// # Errors
/// 415 or 413
pub fn check(request: &FetchedRequest, media_type: MediaType, most: usize) -> Result<(), Problem> {
    media_type.check(header(request, "content-type"))?;
    check_length(header(request, "content-length"), most)
}

/// Reads the body, of which no more than `most` bytes are ever held.
///
/// # Errors
/// 413, 400 or 408
pub async fn read(request: FetchedRequest, most: usize) -> Result<Vec<u8>, Problem> {
    read_body(request, most, LIMIT).await.map_err(|error| match error {
        BodyError::TooLarge => too_large(most),
        BodyError::EndedEarly => Problem::new(400, "The body ended early. Send it again."),
        BodyError::TimedOut => Problem::new(408, format!("The body must arrive within {} seconds.", LIMIT.as_secs())),
    })
}
