//! The releases of Debian that links runs on.

use anyhow::{Result, bail};

/// A release of Debian, which its archive calls a suite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suite {
    /// Debian 12.
    Bookworm,
    /// Debian 13.
    Trixie,
}

impl Suite {
    pub const ALL: [Self; 2] = [Self::Bookworm, Self::Trixie];

    /// The suite on which tests run that name none: that of the environment variable `SUITE`, by default trixie.
    ///
    /// # Errors
    /// Fails if the variable names no suite.
    pub fn of_environment() -> Result<Self> {
        match std::env::var_os("SUITE") {
            Some(name) if !name.is_empty() => Self::named(&name.to_string_lossy()),
            _ => Ok(Self::Trixie),
        }
    }

    fn named(name: &str) -> Result<Self> {
        match Self::ALL.into_iter().find(|suite| suite.name() == name) {
            Some(suite) => Ok(suite),
            None => bail!(
                "SUITE is {name:?}; it can be {}",
                Self::ALL.map(Self::name).join(" or ")
            ),
        }
    }

    /// The name in the archive.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bookworm => "bookworm",
            Self::Trixie => "trixie",
        }
    }

    /// The major version, as /etc/debian_version begins.
    pub fn version(self) -> &'static str {
        match self {
            Self::Bookworm => "12",
            Self::Trixie => "13",
        }
    }

    /// The suite that is not this one.
    pub fn other(self) -> Self {
        match self {
            Self::Bookworm => Self::Trixie,
            Self::Trixie => Self::Bookworm,
        }
    }

    /// The version of its Python.
    pub fn python(self) -> &'static str {
        match self {
            Self::Bookworm => "3.11",
            Self::Trixie => "3.13",
        }
    }
}

impl std::fmt::Display for Suite {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Debian {} ({})", self.version(), self.name())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is how a test fails")]
mod tests {
    use super::*;

    #[test]
    fn a_suite_is_found_by_its_name_and_by_no_other() {
        for suite in Suite::ALL {
            assert_eq!(Suite::named(suite.name()).unwrap(), suite);
            assert_ne!(suite.other(), suite);
        }
        for name in ["Trixie", "13", "forky"] {
            let error = Suite::named(name).unwrap_err().to_string();
            assert!(error.contains("bookworm or trixie"), "{error}");
        }
    }
}
