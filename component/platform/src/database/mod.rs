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
