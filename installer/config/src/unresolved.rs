//! Why the configuration cannot be rendered for a runtime.

use thiserror::Error;

use super::runtime::file_of;

#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Error {
    #[error("the credential `{name}`, which the configuration asks for, is missing; put it into {path}, mode 0600", path = file_of(.name))]
    MissingCredential { name: String },
    #[error(
        "the variable `{name}`, which the configuration asks for, {problem}; set it with `systemctl edit links@`, Environment= or EnvironmentFile="
    )]
    Variable { name: String, problem: String },
    #[error("writing the runtime's configuration: {0}")]
    Toml(String),
}
