//! `/internal/clicks`: the agent's batches of clicks, and how far they have got.

use links_core::clicks::{self, Batch, Position};
use links_core::problem::Problem;
use links_core::reply::Reply;
use links_core::request::{self, Body};
use spin_sdk::http::Request;

use crate::respond::header;
use crate::store::Store;
use crate::{body, clock};

/// Takes a batch unless it was taken before, or counts clicks for a link that has a deleted link's slug. In any case the
/// answer is the position that the journal is counted to.
pub async fn take(request: Request) -> Result<Reply, Problem> {
    Body::Json.check_type(header(&request, "content-type"))?;
    request::check_length(header(&request, "content-length"), clicks::MAX_BODY)?;
    let heeded = clicks::heeded_reuses(request.uri().query())?;
    let body = body::read(request, clicks::MAX_BODY).await?;
    let batch = Batch::parse(&body)?;
    let text = String::from_utf8(body).map_err(|_| Problem::new(400, "The batch is not UTF-8."))?;
    let store = Store::new();
    if store.take_clicks(&batch, text, clock::now(), heeded).await? {
        return Ok(Position::after(&batch).reply());
    }
    let mut position = store.click_position(&batch.journal).await?;
    if let Some(heeded) = heeded {
        position.reuses = store.slug_reuses(heeded).await?;
    }
    Ok(position.reply())
}

pub async fn find(request: &Request) -> Result<Reply, Problem> {
    let journal = clicks::journal_of(request.uri().query())?;
    Ok(Store::new().click_position(&journal).await?.reply())
}
