//! The providers of values.

use std::collections::HashMap;

use anyhow::Result;

use super::environment::Environment;
use super::vault::Vault;

/// A source of values. If several providers have a variable, the first one wins.
pub enum Provider {
    Static(HashMap<String, String>),
    Environment(Environment),
    Vault(Box<Vault>),
}

/// Omits the values, which may be secrets.
impl std::fmt::Debug for Provider {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Static(values) => f.debug_set().entries(values.keys()).finish(),
            Self::Environment(environment) => write!(f, "{}_*", environment.prefix),
            Self::Vault(vault) => vault.fmt(f),
        }
    }
}

impl Provider {
    /// # Errors
    /// The provider does not answer.
    pub async fn get(&self, name: &str) -> Result<Option<String>> {
        match self {
            Self::Static(values) => Ok(values.get(name).cloned()),
            Self::Environment(environment) => environment.get(name),
            Self::Vault(vault) => vault.get(name).await,
        }
    }

    /// Whether the provider may have the variable. Network providers always may, because they are not queried here.
    pub fn may_have(&self, name: &str) -> bool {
        match self {
            Self::Static(values) => values.contains_key(name),
            Self::Environment(environment) => matches!(environment.get(name), Ok(Some(_))),
            Self::Vault(_) => true,
        }
    }
}
