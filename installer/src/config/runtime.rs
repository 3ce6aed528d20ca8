//! `runtime.toml`: the Spin runtime's own configuration file, with two rules of ours.
//!
//! * A secret is never written into it: the value `"credential:NAME"` stands for the secret in the credential NAME.
//! * A relative path is below the appliance's directories, not below whatever directory the runtime starts in.
//!
//! Keys and types are those of Spin 4.0.2 (its crates runtime-config, sqlite, key-value-*, variables-*, factor-*).
//! Where Spin ignores a key that it does not know, this is stricter: such a key is a mistake.

mod network;
mod providers;
mod read;
mod reference;
mod stores;
mod variables;

use std::collections::BTreeMap;

use toml::{Table, Value};

pub use providers::{Place, Provider, Resolved, Service};
pub use read::read;
pub use reference::{Origin, PREFIX, Reference, file_of};
pub use variables::{
    ALLOWED_ORIGIN, CACHE_STALE, CACHE_TTL, CHECKPOINTS, DATABASE_PLACE, EDGE_PORT, EDGE_STALE, EDGE_TTL, LINK_CACHE,
    PUBLIC_URL, SECRETS_STALE, SECRETS_TTL, SHORTEN_ACCESS,
};

/// The database that the component uses.
pub const DEFAULT_LABEL: &str = "default";
/// Its file below the data directory, where `runtime.toml` names none.
pub const DEFAULT_DATABASE: &str = "links.db";
/// The key-value store that is the appliance's own.
pub const LOCAL_STORE: &str = "local";

/// A `runtime.toml` in which nothing is wrong.
#[derive(Clone, Debug, PartialEq)]
pub struct RuntimeToml {
    table: Table,
    references: Vec<Reference>,
    places: BTreeMap<String, Place>,
}

/// Where the links are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Database {
    /// An SQLite file, as `runtime.toml` names it: relative to the data directory, or absolute.
    File(String),
    /// A libSQL server; the URL may be a reference to a credential.
    LibSql(String),
}

impl RuntimeToml {
    /// The file's contents, references unresolved.
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// Every credential that the file asks for, in its order.
    pub fn references(&self) -> &[Reference] {
        &self.references
    }

    /// Where the links are kept.
    pub fn database(&self) -> Database {
        let entry = self
            .table
            .get("sqlite_database")
            .and_then(|databases| databases.get(DEFAULT_LABEL));
        let text = |key: &str| {
            entry
                .and_then(|entry| entry.get(key))
                .and_then(Value::as_str)
                .map(str::to_owned)
        };
        match text("url") {
            Some(url) => Database::LibSql(url),
            None => Database::File(text("path").unwrap_or_else(|| DEFAULT_DATABASE.to_owned())),
        }
    }

    /// Whether another machine is asked for variables.
    pub fn asks_others(&self) -> bool {
        let providers = self.table.get("variables_provider").and_then(Value::as_array);
        let mut kinds = providers
            .into_iter()
            .flatten()
            .filter_map(|provider| provider.get("type"));
        kinds.any(|kind| matches!(kind.as_str(), Some("vault" | "azure_key_vault")))
    }

    /// Whether one of the file's own providers may know a variable. What Vault holds is not known from here.
    pub fn may_supply(&self, variable: &str) -> bool {
        let providers = self.table.get("variables_provider").and_then(Value::as_array);
        providers
            .into_iter()
            .flatten()
            .any(|provider| match provider.get("values").and_then(Value::as_table) {
                Some(values) => values.contains_key(variable),
                None => true,
            })
    }
}

#[cfg(test)]
mod tests;
