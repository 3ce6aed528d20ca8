//! Where the backups are: a directory, or a prefix in S3.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::child;
use crate::directory::Directory;
use crate::names;
use links_base::layout::Layout;
use links_config::backup::{Location, Object, Problem, S3Location};

/// A location that can be reached.
#[derive(Debug)]
pub enum Store {
    Directory(Directory),
    S3(Bucket),
}

/// A prefix in S3, for links-backup.
#[derive(Debug)]
pub struct Bucket {
    pub root: PathBuf,
    pub location: S3Location,
}

impl Store {
    /// Opens a directory, or takes a prefix in S3 for granted.
    ///
    /// # Errors
    /// There is no such directory.
    pub fn open(layout: &Layout, location: &Location) -> anyhow::Result<Self> {
        Ok(match location {
            Location::Path(path) => {
                let machine_id = fs::read_to_string(layout.machine_id()).unwrap_or_default();
                Self::Directory(Directory::open(path, &machine_id)?)
            }
            Location::S3(location) => Self::S3(Bucket {
                root: layout.root().to_owned(),
                location: location.clone(),
            }),
        })
    }

    /// The names and sizes of all files.
    ///
    /// # Errors
    /// The directory cannot be read, or the server does not answer.
    pub fn files(&self) -> anyhow::Result<BTreeMap<String, u64>> {
        match self {
            Self::Directory(directory) => directory.files(),
            Self::S3(bucket) => {
                let listed = bucket.run("list", &[&bucket.location.to_string()])?;
                let objects = listed.lines().map(|line| {
                    let object: Object = serde_json::from_str(line).context("Parsing the list of objects")?;
                    Ok((object.name, object.bytes))
                });
                objects.collect()
            }
        }
    }

    /// Removes files.
    ///
    /// # Errors
    /// One cannot be removed.
    pub fn remove(&self, names: &[String]) -> anyhow::Result<()> {
        match self {
            Self::Directory(directory) => names.iter().try_for_each(|name| directory.remove(name)),
            Self::S3(_) if names.is_empty() => Ok(()),
            Self::S3(bucket) => {
                let location = bucket.location.to_string();
                let names = names.iter().map(String::as_str);
                let arguments: Vec<_> = [location.as_str()].into_iter().chain(names).collect();
                bucket.run("remove", &arguments).map(drop)
            }
        }
    }
}

impl Bucket {
    fn run(&self, command: &str, arguments: &[&str]) -> anyhow::Result<String> {
        let arguments = [command].into_iter().chain(arguments.iter().copied());
        child::run(&self.root, arguments.map(OsString::from))
    }

    /// Ends an upload that was interrupted.
    ///
    /// # Errors
    /// The server does not answer.
    pub fn abort(&self, object: &str, upload: &str) -> anyhow::Result<()> {
        self.run("abort", &[object, upload]).map(drop)
    }
}

/// The location of a new backup, and its name there if `to` names a file: only a name with the extension of a backup does.
///
/// # Errors
/// There is no such directory.
pub fn of_new(to: &Location) -> anyhow::Result<(Location, Option<String>)> {
    let Location::Path(path) = to else {
        return Ok((to.clone(), None));
    };
    if path.is_dir() {
        return Ok((to.clone(), None));
    }
    let parent = path.parent().filter(|parent| parent.is_dir());
    let name = path.file_name().and_then(|name| name.to_str());
    let name = name.filter(|name| name.contains(names::PLAIN));
    let (Some(parent), Some(name)) = (parent, name) else {
        let text = match missing(path) {
            Some(missing) => format!(
                "there is no directory {}: make it first (the name of a new file has to contain {})",
                missing.display(),
                names::PLAIN
            ),
            None => format!("{} is not a directory", path.display()),
        };
        return Err(Problem::Missing.error(text));
    };
    Ok((Location::Path(parent.to_owned()), Some(name.to_owned())))
}

/// The first directory on a path that does not exist.
fn missing(path: &Path) -> Option<&Path> {
    let ancestors: Vec<_> = path.ancestors().collect();
    ancestors.into_iter().rev().find(|ancestor| !ancestor.exists())
}

/// The location of one backup, and its name there.
///
/// # Errors
/// It names no file.
pub fn of_backup(at: &Location) -> anyhow::Result<(Location, String)> {
    let split = match at {
        Location::Path(path) => path
            .parent()
            .zip(path.file_name().and_then(|name| name.to_str()))
            .map(|(parent, name)| (Location::Path(parent.to_owned()), name.to_owned())),
        Location::S3(object) => {
            let (prefix, name) = object.key.rsplit_once('/').unwrap_or(("", &object.key));
            let location = S3Location {
                bucket: object.bucket.clone(),
                key: prefix.to_owned(),
            };
            (!name.is_empty()).then(|| (Location::S3(location), name.to_owned()))
        }
    };
    split.with_context(|| format!("{at} does not name a backup (`linksctl backup list` shows them)"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use super::*;

    #[test]
    fn a_new_backup_goes_to_a_directory_or_becomes_a_file() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| Location::Path(root.path().join(name));
        let here = Location::Path(root.path().to_owned());
        assert_eq!(of_new(&here).unwrap(), (here.clone(), None));
        assert_eq!(of_new(&at("a.tar.zst")).unwrap(), (here, Some("a.tar.zst".to_owned())));
        for name in ["none/a.tar.zst", "none"] {
            let error = of_new(&at(name)).unwrap_err();
            assert_eq!(Problem::of(&error), Problem::Missing);
            assert!(error.to_string().contains("/none: make it first"), "{error}");
        }
        let s3: Location = "s3://backups/vm".parse().unwrap();
        assert_eq!(of_new(&s3).unwrap(), (s3, None));
    }

    #[test]
    fn a_backup_is_a_name_in_a_location() {
        for (text, location, name) in [
            ("/b/a.tar.zst", "/b", "a.tar.zst"),
            ("s3://backups/vm/a.tar.zst", "s3://backups/vm", "a.tar.zst"),
            ("s3://backups/a.tar.zst", "s3://backups", "a.tar.zst"),
        ] {
            let (found, file) = of_backup(&text.parse().unwrap()).unwrap();
            assert_eq!((found.to_string().as_str(), file.as_str()), (location, name));
        }
        assert!(of_backup(&"s3://backups".parse().unwrap()).is_err());
    }
}
