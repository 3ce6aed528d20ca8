//! `runtime.toml`, the configuration file of the Spin runtime, with two additional rules:
//!
//! * It holds no secrets. The value `"credential:NAME"` stands for the secret in the credential NAME.
//! * Relative paths are below the directories of links, not below the runtime's working directory.
//!
//! Keys and types are those of Spin 4.0.2 (its crates runtime-config, sqlite, key-value-*, variables-*, factor-*). Spin ignores
//! some unknown keys; here they are errors.

mod file;
mod network;
mod providers;
mod read;
mod reference;
mod stores;
mod variables;

pub use file::{DEFAULT_DATABASE, DEFAULT_LABEL, Database, LOCAL_STORE, Place, RuntimeToml};
pub use providers::{Provider, Resolved, Service};
pub use read::read;
pub use reference::{Origin, PREFIX, Reference, file_of};
pub use variables::{
    ALLOWED_ORIGIN, CACHE_STALE, CACHE_TTL, CHECKPOINTS, DATABASE_PLACE, EDGE_PORT, EDGE_STALE, EDGE_TTL, LINK_CACHE,
    PUBLIC_URL, SECRETS_STALE, SECRETS_TTL, SHORTEN_ACCESS,
};

#[cfg(test)]
mod tests;
