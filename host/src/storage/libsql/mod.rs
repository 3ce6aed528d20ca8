//! Databases on a libSQL server (Turso, sqld), over Hrana 3 over HTTP like the `libsql` crate that Spin uses.
//!
//! That crate itself is not used because its remote client brings a second HTTP stack (hyper 0.14, rustls 0.22), does not
//! limit the size of rows, and does not distinguish a lost transaction from none. The subset of the protocol is small: each
//! statement opens a cursor, which streams its rows.
//!
//! <https://github.com/tursodatabase/libsql/blob/main/docs/HRANA_3_SPEC.md>

mod connection;
mod protocol;
mod server;
mod stream;
#[cfg(test)]
mod tests;
mod transaction;

pub use self::connection::Connection;
pub use self::server::Server;
