//! Variants of the release under test: later versions, and broken ones.
//!
//! `linksctl pack` cannot make the broken ones, because it checks that each bundle serves. So the package under test is
//! unpacked, changed, given matching digests, and packed again.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

use crate::artifacts::{Artifacts, test_program};

/// The path of the bundle in a package.
const BUNDLE: &str = "usr/lib/links/bundle";

/// The paths of the components in a bundle.
const REDIRECT: &str = "components/redirect.wasm";
const API: &str = "components/api.wasm";

/// What is wrong with a release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The runtime exits at once, with status 3.
    Exits,
    /// The runtime neither listens nor ends.
    Hangs,
    /// The runtime listens and never answers.
    Deaf,
    /// The runtime reports itself healthy, and answers everything else with 500.
    Sick,
    /// The runtime serves, except as the instance with this number.
    Instance(u16),
    /// The runtime serves, and dies one second after its start.
    DiesYoung,
    /// The component `api`, which no health check calls, is truncated to half its size.
    CorruptWasm,
    /// The components consider the database an old one, and their migrations contain invalid SQL.
    Migration,
    /// A file differs from the manifest.
    Digest,
}

impl Fault {
    const OF_RUNTIME: [Self; 5] = [Self::Exits, Self::Hangs, Self::Deaf, Self::Sick, Self::DiesYoung];

    /// The name in the file `fault`, which lies beside the broken runtime.
    fn name(self) -> String {
        match self {
            Self::Instance(number) => format!("instance-{number}"),
            fault => format!("{fault:?}").to_lowercase(),
        }
    }

    /// The fault of the runtime with this name.
    pub fn of_name(name: &str) -> Option<Self> {
        match name.strip_prefix("instance-") {
            Some(number) => number.parse().ok().map(Self::Instance),
            None => Self::OF_RUNTIME.into_iter().find(|fault| fault.name() == name),
        }
    }

    fn apply(self, bundle: &mut Bundle, broken_runtime: &Path) -> Result<()> {
        match self {
            Self::CorruptWasm => bundle.change(API, |bytes| bytes.truncate(bytes.len() / 2)),
            Self::Migration => {
                for component in [REDIRECT, API] {
                    let mut replaced = [0, 0];
                    bundle.change(component, |bytes| {
                        replaced = [
                            // Version 0 means that no migration was ever applied.
                            replace_all(bytes, b"max(version)", b"0           "),
                            replace_all(bytes, b"CREATE TABLE IF NOT", b"CREATE TABLE AS NOT"),
                        ];
                    })?;
                    ensure!(
                        replaced.iter().all(|count| *count > 0),
                        "{component} does not contain the expected SQL: {replaced:?}"
                    );
                }
                Ok(())
            }
            Self::Digest => bundle.change(API, |bytes| {
                let middle = bytes.len() / 2;
                bytes[middle] ^= 1;
            }),
            _ => {
                let runtime = bundle.runtime()?;
                let directory = bundle.directory.join(&runtime);
                let at = |name: &str| directory.with_file_name(name);
                fs::rename(&directory, at("real"))?;
                fs::copy(broken_runtime, &directory)?;
                fs::write(at("fault"), self.name())?;
                let beside = |name: &str| Path::new(&runtime).with_file_name(name).to_string_lossy().into_owned();
                bundle.add(&beside("real"));
                bundle.add(&beside("fault"));
                Ok(())
            }
        }
    }
}

/// The unpacked package under test, from which releases are made.
#[derive(Debug)]
pub struct Releases {
    directory: TempDir,
    broken_runtime: PathBuf,
    version: String,
}

impl Releases {
    /// Unpacks the package.
    ///
    /// # Errors
    /// Fails if dpkg-deb fails, or if the package has no manifest, or if the program broken-runtime is not built.
    pub fn of(artifacts: &Artifacts) -> Result<Self> {
        let directory = tempfile::tempdir().context("Making a temporary directory")?;
        let original = directory.path().join("original");
        let mut unpack = Command::new("dpkg-deb");
        run(unpack.arg("--raw-extract").arg(&artifacts.deb).arg(&original))?;
        let version = Bundle::open(&original.join(BUNDLE))?.text("version")?;
        Ok(Self {
            directory,
            broken_runtime: test_program("broken-runtime")?,
            version,
        })
    }

    /// The version of the package under test.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// A later version than the one under test: its last number plus `by`.
    pub fn later(&self, by: u32) -> String {
        let (before, last) = self.version.rsplit_once('.').unwrap_or(("0", &self.version));
        let last: u32 = last.parse().unwrap_or(0);
        format!("{before}.{}", last + by)
    }

