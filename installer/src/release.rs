//! The release store: complete, content-addressed copies of bundles, and one link per instance to the one it runs.
//!
//! dpkg deletes an old version's files before the new one is configured, so nothing runs from the package's own
//! payload. A release in the store is whole or absent: it is written under a hidden name, synced, and renamed.

pub mod manifest;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context as _, ensure};
use data_encoding::HEXLOWER;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use sha2::{Digest as _, Sha256};

use crate::layout::Layout;
use crate::{exec, files, log};
use manifest::{Manifest, RuntimeKind};

/// A bundle on the disk whose manifest was read. Its files are checked by [`Release::verify`] and on import.
#[derive(Clone, Debug)]
pub struct Release {
    pub id: String,
    pub directory: PathBuf,
    pub manifest: Manifest,
}

impl Release {
    /// # Errors
    /// There is no bundle in `directory`, or its manifest cannot be understood.
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
                "{}: the file name {name:?} leads out of the bundle",
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

    /// `spin 4.0.2`
    pub fn runtime_name(&self) -> String {
        format!("{} {}", self.manifest.runtime.kind, self.manifest.runtime.version)
    }

    /// Compares every file with the manifest's digests.
    ///
    /// # Errors
    /// The first file that is missing or differs, by name.
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

    /// Reads one file, which has to have the manifest's size, in pieces.
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
            "{} has {size} bytes where the manifest of release {} says {}: the file is damaged; {REINSTALL}",
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

/// The releases and instance links below one layout.
#[derive(Debug)]
pub struct Store<'a> {
    layout: &'a Layout,
}

impl<'a> Store<'a> {
    pub fn new(layout: &'a Layout) -> Self {
        Self { layout }
    }

    /// Copies a bundle into the store, verifying every file on the way. A release that is there already is verified
    /// and, where it is damaged, replaced.
    ///
    /// # Errors
    /// A file differs from the bundle's manifest, or the disk is full: the store is then as it was.
    pub fn import(&self, bundle: &Path) -> anyhow::Result<Release> {
        let source = Release::open(bundle)?;
        let directory = self.layout.releases_dir().join(&source.id);
        if let Ok(present) = Release::open(&directory)
            && present.id == source.id
            && present.verify().is_ok()
        {
            self.compile(&present);
            return Ok(present);
        }
        let releases = self.layout.releases_dir();
        fs::create_dir_all(&releases).with_context(|| format!("Making {}", releases.display()))?;
        let staging = tempfile::Builder::new()
            .prefix(STAGING_PREFIX)
            .permissions(fs::Permissions::from_mode(0o755))
            .tempdir_in(&releases)
            .with_context(|| format!("Making a directory in {}", releases.display()))?;
        // Whatever the umask is: the instances' user has to read it.
        fs::set_permissions(staging.path(), fs::Permissions::from_mode(0o755))?;
        copy(&source, staging.path())
            .with_context(|| format!("Importing release {} into {}", source.id, releases.display()))?;
        if directory.exists() {
            // A damaged release of the same name: in one step, because instances point to it.
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
            // Its name is taken: there is nothing left to clean up.
            let _ = staging.keep();
        }
        files::sync_directory(&releases)?;
        let release = Release::open(&directory)?;
        self.compile(&release);
        Ok(release)
    }

    /// Has the release's runtime compile the components, so that no instance has to: that takes more memory than serving.
    /// What is compiled already and fits is left as it is. Without compiled components instances compile by themselves, so
    /// a failure is only reported.
    pub fn compile(&self, release: &Release) {
        if release.manifest.runtime.kind != RuntimeKind::LinksHost {
            return;
        }
        let directory = self.layout.compiled_dir().join(&release.id);
        let problem = match self.run_compile(release, &directory) {
            Ok(finished) if finished.success || finished.stderr.contains(UNKNOWN_SUBCOMMAND) => return,
            Ok(finished) => exec::tail(&finished.stderr, 12),
            Err(error) => format!("{error:#}"),
        };
        log::notice!(
            "release {}: its components could not be compiled in advance, so each instance compiles them at its start and \
             takes more memory: {problem}",
            release.id
        );
    }

