//! The database "default".

pub mod error;
pub mod timeouts;

#[cfg(feature = "sdk")]
mod connection;
#[cfg(feature = "sdk")]
mod pool;

#[cfg(feature = "sdk")]
pub use crate::sdk::sqlite::{RowResult, Value};
#[cfg(feature = "sdk")]
pub use connection::Connection;
#[cfg(feature = "sdk")]
pub use pool::{BREAKER, Database, Mode, Setup};

/// A value of a row or of a parameter, as the SDK defines it. With this one, pure code that uses values is tested natively.
#[cfg(not(feature = "sdk"))]
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Integer(i64),
    Real(f64),
    Text(String),
    Blob(Vec<u8>),
    Null,
}
