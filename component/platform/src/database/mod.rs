//! The database "default".

pub mod error;
pub mod timeouts;

#[cfg(any(target_family = "wasm", feature = "lint"))]
mod connection;
#[cfg(any(target_family = "wasm", feature = "lint"))]
mod pool;

#[cfg(any(target_family = "wasm", feature = "lint"))]
pub use connection::Connection;
#[cfg(any(target_family = "wasm", feature = "lint"))]
pub use pool::{BREAKER, Database, Mode, Setup};
#[cfg(any(target_family = "wasm", feature = "lint"))]
pub use spin_sdk::sqlite::{RowResult, Value};
