//! The files of a configuration: those that the administrator edits, or a copy of them.

use std::path::{Path, PathBuf};

use links_base::layout::Layout;

/// The directories that a path in runtime.toml can lead to. They are the same for every copy of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    pub state: PathBuf,
    pub data: PathBuf,
    pub config: PathBuf,
}

impl Places {
    pub fn new(layout: &Layout) -> Self {
        Self {
            state: layout.state_dir(),
            data: layout.data_dir(),
            config: layout.config_dir(),
        }
    }
}

/// The files of one configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigFiles {
    directory: PathBuf,
    /// The parent of each instance's credentials on a host where systemd cannot deliver them.
    fallback_credentials: PathBuf,
    places: Places,
}

impl ConfigFiles {
    /// The files that the administrator edits.
    pub fn new(layout: &Layout) -> Self {
        Self {
            directory: layout.config_dir(),
            fallback_credentials: layout.fallback_credentials_base(),
            places: Places::new(layout),
        }
    }

    /// The copy of these files in another directory.
    pub fn copy_in(&self, directory: PathBuf) -> Self {
        Self {
            directory,
            ..self.clone()
        }
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    pub fn links_toml(&self) -> PathBuf {
        self.directory.join("links.toml")
    }

    /// A directory with files that extend links.toml.
    pub fn links_toml_d(&self) -> PathBuf {
        self.directory.join("links.toml.d")
    }

    /// The file of [`Self::links_toml_d`] that `linksctl scale` writes.
    pub fn instances_toml(&self) -> PathBuf {
        self.links_toml_d().join("instances.toml")
    }

    /// The file of [`Self::links_toml_d`] that `linksctl tls` writes.
    pub fn tls_toml(&self) -> PathBuf {
        self.links_toml_d().join("tls.toml")
    }

    pub fn runtime_toml(&self) -> PathBuf {
        self.directory.join("runtime.toml")
    }

    /// The networks of Cloudflare, if the administrator replaces those that links ships.
    pub fn cloudflare(&self) -> PathBuf {
        self.directory.join("cloudflare.txt")
    }

    /// A directory with one file per credential, named like the credential (root, 0600).
    pub fn credentials_dir(&self) -> PathBuf {
        self.directory.join("credentials")
    }

    /// The file of one credential.
    pub fn credential(&self, name: &str) -> PathBuf {
        self.credentials_dir().join(name)
    }

    pub(crate) fn fallback_credentials(&self, instance: u16) -> PathBuf {
        self.fallback_credentials.join(instance.to_string())
    }

    pub fn places(&self) -> &Places {
        &self.places
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_are_where_the_layout_has_them() {
        let layout = Layout::new("/r");
        let files = ConfigFiles::new(&layout);
        assert_eq!(files.links_toml(), layout.links_toml());
        assert_eq!(files.links_toml_d(), layout.links_toml_d());
        assert_eq!(files.runtime_toml(), layout.runtime_toml());
        assert_eq!(files.credential("a"), layout.credential("a"));
        assert_eq!(files.fallback_credentials(2), layout.fallback_credentials_dir(2));
        let copy = files.copy_in("/c".into());
        assert_eq!(copy.links_toml(), Path::new("/c/links.toml"));
        assert_eq!(copy.places(), files.places());
    }
}