    fn run_compile(&self, release: &Release, directory: &Path) -> anyhow::Result<exec::Finished> {
        // The runtime trusts compiled code only where nobody but the owner can write, whatever the umask is.
        let parent = self.layout.compiled_dir();
        if !parent.is_dir() {
            fs::create_dir_all(&parent).with_context(|| format!("Making {}", parent.display()))?;
            fs::set_permissions(&parent, fs::Permissions::from_mode(0o755))?;
        }
        let made = !directory.exists();
        let app = release.app_path();
        let arguments = [
            "compile".as_ref(),
            "--from".as_ref(),
            app.as_os_str(),
            "--out".as_ref(),
            directory.as_os_str(),
        ];
        let finished = exec::finish(&release.runtime_path().to_string_lossy(), arguments)?;
        if made && finished.success {
            fs::set_permissions(directory, fs::Permissions::from_mode(0o755))?;
        }
        Ok(finished)
    }

    /// Where the compiled components of a release are, if its runtime made some.
    pub fn compiled(&self, release: &Release) -> Option<PathBuf> {
        Some(self.layout.compiled_dir().join(&release.id)).filter(|directory| directory.is_dir())
    }

    /// As [`Self::import`], from a bundle, an unpacked tarball or the tarball itself.
    ///
    /// # Errors
    /// As [`Self::import`], or `path` is none of the three.
    pub fn import_from(&self, path: &Path) -> anyhow::Result<Release> {
        if !path.is_file() {
            return self.import(&bundle_in(path)?);
        }
        let unpacked = tempfile::tempdir().context("Making a temporary directory")?;
        let file = File::open(path).with_context(|| format!("Opening {}", path.display()))?;
        // Refuses paths that lead out of the directory, by itself.
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
    /// The link cannot be written; it then points to where it did.
    pub fn point(&self, instance: u16, release: &str) -> anyhow::Result<()> {
        let link = self.layout.instance_release(instance);
        let instances = self.layout.instances_dir();
        fs::create_dir_all(&instances).with_context(|| format!("Making {}", instances.display()))?;
        // Relative, so that the tree can be moved, and read from outside a chroot.
        files::replace_link(&link, &Path::new("../releases").join(release))
    }

    /// The release that `instance` runs or will run, by its link.
    ///
    /// # Errors
    /// There is no link, or it leads to no release.
    pub fn of_instance(&self, instance: u16) -> anyhow::Result<Release> {
        let link = self.layout.instance_release(instance);
        let directory = fs::canonicalize(&link).with_context(|| {
            format!(
                "instance {instance} has no release: {} leads nowhere; {REINSTALL}",
                link.display()
            )
        })?;
        Release::open(&directory)
    }

    /// Removes what an import that was cut off left behind.
    ///
    /// # Errors
    /// The store cannot be read, or a left-over not removed.
    pub fn remove_leftovers(&self) -> anyhow::Result<()> {
        files::remove_leftovers(&self.layout.releases_dir(), STAGING_PREFIX)
    }
}

/// A bundle, or the one inside an unpacked tarball.
fn bundle_in(directory: &Path) -> anyhow::Result<PathBuf> {
    [directory.to_owned(), Layout::new(directory).bundle()]
        .into_iter()
        .find(|candidate| candidate.join(manifest::FILE_NAME).is_file())
        .with_context(|| {
            format!(
                "{} holds no bundle of links: there is no {}",
                directory.display(),
                manifest::FILE_NAME
            )
        })
}

/// What the runtime of 0.1.0 answers, which compiles only when it starts.
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
    // Whatever the umask is: the instances' user has to read it.
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
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
pub mod tests {
    use super::manifest::Runtime;
    use super::*;

