use links_domain::clicks::{Batch, MAX_REUSES, Position, Reuse, WHOLE};
use links_domain::error::Unavailable;
use links_platform::database::{Mode, Value};

use crate::rows::{count, triple};
use crate::sql::{FIND_CLICK_POSITION, FIND_SLUG_REUSES, INSERT_CLICKS};
use crate::store::Store;
use crate::values::{integer, number, text};

impl Store {
    /// Adds the clicks of a batch. `body` is the batch as JSON, `now` is in Unix seconds, and `heeded` is the number of the
    /// latest reuse of a slug that the batch takes into account. Returns false if the batch does not start where the journal's
    /// latest batch ended, because some or all of it was added before, or if a slug was reused since `heeded`.
    ///
    /// # Errors
    /// Fails if the database does not answer.
    pub async fn add_clicks(
        &self,
        batch: &Batch,
        body: String,
        now: i64,
        heeded: Option<i64>,
    ) -> Result<bool, Unavailable> {
        let position = |position: u64| Value::Integer(position.try_into().unwrap_or(i64::MAX));
        let row = [
            Value::Text(batch.journal.clone()),
            position(batch.start),
            position(batch.stop),
            Value::Text(batch.after.clone().unwrap_or_default()),
            Value::Text(batch.through.as_deref().unwrap_or(WHOLE).to_owned()),
            Value::Integer(now),
            Value::Text(body),
            integer(heeded),
        ];
        Ok(!self.query(INSERT_CLICKS, &row, Mode::Write).await?.is_empty())
    }

    /// The reuses of slugs with a number above `after`, at most [`MAX_REUSES`] of them.
    ///
    /// # Errors
    /// Fails if the database does not answer.
    pub async fn slug_reuses(&self, after: i64) -> Result<Vec<Reuse>, Unavailable> {
        let row = [Value::Integer(after), Value::Integer(MAX_REUSES)];
        let rows = self.query(FIND_SLUG_REUSES, &row, Mode::Read).await?;
        let reuses = rows.into_iter().filter_map(|row| triple(row, number, text, count));
        Ok(reuses.map(|(number, slug, at)| Reuse(number, slug, at)).collect())
    }

    /// The position up to which the clicks of a journal have been added.
    ///
    /// # Errors
    /// Fails if the database does not answer.
    pub async fn click_position(&self, journal: &str) -> Result<Position, Unavailable> {
        let journal = [Value::Text(journal.to_owned())];
        let rows = self.query(FIND_CLICK_POSITION, &journal, Mode::Read).await?;
        let row = rows.into_iter().next();
        let found = row.and_then(|row| triple(row, count, count, text));
        Ok(found.map_or_else(Position::default, |(start, stop, through)| {
            Position::of(start, stop, through)
        }))
    }
}
