//! Configuration files: the application manifest and the runtime configuration.

pub mod manifest;
pub mod runtime;
mod toml_error;
