//! Writes the files of a backup: beside what they will replace, or, to look at them only, into a temporary directory.

use std::fs::{self, Permissions};
use std::io::Read;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

use super::plan::target;
use crate::archive::{Sink, contents, copy};
use crate::check::inspect;
use crate::items::{BASES, CONFIG};
use crate::manifest::{self, Content, Entry, Manifest};
use crate::space::require_space;
use links_base::beneath;
use links_base::files::{self, make_directory};
use links_config::backup::DatabaseFacts;
use links_config::check::Loaded;
use links_config::files::ConfigFiles;
use links_config::load::load_as_kept;
use links_rollout::DatabaseWork;

/// The beginning of the names of directories with what a restore is going to put in place.
const STAGED: &str = ".restored-";
/// The maximum size of a file besides the database, in bytes.
const LIMIT: u64 = 16 << 20;

/// Where the files are written.
#[derive(Debug)]
pub enum Staging {
    /// In a directory with this stamp in each directory whose entries they replace: renames work only within a file system.
    Beside {
        root: PathBuf,
        stamp: String,
    },
    Apart(tempfile::TempDir),
}

impl Staging {
    /// Where an entry is written. `None` for a path that no backup may contain.
    pub fn path_of(&self, entry: &Path) -> Option<PathBuf> {
        let (directory, rest) = self.split(entry)?;
        Some(directory.join(rest))
    }

    /// The directory of an entry's base, and the path below it.
    fn split<'e>(&self, entry: &'e Path) -> Option<(PathBuf, &'e Path)> {
        let base = BASES.iter().find(|base| entry.starts_with(base))?;
        Some((self.directory(base), entry.strip_prefix(base).ok()?))
    }

    fn directory(&self, base: &str) -> PathBuf {
        match self {
            Self::Beside { root, stamp } => root.join(base).join(format!("{STAGED}{stamp}")),
            Self::Apart(directory) => directory.path().join(base),
        }
    }

    /// Removes what was written, also what earlier restores have left.
    ///
    /// # Errors
    /// Something cannot be removed.
    pub fn clean(&self) -> anyhow::Result<()> {
        match self {
            Self::Beside { root, .. } => BASES
                .iter()
                .try_for_each(|base| files::remove_leftovers(&root.join(base), STAGED)),
            Self::Apart(_) => Ok(()),
        }
    }

    /// The directory like /etc/links.
    pub fn config(&self) -> PathBuf {
        self.directory(CONFIG)
    }

    fn write(&self, entry: &Entry, source: &mut dyn Read) -> anyhow::Result<()> {
        let (directory, rest) = self.split(&entry.path).context("it may not be in a backup")?;
        let path = directory.join(rest);
        if !directory.is_dir() {
            let base = directory.parent().unwrap_or(Path::new("/"));
            if !base.is_dir() {
                make_directory(base, 0o755)?;
            }
            make_directory(&directory, 0o700)?;
        }
        // Directories in the backup come before what they contain. Only root can change what was written, so its directory is
        // still one afterwards, and no symbolic link.
        if let Some(parent) = rest.parent().filter(|parent| *parent != Path::new("")) {
            beneath::subdirectory(beneath::directory(&directory)?, parent)?;
        }
        match &entry.content {
            Content::Directory => {
                fs::create_dir(&path)?;
                fs::set_permissions(&path, Permissions::from_mode(entry.mode))?;
            }
            Content::Link { target } => symlink(target, &path)?,
            Content::File { .. } => files::replace(&path, &contents(entry, source, LIMIT)?, entry.mode)?,
        }
        Ok(())
    }

    /// Checks the configuration among the files. Without secrets in the backup, those of this host count.
    ///
    /// # Errors
    /// It is wrong for this version of links.
    pub fn check(&self, edited: &ConfigFiles) -> anyhow::Result<Loaded> {
        let staged = edited.copy_in(self.config());
        let credentials = staged.credentials_dir();
        let is_borrowed = !credentials.exists();
        if is_borrowed {
            symlink(edited.credentials_dir(), &credentials)
                .with_context(|| format!("Borrowing the credentials for {}", credentials.display()))?;
        }
        let loaded = load_as_kept(&staged);
        if is_borrowed {
            fs::remove_file(&credentials)?;
        }
        loaded.context("The configuration in the backup does not work here")
    }
}

/// What is done with the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Nothing: only its digest is checked.
    Preview,
    /// It is checked as a database.
    Check,
    /// It is written beside the file that it will replace in a restore at this time, in seconds since 1970.
    Restore { now: u64 },
}

impl Purpose {
    /// Whether nothing on this host is replaced.
    pub fn is_read_only(self) -> bool {
        matches!(self, Self::Preview | Self::Check)
    }
}

/// A sink that writes a backup into a staging area.
pub struct Unpacking<'a> {
    pub staging: &'a Staging,
    pub work: &'a DatabaseWork,
    pub edited: &'a ConfigFiles,
    pub purpose: Purpose,
    manifest: Option<Manifest>,
    /// What the database holds, if it was looked at.
    pub found: Option<DatabaseFacts>,
    /// The database beside which the new one is staged.
    pub staged_at: Option<PathBuf>,
}

