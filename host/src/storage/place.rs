//! The location of a SQLite database.

use std::path::PathBuf;

#[derive(Clone, Debug, PartialEq)]
pub enum Place {
    Memory,
    File(PathBuf),
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Memory => f.write_str("in memory"),
            Self::File(path) => path.display().fmt(f),
        }
    }
}
