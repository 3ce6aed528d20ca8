//! The interfaces of Spin that components import, backed by the storage and the variables of the application.

pub mod context;
mod key_value;
mod sqlite;
pub mod usage;
mod variables;