impl<'a> Unpacking<'a> {
    pub fn new(staging: &'a Staging, work: &'a DatabaseWork, edited: &'a ConfigFiles, purpose: Purpose) -> Self {
        Self {
            staging,
            work,
            edited,
            purpose,
            manifest: None,
            found: None,
            staged_at: None,
        }
    }

    fn take_database(&mut self, entry: &Entry, source: &mut dyn Read) -> anyhow::Result<()> {
        match self.purpose {
            Purpose::Preview => {}
            Purpose::Check => self.found = Some(inspect(self.work, entry, source)?),
            Purpose::Restore { now } => {
                let Some(manifest) = &self.manifest else {
                    bail!("the database comes before the manifest");
                };
                // All files of the configuration come before the database.
                let local = self.staging.check(self.edited)?.local_database(self.edited.places());
                let target = target(manifest, local, &self.edited.places().data, now);
                let target = target.context("There is no directory for the database")?;
                // The staged file is beside the file to which a symbolic link leads.
                let file = fs::canonicalize(&target).unwrap_or_else(|_| target.clone());
                require_space(file.parent().unwrap_or(Path::new("/")), entry.bytes(), "the restore")?;
                self.found = Some(self.work.stage(&target, |input| copy(source, input))?);
                self.staged_at = Some(target);
            }
        }
        Ok(())
    }
}

impl Sink for Unpacking<'_> {
    fn begin(&mut self, manifest: &Manifest) -> anyhow::Result<()> {
        self.manifest = Some(manifest.clone());
        Ok(())
    }

    fn take(&mut self, entry: &Entry, source: &mut dyn Read) -> anyhow::Result<()> {
        if entry.path == Path::new(manifest::DATABASE) {
            return self.take_database(entry, source);
        }
        self.staging
            .write(entry, source)
            .with_context(|| format!("Writing {:?}", entry.path))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use super::*;
    use crate::archive;
    use links_base::layout::{Layout, temporary};
    use links_config::admin_token;

    #[test]
    fn files_are_written_beside_what_they_replace_with_their_modes() {
        let (root, layout) = temporary(&[Layout::config_dir]);
        let edited = ConfigFiles::new(&layout);
        let staging = Staging::Beside {
            root: root.path().to_owned(),
            stamp: "1".to_owned(),
        };
        let work = DatabaseWork::new(&layout);
        let mut unpacking = Unpacking::new(&staging, &work, &edited, Purpose::Preview);
        archive::read(&archive::tests::archive()[..], &mut unpacking).unwrap();
        let at = layout.config_dir().join(".restored-1");
        assert_eq!(fs::read_to_string(at.join("links.toml")).unwrap(), "instances = 3\n");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(
            (mode(&at), mode(&at.join("links.toml")), mode(&at.join("nginx.d"))),
            (0o700, 0o640, 0o755)
        );
        assert_eq!(files::list(&at.join("nginx.d")).unwrap().len(), 1);

        // The backup has no secrets, so those of this host count.
        admin_token::make(&edited).unwrap();
        assert_eq!(staging.check(&edited).unwrap().config.instances, 3);
        assert!(!at.join("credentials").exists() && edited.credentials_dir().exists());

        staging.clean().unwrap();
        assert_eq!(files::list(&layout.config_dir()).unwrap(), ["credentials"]);
    }

    #[test]
    fn nothing_is_written_through_a_link_of_the_backup() {
        let root = tempfile::tempdir().unwrap();
        let elsewhere = root.path().join("elsewhere");
        fs::create_dir(&elsewhere).unwrap();
        let staging = Staging::Apart(tempfile::tempdir_in(root.path()).unwrap());
        let write = |path: &str, content: Content| {
            let entry = Entry {
                path: path.into(),
                mode: 0o755,
                content,
            };
            staging.write(&entry, &mut &b""[..])
        };
        let link = |target: &Path| Content::Link {
            target: target.to_owned(),
        };
        // The manifest is checked before, and refuses both links.
        write("var/lib/links/tls/live", link(&elsewhere)).unwrap();
        write("var/lib/links/tls/files", link(&root.path().join("new"))).unwrap();
        for path in ["live/a", "live/a/b", "files/a"] {
            let path = format!("var/lib/links/tls/{path}");
            assert!(write(&path, Content::Directory).is_err(), "{path}");
            assert!(write(&path, link(Path::new("a"))).is_err(), "{path}");
        }
        assert_eq!(files::list(&elsewhere).unwrap(), [""; 0]);
        assert!(!root.path().join("new").exists());
    }

    #[test]
    fn a_configuration_that_does_not_work_here_is_refused() {
        let (root, layout) = temporary(&[Layout::config_dir]);
        let edited = ConfigFiles::new(&layout);
        admin_token::make(&edited).unwrap();
        let staging = Staging::Apart(tempfile::tempdir_in(root.path()).unwrap());
        fs::create_dir_all(staging.config()).unwrap();
        fs::write(staging.config().join("runtime.toml"), "").unwrap();
        for (text, works) in [("instances = 99\n", false), ("instances = 2\n", true)] {
            fs::write(staging.config().join("links.toml"), text).unwrap();
            assert_eq!(staging.check(&edited).is_ok(), works, "{text}");
        }
    }
}
