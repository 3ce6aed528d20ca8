//! The runtime configuration: Spin's file format, read strictly.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use crate::toml_error;
use crate::variables::{Environment, Provider};

/// Where databases and stores are and where variables come from; every default filled in.
#[derive(Debug)]
pub struct Config {
    pub sqlite_databases: BTreeMap<String, Database>,
    pub key_value_stores: BTreeMap<String, Place>,
    pub providers: Vec<Provider>,
    /// Bytes of linear memory that one instance may have.
    pub max_instance_memory: Option<usize>,
    /// Whether the user asked for log files to be off; they are off anyway.
    pub logs_turned_off: bool,
}

#[derive(Debug, PartialEq)]
pub struct Database {
    pub place: Place,
    pub allow_attach_file: bool,
}

/// Where a SQLite file is.
#[derive(Clone, Debug, PartialEq)]
pub enum Place {
    Memory,
    File(PathBuf),
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Memory => f.write_str("in memory"),
            Self::File(path) => path.display().fmt(f),
        }
    }
}

/// What the command line says about it.
pub struct Flags<'a> {
    pub file: Option<&'a Path>,
    pub state_dir: Option<&'a str>,
    pub log_dir: Option<&'a str>,
    /// The directory of spin.toml.
    pub app_dir: &'a Path,
}

/// Reads the file, if there is one, and applies Spin's defaults.
///
/// # Errors
/// Names the file, the line where there is one, and what is wrong.
pub fn load(flags: &Flags<'_>) -> Result<Config> {
    let (shown, file) = match flags.file {
        None => ("the command line".to_owned(), File::default()),
        Some(path) => {
            let shown = path.display().to_string();
            let text =
                std::fs::read_to_string(path).with_context(|| format!("Reading the runtime configuration {shown}"))?;
            let file = parse(&text).with_context(|| format!("The runtime configuration {shown} cannot be used"))?;
            (shown, file)
        }
    };
    let log_dir = flags.log_dir.or(file.log_dir.as_deref());
    if let Some(dir) = log_dir.filter(|dir| !dir.is_empty()) {
        bail!(
            "{}: log_dir is {dir:?}, but links-host writes no log files: it passes the output of components through; set \
             log_dir = \"\"",
            if flags.log_dir.is_some() {
                "the command line"
            } else {
                &shown
            }
        );
    }
    let state_dir = match flags.state_dir.or(file.state_dir.as_deref()) {
        Some("") => None,
        Some(dir) => Some(std::path::absolute(dir)?),
        None => Some(std::path::absolute(flags.app_dir.join(".spin"))?),
    };
    let state_file = |name: &str| match &state_dir {
        Some(dir) => Place::File(dir.join(name)),
        None => Place::Memory,
    };
    // As in Spin: paths of databases are relative to the working directory, those of stores to the configuration file.
    let config_dir = flags.file.and_then(Path::parent).unwrap_or(Path::new(""));
    let mut sqlite_databases = BTreeMap::new();
    for (
        name,
        Sqlite::Spin {
            path,
            allow_attach_file,
        },
    ) in file.sqlite_database
    {
        sqlite_databases.insert(
            name,
            Database {
                place: place(path, Path::new(""))?,
                allow_attach_file,
            },
        );
    }
    sqlite_databases.entry("default".into()).or_insert_with(|| Database {
        place: state_file("sqlite_db.db"),
        allow_attach_file: false,
    });
    let mut key_value_stores = BTreeMap::new();
    for (name, KeyValue::Spin { path }) in file.key_value_store {
        key_value_stores.insert(name, place(path, config_dir)?);
    }
    key_value_stores
        .entry("default".into())
        .or_insert_with(|| state_file("sqlite_key_value.db"));

    let mut providers = Vec::new();
    for provider in file.variables_provider {
        providers.push(match provider {
            VariablesProvider::Static { values } => Provider::Static(values),
            VariablesProvider::Env { prefix, dotenv_path } => {
                Provider::Environment(Environment::load(prefix, dotenv_path)?)
            }
        });
    }
    // Always there, always last.
    providers.push(Provider::Environment(Environment::load(None, Some(".env".into()))?));
    Ok(Config {
        sqlite_databases,
        key_value_stores,
        providers,
        max_instance_memory: file.max_instance_memory,
        logs_turned_off: log_dir.is_some(),
    })
}

