//! What is wrong with a TOML file, and in which line: without quoting the line, which may hold a secret.

use anyhow::{Error, anyhow};

/// Reads `text` as a `T`.
///
/// # Errors
/// The line and the reason, without the file's name.
pub fn from_str<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, Error> {
    toml::from_str(text).map_err(|error: toml::de::Error| {
        let message = error.message().trim_end();
        match error.span() {
            // The span is in bytes of the text; a count of lines needs no care for where characters end.
            Some(span) => {
                let before = text.as_bytes().iter().take(span.start);
                anyhow!("line {}: {message}", 1 + before.filter(|byte| **byte == b'\n').count())
            }
            None => anyhow!("{message}"),
        }
    })
}
