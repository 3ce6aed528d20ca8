//! The indexes of the repository, which apt-ftparchive writes.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use data_encoding::HEXLOWER;
use links_base::{exec, files};
use sha2::{Digest as _, Sha256};

use super::layout;
use crate::archive;
use crate::identity::Arch;

/// A file that the Release file names.
#[derive(Debug)]
pub struct IndexFile {
    /// The path relative to the directory of the suite.
    pub path: PathBuf,
    pub bytes: Vec<u8>,
    pub sha256: String,
}

impl IndexFile {
    fn new(path: PathBuf, bytes: Vec<u8>) -> Self {
        let sha256 = HEXLOWER.encode(&Sha256::digest(&bytes));
        Self { path, bytes, sha256 }
    }
}

/// All indexes of the repository, and the Release file with their digests.
#[derive(Debug)]
pub struct Index {
    pub files: Vec<IndexFile>,
    pub release: String,
}

impl Index {
    /// Reads the packages in the pool of the repository `root`. apt-ftparchive reads the indexes from `scratch`, an empty
    /// directory.
    ///
    /// # Errors
    /// Fails if apt-ftparchive is missing or fails, if it does not find the packages of an architecture, or if `scratch`
    /// cannot be written.
    pub fn of(root: &Path, architectures: &BTreeSet<Arch>, scratch: &Path) -> anyhow::Result<Self> {
        let mut all = Vec::new();
        for arch in architectures {
            let packages = ftparchive(root, ["--arch", arch.debian(), "packages", layout::POOL])?;
            anyhow::ensure!(
                packages.contains("Package: "),
                "apt-ftparchive found no package for {} in {}",
                arch.debian(),
                root.display()
            );
            let directory = layout::binary(arch.debian());
            let compressed = xz(packages.as_bytes()).context("Compressing an index")?;
            all.push(IndexFile::new(directory.join("Packages"), packages.into_bytes()));
            all.push(IndexFile::new(directory.join("Packages.xz"), compressed));
        }
        for file in &all {
            let path = scratch.join(&file.path);
            fs::create_dir_all(path.parent().unwrap_or(scratch))
                .with_context(|| format!("Creating {}", scratch.display()))?;
            files::replace(&path, &file.bytes, 0o644)?;
        }
        let release = ftparchive(scratch, release_arguments(architectures))?;
        Ok(Self { files: all, release })
    }
}

fn xz(bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut encoder = archive::xz(Vec::new(), 1)?;
    encoder.write_all(bytes)?;
    encoder.finish()
}

/// The arguments for a Release file of the current directory.
fn release_arguments(architectures: &BTreeSet<Arch>) -> Vec<String> {
    let architectures: Vec<_> = architectures.iter().map(|arch| arch.debian()).collect();
    let fields = [
        ("Origin", "links"),
        ("Label", "links"),
        ("Suite", layout::SUITE),
        ("Codename", layout::SUITE),
        ("Architectures", &architectures.join(" ")),
        ("Components", layout::COMPONENT),
        ("Description", "links, a self-hosted URL shortener"),
        ("Acquire-By-Hash", "yes"),
    ];
    let mut arguments: Vec<_> = fields
        .iter()
        .flat_map(|(name, value)| ["-o".to_owned(), format!("APT::FTPArchive::Release::{name}={value}")])
        .collect();
    arguments.extend(["release", "."].map(str::to_owned));
    arguments
}

/// The output of apt-ftparchive in `directory`, which makes the paths in the output relative to it.
fn ftparchive<I, S>(directory: &Path, arguments: I) -> anyhow::Result<String>
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    const PROGRAM: &str = "apt-ftparchive";
    exec::find(PROGRAM).with_context(|| format!("{PROGRAM} is missing; install Debian's package apt-utils"))?;
    let mut command: Vec<OsString> = vec!["--chdir".into(), directory.into()];
    // apt ignores a Release file that is older than the one it has, so its date is the current time.
    command.extend(["--unset=SOURCE_DATE_EPOCH", PROGRAM].map(OsString::from));
    // Only SHA256: apt looks for an index under the strongest digest that the Release file has for it.
    for digest in ["MD5", "SHA1", "SHA512"] {
        command.extend(["-o".into(), format!("APT::FTPArchive::{digest}=false").into()]);
    }
    command.extend(arguments.into_iter().map(|argument| argument.as_ref().to_owned()));
    exec::run("env", command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_release_file_names_all_architectures_and_offers_indexes_by_their_digests() {
        let arguments = release_arguments(&BTreeSet::from([Arch::Arm64, Arch::Amd64]));
        for field in ["Architectures=amd64 arm64", "Suite=stable", "Acquire-By-Hash=yes"] {
            let option = format!("APT::FTPArchive::Release::{field}");
            assert!(arguments.contains(&option), "{arguments:?}");
        }
        assert!(arguments.ends_with(&["release".to_owned(), ".".to_owned()]));
    }
}