fn place(path: Option<PathBuf>, base: &Path) -> Result<Place> {
    Ok(match path {
        Some(path) => Place::File(std::path::absolute(base.join(path))?),
        None => Place::Memory,
    })
}

/// # Errors
/// A key, a type or a value that links-host does not know.
fn parse(text: &str) -> Result<File> {
    toml_error::from_str(text)
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    state_dir: Option<String>,
    log_dir: Option<String>,
    max_instance_memory: Option<usize>,
    #[serde(default)]
    sqlite_database: BTreeMap<String, Sqlite>,
    #[serde(default)]
    key_value_store: BTreeMap<String, KeyValue>,
    #[serde(default, alias = "config_provider")]
    variables_provider: Vec<VariablesProvider>,
}

#[derive(Debug)]
enum Sqlite {
    Spin {
        path: Option<PathBuf>,
        allow_attach_file: bool,
    },
}

#[derive(Debug)]
enum KeyValue {
    Spin { path: Option<PathBuf> },
}

#[derive(Debug)]
enum VariablesProvider {
    Static {
        values: HashMap<String, String>,
    },
    Env {
        prefix: Option<String>,
        dotenv_path: Option<PathBuf>,
    },
}

impl<'de> Deserialize<'de> for Sqlite {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Spin {
            path: Option<PathBuf>,
            #[serde(default)]
            allow_attach_file: bool,
        }
        let (_, keys) = typed(deserializer, "SQLite databases", &["spin"])?;
        let Spin {
            path,
            allow_attach_file,
        } = keys.try_into().map_err(D::Error::custom)?;
        Ok(Self::Spin {
            path,
            allow_attach_file,
        })
    }
}

impl<'de> Deserialize<'de> for KeyValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Spin {
            path: Option<PathBuf>,
        }
        let (_, keys) = typed(deserializer, "key-value stores", &["spin"])?;
        let Spin { path } = keys.try_into().map_err(D::Error::custom)?;
        Ok(Self::Spin { path })
    }
}

impl<'de> Deserialize<'de> for VariablesProvider {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Static {
            values: HashMap<String, String>,
        }
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Env {
            prefix: Option<String>,
            dotenv_path: Option<PathBuf>,
        }
        let (kind, keys) = typed(deserializer, "variable providers", &["static", "env"])?;
        if kind == "static" {
            let Static { values } = keys.try_into().map_err(D::Error::custom)?;
            Ok(Self::Static { values })
        } else {
            let Env { prefix, dotenv_path } = keys.try_into().map_err(D::Error::custom)?;
            Ok(Self::Env { prefix, dotenv_path })
        }
    }
}

/// A table with its `type` taken out, which must be one of `known`.
///
/// The type is judged before the other keys, so that a provider that links-host lacks is named as such.
fn typed<'de, D: Deserializer<'de>>(
    deserializer: D,
    what: &str,
    known: &'static [&'static str],
) -> Result<(&'static str, toml::Table), D::Error> {
    let mut keys = toml::Table::deserialize(deserializer)?;
    let kind = match keys.remove("type") {
        Some(toml::Value::String(kind)) => kind,
        Some(_) => return Err(D::Error::custom("type must be text")),
        None => return Err(D::Error::missing_field("type")),
    };
    match known.iter().find(|known| **known == kind) {
        Some(known) => Ok((known, keys)),
        None => Err(D::Error::custom(format!(
            "links-host has no {what} of type {kind:?}, only {}; choose one of these, or run on Spin",
            known
                .iter()
                .map(|known| format!("{known:?}"))
                .collect::<Vec<_>>()
                .join(" and ")
        ))),
    }
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    reason = "a configuration that is not read as expected fails the test"
)]
mod tests {
    use super::*;

