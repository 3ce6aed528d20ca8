//! The contents of `runtime.toml`.

use std::collections::BTreeMap;

use toml::{Table, Value};

use super::reference::Reference;

/// A line and a column, both starting at 1.
pub type Place = (usize, usize);

/// The label of the database and the key-value store that the components use.
pub const DEFAULT_LABEL: &str = "default";
/// The file of that database, below the data directory, if `runtime.toml` names none.
pub const DEFAULT_DATABASE: &str = "links.db";
/// The label of the key-value store that links itself configures.
pub const LOCAL_STORE: &str = "local";

/// A `runtime.toml` without errors.
#[derive(Clone, Debug, PartialEq)]
pub struct RuntimeToml {
    pub(super) table: Table,
    pub(super) references: Vec<Reference>,
    /// The position of each table that may be a provider.
    pub(super) places: BTreeMap<String, Place>,
}

/// Where the links are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Database {
    /// The path of an SQLite file as in `runtime.toml`: absolute, or relative to the data directory.
    File(String),
    /// The URL of a libSQL server, or a reference to a credential that holds it.
    LibSql(String),
}

impl RuntimeToml {
    /// The contents of the file, with references unresolved.
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// All references to credentials, in the order of the file.
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

    /// Whether a variable provider is a service such as Vault.
    pub fn asks_others(&self) -> bool {
        let providers = self.table.get("variables_provider").and_then(Value::as_array);
        let mut kinds = providers
            .into_iter()
            .flatten()
            .filter_map(|provider| provider.get("type"));
        kinds.any(|kind| matches!(kind.as_str(), Some("vault" | "azure_key_vault")))
    }

    /// Whether a provider in the file may supply a variable. Any provider other than a static one may supply any variable.
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
