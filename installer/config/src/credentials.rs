//! Named secrets. Each is in a file of its own, systemd passes them to the services, and they are never printed.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use super::files::ConfigFiles;
use super::reader::Reader;
use links_base::layout::CREDENTIAL_PREFIX;

/// `text`, which another program wrote, with one secret masked.
pub fn without(text: &str, secret: &str) -> String {
    // Anything shorter is hardly a secret, and would match all over the text.
    match secret.len() >= 4 {
        true => text.replace(secret, "[secret]"),
        false => text.to_owned(),
    }
}

/// Secrets by name.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Credentials {
    secrets: BTreeMap<String, String>,
    /// Names of the files that do not hold a secret, with the reason.
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

    /// `text`, which another program wrote, with all secrets masked.
    pub fn redact(&self, text: &str) -> String {
        self.secrets
            .values()
            .fold(text.to_owned(), |text, secret| without(&text, secret))
    }

    /// Names of the files that do not hold a secret, with the reason. This is an error only for those that are used.
    pub fn unusable(&self) -> &BTreeMap<String, String> {
        &self.unusable
    }

    /// Reads every credential of a source. A missing directory holds none.
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

/// Prints only the names: a secret in the output would end up in a log.
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
    /// The prefix of the file names, which is not part of the credentials' names.
    pub prefix: &'static str,
}

impl Source {
    /// The directory in which systemd passes credentials to a service, `$CREDENTIALS_DIRECTORY`, with the prefix that
    /// `LoadCredential=` adds to the files of a directory. Without that variable, the directory that the administrator
    /// maintains.
    pub fn new(files: &ConfigFiles, credentials_directory: Option<OsString>) -> Self {
        match credentials_directory {
            Some(directory) if !directory.is_empty() => Self {
                directory: directory.into(),
                prefix: CREDENTIAL_PREFIX,
            },
            _ => Self::of_host(files),
        }
    }

    /// The source for an instance: the directory from systemd, or the copies that linksctl made because systemd could not
    /// deliver any.
    pub fn of_instance(files: &ConfigFiles, instance: u16, credentials_directory: Option<OsString>) -> Self {
        let copied = files.fallback_credentials(instance);
        match &credentials_directory {
            Some(directory) if are_in(Path::new(directory)) => Self::new(files, credentials_directory),
            _ if copied.is_dir() => Self {
                directory: copied,
                prefix: "",
            },
            _ => Self::new(files, credentials_directory),
        }
    }

    /// The directory that the administrator maintains.
    pub fn of_host(files: &ConfigFiles) -> Self {
        Self {
            directory: files.credentials_dir(),
            prefix: "",
        }
    }

    /// The file that holds a credential.
    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{}{name}", self.prefix))
    }

    /// The name of the credential in a file. `None` for hidden files, such as temporary ones of an editor.
    fn credential_name<'a>(&self, file: &'a str) -> Option<&'a str> {
        file.strip_prefix(self.prefix).filter(|name| is_name(name))
    }
}

/// Whether a directory exists and holds a credential. systemd leaves the directory empty if its mount does not propagate.
pub fn are_in(directory: &Path) -> bool {
    std::fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_some())
}

/// Whether this is a valid name for a credential: at most 128 letters, digits, `_`, `-` and `.`, not starting with `.`. Such a
/// name is a plain file name, and systemd accepts it with our prefix (systemd.exec(5)).
pub fn is_name(name: &str) -> bool {
    (1..=128).contains(&name.len())
        && !name.starts_with('.')
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.'))
}

/// The secret in the file of a credential: one line of text without its line break.
///
/// # Errors
/// Describes what is wrong with the file, without repeating its contents.
pub fn secret(bytes: &[u8]) -> Result<String, &'static str> {
    let text = std::str::from_utf8(bytes).map_err(|_| "is not UTF-8 text")?;
    let text = text.strip_suffix('\n').unwrap_or(text);
    let text = text.strip_suffix('\r').unwrap_or(text);
    match text {
        "" => Err("is empty"),
        _ if text.contains(['\n', '\r']) => Err("has more than one line"),
        _ if text.contains(char::is_control) => Err("holds a control character"),
        _ if text.trim() != text => Err("starts or ends with white space"),
        _ => Ok(text.to_owned()),
    }
}
