//! The subject of the appliance as plain values: links, slugs, targets, clicks and statistics.
//!
//! Nothing here does I/O, reads a clock or knows HTTP, so everything is tested natively. A client's request for a link is a
//! [`link::LinkRequest`]; [`link::NewLink::check`] turns it into a link that may be created, or into a [`error::Refused`] that
//! says what to change. [`link::follow`] decides what happens when a link is followed.

pub mod age;
pub mod change;
pub mod clicks;
pub mod error;
pub mod expiry;
pub mod hex;
pub mod limit;
pub mod link;
pub mod origin;
pub mod purpose;
pub mod request_id;
pub mod secret;
pub mod slug;
pub mod stats;
pub mod target;
pub mod timestamp;
pub mod user_agent;
pub mod variable;
pub mod visit;
pub mod visitors;
