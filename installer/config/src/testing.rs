//! An imaginary file system for tests.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use super::reader::{Entry, Reader};

#[derive(Clone, Default)]
pub struct Files {
    files: BTreeMap<PathBuf, (Vec<u8>, u32)>,
    locked: Option<PathBuf>,
}

impl Files {
    pub fn with(self, path: &str, text: &str, mode: u32) -> Self {
        self.with_bytes(path, text.as_bytes(), mode)
    }

    pub fn with_bytes(mut self, path: &str, bytes: &[u8], mode: u32) -> Self {
        self.files.insert(path.into(), (bytes.to_vec(), mode));
        self
    }

    pub fn without(mut self, path: &str) -> Self {
        self.files.remove(Path::new(path));
        self
    }

    /// Makes a directory unreadable, as for a user who is not root.
    pub fn locked(mut self, directory: &str) -> Self {
        self.locked = Some(directory.into());
        self
    }

    fn allowed(&self, path: &Path) -> io::Result<()> {
        match &self.locked {
            Some(locked) if path.starts_with(locked) => Err(io::ErrorKind::PermissionDenied.into()),
            _ => Ok(()),
        }
    }
}

impl Reader for Files {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        self.allowed(path)?;
        let file = self.files.get(path).ok_or(io::ErrorKind::NotFound)?;
        Ok(file.0.clone())
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<Entry>> {
        self.allowed(directory)?;
        let inside = self.files.iter().filter(|(path, _)| path.parent() == Some(directory));
        let entries: Vec<Entry> = inside
            .filter_map(|(path, (_, mode))| {
                Some(Entry {
                    name: path.file_name()?.to_str()?.to_owned(),
                    is_file: true,
                    dangles: false,
                    mode: *mode,
                })
            })
            .collect();
        if entries.is_empty() {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(entries)
    }
}
