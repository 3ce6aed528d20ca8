//! The configuration of a host, for those who run it.

use std::fmt;
use std::path::{Path, PathBuf};

use super::check::{self, Loaded};
use super::credentials::Source;
use super::finding::Finding;
use super::links::{self, Config};
use super::network::Network;
use super::reader::Disk;
use super::render::{self, Variables};
use super::runtime::{self, Database, Provider};
use super::telemetry::Exports;
use crate::layout::Layout;
use crate::log;

/// The configuration is wrong: each finding on a line of its own.
#[derive(Debug)]
pub struct Invalid(pub Vec<Finding>);

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the configuration is wrong:")?;
        self.0.iter().try_for_each(|finding| write!(f, "\n  {finding}"))
    }
}

impl std::error::Error for Invalid {}

/// All of it, the credentials from where systemd put them or else from where a person keeps them.
///
/// # Errors
/// [`Invalid`]
pub fn load(layout: &Layout) -> Result<Loaded, Invalid> {
    let source = Source::new(layout, std::env::var_os("CREDENTIALS_DIRECTORY"));
    check::load(layout, &source, &Disk).map_err(Invalid)
}

/// All of it, the credentials as an instance finds them.
///
/// # Errors
/// [`Invalid`]
pub fn load_for_instance(layout: &Layout, instance: u16) -> Result<Loaded, Invalid> {
    let source = Source::of_instance(layout, instance, std::env::var_os("CREDENTIALS_DIRECTORY"));
    check::load(layout, &source, &Disk).map_err(Invalid)
}

/// All of it, the credentials from where a person keeps them.
///
/// # Errors
/// [`Invalid`]
pub fn load_as_kept(layout: &Layout) -> Result<Loaded, Invalid> {
    check::load(layout, &Source::of_host(layout), &Disk).map_err(Invalid)
}

/// links.toml alone, for those who need no secret.
///
/// # Errors
/// [`Invalid`]
pub fn load_links(layout: &Layout) -> Result<Config, Invalid> {
    let (config, findings) = check::read(&layout.links_toml(), &Disk, links::read);
    match config {
        Some(config) if !findings.iter().any(Finding::is_error) => Ok(config),
        _ => Err(Invalid(findings)),
    }
}

/// Where the links are, by runtime.toml alone; none where the file is wrong.
pub fn database(layout: &Layout) -> Option<Database> {
    let text = std::fs::read_to_string(layout.runtime_toml()).ok()?;
    Some(runtime::read(&text, "runtime.toml").0?.database())
}

/// The file that holds the links, by runtime.toml alone; none where it is not a local one, or the file is wrong.
pub fn local_database(layout: &Layout) -> Option<PathBuf> {
    database(layout)?.file(layout)
}

impl Database {
    /// The file that holds the links; none where it is not a local one.
    pub fn file(&self, layout: &Layout) -> Option<PathBuf> {
        match self {
            Database::File(path) => Some(render::database_path(Path::new(path), layout)),
            Database::LibSql(_) => None,
        }
    }
}

impl Loaded {
    /// Tells what somebody should look at.
    pub fn log_warnings(&self) {
        for warning in &self.warnings {
            log::notice!("{warning}");
        }
    }

    /// What the runtime is started with, by its supervisor; holds secrets.
    ///
    /// # Errors
    /// A credential is missing, or a variable of this process's environment.
    pub fn render(&self, layout: &Layout) -> Result<String, render::Error> {
        self.rendered(Variables::Own, layout)
    }

    fn rendered(&self, variables: Variables, layout: &Layout) -> Result<String, render::Error> {
        render::runtime_config(&self.runtime, &self.config, &self.credentials, variables, layout)
    }

    /// What is asked over a connection; holds secrets.
    pub fn providers(&self) -> Vec<Provider> {
        self.runtime.providers(&self.credentials)
    }

    /// What has to be reached for it.
    ///
    /// # Errors
    /// A credential is missing.
    pub fn network(&self) -> Result<Network, render::Error> {
        Ok(Network::of(&self.providers(), &self.exports()?))
    }

    /// What the runtime exports; holds secrets.
    ///
    /// # Errors
    /// A credential is missing.
    pub fn exports(&self) -> Result<Exports, render::Error> {
        Exports::new(&self.config, &self.credentials)
    }

    /// What tells configurations apart that an instance must be restarted for. The values of its environment do not.
    ///
    /// # Errors
    /// A credential is missing.
    pub fn digest(&self, layout: &Layout) -> Result<String, render::Error> {
        Ok(render::digest(
            &self.rendered(Variables::Another, layout)?,
            &self.config,
            &self.exports()?,
        ))
    }

    /// The file that holds the links, where it is a local one.
    pub fn local_database(&self, layout: &Layout) -> Option<PathBuf> {
        self.runtime.database().file(layout)
    }
}
