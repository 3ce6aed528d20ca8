//! Conversions of values. The tables are STRICT, so the columns have the expected types.

use links_platform::database::Value;

pub fn integer(number: Option<i64>) -> Value {
    number.map_or(Value::Null, Value::Integer)
}

pub fn number(value: Value) -> Option<i64> {
    match value {
        Value::Integer(number) => Some(number),
        _ => None,
    }
}

pub fn text(value: Value) -> Option<String> {
    match value {
        Value::Text(text) => Some(text),
        _ => None,
    }
}
