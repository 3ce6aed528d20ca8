//! What is wrong with one of the servers, in words.

use links_base::layout::ADMIN_TOKEN;
use links_config::check::Loaded;
use links_config::finding::Severity;
use links_config::links::Access;
use links_config::runtime::{Origin, Resolved, file_of};

/// A problem with one provider. The message continues the provider's name: "refuses the token".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    pub severity: Severity,
    pub message: String,
    pub help: Option<String>,
}

impl Diagnostic {
    pub fn error(message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Error,
            message: message.into(),
            help: None,
        }
    }

    pub fn warning(message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Warning,
            ..Self::error(message)
        }
    }

    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

/// Whether the admin token is somewhere else if a variables provider has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdminToken {
    /// Everybody may shorten, so no token is needed.
    NotNeeded,
    /// This host's credentials have one.
    Elsewhere,
    Nowhere,
}

impl AdminToken {
    pub fn of(loaded: &Loaded) -> Self {
        if loaded.config.shorten.access == Access::Open {
            Self::NotNeeded
        } else if loaded.credentials.get(ADMIN_TOKEN).is_some() {
            Self::Elsewhere
        } else {
            Self::Nowhere
        }
    }
}

pub fn renew(token: &Resolved) -> String {
    match &token.origin {
        Origin::Credential(name) => format!("put a valid one into {}, mode 0600", file_of(name)),
        Origin::Variable(name) => format!("set {name} to a valid one, here and with `systemctl edit links@`"),
        Origin::Written => format!(
            "put one into {}, mode 0600, and write token = \"credential:NAME\"",
            file_of("NAME")
        ),
    }
}
