//! The files of one test.

use std::path::PathBuf;

use anyhow::Result;
use tempfile::TempDir;

/// A temporary directory for the files of one test.
#[derive(Debug)]
pub struct TestDir(TempDir);

impl TestDir {
    /// Creates the directory.
    ///
    /// # Errors
    /// Fails if the directory cannot be created.
    pub fn new() -> Result<Self> {
        Ok(Self(TempDir::new()?))
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}
