//! The configuration file with which an instance's runtime is started.

mod place;

pub use place::database as database_path;

use std::os::unix::ffi::OsStrExt as _;
use std::time::Duration;

use data_encoding::HEXLOWER;
use links_store::checkpoints::BY_AGENT;
use sha2::{Digest, Sha256};
use toml::{Table, Value};

use super::credentials::{Credentials, secret};
use super::files::Places;
use super::links::{Config, Enabled};
use super::runtime::{
    ALLOWED_ORIGIN, CACHE_STALE, CACHE_TTL, CHECKPOINTS, DATABASE_PLACE, Database, EDGE_PORT, EDGE_STALE, EDGE_TTL,
    LINK_CACHE, Origin, PUBLIC_URL, RuntimeToml, SECRETS_STALE, SECRETS_TTL, SHORTEN_ACCESS,
};
use super::telemetry::Exports;
pub use super::unresolved::Error;
use links_base::layout::ADMIN_TOKEN;

const HEADER: &str =
    "# Written by linksctl from links.toml, runtime.toml and the credentials. Holds secrets: keep it 0600.\n";

/// Whose environment a reference `env:NAME` means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variables {
    /// The environment of this process, which is an instance's supervisor.
    Own,
    /// The environment of an instance, which other processes cannot see. References are not resolved.
    Another,
}

/// The file for `--runtime-config-file`: `runtime.toml` with its references resolved, its paths made absolute below
/// `places`, and the variables of links. It holds secrets. Equal inputs give equal bytes. Comments and the
/// order of keys do not matter.
///
/// Spin takes the first answer of the variable providers. The values from links.toml come before the user's providers, so that
/// they are not looked up in Vault over the network. The admin token comes after them, because Vault may have a newer one. Spin
/// always asks the environment last.
///
/// # Errors
/// A credential or a variable that `runtime.toml` refers to is missing or invalid.
pub fn runtime_config(
    runtime: &RuntimeToml,
    config: &Config,
    credentials: &Credentials,
    variables: Variables,
    places: &Places,
) -> Result<String, Error> {
    let mut table = runtime.table().clone();
    for (_, value) in &mut table {
        resolve(value, credentials, variables)?;
    }
    place::paths(&mut table, places);
    // Spin 4.0.2, crates/runtime-config/src/lib.rs: an empty string means no log files. Its flag refuses one.
    table.insert("log_dir".to_owned(), Value::String(String::new()));
    let mut providers = vec![statics(from_links_toml(config, runtime))];
    if let Some(Value::Array(own)) = table.remove("variables_provider") {
        providers.extend(own);
    }
    providers.extend(
        credentials
            .get(ADMIN_TOKEN)
            .map(|token| statics([(ADMIN_TOKEN, token.to_owned())])),
    );
    table.insert("variables_provider".to_owned(), Value::Array(providers));
    let body = toml::to_string(&table).map_err(|error| Error::Toml(error.to_string()))?;
    Ok(format!("{HEADER}{body}"))
}

