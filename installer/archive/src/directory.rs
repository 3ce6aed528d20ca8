//! The directory with backups. It may belong to anybody, so everything is done through its descriptor: nothing follows a
//! symbolic link in it, and nothing replaces a file.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use data_encoding::HEXLOWER;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, RenameFlags, linkat, openat, renameat_with, statat, unlinkat};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use links_base::beneath;

/// The end of the name of a file that is not complete. Between the name of the backup and this is a mark of the host, so that
/// hosts that share a directory leave each other's files alone.
const PARTIAL: &str = ".partial";

#[derive(Debug)]
pub struct Directory {
    descriptor: OwnedFd,
    path: PathBuf,
    /// Tells hosts apart.
    mark: String,
}

/// A file that gets its name when it is complete.
#[derive(Debug)]
pub struct Partial<'d> {
    directory: &'d Directory,
    name: String,
    pub file: File,
    is_published: bool,
}

impl Directory {
    /// # Errors
    /// There is no such directory.
    pub fn open(path: &Path, machine_id: &str) -> anyhow::Result<Self> {
        let opened = beneath::directory(path).with_context(|| format!("Opening the directory {}", path.display()))?;
        let digest = Sha256::digest(format!("links-backup {}", machine_id.trim()));
        Ok(Self {
            descriptor: opened,
            path: path.to_owned(),
            mark: HEXLOWER.encode(&digest[..4]),
        })
    }

    fn partial_name(&self, name: &str) -> String {
        format!(".{name}.{}{PARTIAL}", self.mark)
    }

    /// Begins the file that is to be `name`.
    ///
    /// # Errors
    /// There is such a file already, or none can be made.
    pub fn begin(&self, name: &str) -> anyhow::Result<Partial<'_>> {
        let path = self.path.join(name);
        if self.has(name)? {
            bail!("{} exists already, and is not replaced", path.display());
        }
        let partial = self.partial_name(name);
        let create = || -> io::Result<File> {
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            Ok(openat(&self.descriptor, &*partial, flags, Mode::RUSR | Mode::WUSR)?.into())
        };
        let file = create().with_context(|| format!("Writing to {}", self.path.display()))?;
        Ok(Partial {
            directory: self,
            name: name.to_owned(),
            file,
            is_published: false,
        })
    }

    fn has(&self, name: &str) -> anyhow::Result<bool> {
        match statat(&self.descriptor, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(error) => Err(error).with_context(|| format!("Reading {}", self.path.display())),
        }
    }

    /// The names and sizes of the regular files.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn files(&self) -> anyhow::Result<BTreeMap<String, u64>> {
        let read = || -> io::Result<BTreeMap<String, u64>> {
            let mut files = BTreeMap::new();
            for name in self.names()? {
                let found = match statat(&self.descriptor, &*name, AtFlags::SYMLINK_NOFOLLOW) {
                    // It was removed since it was listed.
                    Err(Errno::NOENT) => continue,
                    found => found?,
                };
                if FileType::from_raw_mode(found.st_mode) == FileType::RegularFile {
                    files.insert(name, found.st_size.unsigned_abs());
                }
            }
            Ok(files)
        };
        read().with_context(|| format!("Reading {}", self.path.display()))
    }

    fn names(&self) -> io::Result<Vec<String>> {
        let mut names = vec![];
        for entry in Dir::read_from(&self.descriptor)? {
            // Names of backups are plain text.
            if let Ok(name) = entry?.file_name().to_str() {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }

    /// Removes a file. One that is missing is no error.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn remove(&self, name: &str) -> anyhow::Result<()> {
        match unlinkat(&self.descriptor, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error).with_context(|| format!("Removing {}", self.path.join(name).display())),
        }
    }

    /// Removes what interrupted backups of this host have left. Only the holder of the lock may call this.
    ///
    /// # Errors
    /// The directory cannot be read, or a file cannot be removed.
    pub fn remove_leftovers(&self) -> anyhow::Result<()> {
        let names = self
            .names()
            .with_context(|| format!("Reading {}", self.path.display()))?;
        let end = format!(".{}{PARTIAL}", self.mark);
        let leftovers = names
            .iter()
            .filter(|name| name.starts_with('.') && name.ends_with(&end));
        leftovers.into_iter().try_for_each(|name| self.remove(name))
    }
}

