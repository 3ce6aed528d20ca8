//! Finds everything that is wrong in links.toml, runtime.toml and the credentials, and between them.

use std::io;
use std::path::Path;

use url::Url;

use super::backup::{Location, NOT_FOR_INSTANCES};
use super::credentials::{Credentials, Source};
use super::files::ConfigFiles;
use super::finding::{Finding, Override, Position};
use super::links::{self, Access, Config, Input, Reading, input};
use super::proxies;
use super::reader::Reader;
use super::runtime::{self, Origin, RuntimeToml, file_of};
use super::telemetry;
use crate::countries::Countries;
use links_base::layout::{self, ADMIN_TOKEN};

/// The minimum number of characters in a token that cannot be guessed.
const SHORT_TOKEN: usize = 16;

/// A configuration without errors.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub config: Config,
    pub runtime: RuntimeToml,
    pub credentials: Credentials,
    /// Findings that are not errors.
    pub warnings: Vec<Finding>,
    /// links.toml and the files that extend it, as they were read.
    pub inputs: Vec<Input>,
    /// The values in `inputs` that replace one of an earlier file.
    pub overrides: Vec<Override>,
}

/// Reads the configuration to run it.
///
/// # Errors
/// All errors and warnings, if there is at least one error.
pub fn load(files: &ConfigFiles, source: &Source, reader: &impl Reader) -> Result<Loaded, Vec<Finding>> {
    let (inputs, settings) = read_links(files, reader);
    let Reading {
        config,
        mut findings,
        overrides,
    } = settings;
    let (runtime, more) = match input::text(&files.runtime_toml(), reader) {
        Ok(text) => runtime::read(&text, &files.runtime_toml().display().to_string()),
        Err(error) => (None, vec![error]),
    };
    findings.extend(more);
    let credentials = Credentials::load(source, reader)
        .map_err(|error| findings.push(Finding::unreadable(&source.directory, &error)))
        .ok();
    if let Some(credentials) = &credentials {
        findings.extend(check_credentials(
            config.as_ref(),
            runtime.as_ref(),
            credentials,
            source,
        ));
    }
    match (config, runtime, credentials) {
        (Some(config), Some(runtime), Some(credentials)) if !findings.iter().any(Finding::is_error) => Ok(Loaded {
            config,
            runtime,
            credentials,
            warnings: findings,
            inputs,
            overrides,
        }),
        _ => Err(findings),
    }
}

/// The result of [`check`].
pub struct Checked {
    pub findings: Vec<Finding>,
    /// The configuration. `None` if it has errors, or if this user may not read the credentials.
    pub loaded: Option<Loaded>,
}

/// Checks the configuration of a host for a person. Besides what [`load`] finds, this checks the permissions of the files, the
/// file of countries, and the file with Cloudflare's networks.
///
/// If this user may not read the credentials, they are not checked, which is reported as a warning.
pub fn check(files: &ConfigFiles, reader: &impl Reader) -> Checked {
    let source = Source::of_host(files);
    let (mut findings, loaded) = match load(files, &source, reader) {
        Ok(loaded) => (loaded.warnings.clone(), Some(loaded)),
        Err(findings) => (findings, None),
    };
    findings.extend(check_modes(files, reader));
    let countries = loaded
        .as_ref()
        .and_then(|loaded| loaded.config.clicks.countries.as_deref());
    findings.extend(countries.and_then(|path| check_countries(path, reader)));
    let networks = loaded
        .as_ref()
        .map(|loaded| proxies::networks(&loaded.config, files, reader));
    findings.extend(networks.and_then(Result::err).unwrap_or_default());
    findings.extend(loaded.iter().flat_map(|loaded| check_backup(loaded, &source)));
    let directory = source.directory.display().to_string();
    match reader.list(&source.directory) {
        Ok(entries) => findings.extend(
            entries
                .iter()
                .filter(|entry| entry.is_file && entry.mode & 0o077 != 0)
                .map(|entry| {
                    let path = source.directory.join(&entry.name).display().to_string();
                    let message = format!("is accessible to users other than root: its mode is {:04o}", entry.mode);
                    Finding::error(&path, message).help(format!("run `chmod 600 {path}`"))
                }),
        ),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            findings.retain(|finding| finding.file != directory);
            findings.push(
                Finding::warning(directory, "not checked: only root may read it")
                    .help("run this as root to check it too"),
            );
        }
        // If the directory is missing, each missing credential is reported already. `load` has reported any other error.
        Err(_) => {}
    }
    Checked { findings, loaded }
}

/// Errors about the credentials for backups in S3. [`load`] does not look for them, because the instances do not have them.
fn check_backup(loaded: &Loaded, source: &Source) -> Vec<Finding> {
    let Some(Location::S3(_)) = &loaded.config.backup.to else {
        return vec![];
    };
    let credentials = &loaded.credentials;
    let missing = NOT_FOR_INSTANCES.iter().filter(|name| credentials.get(name).is_none());
    let finding = |name: &&str| {
        let path = source.file(name).display().to_string();
        match credentials.unusable().get(*name) {
            Some(why) => Finding::error(path, why.clone()),
            None => Finding::error(&path, "is missing, so no backup reaches S3")
                .help(format!("put the key into {path}, mode 0600")),
        }
    };
    missing.map(finding).collect()
}

/// A warning if the file of countries is unusable. This is no error, because clicks are counted without it.
fn check_countries(countries: &Path, reader: &impl Reader) -> Option<Finding> {
    let bytes = reader.read(countries).map_err(|error| error.to_string());
    let why = bytes
        .and_then(|bytes| Countries::new(bytes).map_err(|error| error.to_string()))
        .err()?;
    let finding = Finding::warning(countries.display().to_string(), format!("cannot be used: {why}"));
    Some(finding.help("`clicks.countries` in links.toml names it; without it, clicks have no country"))
}

