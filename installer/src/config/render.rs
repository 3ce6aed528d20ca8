//! The configuration that an instance's runtime is started with.

mod place;

pub use place::database as database_path;

use std::os::unix::ffi::OsStrExt as _;
use std::time::Duration;

use data_encoding::HEXLOWER;
use links_store::checkpoints::BY_AGENT;
use sha2::{Digest, Sha256};
use thiserror::Error;
use toml::{Table, Value};

use super::credentials::{Credentials, secret};
use super::links::{Config, Enabled};
use super::runtime::{
    ALLOWED_ORIGIN, CACHE_STALE, CACHE_TTL, CHECKPOINTS, DATABASE_PLACE, Database, EDGE_PORT, EDGE_STALE, EDGE_TTL,
    LINK_CACHE, Origin, PUBLIC_URL, RuntimeToml, SECRETS_STALE, SECRETS_TTL, SHORTEN_ACCESS, file_of,
};
use super::telemetry::Exports;
use crate::layout::{ADMIN_TOKEN, Layout};

const HEADER: &str =
    "# Written by linksctl from links.toml, runtime.toml and the credentials. Holds secrets: keep it 0600.\n";

#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Error {
    #[error("the credential `{name}`, which the configuration asks for, is missing; put it into {path}, mode 0600", path = file_of(.name))]
    MissingCredential { name: String },
    #[error(
        "the variable `{name}`, which the configuration asks for, {problem}; set it with `systemctl edit links@`, Environment= or EnvironmentFile="
    )]
    Variable { name: String, problem: String },
    #[error("writing the runtime's configuration: {0}")]
    Toml(String),
}

/// Whose environment `env:NAME` is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variables {
    /// This process is an instance's supervisor.
    Own,
    /// An instance's, which nobody else sees: references stay what they are.
    Another,
}

/// The file for `--runtime-config-file`: `runtime.toml` with its references resolved, its paths made absolute below
/// `layout`, and the appliance's variables. It holds secrets. Equal inputs give equal bytes; comments and the order of
/// keys do not count.
///
/// What links.toml says comes before the user's own variable providers, because Spin takes the first answer and asks
/// Vault over the network each time; the admin token comes after them, so that Vault may know a newer one. The
/// environment is always asked last.
///
/// # Errors
/// A credential or a variable that `runtime.toml` asks for is missing.
pub fn runtime_config(
    runtime: &RuntimeToml,
    config: &Config,
    credentials: &Credentials,
    variables: Variables,
    layout: &Layout,
) -> Result<String, Error> {
    let mut table = runtime.table().clone();
    for (_, value) in &mut table {
        resolve(value, credentials, variables)?;
    }
    place::paths(&mut table, layout);
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

/// Puts variables in front of every provider of `rendered`. The environment would not do: both runtimes ask it last, so
/// each look-up would go to a configured Vault first, and Vault could answer it.
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

/// SHA-256, in hexadecimal, of all that an instance must be restarted for: what its runtime is started with, and what
/// its supervisor read from `links.toml`.
pub fn digest(rendered: &str, config: &Config, exports: &Exports) -> String {
    let mut sha256 = Sha256::new();
    sha256.update(rendered);
    // Debug of plain numbers and durations: the same text for the same values.
    sha256.update(format!("\n{} {:?} {:?}", config.base_port, config.health, config.drain));
    // Which instance it is, of which version, and since which boot counts for nothing here.
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

/// All of them always, so that nobody else is asked for one; the empty string is the component's own default.
fn from_links_toml(config: &Config, runtime: &RuntimeToml) -> [(&'static str, String); 13] {
    let remote = matches!(runtime.database(), Database::LibSql(_));
    let cache = match config.cache.enabled {
        Enabled::Auto => remote,
        Enabled::Yes => true,
        Enabled::No => false,
    };
    // What this machine itself knows is asked for each time.
    let secrets_ttl = match runtime.asks_others() {
        true => config.secrets.ttl,
        false => Duration::ZERO,
    };
    let seconds = |duration: Duration| duration.as_secs().to_string();
    [
        (PUBLIC_URL, config.public_url.clone().unwrap_or_default()),
        (SHORTEN_ACCESS, config.shorten.access.to_string()),
        (
            ALLOWED_ORIGIN,
            config.shorten.allowed_origin.clone().unwrap_or_default(),
        ),
        (DATABASE_PLACE, if remote { "remote" } else { "local" }.to_owned()),
        // A server checkpoints for itself.
        (CHECKPOINTS, if remote { "" } else { BY_AGENT }.to_owned()),
        (LINK_CACHE, if cache { "on" } else { "off" }.to_owned()),
        (CACHE_TTL, seconds(config.cache.ttl)),
        (CACHE_STALE, seconds(config.cache.stale)),
        (SECRETS_TTL, seconds(secrets_ttl)),
        (SECRETS_STALE, seconds(config.secrets.stale)),
        // 0: no cache.
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
