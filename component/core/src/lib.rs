//! What the component decides, as values: no I/O, no clock, no runtime, so that all of it is tested on the host.
//!
//! A request becomes a [`route::Route`], its body a [`request::Shorten`] and then a [`link::NewLink`]; what is wrong
//! with it is a [`problem::Problem`]; what is answered is a [`reply::Reply`].

pub mod access;
pub mod age;
pub mod cache;
pub mod change;
pub mod clicks;
pub mod cors;
pub mod edge;
pub mod expiry;
pub mod held;
mod hex;
pub mod link;
pub mod origin;
pub mod outage;
pub mod problem;
pub mod proof;
pub mod purpose;
pub mod reply;
pub mod request;
pub mod request_id;
pub mod route;
pub mod secret;
pub mod settings;
pub mod slug;
pub mod sql;
pub mod sqlite;
pub mod stats;
pub mod target;
pub mod timestamp;
pub mod user_agent;
pub mod visit;
pub mod visitors;
