//! Finds everything that is wrong in links.toml, runtime.toml and the credentials, and between them.

use std::io;
use std::path::Path;

use url::Url;

use super::backup::{NOT_FOR_INSTANCES, Place};
use super::credentials::{Credentials, Source};
use super::files::ConfigFiles;
use super::finding::Finding;
use super::links::{self, Access, Config};
use super::reader::Reader;
use super::runtime::{self, Origin, RuntimeToml, file_of};
use super::telemetry;
use crate::countries::Countries;
use links_base::layout::ADMIN_TOKEN;

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
}

/// Reads the configuration to run it.
///
/// # Errors
/// All errors and warnings, if there is at least one error.
pub fn load(files: &ConfigFiles, source: &Source, reader: &impl Reader) -> Result<Loaded, Vec<Finding>> {
    let (config, mut findings) = read(&files.links_toml(), reader, links::read);
    let (runtime, more) = read(&files.runtime_toml(), reader, runtime::read);
    findings.extend(more);
    let credentials = Credentials::load(source, reader)
        .map_err(|error| findings.push(cannot_read(&source.directory, &error)))
        .ok();
    if let Some(credentials) = &credentials {
        findings.extend(check_credentials(
            config.as_ref(),
            runtime.as_ref(),
            credentials,
            source,
            files,
        ));
    }
    match (config, runtime, credentials) {
        (Some(config), Some(runtime), Some(credentials)) if !findings.iter().any(Finding::is_error) => Ok(Loaded {
            config,
            runtime,
            credentials,
            warnings: findings,
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

/// Checks the configuration of a host for a person. Besides what [`load`] finds, this checks the permissions of the credentials
/// and the file of countries.
///
/// If this user may not read the credentials, they are not checked, which is reported as a warning.
pub fn check(files: &ConfigFiles, reader: &impl Reader) -> Checked {
    let source = Source::of_host(files);
    let (mut findings, loaded) = match load(files, &source, reader) {
        Ok(loaded) => (loaded.warnings.clone(), Some(loaded)),
        Err(findings) => (findings, None),
    };
    let countries = loaded
        .as_ref()
        .and_then(|loaded| loaded.config.clicks.countries.as_deref());
    findings.extend(countries.and_then(|path| check_countries(path, reader)));
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
    let Some(Place::S3(_)) = &loaded.config.backup.to else {
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

pub(super) fn read<T>(
    path: &Path,
    reader: &impl Reader,
    parse: impl FnOnce(&str, &str) -> (Option<T>, Vec<Finding>),
) -> (Option<T>, Vec<Finding>) {
    let file = path.display().to_string();
    let text = match reader.read(path) {
        Ok(bytes) => String::from_utf8(bytes).map_err(|_| Finding::error(&file, "is not UTF-8 text")),
        Err(error) => Err(cannot_read(path, &error)),
    };
    match text {
        Ok(text) => parse(&text, &file),
        Err(finding) => (None, vec![finding]),
    }
}

fn cannot_read(path: &Path, error: &io::Error) -> Finding {
    Finding::error(path.display().to_string(), format!("cannot be read: {error}"))
}

/// Problems of the credentials that the two files ask for.
fn check_credentials(
    config: Option<&Config>,
    runtime: Option<&RuntimeToml>,
    credentials: &Credentials,
    source: &Source,
    files: &ConfigFiles,
) -> Vec<Finding> {
    let file = |name: &str| source.file(name).display().to_string();
    let mut findings = Vec::new();
    let headers = config.and_then(|config| config.telemetry.headers.as_ref());
    let of_links = headers.map(|reference| (files.links_toml(), reference));
    let of_runtime = runtime.map(RuntimeToml::references).unwrap_or_default();
    let of_runtime = of_runtime.iter().map(|reference| (files.runtime_toml(), reference));
    let references: Vec<_> = of_links.into_iter().chain(of_runtime).collect();
    for (path, reference) in &references {
        let name = &reference.credential;
        if credentials.get(name).is_none() && !credentials.unusable().contains_key(name) {
            findings.push(
                Finding::error(
                    path.display().to_string(),
                    format!("the credential `{name}` is missing"),
                )
                .at((reference.line, reference.column))
                .help(format!("put it into {}, mode 0600", file_of(name))),
            );
        }
    }
    for (name, problem) in credentials.unusable() {
        let used = name == ADMIN_TOKEN || references.iter().any(|(_, reference)| reference.credential == *name);
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