    /// A bundle with a given runtime, as `pack` would make it.
    pub fn bundle(directory: &Path, runtime: &[u8]) -> Release {
        let contents: [(&str, &[u8], bool); 4] = [
            ("spin.toml", b"spin_manifest_version = 2\n", false),
            ("runtime.toml", b"", false),
            ("components/links.wasm", b"\0asm", false),
            ("runtime/links-host", runtime, true),
        ];
        let mut listed = std::collections::BTreeMap::new();
        for (name, bytes, executable) in contents {
            let path = directory.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, bytes).unwrap();
            let sha256 = HEXLOWER.encode(&Sha256::digest(bytes));
            listed.insert(
                name.to_owned(),
                manifest::File {
                    sha256,
                    size: bytes.len() as u64,
                    executable,
                },
            );
        }
        let manifest = Manifest {
            schema: 0,
            format: manifest::FORMAT,
            version: "1.2.3".into(),
            arch: "amd64".into(),
            runtime: Runtime {
                kind: RuntimeKind::LinksHost,
                version: "1.2.3".into(),
                path: "runtime/links-host".into(),
                origin: "a test".into(),
            },
            app: "spin.toml".into(),
            runtime_config: "runtime.toml".into(),
            files: listed,
        };
        fs::write(directory.join(manifest::FILE_NAME), manifest.to_json().unwrap()).unwrap();
        Release::open(directory).unwrap()
    }

    fn setting() -> (tempfile::TempDir, Layout, Release) {
        let root = tempfile::tempdir().unwrap();
        let source = root.path().join("bundle");
        fs::create_dir(&source).unwrap();
        let source = bundle(&source, b"#!/bin/sh\n");
        let layout = Layout::new(root.path().join("root"));
        (root, layout, source)
    }

    #[test]
    fn an_import_is_whole_and_readable_by_everyone() {
        let (_root, layout, source) = setting();
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

    /// A store into which a release with this runtime was imported twice.
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
    fn the_runtime_compiles_the_components_at_each_import() {
        let runtime =
            "#!/bin/sh\n[ \"$1 $2 $4\" = 'compile --from --out' ] && mkdir -p \"$5\" && echo \"$3\" >>\"$5/log\"\n";
        let (_root, layout, release) = imported_twice(runtime);
        let compiled = Store::new(&layout).compiled(&release).unwrap();
        assert_eq!(compiled, layout.compiled_dir().join(&release.id));
        let log = fs::read_to_string(compiled.join("log")).unwrap();
        let line = format!("{}\n", release.app_path().display());
        assert_eq!(log, line.repeat(2), "what no longer fits is compiled again");
        for directory in [&compiled, &layout.compiled_dir()] {
            let mode = fs::metadata(directory).unwrap().permissions().mode() & 0o777;
            assert_eq!(mode, 0o755, "{}", directory.display());
        }
    }

    #[test]
    fn a_runtime_that_does_not_compile_is_imported_all_the_same() {
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
    fn a_damaged_bundle_is_refused_and_leaves_nothing() {
        let (_root, layout, source) = setting();
        fs::write(source.directory.join("components/links.wasm"), b"\0asX").unwrap();
        let error = Store::new(&layout).import(&source.directory).unwrap_err();
        assert!(format!("{error:#}").contains("links.wasm differs"), "{error:#}");
        assert!(files::list(&layout.releases_dir()).unwrap().is_empty());
    }

    #[test]
    fn a_damaged_release_in_the_store_is_replaced_by_the_next_import() {
        let (_root, layout, source) = setting();
        let store = Store::new(&layout);
        let release = store.import(&source.directory).unwrap();
        fs::remove_file(release.app_path()).unwrap();
        store.import(&source.directory).unwrap().verify().unwrap();
    }

    #[test]
    fn a_manifest_may_not_lead_out_of_the_bundle() {
        let (_root, _layout, source) = setting();
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
        let (_root, layout, source) = setting();
        let store = Store::new(&layout);
        assert!(format!("{:#}", store.of_instance(1).unwrap_err()).contains("instance 1 has no release"));
        let release = store.import(&source.directory).unwrap();
        store.point(1, &release.id).unwrap();
        assert_eq!(store.of_instance(1).unwrap().id, release.id);
    }

    #[test]
    fn leftovers_of_a_cut_off_import_go() {
        let (_root, layout, source) = setting();
        let store = Store::new(&layout);
        store.import(&source.directory).unwrap();
        fs::create_dir(layout.releases_dir().join(".import-abc")).unwrap();
        store.remove_leftovers().unwrap();
        assert_eq!(files::list(&layout.releases_dir()).unwrap(), [source.id]);
    }
}
