use links_domain::change::Change;
use links_domain::error::Unavailable;
use links_domain::link::{Details, NewLink, Stored};
use links_domain::request_id::RequestId;
use links_domain::slug::Slug;
use links_platform::database::{Mode, RowResult, Value};

use crate::link_cache;
use crate::link_row::{change_values, details, found, insert_values};
use crate::sql::{CHANGE_LINK, DELETE_LINK, FIND_LINK, INSERT_LINK, SHOW_LINK, TAKE_CLICK};
use crate::store::Store;
use crate::values::text;

impl Store {
    /// Finds the link that a redirect needs.
    ///
    /// # Errors
    /// Fails if the database does not answer.
    pub async fn find(&self, slug: &Slug) -> Result<Option<Stored>, Unavailable> {
        let mode = match link_cache::is_database_remote() {
            Some(false) => Mode::ReadAnyVersionInPlace,
            Some(true) | None => Mode::ReadAnyVersion,
        };
        let rows = self.query(FIND_LINK, &[key(slug)], mode).await?;
        Ok(rows.into_iter().next().and_then(|row| found(row.values)))
    }

    /// Inserts a link under a slug, and returns the slug and link of this request: the new link, or the link that an earlier
    /// call with the same id inserted. Returns `None` if another link has the slug. `now` is in Unix seconds.
    ///
    /// # Errors
    /// Fails if the database does not answer. The link may have been inserted.
    pub async fn insert(
        &self,
        slug: &Slug,
        link: &NewLink,
        id: RequestId,
        now: i64,
    ) -> Result<Option<(Slug, Details)>, Unavailable> {
        let row = insert_values(slug, link, id, now);
        let rows = self.query(INSERT_LINK, &row, Mode::Write).await?;
        Ok(rows.into_iter().next().and_then(|row| details(row.values)))
    }

    /// Everything about a link.
    ///
    /// # Errors
    /// Fails if the database does not answer.
    pub async fn details(&self, slug: &Slug) -> Result<Option<Details>, Unavailable> {
        let rows = self.query(SHOW_LINK, &[key(slug)], Mode::Read).await?;
        Ok(details_of(rows))
    }

    /// Changes a link and returns the result; `None` if there is no such link.
    ///
    /// # Errors
    /// Fails if the database does not answer. The link may have been changed.
    pub async fn change(&self, slug: &Slug, change: &Change) -> Result<Option<Details>, Unavailable> {
        let row = change_values(slug, change);
        let rows = self.query(CHANGE_LINK, &row, Mode::Write).await?;
        Ok(details_of(rows))
    }

    /// Removes a link. Returns whether this request removed it, by this call or by an earlier one with the same id. `now` is in
    /// Unix seconds.
    ///
    /// # Errors
    /// Fails if the database does not answer. The link may have been removed.
    pub async fn remove(&self, slug: &Slug, id: RequestId, now: i64) -> Result<bool, Unavailable> {
        let row = [key(slug), Value::Blob(id.as_bytes().to_vec()), Value::Integer(now)];
        Ok(!self.query(DELETE_LINK, &row, Mode::Write).await?.is_empty())
    }

    /// Takes one click of a link with a limit and returns the link's URL; `None` if no click is left or the link has expired.
    /// If the answer is lost, its click may be lost too and the retry takes another one. The limit is never exceeded. `now` is
    /// in Unix seconds.
    ///
    /// # Errors
    /// Fails if the database does not answer. A click may have been taken.
    pub async fn take_click(&self, slug: &Slug, now: i64) -> Result<Option<String>, Unavailable> {
        let click = [key(slug), Value::Integer(now)];
        let row = self.query(TAKE_CLICK, &click, Mode::Write).await?.into_iter().next();
        Ok(row.and_then(|row| row.values.into_iter().next()).and_then(text))
    }
}

fn key(slug: &Slug) -> Value {
    Value::Text(slug.as_str().to_owned())
}

fn details_of(rows: Vec<RowResult>) -> Option<Details> {
    let (_, details) = details(rows.into_iter().next()?.values)?;
    Some(details)
}
