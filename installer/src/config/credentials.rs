//! Secrets by name. They live in files of their own, are handed over by systemd, and are never printed.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use super::reader::Reader;
use crate::layout::{CREDENTIAL_PREFIX, Layout};

/// `text` of somebody else's without one secret that it repeats.
pub fn without(text: &str, secret: &str) -> String {
    // Shorter ones are no secrets, and would be found everywhere.
    match secret.len() >= 4 {
        true => text.replace(secret, "[secret]"),
        false => text.to_owned(),
    }
}

/// Name to secret.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Credentials {
    secrets: BTreeMap<String, String>,
    /// Why a file is none, by the name that it would have.
    unusable: BTreeMap<String, String>,
}

impl Credentials {
    pub fn get(&self, name: &str) -> Option<&str> {
        self.secrets.get(name).map(String::as_str)
    }

    #[cfg(test)]
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.secrets.keys().map(String::as_str)
    }

    pub fn insert(&mut self, name: impl Into<String>, secret: impl Into<String>) {
        self.secrets.insert(name.into(), secret.into());
    }

    /// `text` of somebody else's without the secrets that it repeats.
    pub fn redact(&self, text: &str) -> String {
        self.secrets
            .values()
            .fold(text.to_owned(), |text, secret| without(&text, secret))
    }

    /// The files that hold no secret, and why: each is wrong only where something asks for it.
    pub fn unusable(&self) -> &BTreeMap<String, String> {
        &self.unusable
    }

    /// Reads every credential of a source. A directory that is not there holds none.
    ///
    /// # Errors
    /// The directory cannot be listed.
    pub fn load(source: &Source, reader: &impl Reader) -> io::Result<Self> {
        let entries = match reader.list(&source.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            entries => entries?,
        };
        let mut credentials = Self::default();
        for entry in entries.into_iter().filter(|entry| entry.is_file || entry.dangles) {
            let Some(name) = source.credential_name(&entry.name) else {
                continue;
            };
            if entry.dangles {
                let why = "is a symbolic link to a file that is missing".to_owned();
                credentials.unusable.insert(name.to_owned(), why);
                continue;
            }
            let bytes = reader.read(&source.directory.join(&entry.name));
            match bytes
                .map_err(|error| format!("cannot be read: {error}"))
                .and_then(|bytes| secret(&bytes).map_err(str::to_owned))
            {
                Ok(secret) => credentials.insert(name, secret),
                Err(problem) => {
                    credentials.unusable.insert(name.to_owned(), problem);
                }
            }
        }
        Ok(credentials)
    }
}

/// Names only: a secret that can be printed will be.
impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map()
            .entries(self.secrets.keys().map(|name| (name, format_args!("[secret]"))))
            .finish()
    }
}

/// Where credentials come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    pub directory: PathBuf,
    /// What each file's name starts with before the credential's own.
    pub prefix: &'static str,
}

impl Source {
    /// What systemd hands to a service: `$CREDENTIALS_DIRECTORY`, names prefixed as `LoadCredential=` does with a
    /// directory. Without that variable, the directory that a person keeps.
    pub fn new(layout: &Layout, credentials_directory: Option<OsString>) -> Self {
        match credentials_directory {
            Some(directory) if !directory.is_empty() => Self {
                directory: directory.into(),
                prefix: CREDENTIAL_PREFIX,
            },
            _ => Self::of_host(layout),
        }
    }

    /// What an instance finds: systemd's, or else what linksctl has copied because systemd could not deliver any.
    pub fn of_instance(layout: &Layout, instance: u16, credentials_directory: Option<OsString>) -> Self {
        let copied = layout.fallback_credentials_dir(instance);
        match &credentials_directory {
            Some(directory) if are_in(Path::new(directory)) => Self::new(layout, credentials_directory),
            _ if copied.is_dir() => Self {
                directory: copied,
                prefix: "",
            },
            _ => Self::new(layout, credentials_directory),
        }
    }

    /// The directory that a person keeps.
    pub fn of_host(layout: &Layout) -> Self {
        Self {
            directory: layout.credentials_dir(),
            prefix: "",
        }
    }

    /// The file that holds a credential.
    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{}{name}", self.prefix))
    }

    /// The credential that a file holds. Hidden files (an editor's, a half-written one) hold none.
    fn credential_name<'a>(&self, file: &'a str) -> Option<&'a str> {
        file.strip_prefix(self.prefix).filter(|name| is_name(name))
    }
}

/// Whether any credential is in a directory, which may be missing: where its mount does not propagate, systemd leaves it
/// empty.
pub fn are_in(directory: &Path) -> bool {
    std::fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_some())
}

/// Whether this can name a credential: letters, digits, `_`, `-` and `.`, not first a `.`, at most 128 bytes. So it is
/// a plain file name, and one that systemd accepts (systemd.exec(5)) with our prefix before it.
pub fn is_name(name: &str) -> bool {
    (1..=128).contains(&name.len())
        && !name.starts_with('.')
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.'))
}

/// The secret in a credential's file: one line of text; the end of the line is not part of it.
///
/// # Errors
/// What is wrong with it, in words that do not repeat it.
pub fn secret(bytes: &[u8]) -> Result<String, &'static str> {
    let text = std::str::from_utf8(bytes).map_err(|_| "is not UTF-8 text")?;
    let text = text.strip_suffix('\n').unwrap_or(text);
    let text = text.strip_suffix('\r').unwrap_or(text);
    match text {
        "" => Err("is empty"),
        _ if text.contains(['\n', '\r']) => Err("has more than one line"),
        _ if text.contains(char::is_control) => Err("holds a control character"),
        _ if text.trim() != text => Err("starts or ends with a blank"),
        _ => Ok(text.to_owned()),
    }
}