impl Partial<'_> {
    /// Gives the file its name. It is on the disk then.
    ///
    /// # Errors
    /// There is such a file by now, or the disk fails.
    pub fn publish(mut self) -> anyhow::Result<()> {
        let Directory { descriptor, path, .. } = self.directory;
        let partial = self.directory.partial_name(&self.name);
        let publish = || -> io::Result<()> {
            self.file.sync_all()?;
            match renameat_with(descriptor, &*partial, descriptor, &*self.name, RenameFlags::NOREPLACE) {
                Ok(()) => {}
                // Network file systems do not support the flag.
                Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                    linkat(descriptor, &*partial, descriptor, &*self.name, AtFlags::empty())?;
                    unlinkat(descriptor, &*partial, AtFlags::empty())?;
                }
                Err(error) => return Err(error.into()),
            }
            match rustix::fs::fsync(descriptor) {
                // Some file systems do not sync directories.
                Ok(()) | Err(Errno::INVAL) => Ok(()),
                Err(error) => Err(error.into()),
            }
        };
        publish().with_context(|| format!("Writing {}", path.join(&self.name).display()))?;
        self.is_published = true;
        Ok(())
    }
}

impl Drop for Partial<'_> {
    fn drop(&mut self) {
        if !self.is_published {
            let partial = self.directory.partial_name(&self.name);
            // What is left has a name that looks incomplete, and the next backup removes it.
            let _ = self.directory.remove(&partial);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use std::fs;
    use std::io::Write as _;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    fn names(path: &Path) -> Vec<String> {
        links_base::files::list(path).unwrap()
    }

    #[test]
    fn a_file_gets_its_name_when_it_is_complete() {
        let root = tempfile::tempdir().unwrap();
        let directory = Directory::open(root.path(), "m").unwrap();
        let mut partial = directory.begin("a.tar.zst").unwrap();
        partial.file.write_all(b"abc").unwrap();
        assert!(names(root.path())[0].ends_with(PARTIAL));
        partial.publish().unwrap();
        assert_eq!(names(root.path()), ["a.tar.zst"]);
        let mode = fs::metadata(root.path().join("a.tar.zst"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(directory.files().unwrap(), [("a.tar.zst".to_owned(), 3)].into());

        drop(directory.begin("b.tar.zst").unwrap());
        assert_eq!(names(root.path()), ["a.tar.zst"]);
        directory.remove("a.tar.zst").unwrap();
        directory.remove("a.tar.zst").unwrap();
        assert_eq!(names(root.path()), [""; 0]);
    }

    #[test]
    fn nothing_is_replaced_and_no_link_is_followed() {
        let root = tempfile::tempdir().unwrap();
        let directory = Directory::open(root.path(), "m").unwrap();
        fs::write(root.path().join("a"), "old").unwrap();
        symlink("a", root.path().join("link")).unwrap();
        assert!(directory.begin("a").is_err() && directory.begin("link").is_err());
        let partial = directory.begin("b").unwrap();
        fs::write(root.path().join("b"), "theirs").unwrap();
        assert!(partial.publish().is_err());
        assert_eq!(fs::read_to_string(root.path().join("b")).unwrap(), "theirs");
        assert_eq!(names(root.path()), ["a", "b", "link"]);
        assert!(!directory.files().unwrap().contains_key("link"));
    }

    #[test]
    fn only_own_leftovers_are_removed() {
        let root = tempfile::tempdir().unwrap();
        let (own, other) = (
            Directory::open(root.path(), "m\n").unwrap(),
            Directory::open(root.path(), "n").unwrap(),
        );
        fs::write(root.path().join(own.partial_name("a")), "").unwrap();
        fs::write(root.path().join(other.partial_name("b")), "").unwrap();
        fs::write(root.path().join(".c.partial"), "").unwrap();
        own.remove_leftovers().unwrap();
        assert_eq!(names(root.path()), [other.partial_name("b"), ".c.partial".to_owned()]);
    }
}
