//! A problem in a file, and its position.

use std::fmt;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// links does not start with this configuration.
    Error,
    /// links starts, but the administrator should look at this.
    Warning,
}

/// A position in a file. Displayed as `FILE:LINE:COLUMN`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// The path of the file.
    pub file: String,
    /// The line, starting at 1.
    pub line: usize,
    /// The column, starting at 1, in characters.
    pub column: usize,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.column)
    }
}

/// A value that replaces the one of an earlier file. Displayed with both positions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Override {
    /// The key with its tables, such as `health.timeout`.
    pub key: String,
    /// The value that counts.
    pub position: Position,
    /// The value that it replaces.
    pub replaced: Position,
}

impl fmt::Display for Override {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            key,
            position,
            replaced,
        } = self;
        write!(f, "{position}: `{key}` replaces the value in {replaced}")
    }
}

/// One problem in a file. Displayed as `FILE:LINE:COLUMN: MESSAGE; HELP`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    pub severity: Severity,
    /// The path of the file.
    pub file: String,
    /// The line, starting at 1. `None` if the finding is about the whole file.
    pub line: Option<usize>,
    /// The column, starting at 1, in characters.
    pub column: Option<usize>,
    /// The description of the problem. Never holds a secret.
    pub message: String,
    /// How to fix the problem.
    pub help: Option<String>,
}

impl Finding {
    /// An error about a whole file.
    pub fn error(file: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Error,
            file: file.into(),
            line: None,
            column: None,
            message: message.into(),
            help: None,
        }
    }

    /// A warning about a whole file.
    pub fn warning(file: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Warning,
            ..Self::error(file, message)
        }
    }

    /// An error about a file or a directory that cannot be read.
    pub fn unreadable(path: &Path, error: &io::Error) -> Self {
        Self::error(path.display().to_string(), format!("cannot be read: {error}"))
    }

    #[must_use]
    pub fn at(mut self, (line, column): (usize, usize)) -> Self {
        self.line = Some(line);
        self.column = Some(column);
        self
    }

    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        for number in [self.line, self.column].into_iter().flatten() {
            write!(f, ":{number}")?;
        }
        f.write_str(match self.severity {
            Severity::Error => ": ",
            Severity::Warning => ": warning: ",
        })?;
        f.write_str(&self.message)?;
        match &self.help {
            Some(help) => write!(f, "; {help}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_one_line_with_its_position() {
        let unknown = Finding::error("links.toml", "unknown key `instnaces`")
            .at((12, 1))
            .help("did you mean `instances`?");
        assert_eq!(
            unknown.to_string(),
            "links.toml:12:1: unknown key `instnaces`; did you mean `instances`?"
        );
        assert_eq!(
            Finding::warning("links.toml", "anyone may shorten").to_string(),
            "links.toml: warning: anyone may shorten"
        );
    }
}
