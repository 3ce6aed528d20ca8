//! The database of links and clicks, and the cache of links beside it. This is the only crate that contains SQL.
//!
//! The statements ([`sql`]), the schema ([`schema`]) and what follows from a version of SQLite ([`checkpoints`]) are for
//! native programs too. What runs statements in a component is compiled for Wasm alone.

pub mod cache;
pub mod checkpoints;
pub mod place;
pub mod schema;
pub mod size;
pub mod sketch;
pub mod sql;

#[cfg(any(target_family = "wasm", feature = "lint"))]
mod clicks;
#[cfg(any(target_family = "wasm", feature = "lint"))]
pub mod link_cache;
#[cfg(any(target_family = "wasm", feature = "lint"))]
mod links;
#[cfg(any(target_family = "wasm", feature = "lint"))]
mod rows;
#[cfg(any(target_family = "wasm", feature = "lint"))]
mod setup;
#[cfg(any(target_family = "wasm", feature = "lint"))]
mod stats;
#[cfg(any(target_family = "wasm", feature = "lint"))]
mod store;

#[cfg(any(target_family = "wasm", feature = "lint"))]
pub use store::{ALL_LINKS, Store};
