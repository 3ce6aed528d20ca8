//! The release store: complete, content-addressed copies of bundles, and a link from each instance to the release that it
//! runs.
//!
//! dpkg deletes the files of an old version before the new one is configured, so nothing runs from the package's own files.
//! A release in the store is complete or absent: it is written under a hidden name, synced, and renamed.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context as _, ensure};
use data_encoding::HEXLOWER;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use sha2::{Digest as _, Sha256};

use super::manifest::{self, Manifest, RuntimeKind};
use links_base::layout::Layout;
use links_base::{exec, files, log, sockets};

/// A bundle on disk and its manifest. [`Release::verify`] and an import check its files.
#[derive(Clone, Debug)]
pub struct Release {
    pub id: String,
    pub directory: PathBuf,
    pub manifest: Manifest,
}

impl Release {
    /// Reads the manifest of the bundle in `directory`.
    ///
    /// # Errors
    /// There is no bundle in `directory`, or its manifest is invalid.
    pub fn open(directory: &Path) -> anyhow::Result<Self> {
        let path = directory.join(manifest::FILE_NAME);
        let bytes = fs::read(&path).with_context(|| format!("Reading {}", path.display()))?;
        let manifest = Manifest::parse(&bytes).with_context(|| format!("Reading {}", path.display()))?;
        for name in manifest.files.keys() {
            let plain = Path::new(name)
                .components()
                .all(|part| matches!(part, Component::Normal(_)));
            ensure!(
                plain && !name.is_empty(),
                "{}: the file name {name:?} leads outside of the bundle",
                path.display()
            );
        }
        let id = manifest.release_id()?;
        Ok(Self {
            id,
            directory: directory.to_owned(),
            manifest,
        })
    }

    pub fn runtime_path(&self) -> PathBuf {
        self.directory.join(&self.manifest.runtime.path)
    }

    pub fn app_path(&self) -> PathBuf {
        self.directory.join(&self.manifest.app)
    }

    /// Whether an instance of this release can listen on a Unix socket at this path.
    pub fn can_listen_on_socket(&self, socket: &Path) -> bool {
        self.manifest.listens_on_sockets() && sockets::fits(socket)
    }

    /// The name and version of the runtime, for example `spin 4.0.2`.
    pub fn runtime_name(&self) -> String {
        format!("{} {}", self.manifest.runtime.kind, self.manifest.runtime.version)
    }

    /// Compares every file with the manifest's digests.
    ///
    /// # Errors
    /// A file is missing or differs. The error names the first one.
    pub fn verify(&self) -> anyhow::Result<()> {
        self.manifest.files.iter().try_for_each(|(name, expected)| {
            let mut digest = Sha256::new();
            self.read(name, expected, |bytes| {
                digest.update(bytes);
                Ok(())
            })?;
            self.compare(name, expected, &digest.finalize())
        })
    }

    /// Reads a file in pieces. Its size must match the manifest.
    fn read(
        &self,
        name: &str,
        expected: &manifest::File,
        mut each: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> anyhow::Result<()> {
        let path = self.directory.join(name);
        let mut file = File::open(&path).with_context(|| format!("Opening {}", path.display()))?;
        let size = file.metadata()?.len();
        ensure!(
            size == expected.size,
            "{} has {size} bytes, but the manifest of release {} lists {}: the file is damaged; {REINSTALL}",
            path.display(),
            self.id,
            expected.size,
        );
        let mut buffer = vec![0; 128 * 1024];
        loop {
            match file
                .read(&mut buffer)
                .with_context(|| format!("Reading {}", path.display()))?
            {
                0 => return Ok(()),
                length => each(&buffer[..length])?,
            }
        }
    }

    fn compare(&self, name: &str, expected: &manifest::File, digest: &[u8]) -> anyhow::Result<()> {
        ensure!(
            HEXLOWER.encode(digest) == expected.sha256,
            "{} differs from the manifest of release {}: the file is damaged; {REINSTALL}",
            self.directory.join(name).display(),
            self.id,
        );
        Ok(())
    }
}

const REINSTALL: &str = "reinstall the package (apt install --reinstall links-shortener, or linksctl install)";

/// The directories of the releases, of their compiled components, and of the links from each instance to its release.
#[derive(Clone, Debug)]
pub struct Store {
    releases: PathBuf,
    compiled: PathBuf,
    instances: PathBuf,
}

impl Store {
    pub fn new(layout: &Layout) -> Self {
        Self {
            releases: layout.releases_dir(),
            compiled: layout.compiled_dir(),
            instances: layout.instances_dir(),
        }
    }

    /// The directory of the releases, each in a directory with its name.
    pub(crate) fn releases(&self) -> &Path {
        &self.releases
    }

