//! Bodies of requests.

use std::time::Duration;

use http_body_util::{BodyExt, LengthLimitError, Limited};
use links_core::problem::Problem;
use links_core::request::too_large;
use spin_sdk::http::Request;

use crate::clock;

/// How long a client may take to send the body. nginx has it whole before it asks us.
const LIMIT: Duration = Duration::from_secs(10);

/// The body, of which no more than `most` bytes are ever taken in.
pub async fn read(request: Request, most: usize) -> Result<Vec<u8>, Problem> {
    let body = Limited::new(request.into_body(), most).collect();
    match clock::within(LIMIT, body).await {
        Some(Ok(body)) => Ok(body.to_bytes().into()),
        Some(Err(error)) if error.is::<LengthLimitError>() => Err(too_large(most)),
        Some(Err(_)) => Err(Problem::new(400, "The body ended early. Send it again.")),
        None => Err(Problem::new(
            408,
            format!("The body must arrive within {} seconds.", LIMIT.as_secs()),
        )),
    }
}
