//! The files with the settings: `links.toml`, then the files in `links.toml.d`.

use std::io;
use std::path::Path;

use crate::files::ConfigFiles;
use crate::finding::Finding;
use crate::reader::Reader;

/// A file with settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Input {
    /// The path of the file.
    pub file: String,
    pub text: String,
}

/// Whether a file of `links.toml.d` with this name is read. Backups of editors (`~`) and of dpkg (`.dpkg-old`) are not, nor are
/// hidden files.
pub fn is_read(name: &str) -> bool {
    name.ends_with(".toml") && !name.starts_with('.')
}

/// The files with the settings in the order in which they are read: `links.toml`, then those in `links.toml.d` in the byte order
/// of their names. The directory may be missing.
///
/// # Errors
/// An error for each file that cannot be read.
pub fn inputs(files: &ConfigFiles, reader: &impl Reader) -> Result<Vec<Input>, Vec<Finding>> {
    let mut paths = vec![files.links_toml()];
    let mut errors = vec![];
    let directory = files.links_toml_d();
    match reader.list(&directory) {
        // A link to a missing file is a mistake. A link to /dev/null is a way to leave a file out.
        Ok(entries) => paths.extend(
            entries
                .iter()
                .filter(|entry| is_read(&entry.name) && (entry.is_file || entry.dangles))
                .map(|entry| directory.join(&entry.name)),
        ),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => errors.push(Finding::unreadable(&directory, &error)),
    }
    let mut inputs = vec![];
    for path in paths {
        match text(&path, reader) {
            Ok(text) => inputs.push(Input {
                file: path.display().to_string(),
                text,
            }),
            Err(error) => errors.push(error),
        }
    }
    if errors.is_empty() { Ok(inputs) } else { Err(errors) }
}

/// The text of a file.
///
/// # Errors
/// The file cannot be read, or it is not UTF-8.
pub fn text(path: &Path, reader: &impl Reader) -> Result<String, Finding> {
    let bytes = reader.read(path).map_err(|error| Finding::unreadable(path, &error))?;
    String::from_utf8(bytes).map_err(|_| Finding::error(path.display().to_string(), "is not UTF-8 text"))
}
