//! The file format of the runtime configuration, as in Spin. Unknown keys are errors.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use anyhow::Result;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use crate::config::toml_error;

/// # Errors
/// A key, a type or a value is not supported.
pub fn parse(text: &str) -> Result<File> {
    toml_error::from_str(text)
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    pub state_dir: Option<String>,
    pub log_dir: Option<String>,
    pub max_instance_memory: Option<usize>,
    #[serde(default)]
    pub sqlite_database: BTreeMap<String, Sqlite>,
    #[serde(default)]
    pub key_value_store: BTreeMap<String, KeyValue>,
    #[serde(default, alias = "config_provider")]
    pub variables_provider: Vec<VariablesProvider>,
}

pub enum Sqlite {
    Spin(Spin),
    Libsql(Libsql),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spin {
    pub path: Option<PathBuf>,
    #[serde(default)]
    pub allow_attach_file: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Libsql {
    pub url: String,
    pub token: String,
}

pub enum KeyValue {
    Spin(StoreFile),
    Redis(Redis),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoreFile {
    pub path: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Redis {
    pub url: String,
}

pub enum VariablesProvider {
    Static(Static),
    Env(Env),
    Vault(VaultServer),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Static {
    pub values: HashMap<String, String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Env {
    pub prefix: Option<String>,
    pub dotenv_path: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VaultServer {
    pub url: String,
    pub token: String,
    pub mount: String,
    pub prefix: Option<String>,
}

impl<'de> Deserialize<'de> for Sqlite {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (kind, keys) = typed(deserializer, "SQLite databases", &["spin", "libsql"])?;
        match kind {
            "spin" => keys.try_into().map(Self::Spin),
            _ => keys.try_into().map(Self::Libsql),
        }
        .map_err(D::Error::custom)
    }
}

impl<'de> Deserialize<'de> for KeyValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (kind, keys) = typed(deserializer, "key-value stores", &["spin", "redis"])?;
        match kind {
            "spin" => keys.try_into().map(Self::Spin),
            _ => keys.try_into().map(Self::Redis),
        }
        .map_err(D::Error::custom)
    }
}

impl<'de> Deserialize<'de> for VariablesProvider {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (kind, keys) = typed(deserializer, "variable providers", &["static", "env", "vault"])?;
        match kind {
            "static" => keys.try_into().map(Self::Static),
            "env" => keys.try_into().map(Self::Env),
            _ => keys.try_into().map(Self::Vault),
        }
        .map_err(D::Error::custom)
    }
}

/// Deserializes a table and removes its `type`, which must be one of `known`.
///
/// The type is checked before the other keys, so that an unsupported provider is reported as such and not for its keys.
fn typed<'de, D: Deserializer<'de>>(
    deserializer: D,
    what: &str,
    known: &'static [&'static str],
) -> Result<(&'static str, toml::Table), D::Error> {
    let mut keys = toml::Table::deserialize(deserializer)?;
    let kind = match keys.remove("type") {
        Some(toml::Value::String(kind)) => kind,
        Some(_) => return Err(D::Error::custom("type must be a string")),
        None => return Err(D::Error::missing_field("type")),
    };
    match known.iter().find(|known| **known == kind) {
        Some(known) => Ok((known, keys)),
        None => Err(D::Error::custom(format!(
            "links-host supports no {what} of type {kind:?}, only {}; choose one of these or run on Spin",
            known
                .iter()
                .map(|known| format!("{known:?}"))
                .collect::<Vec<_>>()
                .join(" and ")
        ))),
    }
}
