//! Snapshots of the configuration as it was applied. A rollback needs them after the files in /etc/links have changed.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use links_base::files;
use links_base::layout::{self, Layout};
use links_config::backup::NOT_FOR_INSTANCES;
use links_config::credentials::{Source, is_name};
use links_config::files::ConfigFiles;
use links_config::load::load_as_kept;

const STAGING_PREFIX: &str = ".taking-";

/// The configuration that the administrator edits, and the snapshots of it.
#[derive(Clone, Debug)]
pub struct Snapshots {
    edited: ConfigFiles,
    applied: PathBuf,
    instances: PathBuf,
}

impl Snapshots {
    pub fn new(layout: &Layout) -> Self {
        Self {
            edited: ConfigFiles::new(layout),
            applied: layout.applied_dir(),
            instances: layout.instances_dir(),
        }
    }

    /// The files that the administrator edits.
    pub fn edited(&self) -> &ConfigFiles {
        &self.edited
    }

    /// The snapshot with this digest.
    pub fn with_digest(&self, digest: &str) -> ConfigFiles {
        self.edited.copy_in(self.applied.join(digest))
    }

    /// The configuration of an instance: its snapshot and the digest. Without a snapshot (`linksctl up`), the edited files,
    /// and no digest.
    pub fn of_instance(&self, instance: u16) -> (ConfigFiles, Option<String>) {
        match fs::canonicalize(self.instances.join(layout::config_link_name(instance))) {
            Ok(directory) => {
                let digest = directory.file_name().map(|name| name.to_string_lossy().into_owned());
                (self.edited.copy_in(directory), digest)
            }
            Err(_) => (self.edited.clone(), None),
        }
    }

    /// The digest of the edited configuration, which is also the name of its snapshot.
    ///
    /// # Errors
    /// The configuration is invalid.
    pub fn digest(&self) -> anyhow::Result<String> {
        digest(&self.edited)
    }

    /// Takes a snapshot of the edited configuration, atomically, and returns its digest, which is its name. Two configurations
    /// that no instance can distinguish share one snapshot.
    ///
    /// # Errors
    /// The configuration is invalid, or the snapshot cannot be written.
    pub fn take(&self) -> anyhow::Result<String> {
        // Validate the original first, so that errors name the files that people edit.
        load_as_kept(&self.edited)?;
        let applied = &self.applied;
        fs::create_dir_all(applied).with_context(|| format!("Making {}", applied.display()))?;
        files::remove_leftovers(applied, STAGING_PREFIX)?;
        let staging = tempfile::Builder::new()
            .prefix(STAGING_PREFIX)
            .permissions(Permissions::from_mode(0o755))
            .tempdir_in(applied)
            .with_context(|| format!("Making a directory in {}", applied.display()))?;
        // The instances' user must be able to read it, whatever the umask.
        fs::set_permissions(staging.path(), Permissions::from_mode(0o755))?;
        let copy = self.edited.copy_in(staging.path().to_owned());
        copy_files(&self.edited, &copy)
            .with_context(|| format!("Copying the configuration to {}", applied.display()))?;
        // Compute the digest of the copy, because the original may be changing right now.
        let digest = digest(&copy)?;
        let directory = applied.join(&digest);
        if !directory.exists() {
            fs::rename(staging.path(), &directory).with_context(|| format!("Making {}", directory.display()))?;
            // The directory was renamed, so there is nothing to clean up.
            let _ = staging.keep();
            files::sync_directory(applied)?;
        }
        Ok(digest)
    }
}

fn digest(files: &ConfigFiles) -> anyhow::Result<String> {
    Ok(load_as_kept(files)?.digest(files.places())?)
}

fn copy_files(from: &ConfigFiles, to: &ConfigFiles) -> anyhow::Result<()> {
    for (source, target) in [
        (from.links_toml(), to.links_toml()),
        (from.runtime_toml(), to.runtime_toml()),
    ] {
        copy_file(&source, &target, 0o644)?;
    }
    let target = to.credentials_dir();
    fs::create_dir(&target)?;
    fs::set_permissions(&target, Permissions::from_mode(0o700))?;
    let source = Source::of_host(from).directory;
    let names = files::list(&source).with_context(|| format!("Reading {}", source.display()))?;
    let is_for_instances = |name: &&String| is_name(name) && !NOT_FOR_INSTANCES.contains(&name.as_str());
    for name in names.iter().filter(is_for_instances) {
        let path = source.join(name);
        if path.is_file() {
            copy_file(&path, &target.join(name), 0o600)?;
        }
    }
    files::sync_directory(&target)?;
    files::sync_directory(to.directory())?;
    Ok(())
}

