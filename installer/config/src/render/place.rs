//! The absolute paths of the files that `runtime.toml` names, below one root directory.
//!
//! Spin would resolve a relative path against its working directory, or against the directory of the rendered file, which a
//! reboot deletes. It would also keep an SQLite database without a path in memory, so that a restart loses it.

use std::path::{Path, PathBuf};

use toml::{Table, Value};

use crate::files::Places;
use crate::runtime::{DEFAULT_DATABASE, DEFAULT_LABEL, LOCAL_STORE};
use links_base::layout::Layout;

/// The file of the key-value store "default" if runtime.toml does not configure that store.
const DEFAULT_STORE: &str = "key-value.db";

/// The file of the store [`LOCAL_STORE`].
const LOCAL_STORE_FILE: &str = "local.db";

/// The absolute path of a local database that `runtime.toml` names.
pub fn database(path: &Path, places: &Places) -> PathBuf {
    place(path, &places.data, places)
}

/// Makes every path in the file absolute, adds a path to every SQLite database without one, and adds the database and the
/// stores that the components need.
pub fn paths(table: &mut Table, places: &Places) {
    default_database(table);
    for (label, database) in entries(table, "sqlite_database") {
        if !is_local(database) {
            continue;
        }
        let file = match label.as_str() {
            DEFAULT_LABEL => DEFAULT_DATABASE.to_owned(),
            label => format!("{}.db", label.replace('/', "_")),
        };
        database.entry("path").or_insert(Value::String(file));
        absolute(database, "path", &places.data, places);
    }
    stores(table);
    for (_, store) in entries(table, "key_value_store") {
        absolute(store, "path", &places.data, places);
    }
    for provider in elements(table, "variables_provider") {
        absolute(provider, "dotenv_path", &places.config, places);
    }
    for tls in elements(table, "client_tls") {
        for key in ["ca_roots_file", "client_cert_file", "client_private_key_file"] {
            absolute(tls, key, &places.config, places);
        }
    }
}

/// Adds the default database. Without it, each instance would keep its own links in its state directory.
fn default_database(table: &mut Table) {
    let databases = table
        .entry("sqlite_database")
        .or_insert_with(|| Value::Table(Table::new()));
    if let Value::Table(databases) = databases {
        databases.entry(DEFAULT_LABEL).or_insert_with(|| spin([]));
    }
}

/// Adds the two stores that the components use, in files that the instances share. "local" cannot be configured, because it
/// holds digests of secrets, which must stay on this machine.
fn stores(table: &mut Table) {
    let stores = table
        .entry("key_value_store")
        .or_insert_with(|| Value::Table(Table::new()));
    if let Value::Table(stores) = stores {
        stores
            .entry(DEFAULT_LABEL)
            .or_insert_with(|| spin([("path", DEFAULT_STORE)]));
        stores.insert(LOCAL_STORE.to_owned(), spin([("path", LOCAL_STORE_FILE)]));
    }
}

/// A table of type "spin": an SQLite file of the runtime.
fn spin<const N: usize>(keys: [(&str, &str); N]) -> Value {
    let keys = [("type", "spin")].into_iter().chain(keys);
    Value::Table(
        keys.map(|(key, value)| (key.to_owned(), Value::String(value.to_owned())))
            .collect(),
    )
}

fn is_local(database: &Table) -> bool {
    database.get("type").and_then(Value::as_str) == Some("spin")
}

fn absolute(table: &mut Table, key: &str, base: &Path, places: &Places) {
    if let Some(Value::String(path)) = table.get_mut(key) {
        *path = place(Path::new(path.as_str()), base, places).display().to_string();
    }
}

/// Resolves a path. A relative path is below `base`. A path in the host's state or configuration directory is moved to that
/// directory of `places`. Any other path is unchanged.
fn place(path: &Path, base: &Path, places: &Places) -> PathBuf {
    let host = Places::new(&Layout::new("/"));
    for (host, ours) in [(host.state, &places.state), (host.config, &places.config)] {
        if let Ok(rest) = path.strip_prefix(host) {
            return ours.join(rest);
        }
    }
    base.join(path)
}

fn entries<'t>(table: &'t mut Table, key: &str) -> impl Iterator<Item = (&'t String, &'t mut Table)> {
    let tables = table.get_mut(key).and_then(Value::as_table_mut);
    tables
        .into_iter()
        .flat_map(|tables| tables.iter_mut())
        .filter_map(|(label, value)| Some((label, value.as_table_mut()?)))
}

fn elements<'t>(table: &'t mut Table, key: &str) -> impl Iterator<Item = &'t mut Table> {
    let values = table.get_mut(key).and_then(Value::as_array_mut);
    values.into_iter().flatten().filter_map(Value::as_table_mut)
}
