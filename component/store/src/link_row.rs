//! A link as a row of the table of links. A column that is added to the table makes the arrays and patterns here too short, so
//! the compiler names every place that has to handle it.

use links_domain::change::Change;
use links_domain::expiry::Expiry;
use links_domain::limit::{Limit, MaxClicks};
use links_domain::link::{Details, NewLink, Stored};
use links_domain::request_id::RequestId;
use links_domain::slug::Slug;
use links_platform::database::Value;

use crate::schema::LINK_COLUMNS;
use crate::values::{integer, number, text};

/// The values of [`LINK_COLUMNS`].
pub type Row = [Value; LINK_COLUMNS.len()];

/// The parameters of [`INSERT_LINK`](crate::sql::INSERT_LINK). `now` is in Unix seconds.
pub fn insert_values(slug: &Slug, link: &NewLink, id: RequestId, now: i64) -> Row {
    let limit = link.max_clicks.map(MaxClicks::get);
    let expiry = integer(link.expiry.map(|Expiry(seconds)| seconds));
    let (expires_at, limited_until) = match limit {
        None => (expiry, Value::Null),
        // 0004_click_limits.sql gives the reason for the 0.
        Some(_) => (Value::Integer(0), expiry),
    };
    let url = Value::Text(link.target.as_str().to_owned());
    let request_id = Value::Blob(id.as_bytes().to_vec());
    let (slug, created_at) = (Value::Text(slug.as_str().to_owned()), Value::Integer(now));
    let (max_clicks, clicks_left) = (integer(limit), integer(limit));
    [
        slug,
        url,
        created_at,
        expires_at,
        request_id,
        max_clicks,
        clicks_left,
        limited_until,
    ]
}

/// The parameters of [`CHANGE_LINK`](crate::sql::CHANGE_LINK).
pub fn change_values(slug: &Slug, change: &Change) -> [Value; 4] {
    let Change { target, expiry } = change;
    let target = target.as_ref();
    [
        Value::Text(slug.as_str().to_owned()),
        target.map_or(Value::Null, |target| Value::Text(target.as_str().to_owned())),
        Value::Integer(expiry.is_some().into()),
        integer(expiry.flatten().map(|Expiry(seconds)| seconds)),
    ]
}

/// Reads a row with the values of [`LINK_COLUMNS`], in which blobs are in hexadecimal.
pub fn details(row: Vec<Value>) -> Option<(Slug, Details)> {
    let row: Row = row.try_into().ok()?;
    let [
        slug,
        url,
        created_at,
        expires_at,
        _request_id,
        max_clicks,
        clicks_left,
        limited_until,
    ] = row;
    let details = Details {
        stored: stored(url, expires_at, max_clicks, clicks_left, limited_until)?,
        created_at: number(created_at)?,
    };
    Some((Slug::in_path(&text(slug)?)?, details))
}

/// Reads a row of [`FIND_LINK`](crate::sql::FIND_LINK).
pub fn found(row: Vec<Value>) -> Option<Stored> {
    let [url, expires_at, max_clicks, clicks_left, limited_until] = row.try_into().ok()?;
    stored(url, expires_at, max_clicks, clicks_left, limited_until)
}

fn stored(
    url: Value,
    expires_at: Value,
    max_clicks: Value,
    clicks_left: Value,
    limited_until: Value,
) -> Option<Stored> {
    let most = number(max_clicks);
    let expiry = match most {
        None => expires_at,
        Some(_) => limited_until,
    };
    Some(Stored {
        url: text(url)?,
        expiry: number(expiry).map(Expiry),
        limit: most.zip(number(clicks_left)).map(|(most, left)| Limit { most, left }),
    })
}