    /// The directory of the compiled components, one directory per release.
    pub(crate) fn compiled_dir(&self) -> &Path {
        &self.compiled
    }

    /// The names in the store: those of the releases, and of what an interrupted import left.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn names(&self) -> anyhow::Result<Vec<String>> {
        files::list(&self.releases).with_context(|| format!("Reading {}", self.releases.display()))
    }

    /// Reads the release with this name.
    ///
    /// # Errors
    /// There is no such release, or its manifest is invalid.
    pub fn open(&self, name: &str) -> anyhow::Result<Release> {
        Release::open(&self.releases.join(name))
    }

    /// Copies a bundle into the store and verifies every file. A release that is already there is verified, and replaced if
    /// it is damaged.
    ///
    /// # Errors
    /// A file differs from the bundle's manifest, or the disk is full. The store is then unchanged.
    pub fn import(&self, bundle: &Path) -> anyhow::Result<Release> {
        let source = Release::open(bundle)?;
        let directory = self.releases.join(&source.id);
        if let Ok(present) = Release::open(&directory)
            && present.id == source.id
            && present.verify().is_ok()
        {
            self.compile(&present);
            return Ok(present);
        }
        let releases = &self.releases;
        fs::create_dir_all(releases).with_context(|| format!("Making {}", releases.display()))?;
        let staging = tempfile::Builder::new()
            .prefix(STAGING_PREFIX)
            .permissions(fs::Permissions::from_mode(0o755))
            .tempdir_in(releases)
            .with_context(|| format!("Making a directory in {}", releases.display()))?;
        // The instances' user must be able to read it, whatever the umask.
        fs::set_permissions(staging.path(), fs::Permissions::from_mode(0o755))?;
        copy(&source, staging.path())
            .with_context(|| format!("Importing release {} into {}", source.id, releases.display()))?;
        if directory.exists() {
            // Replace the damaged release atomically, because instances point to it.
            renameat2(
                AT_FDCWD,
                staging.path(),
                AT_FDCWD,
                &directory,
                RenameFlags::RENAME_EXCHANGE,
            )
            .with_context(|| format!("Replacing {}", directory.display()))?;
        } else {
            fs::rename(staging.path(), &directory).with_context(|| format!("Making {}", directory.display()))?;
            // The directory was renamed, so there is nothing to clean up.
            let _ = staging.keep();
        }
        files::sync_directory(releases)?;
        let release = Release::open(&directory)?;
        self.compile(&release);
        Ok(release)
    }

    /// Has the release's runtime compile the components, so that the instances need not: compiling takes more memory than
    /// serving. Matching compiled components are kept. A failure is only logged, because instances can compile for themselves.
    pub fn compile(&self, release: &Release) {
        if release.manifest.runtime.kind != RuntimeKind::LinksHost {
            return;
        }
        let directory = self.compiled.join(&release.id);
        let problem = match self.run_compile(release, &directory) {
            Ok(finished) if finished.success || finished.stderr.contains(UNKNOWN_SUBCOMMAND) => return,
            Ok(finished) => exec::tail(&finished.stderr, 12),
            Err(error) => format!("{error:#}"),
        };
        log::notice!(
            "release {}: its components could not be compiled in advance, so each instance compiles them at startup, \
             which takes more memory: {problem}",
            release.id
        );
    }

    fn run_compile(&self, release: &Release, directory: &Path) -> anyhow::Result<exec::Finished> {
        // The runtime trusts compiled code only if nobody but the owner can write it, so do not depend on the umask.
        let parent = &self.compiled;
        if !parent.is_dir() {
            fs::create_dir_all(parent).with_context(|| format!("Making {}", parent.display()))?;
            fs::set_permissions(parent, fs::Permissions::from_mode(0o755))?;
        }
        let is_new = !directory.exists();
        let app = release.app_path();
        let arguments = [
            "compile".as_ref(),
            "--from".as_ref(),
            app.as_os_str(),
            "--out".as_ref(),
            directory.as_os_str(),
        ];
        let finished = exec::finish(&release.runtime_path().to_string_lossy(), arguments)?;
        if is_new && finished.success {
            fs::set_permissions(directory, fs::Permissions::from_mode(0o755))?;
        }
        Ok(finished)
    }

    /// The directory of a release's compiled components, if its runtime compiled them.
    pub fn compiled(&self, release: &Release) -> Option<PathBuf> {
        Some(self.compiled.join(&release.id)).filter(|directory| directory.is_dir())
    }