/// A warning for each file with settings that the agent, which runs as user `links`, cannot read.
fn check_modes(files: &ConfigFiles, reader: &impl Reader) -> Vec<Finding> {
    let links_toml = files.links_toml();
    let unreadable = |directory: &Path, is_input: &dyn Fn(&str) -> bool| -> Vec<Finding> {
        // If the directory cannot be listed, `load` has reported it.
        let entries = reader.list(directory).unwrap_or_default();
        let private = entries
            .iter()
            .filter(|entry| entry.is_file && is_input(&entry.name) && entry.mode & 0o044 == 0);
        private
            .map(|entry| {
                let path = directory.join(&entry.name).display().to_string();
                let message = format!(
                    "cannot be read by user {}: its mode is {:04o}",
                    layout::USER,
                    entry.mode
                );
                Finding::warning(&path, message).help(format!("run `chmod a+r {path}`"))
            })
            .collect()
    };
    let mut findings = unreadable(files.directory(), &|name| links_toml.ends_with(name));
    findings.extend(unreadable(&files.links_toml_d(), &links::is_read));
    findings
}

/// Reads links.toml and the files that extend it.
pub(super) fn read_links(files: &ConfigFiles, reader: &impl Reader) -> (Vec<Input>, Reading) {
    match links::inputs(files, reader) {
        Ok(inputs) => {
            let reading = links::read_all(&inputs);
            (inputs, reading)
        }
        Err(findings) => (
            vec![],
            Reading {
                config: None,
                findings,
                overrides: vec![],
            },
        ),
    }
}

/// Problems of the credentials that the two files ask for.
fn check_credentials(
    config: Option<&Config>,
    runtime: Option<&RuntimeToml>,
    credentials: &Credentials,
    source: &Source,
) -> Vec<Finding> {
    let file = |name: &str| source.file(name).display().to_string();
    let mut findings = Vec::new();
    let headers = config.and_then(|config| config.telemetry.headers.as_ref());
    let of_runtime = runtime.map(RuntimeToml::references).unwrap_or_default();
    let references: Vec<_> = headers.into_iter().chain(of_runtime).collect();
    for reference in &references {
        let name = &reference.credential;
        if credentials.get(name).is_none() && !credentials.unusable().contains_key(name) {
            let Position { file, line, column } = &reference.position;
            findings.push(
                Finding::error(file, format!("the credential `{name}` is missing"))
                    .at((*line, *column))
                    .help(format!("put it into {}, mode 0600", file_of(name))),
            );
        }
    }
    // `check_backup` reports these.
    let is_for_backups = |name: &str| {
        NOT_FOR_INSTANCES.contains(&name)
            && config.is_some_and(|config| matches!(config.backup.to, Some(Location::S3(_))))
    };
    for (name, problem) in credentials.unusable() {
        if is_for_backups(name) {
            continue;
        }
        let used = name == ADMIN_TOKEN || references.iter().any(|reference| reference.credential == *name);
        findings.push(if used {
            Finding::error(file(name), problem)
        } else {
            Finding::warning(file(name), format!("{problem}, but nothing uses it"))
        });
    }
    if let Some(reference) = headers
        && let Some(secret) = credentials.get(&reference.credential)
        && telemetry::headers(secret).is_none()
    {
        findings.push(
            Finding::error(
                file(&reference.credential),
                "does not hold headers for `telemetry.headers`",
            )
            .help("write NAME=VALUE, separated by commas, with special characters percent-encoded: %2C for a comma"),
        );
    }
    let providers = runtime
        .map(|runtime| runtime.providers(credentials))
        .unwrap_or_default();
    findings.extend(providers.iter().filter_map(|provider| {
        let (url, schemes) = provider.service.url()?;
        let Origin::Credential(name) = &url.origin else {
            return None;
        };
        let text = credentials.get(name)?;
        // Spin would print a URL that it cannot parse, and the file may hold a secret instead of a URL.
        let is_url = Url::parse(text).is_ok_and(|url| schemes.contains(&url.scheme()));
        (!is_url).then(|| {
            Finding::error(file(name), format!("does not hold a URL for `{}`", provider.name))
                .help(format!("write the whole URL, starting with {}:", schemes.join(": or ")))
        })
    }));
    let is_needed = config.is_some_and(|config| config.shorten.access == Access::Token)
        && runtime.is_some_and(|runtime| !runtime.may_supply(ADMIN_TOKEN));
    match credentials.get(ADMIN_TOKEN) {
        Some(token) => findings.extend(admin_token(token, &file(ADMIN_TOKEN))),
        None if is_needed && !credentials.unusable().contains_key(ADMIN_TOKEN) => findings.push(
            Finding::error(file(ADMIN_TOKEN), "is missing, so nobody can create links")
                .help("run `linksctl token --rotate` to create one"),
        ),
        None => {}
    }
    findings
}

/// What is wrong with the admin token, if anything. The token is sent as `Authorization: Bearer TOKEN`, which allows few
/// characters (RFC 6750, section 2.1).
fn admin_token(token: &str, file: &str) -> Option<Finding> {
    if !fits_a_header(token) {
        let message = "holds a character that no bearer token may have";
        return Some(Finding::error(file, message).help("use letters, digits and -._~+/="));
    }
    (token.len() < SHORT_TOKEN).then(|| {
        let message = format!("is short: fewer than {SHORT_TOKEN} characters can be guessed");
        Finding::warning(file, message).help("run `linksctl token --rotate` to create a better one")
    })
}

/// Whether a token has only the characters that a bearer token may have.
pub fn fits_a_header(token: &str) -> bool {
    token
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"-._~+/=".contains(&byte))
}

#[cfg(test)]
mod tests;
