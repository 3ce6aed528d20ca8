//! Conversions of rows and values. The tables are STRICT, so the columns have the expected types.

use links_domain::expiry::Expiry;
use links_domain::limit::Limit;
use links_domain::link::{Details, Stored};
use links_platform::database::{RowResult, Value};

pub fn stored(url: Value, expires_at: Value, max_clicks: Value, clicks_left: Value) -> Option<Stored> {
    let limit = number(max_clicks).zip(number(clicks_left));
    Some(Stored {
        url: text(url)?,
        expiry: number(expires_at).map(Expiry),
        limit: limit.map(|(most, left)| Limit { most, left }),
    })
}

pub fn details(row: RowResult) -> Option<Details> {
    let [url, expires_at, max_clicks, clicks_left, created_at] = row.values.try_into().ok()?;
    Some(Details {
        stored: stored(url, expires_at, max_clicks, clicks_left)?,
        created_at: number(created_at)?,
    })
}

pub fn number(value: Value) -> Option<i64> {
    match value {
        Value::Integer(number) => Some(number),
        _ => None,
    }
}

pub fn count(value: Value) -> Option<u64> {
    number(value)?.try_into().ok()
}

pub fn text(value: Value) -> Option<String> {
    match value {
        Value::Text(text) => Some(text),
        _ => None,
    }
}

/// The only value of the only row, as a count.
pub fn single_count(rows: &[RowResult]) -> Option<u64> {
    let value = rows.first()?.get::<i64>(0)?;
    u64::try_from(value).ok()
}

/// The two columns of a row.
pub fn pair<A, B>(
    row: RowResult,
    first: impl Fn(Value) -> Option<A>,
    second: impl Fn(Value) -> Option<B>,
) -> Option<(A, B)> {
    let [a, b] = row.values.try_into().ok()?;
    Some((first(a)?, second(b)?))
}

/// The three columns of a row.
pub fn triple<A, B, C>(
    row: RowResult,
    first: impl Fn(Value) -> Option<A>,
    second: impl Fn(Value) -> Option<B>,
    third: impl Fn(Value) -> Option<C>,
) -> Option<(A, B, C)> {
    let [a, b, c] = row.values.try_into().ok()?;
    Some((first(a)?, second(b)?, third(c)?))
}
