//! Loads the configuration of a host.

use std::fmt;
use std::path::{Path, PathBuf};

use super::check::{self, Loaded};
use super::credentials::Source;
use super::files::{ConfigFiles, Places};
use super::finding::Finding;
use super::links::{Config, Reading};
use super::network::Network;
use super::reader::{Disk, Reader};
use super::render::{self, Variables};
use super::runtime::{self, Database, Provider};
use super::telemetry::Exports;
use links_base::log;
use links_base::privileges::NeedsRoot;

/// The configuration is wrong. Displayed with each finding on a line of its own.
#[derive(Debug)]
pub struct Invalid(pub Vec<Finding>);

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the configuration is wrong:")?;
        self.0.iter().try_for_each(|finding| write!(f, "\n  {finding}"))
    }
}

impl std::error::Error for Invalid {}

/// Loads the configuration, with the credentials from systemd, or from the administrator's directory if there are none.
///
/// # Errors
/// [`Invalid`]
pub fn load(files: &ConfigFiles) -> Result<Loaded, Invalid> {
    let source = Source::new(files, std::env::var_os("CREDENTIALS_DIRECTORY"));
    check::load(files, &source, &Disk).map_err(Invalid)
}

/// Loads the configuration, with the credentials of one instance ([`Source::of_instance`]).
///
/// # Errors
/// [`Invalid`]
pub fn load_for_instance(files: &ConfigFiles, instance: u16) -> Result<Loaded, Invalid> {
    let source = Source::of_instance(files, instance, std::env::var_os("CREDENTIALS_DIRECTORY"));
    check::load(files, &source, &Disk).map_err(Invalid)
}

/// Loads the configuration, with the credentials from the administrator's directory.
///
/// # Errors
/// [`Invalid`]
pub fn load_as_kept(files: &ConfigFiles) -> Result<Loaded, Invalid> {
    load_through(files, &Disk)
}

/// Loads the configuration like [`load_as_kept`], through a reader.
///
/// # Errors
/// [`Invalid`]
pub fn load_through(files: &ConfigFiles, reader: &impl Reader) -> Result<Loaded, Invalid> {
    check::load(files, &Source::of_host(files), reader).map_err(Invalid)
}

/// Loads links.toml and the files that extend it, for callers that need no secret.
///
/// # Errors
/// [`Invalid`]
pub fn load_links(files: &ConfigFiles) -> Result<Config, Invalid> {
    let (_, Reading { config, findings, .. }) = check::read_links(files, &Disk);
    config.ok_or(Invalid(findings))
}

/// The database that holds the links, from runtime.toml alone. `None` if that file is wrong.
pub fn database(files: &ConfigFiles) -> Option<Database> {
    let text = std::fs::read_to_string(files.runtime_toml()).ok()?;
    Some(runtime::read(&text, "runtime.toml").0?.database())
}

/// The SQLite file that holds the links, from runtime.toml alone. `None` for a remote database, or if runtime.toml is wrong.
pub fn local_database(files: &ConfigFiles) -> Option<PathBuf> {
    database(files)?.file(files.places())
}

impl Database {
    /// The SQLite file that holds the links. `None` for a remote database.
    pub fn file(&self, places: &Places) -> Option<PathBuf> {
        match self {
            Database::File(path) => Some(render::database_path(Path::new(path), places)),
            Database::LibSql(_) => None,
        }
    }
}

impl Loaded {
    /// Logs the warnings.
    pub fn log_warnings(&self) {
        for warning in &self.warnings {
            log::notice!("{warning}");
        }
    }

    /// The file with which a supervisor starts the runtime; holds secrets.
    ///
    /// # Errors
    /// A credential is missing, or a variable in this process's environment is missing or invalid.
    pub fn render(&self, places: &Places) -> Result<String, render::Error> {
        self.rendered(Variables::Own, places)
    }

    fn rendered(&self, variables: Variables, places: &Places) -> Result<String, render::Error> {
        render::runtime_config(&self.runtime, &self.config, &self.credentials, variables, places)
    }

    /// The providers that are reached over a connection; holds secrets.
    pub fn providers(&self) -> Vec<Provider> {
        self.runtime.providers(&self.credentials)
    }

    /// The network access that the configuration requires.
    ///
    /// # Errors
    /// A credential is missing.
    pub fn network(&self) -> Result<Network, render::Error> {
        Ok(Network::of(&self.providers(), &self.exports()?))
    }

    /// The telemetry that the runtime exports; holds secrets.
    ///
    /// # Errors
    /// A credential is missing.
    pub fn exports(&self) -> Result<Exports, render::Error> {
        Exports::new(&self.config, &self.credentials)
    }

    /// A digest of everything that an instance must be restarted for, except the values in its environment.
    ///
    /// # Errors
    /// A credential is missing.
    pub fn digest(&self, places: &Places) -> Result<String, render::Error> {
        Ok(render::digest(
            &self.rendered(Variables::Another, places)?,
            &self.config,
            &self.exports()?,
        ))
    }

    /// The SQLite file that holds the links. `None` for a remote database.
    pub fn local_database(&self, places: &Places) -> Option<PathBuf> {
        self.runtime.database().file(places)
    }
}

/// The exit status for a wrong configuration: `EX_CONFIG` of sysexits.h. systemd does not restart after it
/// (`RestartPreventExitStatus=`).
pub const EX_CONFIG: u8 = 78;
/// The exit status if root is needed: `EX_NOPERM` of sysexits.h.
pub const EX_NOPERM: u8 = 77;

/// The exit status of a program that ends with `error`.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    if error.is::<NeedsRoot>() {
        EX_NOPERM
    } else if error.is::<Invalid>() {
        EX_CONFIG
    } else {
        1
    }
}