    /// The configuration of a file with this text, with the state directory /state.
    fn load_text(text: &str, state_dir: &str, log_dir: Option<&str>) -> Result<Config> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("runtime.toml");
        std::fs::write(&file, text).unwrap();
        load(&Flags {
            file: Some(&file),
            state_dir: Some(state_dir),
            log_dir,
            app_dir: Path::new("/app"),
        })
    }

    fn refusal(text: &str) -> String {
        format!("{:#}", load_text(text, "/state", None).unwrap_err())
    }

    #[test]
    fn the_rendered_configuration_is_read() {
        let config = load_text(
            r#"
            log_dir = ""
            [sqlite_database.default]
            type = "spin"
            path = "/var/lib/links/data/links.db"
            [key_value_store.cache]
            type = "spin"
            path = "/var/lib/links/data/cache.db"
            [[variables_provider]]
            type = "static"
            values = { admin_token = "t" }
            [[variables_provider]]
            type = "env"
            prefix = "LINKS"
            "#,
            "/state",
            None,
        )
        .unwrap();
        let database = Database {
            place: Place::File("/var/lib/links/data/links.db".into()),
            allow_attach_file: false,
        };
        assert_eq!(config.sqlite_databases["default"], database);
        assert_eq!(
            config.key_value_stores["cache"],
            Place::File("/var/lib/links/data/cache.db".into())
        );
        assert!(config.logs_turned_off);
        let prefixes: Vec<_> = config
            .providers
            .iter()
            .map(|provider| match provider {
                Provider::Static(values) => values["admin_token"].as_str(),
                Provider::Environment(environment) => environment.prefix.as_str(),
            })
            .collect();
        assert_eq!(prefixes, ["t", "LINKS", "SPIN_VARIABLE"]);
    }

    #[test]
    fn the_defaults_are_spins() {
        let flags = Flags {
            file: None,
            state_dir: None,
            log_dir: None,
            app_dir: Path::new("/app"),
        };
        let config = load(&flags).unwrap();
        assert_eq!(
            config.sqlite_databases["default"].place,
            Place::File("/app/.spin/sqlite_db.db".into())
        );
        assert_eq!(
            config.key_value_stores["default"],
            Place::File("/app/.spin/sqlite_key_value.db".into())
        );
        assert!(!config.logs_turned_off);
        let config = load_text("", "", None).unwrap();
        assert_eq!(config.sqlite_databases["default"].place, Place::Memory);
        let config = load_text("state_dir = '/ours'", "/flag", None).unwrap();
        assert_eq!(
            config.sqlite_databases["default"].place,
            Place::File("/flag/sqlite_db.db".into())
        );
    }

    #[test]
    fn types_that_are_lacking_are_refused_by_name() {
        let error = refusal("[sqlite_database.default]\ntype = 'libsql'\nurl = 'http://db'\ntoken = 'x'\n");
        assert!(
            error.contains("runtime.toml") && error.contains("\"libsql\"") && error.contains("line 1"),
            "{error}"
        );
        let error = refusal("[key_value_store.default]\ntype = 'redis'\nurl = 'redis://kv'\n");
        assert!(error.contains("\"redis\""), "{error}");
        for kind in ["vault", "azure_key_vault"] {
            let error = refusal(&format!(
                "[[variables_provider]]\ntype = '{kind}'\nurl = 'http://vault'\n"
            ));
            assert!(
                error.contains(kind) && error.contains("\"static\" and \"env\""),
                "{error}"
            );
        }
    }

    #[test]
    fn unknown_keys_are_refused_by_name_and_line() {
        let error = refusal("log_dir = ''\nsqlite_databse = {}\n");
        assert!(
            error.contains("`sqlite_databse`") && error.contains("line 2"),
            "{error}"
        );
        let error = refusal("[sqlite_database.default]\ntype = 'spin'\npth = '/x'\n");
        assert!(error.contains("`pth`") && error.contains("`path`"), "{error}");
        assert!(refusal("[llm_compute]\ntype = 'spin'\n").contains("llm_compute"));
        assert!(refusal("[sqlite_database.default]\npath = '/x'\n").contains("type"));
        assert!(refusal("[sqlite_database.default]\ntype = 'spin'\npath = 7\n").contains("runtime.toml"));
        assert!(refusal("log_dir = \n").contains("line 1"));
    }

    #[test]
    fn log_files_are_refused() {
        assert!(refusal("log_dir = '/var/log/links'").contains("log_dir"));
        let error = load_text("", "/state", Some("/var/log")).unwrap_err().to_string();
        assert!(error.contains("the command line"), "{error}");
        assert!(load_text("log_dir = '/var/log'", "/state", Some("")).is_ok());
    }
}