fn copy_file(source: &Path, target: &Path, mode: u32) -> anyhow::Result<()> {
    let mut open = File::open(source).with_context(|| format!("Opening {}", source.display()))?;
    files::replace_from(target, &mut open, mode)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic fails the test")]
mod tests {
    use super::*;
    use links_base::layout::temporary;
    use links_config::admin_token;

    fn layout() -> (tempfile::TempDir, Layout) {
        let (root, layout) = temporary(&[Layout::config_dir]);
        fs::write(layout.links_toml(), "# nothing\n").unwrap();
        fs::write(layout.runtime_toml(), include_str!("../../../runtime.toml")).unwrap();
        admin_token::make(&ConfigFiles::new(&layout)).unwrap();
        (root, layout)
    }

    #[test]
    fn a_snapshot_is_complete_and_its_secrets_are_private() {
        let (_root, layout) = layout();
        fs::write(layout.credentials_dir().join(".half-written"), "x").unwrap();
        for name in NOT_FOR_INSTANCES {
            fs::write(layout.credential(name), "x").unwrap();
        }
        let digest = Snapshots::new(&layout).take().unwrap();
        let copy = Snapshots::new(&layout).with_digest(&digest);
        assert_eq!(super::digest(&copy).unwrap(), digest);
        assert_eq!(
            admin_token::read(&copy).unwrap(),
            admin_token::read(&ConfigFiles::new(&layout)).unwrap()
        );
        assert_eq!(files::list(&copy.credentials_dir()).unwrap(), ["admin_token"]);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(copy.directory()), 0o755);
        assert_eq!(mode(&copy.links_toml()), 0o644);
        assert_eq!(mode(&copy.credentials_dir()), 0o700);
        assert_eq!(mode(&copy.credential("admin_token")), 0o600);
    }

    #[test]
    fn a_credential_may_be_a_link_to_another_programs_file() {
        let (root, layout) = layout();
        let sink = root.path().join("sink");
        fs::write(&sink, "hvs.first\n").unwrap();
        std::os::unix::fs::symlink(&sink, layout.credential("vault_token")).unwrap();
        let runtime = "[[variables_provider]]\ntype = \"vault\"\nurl = \"http://127.0.0.1:8200\"\ntoken = \"credential:vault_token\"\nmount = \"secret\"\n";
        fs::write(layout.runtime_toml(), runtime).unwrap();
        let first = Snapshots::new(&layout).take().unwrap();
        fs::write(&sink, "hvs.second\n").unwrap();
        let second = Snapshots::new(&layout).take().unwrap();
        assert_ne!(first, second, "a new secret makes no new snapshot");
        for (digest, token) in [(first, "hvs.first\n"), (second, "hvs.second\n")] {
            let copy = Snapshots::new(&layout).with_digest(&digest);
            let kept = copy.credential("vault_token");
            assert_eq!(fs::read_to_string(&kept).unwrap(), token);
            assert!(fs::symlink_metadata(kept).unwrap().is_file());
        }
    }

    #[test]
    fn a_change_that_no_instance_notices_makes_no_new_snapshot() {
        let (_root, layout) = layout();
        let first = Snapshots::new(&layout).take().unwrap();
        fs::write(layout.links_toml(), "instances = 3 # and a comment\n").unwrap();
        assert_eq!(Snapshots::new(&layout).take().unwrap(), first);
        fs::write(layout.links_toml(), "[drain]\ntimeout = \"1s\"\n").unwrap();
        assert_ne!(Snapshots::new(&layout).take().unwrap(), first);
        assert_eq!(files::list(&layout.applied_dir()).unwrap().len(), 2);
    }

    #[test]
    fn the_error_about_an_invalid_configuration_names_the_edited_file() {
        let (_root, layout) = layout();
        fs::write(layout.links_toml(), "instnaces = 3\n").unwrap();
        let error = Snapshots::new(&layout).take().unwrap_err().to_string();
        let named = format!("{}:1:1", layout.links_toml().display());
        assert!(error.contains(&named), "{error}");
        assert!(!layout.applied_dir().exists());
    }

    #[test]
    fn leftovers_of_an_interrupted_snapshot_are_removed() {
        let (_root, layout) = layout();
        fs::create_dir_all(layout.applied_dir().join(".taking-abc")).unwrap();
        let digest = Snapshots::new(&layout).take().unwrap();
        assert_eq!(files::list(&layout.applied_dir()).unwrap(), [digest]);
    }

    #[test]
    fn an_instance_without_a_snapshot_uses_the_edited_files() {
        let (_root, layout) = layout();
        let snapshots = Snapshots::new(&layout);
        assert_eq!(snapshots.of_instance(1), (snapshots.edited().clone(), None));
        let digest = Snapshots::new(&layout).take().unwrap();
        fs::create_dir_all(layout.instances_dir()).unwrap();
        files::replace_link(&layout.instance_config(1), &Path::new("../applied").join(&digest)).unwrap();
        let (own, named) = snapshots.of_instance(1);
        assert_eq!(named, Some(digest));
        assert!(
            own.links_toml()
                .starts_with(layout.applied_dir().canonicalize().unwrap())
        );
    }

    /// Otherwise every rollout would restart the instances.
    #[test]
    fn a_relative_path_in_runtime_toml_does_not_depend_on_where_the_copy_is() {
        let (_root, layout) = layout();
        let runtime = "[[variables_provider]]\ntype = \"env\"\ndotenv_path = \"variables.env\"\n";
        fs::write(layout.runtime_toml(), runtime).unwrap();
        let snapshots = Snapshots::new(&layout);
        let first = snapshots.take().unwrap();
        assert_eq!(snapshots.take().unwrap(), first);
        assert_eq!(snapshots.digest().unwrap(), first);
    }
}
