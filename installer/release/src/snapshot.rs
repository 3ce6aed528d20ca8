//! Snapshots of the configuration as it was applied. A rollback needs them after the files in /etc/links have changed.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use links_base::files::{self, make_directory};
use links_base::layout::{self, Layout};
use links_config::backup::NOT_FOR_INSTANCES;
use links_config::check::Loaded;
use links_config::credentials::is_name;
use links_config::files::ConfigFiles;
use links_config::links::{self, Earlier, Input, Setting};
use links_config::load::load_through;
use links_config::reader::{Disk, Once, Reader};

/// The first line of the files with settings in a snapshot.
const HEADER: &str = "# A copy of the configuration in /etc/links, made by linksctl.\n";
/// The file in links.toml.d of a snapshot with the keys that version 0.1.0 does not know.
const NEWER: &str = "newer.toml";
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

    /// The edited configuration and its digest, which is also the name of its snapshot.
    ///
    /// # Errors
    /// The configuration is invalid.
    pub fn preview(&self) -> anyhow::Result<Applied> {
        self.load(&Once::new(Disk))
    }

    /// Takes a snapshot of the edited configuration, atomically. Each file is read once, so the snapshot and the result belong to
    /// one state of the files. Two configurations that no instance can distinguish share one snapshot.
    ///
    /// # Errors
    /// The configuration is invalid, or the snapshot cannot be written.
    pub fn take(&self) -> anyhow::Result<Applied> {
        let reader = Once::new(Disk);
        let taken = self.load(&reader)?;
        let applied = &self.applied;
        fs::create_dir_all(applied).with_context(|| format!("Making {}", applied.display()))?;
        files::remove_leftovers(applied, STAGING_PREFIX)?;
        let directory = applied.join(&taken.digest);
        if directory.exists() {
            return Ok(taken);
        }
        let staging = tempfile::Builder::new()
            .prefix(STAGING_PREFIX)
            .permissions(Permissions::from_mode(0o755))
            .tempdir_in(applied)
            .with_context(|| format!("Making a directory in {}", applied.display()))?;
        // The instances' user must be able to read it, whatever the umask.
        fs::set_permissions(staging.path(), Permissions::from_mode(0o755))?;
        let copy = self.edited.copy_in(staging.path().to_owned());
        write(&taken.loaded, &reader, &self.edited, &copy)
            .with_context(|| format!("Copying the configuration to {}", applied.display()))?;
        fs::rename(staging.path(), &directory).with_context(|| format!("Making {}", directory.display()))?;
        // The directory was renamed, so there is nothing to clean up.
        let _ = staging.keep();
        files::sync_directory(applied)?;
        Ok(taken)
    }

    /// Writes these settings into the snapshot with this digest, after a rollout has applied them. They may differ from those in
    /// the snapshot in what no instance notices, such as the addresses of nginx.
    ///
    /// # Errors
    /// The snapshot cannot be written.
    pub fn update(&self, digest: &str, settings: &[Input]) -> anyhow::Result<()> {
        write_settings(settings, &self.with_digest(digest))
    }

    fn load(&self, reader: &Once<Disk>) -> anyhow::Result<Applied> {
        let loaded = load_through(&self.edited, reader)?;
        Ok(Applied {
            digest: loaded.digest(self.edited.places())?,
            loaded,
        })
    }
}

/// A configuration, and the name of its snapshot.
pub struct Applied {
    pub digest: String,
    pub loaded: Loaded,
}

/// Writes a snapshot to `to`, with what `reader` has read of `from`.
fn write(loaded: &Loaded, reader: &impl Reader, from: &ConfigFiles, to: &ConfigFiles) -> anyhow::Result<()> {
    write_settings(&loaded.inputs, to)?;
    files::replace(&to.runtime_toml(), &reader.read(&from.runtime_toml())?, 0o644)?;
    let (source, target) = (from.credentials_dir(), to.credentials_dir());
    make_directory(&target, 0o700)?;
    let entries = match reader.list(&source) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => vec![],
        entries => entries.with_context(|| format!("Reading {}", source.display()))?,
    };
    let is_for_instances = |name: &str| is_name(name) && !NOT_FOR_INSTANCES.contains(&name);
    for entry in entries
        .iter()
        .filter(|entry| entry.is_file && is_for_instances(&entry.name))
    {
        let path = source.join(&entry.name);
        let secret = reader
            .read(&path)
            .with_context(|| format!("Reading {}", path.display()))?;
        files::replace(&target.join(&entry.name), &secret, 0o600)?;
    }
    files::sync_directory(to.directory())?;
    Ok(())
}

