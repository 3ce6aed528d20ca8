//! Request bodies.

use std::time::Duration;

use links_platform::request::{BodyError, Request};
use links_web::body::{MediaType, check_length, too_large};
use links_web::problem::Problem;

/// How long a client may take to send the body. nginx forwards a request only when it has received the whole body.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Checks the declared type and length of a body.
///
/// # Errors
/// Fails with 415 for another media type, or with 413 if the body is too long.
pub fn check(request: &Request, media_type: MediaType, most: usize) -> Result<(), Problem> {
    media_type.check(request.text_header("content-type").as_deref())?;
    check_length(request.text_header("content-length").as_deref(), most)
}

/// Reads the body, and stops soon after `most` bytes.
///
/// # Errors
/// Fails with 413 if the body is too long, 400 if it ends early, or 408 if it takes too long.
pub async fn read(request: Request, most: usize) -> Result<Vec<u8>, Problem> {
    request.read_body(most, TIMEOUT).await.map_err(|error| match error {
        BodyError::TooLarge => too_large(most),
        BodyError::EndedEarly => Problem::new(400, "The body ended early. Send it again."),
        BodyError::TimedOut => Problem::new(
            408,
            format!("The body must arrive within {} seconds.", TIMEOUT.as_secs()),
        ),
    })
}