/// Adds a provider of these variables before all others in `rendered`. They cannot be in the environment instead: both runtimes
/// ask it last, so a configured Vault would be asked first and could answer.
///
/// # Errors
/// `rendered` is not a result of [`runtime_config`].
pub fn with_variables(rendered: &str, variables: &[(&'static str, &str)]) -> Result<String, Error> {
    let mut table: Table = toml::from_str(rendered).map_err(|error| Error::Toml(error.message().to_owned()))?;
    let mut providers = vec![statics(
        variables.iter().map(|(name, value)| (*name, (*value).to_owned())),
    )];
    if let Some(Value::Array(others)) = table.remove("variables_provider") {
        providers.extend(others);
    }
    table.insert("variables_provider".to_owned(), Value::Array(providers));
    let body = toml::to_string(&table).map_err(|error| Error::Toml(error.to_string()))?;
    Ok(format!("{HEADER}{body}"))
}

/// SHA-256, in hexadecimal, of everything that an instance must be restarted for: the file with which its runtime is started,
/// and the settings that its supervisor reads from `links.toml`.
pub fn digest(rendered: &str, config: &Config, exports: &Exports) -> String {
    let mut sha256 = Sha256::new();
    sha256.update(rendered);
    // The Debug form of numbers and durations is the same for equal values.
    sha256.update(format!("\n{} {:?} {:?}", config.base_port, config.health, config.drain));
    // The digest does not depend on the instance, the version or the secret of this boot.
    for (name, value) in exports.environment(0, "", None) {
        sha256.update(format!("\n{name}={value}"));
    }
    if let Some(forward) = exports.forward() {
        sha256.update(format!(
            "\n{} {} {}",
            forward.url,
            forward.protocol,
            forward.headers.as_deref().unwrap_or_default()
        ));
    }
    HEXLOWER.encode(&sha256.finalize())
}

/// The variables from links.toml. All of them are always set, so that no other provider is asked for one. An empty string
/// stands for the component's default.
fn from_links_toml(config: &Config, runtime: &RuntimeToml) -> [(&'static str, String); 13] {
    let remote = matches!(runtime.database(), Database::LibSql(_));
    let cache = match config.cache.enabled {
        Enabled::Auto => remote,
        Enabled::Yes => true,
        Enabled::No => false,
    };
    // Secrets from this machine need no cache.
    let secrets_ttl = match runtime.asks_others() {
        true => config.secrets.ttl,
        false => Duration::ZERO,
    };
    let seconds = |duration: Duration| duration.as_secs().to_string();
    [
        (PUBLIC_URL, config.base_url().unwrap_or_default()),
        (SHORTEN_ACCESS, config.shorten.access.to_string()),
        (
            ALLOWED_ORIGIN,
            config.shorten.allowed_origin.clone().unwrap_or_default(),
        ),
        (DATABASE_PLACE, if remote { "remote" } else { "local" }.to_owned()),
        // A database server does its own checkpoints.
        (CHECKPOINTS, if remote { "" } else { BY_AGENT }.to_owned()),
        (LINK_CACHE, if cache { "on" } else { "off" }.to_owned()),
        (CACHE_TTL, seconds(config.cache.ttl)),
        (CACHE_STALE, seconds(config.cache.stale)),
        (SECRETS_TTL, seconds(secrets_ttl)),
        (SECRETS_STALE, seconds(config.secrets.stale)),
        // Port 0 means that nginx has no cache.
        (EDGE_PORT, config.edge_port().unwrap_or_default().to_string()),
        (EDGE_TTL, seconds(config.edge_ttl(remote))),
        (EDGE_STALE, seconds(config.nginx.cache_stale)),
    ]
}

fn statics(values: impl IntoIterator<Item = (&'static str, String)>) -> Value {
    let values = values
        .into_iter()
        .map(|(name, value)| (name.to_owned(), Value::String(value)));
    Value::Table(Table::from_iter([
        ("type".to_owned(), Value::String("static".to_owned())),
        ("values".to_owned(), Value::Table(values.collect())),
    ]))
}

fn resolve(value: &mut Value, credentials: &Credentials, variables: Variables) -> Result<(), Error> {
    match value {
        Value::String(text) => {
            match Origin::of(text) {
                Origin::Credential(name) => match credentials.get(&name) {
                    Some(secret) => *text = secret.to_owned(),
                    None => return Err(Error::MissingCredential { name }),
                },
                Origin::Variable(name) if variables == Variables::Own => *text = own_variable(&name)?,
                Origin::Variable(_) | Origin::Written => {}
            }
            Ok(())
        }
        Value::Array(values) => values
            .iter_mut()
            .try_for_each(|value| resolve(value, credentials, variables)),
        Value::Table(table) => table
            .iter_mut()
            .try_for_each(|(_, value)| resolve(value, credentials, variables)),
        _ => Ok(()),
    }
}

fn own_variable(name: &str) -> Result<String, Error> {
    let wrong = |problem: &str| Error::Variable {
        name: name.to_owned(),
        problem: problem.to_owned(),
    };
    let value = std::env::var_os(name).ok_or_else(|| wrong("is not set"))?;
    secret(value.as_bytes()).map_err(wrong)
}

#[cfg(test)]
mod tests;