    /// Imports a release like [`Self::import`], from a bundle, an unpacked tarball or the tarball itself.
    ///
    /// # Errors
    /// The same as for [`Self::import`], or `path` is none of the three.
    pub fn import_from(&self, path: &Path) -> anyhow::Result<Release> {
        if !path.is_file() {
            return self.import(&bundle_in(path)?);
        }
        let unpacked = tempfile::tempdir().context("Making a temporary directory")?;
        let file = File::open(path).with_context(|| format!("Opening {}", path.display()))?;
        // `unpack` refuses paths that lead outside of the directory.
        tar::Archive::new(flate2::read::GzDecoder::new(file))
            .unpack(unpacked.path())
            .with_context(|| format!("Unpacking {}", path.display()))?;
        let top = fs::read_dir(unpacked.path())?.next().transpose()?;
        let top = top.with_context(|| format!("{} is empty", path.display()))?;
        self.import(&bundle_in(&top.path())?)
    }

    /// Makes `instance` run `release` from its next start on.
    ///
    /// # Errors
    /// The link cannot be written. It is then unchanged.
    pub fn point(&self, instance: u16, release: &str) -> anyhow::Result<()> {
        let link = self.link_of(instance);
        let instances = &self.instances;
        fs::create_dir_all(instances).with_context(|| format!("Making {}", instances.display()))?;
        // The target is relative, so that the tree can be moved, and be read from outside a chroot.
        files::replace_link(&link, &Path::new("../releases").join(release))
    }

    /// The link from an instance to its release.
    pub(crate) fn link_of(&self, instance: u16) -> PathBuf {
        self.instances.join(instance.to_string())
    }

    /// The release that `instance` runs or will run, according to its link.
    ///
    /// # Errors
    /// There is no link, or it does not point to a release.
    pub fn of_instance(&self, instance: u16) -> anyhow::Result<Release> {
        let link = self.link_of(instance);
        let directory = fs::canonicalize(&link).with_context(|| {
            format!(
                "instance {instance} has no release: {} points nowhere; {REINSTALL}",
                link.display()
            )
        })?;
        Release::open(&directory)
    }

    /// Removes what interrupted imports left behind.
    ///
    /// # Errors
    /// The store cannot be read, or a leftover cannot be removed.
    pub fn remove_leftovers(&self) -> anyhow::Result<()> {
        files::remove_leftovers(&self.releases, STAGING_PREFIX)
    }
}

/// Finds the bundle in a directory, which is a bundle itself or an unpacked tarball.
fn bundle_in(directory: &Path) -> anyhow::Result<PathBuf> {
    [directory.to_owned(), Layout::new(directory).bundle()]
        .into_iter()
        .find(|candidate| candidate.join(manifest::FILE_NAME).is_file())
        .with_context(|| {
            format!(
                "{} does not contain a bundle of links: there is no {}",
                directory.display(),
                manifest::FILE_NAME
            )
        })
}

/// The error of the 0.1.0 runtime, which cannot compile in advance.
const UNKNOWN_SUBCOMMAND: &str = "unrecognized subcommand";
const STAGING_PREFIX: &str = ".import-";

fn copy(source: &Release, target: &Path) -> anyhow::Result<()> {
    for (name, expected) in &source.manifest.files {
        let path = target.join(name);
        make_directories(target, name)?;
        let mut file = create(&path, if expected.executable { 0o755 } else { 0o644 })?;
        let mut digest = Sha256::new();
        source.read(name, expected, |bytes| {
            digest.update(bytes);
            file.write_all(bytes)
        })?;
        source.compare(name, expected, &digest.finalize())?;
        file.sync_all().with_context(|| format!("Writing {}", path.display()))?;
    }
    let mut file = create(&target.join(manifest::FILE_NAME), 0o644)?;
    file.write_all(&source.manifest.to_json()?)?;
    file.sync_all()?;
    files::sync_directory(target)?;
    Ok(())
}

fn create(path: &Path, mode: u32) -> anyhow::Result<File> {
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(path)
        .with_context(|| format!("Making {}", path.display()))?;
    // The instances' user must be able to read it, whatever the umask.
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    Ok(file)
}