/// Writes all settings into one file, and those that version 0.1.0 does not know beside it: during a downgrade, a linksctl 0.1.0
/// that was just unpacked may have to start an instance with this snapshot.
fn write_settings(settings: &[Input], to: &ConfigFiles) -> anyhow::Result<()> {
    let Earlier { known, newer } = links::for_0_1_0(settings);
    replace_if_changed(&to.links_toml(), &known)?;
    let path = to.links_toml_d().join(NEWER);
    if newer.is_empty() {
        return files::remove_if_present(&path).with_context(|| format!("Removing {}", path.display()));
    }
    make_directory(&to.links_toml_d(), 0o755)?;
    replace_if_changed(&path, &newer)
}

fn replace_if_changed(path: &Path, settings: &[Setting]) -> anyhow::Result<()> {
    let lines = settings.iter().map(Setting::to_string);
    let text = HEADER.to_owned() + &lines.collect::<String>();
    if fs::read(path).is_ok_and(|current| current == text.as_bytes()) {
        return Ok(());
    }
    files::replace(path, text.as_bytes(), 0o644)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic fails the test")]
mod tests {
    use super::*;
    use links_base::layout::temporary;
    use links_config::admin_token;
    use links_config::load::{load_as_kept, load_links};

    /// Takes a snapshot, and returns its digest.
    fn taken(layout: &Layout) -> String {
        Snapshots::new(layout).take().unwrap().digest
    }

    fn digest_of(files: &ConfigFiles) -> String {
        load_as_kept(files).unwrap().digest(files.places()).unwrap()
    }

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
        let digest = taken(&layout);
        let copy = Snapshots::new(&layout).with_digest(&digest);
        assert_eq!(digest_of(&copy), digest);
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
        let first = taken(&layout);
        fs::write(&sink, "hvs.second\n").unwrap();
        let second = taken(&layout);
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
        let first = taken(&layout);
        fs::write(layout.links_toml(), "instances = 3 # and a comment\n").unwrap();
        assert_eq!(taken(&layout), first);
        fs::write(layout.links_toml(), "[drain]\ntimeout = \"1s\"\n").unwrap();
        assert_ne!(taken(&layout), first);
        assert_eq!(files::list(&layout.applied_dir()).unwrap().len(), 2);
    }

    #[test]
    fn files_that_extend_links_toml_are_part_of_a_snapshot() {
        let (_root, layout) = layout();
        let before = taken(&layout);
        let drop_in = layout.links_toml_d().join("mine.toml");
        fs::create_dir(layout.links_toml_d()).unwrap();
        fs::write(&drop_in, "[health]\nstart_timeout = \"1m30s\"\n").unwrap();
        let after = taken(&layout);
        assert_ne!(after, before);
        fs::remove_file(&drop_in).unwrap();
        let copy = Snapshots::new(&layout).with_digest(&after);
        let config = load_links(&copy).unwrap();
        assert_eq!(config.health.start_timeout.as_secs(), 90);
        // Version 0.1.0 reads this file and no other.
        let text = fs::read_to_string(copy.links_toml()).unwrap();
        assert_eq!(text, format!("{HEADER}health.start_timeout = \"90s\"\n"));
        assert_eq!(taken(&layout), before);
    }

    #[test]
    fn a_snapshot_is_brought_up_to_what_was_applied() {
        let (_root, layout) = layout();
        let snapshots = Snapshots::new(&layout);
        let digest = taken(&layout);
        fs::write(layout.links_toml(), "instances = 3\n").unwrap();
        let taken = snapshots.take().unwrap();
        assert_eq!(taken.digest, digest);
        let config = || load_links(&snapshots.with_digest(&digest)).unwrap();
        assert_eq!(config().instances, 2);
        snapshots.update(&digest, &taken.loaded.inputs).unwrap();
        assert_eq!(config().instances, 3);
    }

    #[test]
    fn the_error_about_an_invalid_configuration_names_the_edited_file() {
        let (_root, layout) = layout();
        fs::write(layout.links_toml(), "instnaces = 3\n").unwrap();
        let error = Snapshots::new(&layout).take().err().unwrap().to_string();
        let named = format!("{}:1:1", layout.links_toml().display());
        assert!(error.contains(&named), "{error}");
        assert!(!layout.applied_dir().exists());
    }

    #[test]
    fn leftovers_of_an_interrupted_snapshot_are_removed() {
        let (_root, layout) = layout();
        fs::create_dir_all(layout.applied_dir().join(".taking-abc")).unwrap();
        let digest = taken(&layout);
        assert_eq!(files::list(&layout.applied_dir()).unwrap(), [digest]);
    }

    #[test]
    fn an_instance_without_a_snapshot_uses_the_edited_files() {
        let (_root, layout) = layout();
        let snapshots = Snapshots::new(&layout);
        assert_eq!(snapshots.of_instance(1), (snapshots.edited().clone(), None));
        let digest = taken(&layout);
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
        let first = taken(&layout);
        assert_eq!(taken(&layout), first);
        assert_eq!(Snapshots::new(&layout).preview().unwrap().digest, first);
    }
}
