//! Conversions of rows.

use links_platform::database::{RowResult, Value};

use crate::values::number;

pub fn count(value: Value) -> Option<u64> {
    number(value)?.try_into().ok()
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
