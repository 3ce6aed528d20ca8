//! The database of links and clicks, and the cache of links beside it. This is the only crate that contains SQL.
//!
//! The statements ([`sql`]), the schema ([`schema`]) and what follows from a version of SQLite ([`checkpoints`]) are for
//! native programs too. What runs statements in a component has the feature `sdk`.

pub mod cache;
pub mod checkpoints;
pub mod place;
pub mod schema;
pub mod size;
pub mod sketch;
pub mod sql;

#[cfg(feature = "sdk")]
mod clicks;
#[cfg(feature = "sdk")]
pub mod link_cache;
#[cfg(feature = "sdk")]
mod links;
#[cfg(feature = "sdk")]
mod rows;
#[cfg(feature = "sdk")]
mod setup;
#[cfg(feature = "sdk")]
mod stats;
#[cfg(feature = "sdk")]
mod store;

#[cfg(feature = "sdk")]
pub use store::{ALL_LINKS, Store};
