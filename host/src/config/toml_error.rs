//! TOML errors with a line number. They never quote the line, which may hold a secret.

use anyhow::{Error, anyhow};

/// Parses `text` as a `T`.
///
/// # Errors
/// The text is invalid. The error gives the line and the reason, but no file name.
pub fn from_str<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, Error> {
    toml::from_str(text).map_err(|error: toml::de::Error| {
        let message = error.message().trim_end();
        match error.span() {
            // Bytes, not characters, because the span counts bytes and may not start at a character boundary.
            Some(span) => {
                let before = text.as_bytes().iter().take(span.start);
                anyhow!("line {}: {message}", 1 + before.filter(|byte| **byte == b'\n').count())
            }
            None => anyhow!("{message}"),
        }
    })
}
