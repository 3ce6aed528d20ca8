//! The database of links and clicks, and the link cache. This is the only crate that contains SQL.
//!
//! Native programs share the statements ([`sql`]), the schema ([`schema`]) and the rules for checkpoints ([`checkpoints`]), and
//! tests share the conversion of links ([`link_row`]). The modules that run statements inside a component need the feature `sdk`.

pub mod cache;
pub mod checkpoints;
pub mod link_row;
pub mod place;
pub mod schema;
pub mod size;
pub mod sketch;
pub mod sql;
mod values;

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
