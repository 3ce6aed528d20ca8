//! Variables from the environment of this process and from dotenv files.

use std::collections::HashMap;
use std::env::VarError;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};

/// The environment variables `PREFIX_NAME`, with those of a dotenv file as a fallback.
pub struct Environment {
    pub prefix: String,
    pub file: HashMap<String, String>,
}

impl Environment {
    pub const DEFAULT_PREFIX: &str = "SPIN_VARIABLE";

    /// As in Spin, the file `dotenv` may be missing.
    ///
    /// # Errors
    /// The dotenv file exists but cannot be read or parsed.
    pub fn load(prefix: Option<String>, dotenv: Option<PathBuf>) -> Result<Self> {
        let mut file = HashMap::new();
        if let Some(path) = dotenv {
            let reading = || format!("Reading {}", path.display());
            match dotenvy::from_path_iter(&path) {
                Ok(entries) => {
                    for entry in entries {
                        let (key, value) = entry.with_context(reading)?;
                        file.insert(key, value);
                    }
                }
                Err(error) if error.not_found() => {}
                Err(error) => return Err(error).with_context(reading),
            }
        }
        Ok(Self {
            prefix: prefix.unwrap_or_else(|| Self::DEFAULT_PREFIX.to_owned()),
            file,
        })
    }

    /// # Errors
    /// The environment variable is not UTF-8.
    pub fn get(&self, name: &str) -> Result<Option<String>> {
        let key = format!("{}_{}", self.prefix, name.to_ascii_uppercase());
        match std::env::var(&key) {
            Ok(value) => Ok(Some(value)),
            Err(VarError::NotPresent) => Ok(self.file.get(&key).cloned()),
            Err(VarError::NotUnicode(_)) => bail!("the environment variable {key} is not UTF-8"),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic fails the test")]
mod tests {
    use super::*;

    #[test]
    fn a_dotenv_file_may_be_missing_but_not_unreadable() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Environment::load(None, Some(dir.path().join("missing"))).is_ok());
        let file = dir.path().join("file");
        std::fs::write(&file, "SPIN_VARIABLE_A=1\n").unwrap();
        assert!(Environment::load(None, Some(file.clone())).is_ok());
        // Not a directory. Unlike a missing permission, this fails for root as well.
        let error = Environment::load(None, Some(file.join("x"))).err().unwrap();
        assert!(format!("{error:#}").contains("file/x"), "{error:#}");
    }

    #[test]
    fn a_dotenv_file_is_a_fallback_for_the_environment() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(".env");
        std::fs::write(&path, "LINKS_TEST_ONLY_IN_FILE=\"from file\"\n").unwrap();
        let environment = Environment::load(Some("LINKS_TEST".into()), Some(path)).unwrap();
        assert_eq!(environment.get("only_in_file").unwrap().as_deref(), Some("from file"));
        assert_eq!(environment.get("nowhere").unwrap(), None);
        assert!(
            Environment::load(None, Some(dir.path().join("missing")))
                .unwrap()
                .file
                .is_empty()
        );
    }
}
