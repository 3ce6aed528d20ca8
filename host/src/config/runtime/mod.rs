//! The runtime configuration: its file and the command line, with Spin's defaults.

mod file;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};

use self::file::{Env, File, KeyValue, Libsql, Redis, Spin, Sqlite, Static, StoreFile, VariablesProvider, VaultServer};
use crate::storage::key_value::redis;
use crate::storage::libsql;
use crate::storage::place::Place;
use crate::variables::{Environment, Provider, Vault};

/// The runtime configuration with all defaults applied: databases, key-value stores and variable providers.
#[derive(Debug)]
pub struct Config {
    pub sqlite_databases: BTreeMap<String, Database>,
    pub key_value_stores: BTreeMap<String, Store>,
    pub providers: Vec<Provider>,
    /// The maximum linear memory of one instance, in bytes.
    pub max_instance_memory: Option<usize>,
    /// Whether the user explicitly turned log files off. links-host never writes any.
    pub logs_turned_off: bool,
}

#[derive(Debug)]
pub enum Database {
    File { place: Place, allow_attach_file: bool },
    Server(Arc<libsql::Server>),
}

#[derive(Debug)]
pub enum Store {
    File(Place),
    Redis(Arc<redis::Server>),
}

/// The command-line flags that affect the runtime configuration.
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
/// The configuration is invalid. The error names the file and, for TOML errors, the line.
pub fn load(flags: &Flags<'_>) -> Result<Config> {
    let (shown, file) = match flags.file {
        None => ("the command line".to_owned(), File::default()),
        Some(path) => {
            let shown = path.display().to_string();
            let text =
                std::fs::read_to_string(path).with_context(|| format!("Reading the runtime configuration {shown}"))?;
            let file =
                file::parse(&text).with_context(|| format!("The runtime configuration {shown} cannot be used"))?;
            (shown, file)
        }
    };
    let log_dir = flags.log_dir.or(file.log_dir.as_deref());
    if let Some(dir) = log_dir.filter(|dir| !dir.is_empty()) {
        bail!(
            "{}: log_dir is {dir:?}, but links-host writes no log files, it passes component output through; set \
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
    // As in Spin, paths of databases are relative to the working directory, and those of stores to the configuration file.
    let config_dir = flags.file.and_then(Path::parent).unwrap_or(Path::new(""));
    let mut sqlite_databases = BTreeMap::new();
    for (name, database) in file.sqlite_database {
        let database = match database {
            Sqlite::Spin(Spin {
                path,
                allow_attach_file,
            }) => Database::File {
                place: place(path, Path::new(""))?,
                allow_attach_file,
            },
            Sqlite::Libsql(Libsql { url, token }) => {
                let server = libsql::Server::new(&url, token);
                Database::Server(server.with_context(|| format!("{shown}: [sqlite_database.{name}]"))?)
            }
        };
        sqlite_databases.insert(name, database);
    }
    sqlite_databases
        .entry("default".into())
        .or_insert_with(|| Database::File {
            place: state_file("sqlite_db.db"),
            allow_attach_file: false,
        });
    let mut key_value_stores = BTreeMap::new();
    for (name, store) in file.key_value_store {
        let store = match store {
            KeyValue::Spin(StoreFile { path }) => Store::File(place(path, config_dir)?),
            KeyValue::Redis(Redis { url }) => {
                let server = redis::Server::new(&url);
                Store::Redis(server.with_context(|| format!("{shown}: [key_value_store.{name}]"))?)
            }
        };
        key_value_stores.insert(name, store);
    }
    key_value_stores
        .entry("default".into())
        .or_insert_with(|| Store::File(state_file("sqlite_key_value.db")));

    let mut providers = Vec::new();
    for provider in file.variables_provider {
        providers.push(match provider {
            VariablesProvider::Static(Static { values }) => Provider::Static(values),
            VariablesProvider::Env(Env { prefix, dotenv_path }) => {
                Provider::Environment(Environment::load(prefix, dotenv_path)?)
            }
            VariablesProvider::Vault(VaultServer {
                url,
                token,
                mount,
                prefix,
            }) => {
                let vault = Vault::new(&url, &token, &mount, prefix.as_deref());
                let vault = vault.with_context(|| format!("{shown}: [[variables_provider]] of type \"vault\""))?;
                Provider::Vault(Box::new(vault))
            }
        });
    }
    // As in Spin, the environment is always the last provider.
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

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic, reason = "a panic fails the test")]
mod tests {
    use super::*;

    /// Loads a configuration file with this text.
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
        assert_eq!(database(&config), Some(Path::new("/var/lib/links/data/links.db")));
        assert_eq!(store(&config, "cache"), Some(Path::new("/var/lib/links/data/cache.db")));
        assert!(config.logs_turned_off);
        let prefixes: Vec<_> = config
            .providers
            .iter()
            .map(|provider| match provider {
                Provider::Static(values) => values["admin_token"].as_str(),
                Provider::Environment(environment) => environment.prefix.as_str(),
                Provider::Vault(_) => "vault",
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
        assert_eq!(database(&config), Some(Path::new("/app/.spin/sqlite_db.db")));
        assert_eq!(
            store(&config, "default"),
            Some(Path::new("/app/.spin/sqlite_key_value.db"))
        );
        assert!(!config.logs_turned_off);
        let config = load_text("", "", None).unwrap();
        assert_eq!(database(&config), None);
        let config = load_text("state_dir = '/ours'", "/flag", None).unwrap();
        assert_eq!(database(&config), Some(Path::new("/flag/sqlite_db.db")));
    }

    /// The file of the default database, or none if it is in memory.
    fn database(config: &Config) -> Option<&Path> {
        match &config.sqlite_databases["default"] {
            Database::File { place, .. } => file(place),
            Database::Server(server) => panic!("{server}"),
        }
    }

    fn store<'a>(config: &'a Config, label: &str) -> Option<&'a Path> {
        match &config.key_value_stores[label] {
            Store::File(place) => file(place),
            Store::Redis(server) => panic!("{server}"),
        }
    }

    fn file(place: &Place) -> Option<&Path> {
        match place {
            Place::Memory => None,
            Place::File(path) => Some(path),
        }
    }

    const REMOTE: &str = r#"
        [sqlite_database.default]
        type = "libsql"
        url = "https://db.example"
        token = "s3cret-1"
        [key_value_store.default]
        type = "redis"
        url = "redis://user:s3cret-2@kv.example:6380/3"
        [[variables_provider]]
        type = "vault"
        url = "https://vault.example:8200"
        token = "s3cret-3"
        mount = "secret"
        prefix = "links"
        [[variables_provider]]
        type = "static"
        values = { admin_token = "s3cret-4" }
    "#;

    #[test]
    fn debug_output_of_servers_hides_their_secrets() {
        let config = load_text(REMOTE, "/state", None).unwrap();
        let shown = format!("{config:?}");
        for host in ["https://db.example", "kv.example:6380", "https://vault.example:8200"] {
            assert!(shown.contains(host), "{host}: {shown}");
        }
        assert!(!shown.contains("s3cret"), "{shown}");
    }

    #[test]
    fn errors_about_servers_do_not_contain_their_secrets() {
        for (good, bad, named) in [
            (
                "https://db.example",
                "https://s3cret-1@db.example",
                "[sqlite_database.default]",
            ),
            ("https://db.example", "https//s3cret-1", "[sqlite_database.default]"),
            ("token = \"s3cret-1\"", "", "`token`"),
            ("token = \"s3cret-1\"", "token = 3", "token"),
            (
                "redis://user:s3cret-2@kv.example:6380/3",
                "http://:s3cret-2@kv.example",
                "[key_value_store.default]",
            ),
            (
                "redis://user:s3cret-2@kv.example:6380/3",
                "redis://:s3cret-2@kv:x",
                "[key_value_store.default]",
            ),
            ("https://vault.example:8200", "https://s3cret-3@vault.example", "vault"),
            ("mount = \"secret\"", "", "`mount`"),
            ("prefix = \"links\"", "prefx = \"links\"", "`prefx`"),
            ("s3cret-3\"", "s3cret-3\\n\"", "token"),
        ] {
            assert!(REMOTE.contains(good), "{good}");
            let error = refusal(&REMOTE.replacen(good, bad, 1));
            assert!(
                error.contains("runtime.toml") && error.contains(named),
                "{bad}: {error}"
            );
            assert!(!error.contains("s3cret"), "{bad}: {error}");
        }
    }

    #[test]
    fn unsupported_types_are_refused_by_name() {
        let error = refusal("[sqlite_database.default]\ntype = 'postgres'\nurl = 'http://db'\ntoken = 'x'\n");
        assert!(
            error.contains("runtime.toml") && error.contains("\"postgres\"") && error.contains("line 1"),
            "{error}"
        );
        for kind in ["azure_cosmos", "aws_dynamo"] {
            let error = refusal(&format!("[key_value_store.default]\ntype = '{kind}'\nregion = 'x'\n"));
            assert!(
                error.contains(kind) && error.contains("\"spin\" and \"redis\""),
                "{error}"
            );
        }
        let error = refusal("[[variables_provider]]\ntype = 'azure_key_vault'\nvault_url = 'http://vault'\n");
        assert!(
            error.contains("azure_key_vault") && error.contains("\"static\" and \"env\" and \"vault\""),
            "{error}"
        );
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
