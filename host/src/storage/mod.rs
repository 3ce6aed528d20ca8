//! Databases and key-value stores, local and remote.

pub mod answer;
pub mod database;
pub mod key_value;
pub mod libsql;
pub mod place;
pub mod sqlite;
pub mod statement;
