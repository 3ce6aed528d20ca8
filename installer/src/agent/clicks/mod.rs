//! Clicks: from nginx's journal into the database.

mod client;
mod courier;
mod gather;
mod line;
mod referrer;
mod source;