fn make_directories(target: &Path, name: &str) -> anyhow::Result<()> {
    let mut directory = target.to_owned();
    for part in Path::new(name).parent().into_iter().flat_map(Path::components) {
        directory.push(part);
        if !directory.is_dir() {
            fs::create_dir(&directory).with_context(|| format!("Making {}", directory.display()))?;
            fs::set_permissions(&directory, fs::Permissions::from_mode(0o755))?;
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic fails the test")]
mod tests {
    use super::*;
    use crate::testing::bundle;

    fn fixture() -> (tempfile::TempDir, Layout, Release) {
        let root = tempfile::tempdir().unwrap();
        let source = root.path().join("bundle");
        fs::create_dir(&source).unwrap();
        let source = bundle(&source, b"#!/bin/sh\n");
        let layout = Layout::new(root.path().join("root"));
        (root, layout, source)
    }

    #[test]
    fn an_import_is_complete_and_readable_by_everyone() {
        let (_root, layout, source) = fixture();
        let release = Store::new(&layout).import(&source.directory).unwrap();
        assert_eq!(release.id, source.id);
        assert!(release.id.starts_with("1.2.3-"));
        release.verify().unwrap();
        let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(release.runtime_path()), 0o755);
        assert_eq!(mode(release.app_path()), 0o644);
        assert_eq!(mode(release.directory), 0o755);
        assert_eq!(files::list(&layout.releases_dir()).unwrap(), [source.id]);
    }

    /// Imports a release with this runtime twice.
    fn imported_twice(runtime: &str) -> (tempfile::TempDir, Layout, Release) {
        let root = tempfile::tempdir().unwrap();
        let source = root.path().join("bundle");
        fs::create_dir(&source).unwrap();
        let source = bundle(&source, runtime.as_bytes());
        let layout = Layout::new(root.path().join("root"));
        let store = Store::new(&layout);
        store.import(&source.directory).unwrap();
        let release = store.import(&source.directory).unwrap();
        (root, layout, release)
    }

    #[test]
    fn every_import_has_the_runtime_compile_the_components() {
        let runtime =
            "#!/bin/sh\n[ \"$1 $2 $4\" = 'compile --from --out' ] && mkdir -p \"$5\" && echo \"$3\" >>\"$5/log\"\n";
        let (_root, layout, release) = imported_twice(runtime);
        let compiled = Store::new(&layout).compiled(&release).unwrap();
        assert_eq!(compiled, layout.compiled_dir().join(&release.id));
        let log = fs::read_to_string(compiled.join("log")).unwrap();
        let line = format!("{}\n", release.app_path().display());
        assert_eq!(log, line.repeat(2), "the second import did not compile");
        for directory in [&compiled, &layout.compiled_dir()] {
            let mode = fs::metadata(directory).unwrap().permissions().mode() & 0o777;
            assert_eq!(mode, 0o755, "{}", directory.display());
        }
    }

    #[test]
    fn a_release_is_imported_even_if_its_runtime_cannot_compile() {
        for runtime in [
            "#!/bin/sh\necho \"error: unrecognized subcommand 'compile'\" >&2\nexit 2\n",
            "#!/bin/sh\necho no room >&2\nexit 1\n",
            "not a program",
        ] {
            let (_root, layout, release) = imported_twice(runtime);
            assert_eq!(Store::new(&layout).compiled(&release), None);
        }
    }

    #[test]
    fn a_damaged_bundle_is_refused_and_leaves_nothing_behind() {
        let (_root, layout, source) = fixture();
        fs::write(source.directory.join("components/links.wasm"), b"\0asX").unwrap();
        let error = Store::new(&layout).import(&source.directory).unwrap_err();
        assert!(format!("{error:#}").contains("links.wasm differs"), "{error:#}");
        assert!(files::list(&layout.releases_dir()).unwrap().is_empty());
    }

    #[test]
    fn a_damaged_release_in_the_store_is_replaced_by_the_next_import() {
        let (_root, layout, source) = fixture();
        let store = Store::new(&layout);
        let release = store.import(&source.directory).unwrap();
        fs::remove_file(release.app_path()).unwrap();
        store.import(&source.directory).unwrap().verify().unwrap();
    }

    #[test]
    fn a_manifest_may_not_lead_outside_of_the_bundle() {
        let (_root, _layout, source) = fixture();
        let mut manifest = source.manifest;
        let file = manifest.files.values().next().unwrap().clone();
        manifest.files.insert("../../etc/passwd".into(), file);
        fs::write(source.directory.join(manifest::FILE_NAME), manifest.to_json().unwrap()).unwrap();
        assert!(
            Release::open(&source.directory)
                .unwrap_err()
                .to_string()
                .contains("leads out")
        );
    }

    #[test]
    fn instances_point_to_releases() {
        let (_root, layout, source) = fixture();
        let store = Store::new(&layout);
        assert!(format!("{:#}", store.of_instance(1).unwrap_err()).contains("instance 1 has no release"));
        let release = store.import(&source.directory).unwrap();
        store.point(1, &release.id).unwrap();
        assert_eq!(store.of_instance(1).unwrap().id, release.id);
    }

    #[test]
    fn leftovers_of_an_interrupted_import_are_removed() {
        let (_root, layout, source) = fixture();
        let store = Store::new(&layout);
        store.import(&source.directory).unwrap();
        fs::create_dir(layout.releases_dir().join(".import-abc")).unwrap();
        store.remove_leftovers().unwrap();
        assert_eq!(files::list(&layout.releases_dir()).unwrap(), [source.id]);
    }
}
