//! `/internal/clicks`, where the agent sends batches of clicks and reads how far a journal has been counted.

use links_domain::clicks::{MAX_BODY, Position};
use links_platform::clock;
use links_platform::request::Request;
use links_store::Store;
use links_web::body::MediaType;
use links_web::problem::Problem;
use links_web::reply::Reply;
use links_web::{json, queries};

use crate::body;

/// Adds a batch, unless it was added before or its sender does not know of the latest slug reuse. In either case the answer is
/// the position up to which the journal has been counted.
pub async fn add(request: Request, query: Option<&str>) -> Result<Reply, Problem> {
    body::check(&request, MediaType::Json, MAX_BODY)?;
    let heeded = queries::heeded_reuses(query)?;
    let body = body::read(request, MAX_BODY).await?;
    let batch = json::batch(&body)?;
    let text = String::from_utf8(body).map_err(|_| Problem::new(400, "The batch is not UTF-8."))?;
    let store = Store::default();
    if store.add_clicks(&batch, text, clock::now(), heeded).await? {
        return Ok(Reply::json(&Position::after(&batch)));
    }
    let mut position = store.click_position(&batch.journal).await?;
    if let Some(heeded) = heeded {
        position.reuses = store.slug_reuses(heeded).await?;
    }
    Ok(Reply::json(&position))
}

pub async fn position(query: Option<&str>) -> Result<Reply, Problem> {
    let journal = queries::journal_of(query)?;
    Ok(Reply::json(&Store::default().click_position(&journal).await?))
}
