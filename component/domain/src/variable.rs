//! Values of configuration variables.

use std::fmt;

/// A variable whose value is invalid. None of these variables is a secret, so the message may be shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invalid {
    pub variable: &'static str,
    pub wanted: &'static str,
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the variable {} must be {}", self.variable, self.wanted)
    }
}

/// Parses a duration in whole seconds; an empty text stands for `unset`.
///
/// # Errors
/// The text is not a number from 0 to 4,294,967,295.
pub fn seconds(variable: &'static str, text: &str, unset: i64) -> Result<i64, Invalid> {
    match text.trim() {
        "" => Ok(unset),
        text => text.parse::<u32>().map(i64::from).map_err(|_| Invalid {
            variable,
            wanted: "a whole number of seconds",
        }),
    }
}