    /// Builds a .deb with this version, and with a fault if one is given. Returns its path on this computer.
    ///
    /// # Errors
    /// Fails if the disk is full, if dpkg-deb fails, or if the fault cannot be applied.
    pub fn deb(&self, version: &str, fault: Option<Fault>) -> Result<PathBuf> {
        let at = |name: &str| self.directory.path().join(name);
        let fault_name = fault.map_or_else(|| "sound".to_owned(), Fault::name);
        let deb = at(&format!("{version}-{fault_name}.deb"));
        if deb.exists() {
            return Ok(deb);
        }
        let tree = at("tree");
        let mut copy = Command::new("cp");
        run(copy
            .args(["--archive", "--no-target-directory"])
            .arg(at("original"))
            .arg(&tree))?;

        let mut bundle = Bundle::open(&tree.join(BUNDLE))?;
        bundle.manifest["version"] = version.into();
        // Every fault goes in before the digests are computed, except the one that makes a digest wrong.
        match fault {
            Some(Fault::Digest) => {
                bundle.seal()?;
                Fault::Digest.apply(&mut bundle, &self.broken_runtime)?;
            }
            Some(fault) => {
                fault.apply(&mut bundle, &self.broken_runtime)?;
                bundle.seal()?;
            }
            None => bundle.seal()?,
        }
        let control = tree.join("DEBIAN/control");
        let text = fs::read_to_string(&control).with_context(|| format!("Reading {}", control.display()))?;
        let old = format!("\nVersion: {}\n", self.version);
        ensure!(text.contains(&old), "no {old:?} in {text}");
        fs::write(&control, text.replace(&old, &format!("\nVersion: {version}\n")))?;
        let sums = "find . -type f ! -path './DEBIAN/*' -printf '%P\\0' | sort -z | xargs -0 md5sum >DEBIAN/md5sums";
        run(Command::new("sh").args(["-c", sums]).current_dir(&tree))?;

        let making = at("making.deb");
        let mut build = Command::new("dpkg-deb");
        // Fast compression will do: the package is installed once and thrown away.
        build.args(["--root-owner-group", "-Zgzip", "-z1", "--build"]);
        run(build.arg(&tree).arg(&making))?;
        fs::remove_dir_all(&tree)?;
        fs::rename(&making, &deb)?;
        Ok(deb)
    }
}

/// The directory of a bundle, with its parsed manifest.
struct Bundle {
    directory: PathBuf,
    manifest: Value,
}

impl Bundle {
    fn open(directory: &Path) -> Result<Self> {
        let path = directory.join("manifest.json");
        let text = fs::read(&path).with_context(|| format!("Reading {}", path.display()))?;
        Ok(Self {
            directory: directory.to_owned(),
            manifest: serde_json::from_slice(&text).with_context(|| format!("Reading {}", path.display()))?,
        })
    }

    fn text(&self, key: &str) -> Result<String> {
        let text = self.manifest[key].as_str();
        Ok(text.with_context(|| format!("the manifest has no {key}"))?.to_owned())
    }

    fn runtime(&self) -> Result<String> {
        let path = self.manifest["runtime"]["path"].as_str();
        Ok(path.context("the manifest has no runtime.path")?.to_owned())
    }

    fn change(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) -> Result<()> {
        let path = self.directory.join(name);
        let mut bytes = fs::read(&path).with_context(|| format!("Reading {}", path.display()))?;
        change(&mut bytes);
        fs::write(&path, bytes).with_context(|| format!("Writing {}", path.display()))
    }

    /// Adds a file to the manifest. [`Self::seal`] fills in its digest and size.
    fn add(&mut self, name: &str) {
        self.manifest["files"][name] = Value::Null;
    }

    /// Writes the manifest with the digests and sizes of the files as they are now.
    fn seal(&mut self) -> Result<()> {
        let files = self.manifest["files"]
            .as_object_mut()
            .context("the manifest has no files")?;
        for (name, file) in files {
            let path = self.directory.join(name);
            let bytes = fs::read(&path).with_context(|| format!("Reading {}", path.display()))?;
            let sha256: String = Sha256::digest(&bytes)
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect();
            let executable = fs::metadata(&path)?.permissions().mode() & 0o111 != 0;
            *file = serde_json::json!({ "sha256": sha256, "size": bytes.len(), "executable": executable });
        }
        let path = self.directory.join("manifest.json");
        fs::write(&path, serde_json::to_vec_pretty(&self.manifest)?)
            .with_context(|| format!("Writing {}", path.display()))
    }
}

/// Replaces in place, and returns the number of replacements.
fn replace_all(bytes: &mut [u8], old: &[u8], new: &[u8]) -> usize {
    assert_eq!(old.len(), new.len(), "a replacement must fit");
    let mut count = 0;
    for at in 0..=bytes.len().saturating_sub(old.len()) {
        if bytes[at..].starts_with(old) {
            bytes[at..at + new.len()].copy_from_slice(new);
            count += 1;
        }
    }
    count
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("Starting {command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?}: {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
