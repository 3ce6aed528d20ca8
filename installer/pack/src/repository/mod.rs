//! An apt repository, for any server of static files: the packages, their indexes, signatures, and a file for the hosts that
//! install from it.
//!
//! apt-ftparchive writes the indexes and gpg signs them. Files are replaced in an order in which apt never finds an index that
//! does not match its signature, as long as whoever copies the repository keeps to that order (docs/releasing.md).

mod base_url;
mod index;
mod layout;
mod plan;
mod signer;
mod sources;

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use links_base::layout::PACKAGE;
use links_base::{digest, files};
use serde::Serialize;

use crate::cli::RepositoryArgs;
use crate::identity::Identity;
use base_url::BaseUrl;
use index::Index;
use plan::{Package, Plan};
use signer::{KeySource, Signer};

/// The mode of directories and of files, which a web server has to read.
const DIRECTORY_MODE: u32 = 0o755;
const FILE_MODE: u32 = 0o644;

/// Writes the repository, or shows what it would contain.
///
/// # Errors
/// Fails if the key or the URL is missing, if there is no package, if a package is in the repository already with other
/// contents, if apt-ftparchive, gpg or gpgv fails, or if the directory cannot be written.
pub fn write(args: &RepositoryArgs) -> anyhow::Result<()> {
    let key = KeySource::new(args.key.as_deref())?;
    let url = BaseUrl::new(args.url.as_deref())?;
    let pool = args.out.join(layout::pool());
    let mut found = Vec::new();
    for directory in &args.packages {
        found.extend(packages(directory)?);
    }
    let plan = Plan::make(found, packages(&pool)?)
        .with_context(|| format!("Planning the repository in {}", args.out.display()))?;
    let repository = Repository {
        out: args.out.clone(),
        url,
        plan,
    };
    if args.dry_run {
        return repository.show(None, args.json);
    }
    let signer = Signer::open(&key)?;
    repository.write(&signer)?;
    repository.show(Some(signer.fingerprint()), args.json)
}

/// The packages in a directory, sorted by name. A missing directory has none.
fn packages(directory: &Path) -> anyhow::Result<Vec<Package>> {
    let names = files::list(directory).with_context(|| format!("Reading {}", directory.display()))?;
    let package = |name: String| {
        let identity = Identity::of_deb(&name)?;
        let path = directory.join(&name);
        let read = || digest::of(&mut File::open(&path)?);
        let described = read().with_context(|| format!("Reading {}", path.display()));
        Some(described.map(|(size, sha256)| Package {
            path: path.clone(),
            name,
            identity,
            size,
            sha256,
        }))
    };
    names.into_iter().filter_map(package).collect()
}

struct Repository {
    out: PathBuf,
    url: BaseUrl,
    plan: Plan,
}

impl Repository {
    /// Writes everything, and the signed file that names the new indexes last.
    fn write(&self, signer: &Signer) -> anyhow::Result<()> {
        self.put_packages_into_the_pool()?;
        let scratch = tempfile::tempdir().context("Creating a temporary directory")?;
        let index = Index::of(&self.out, &self.plan.architectures, scratch.path())?;
        let signatures = signer.sign(&index.release)?;
        signer.verify(&index.release, &signatures, scratch.path())?;

        // Named after their digests, these are found with the old signed file and with the new one.
        for file in &index.files {
            self.replace(&layout::by_hash(&file.path, &file.sha256), &file.bytes)?;
        }
        for file in &index.files {
            self.replace(&layout::suite().join(&file.path), &file.bytes)?;
        }
        let sources = sources::text(&self.url, signer.public_key())?;
        self.replace(Path::new(layout::SOURCES), sources.as_bytes())?;
        let release = [
            ("Release.gpg", &signatures.detached),
            ("Release", &index.release),
            ("InRelease", &signatures.inline),
        ];
        release
            .into_iter()
            .try_for_each(|(name, text)| self.replace(&layout::suite().join(name), text.as_bytes()))
    }

    fn put_packages_into_the_pool(&self) -> anyhow::Result<()> {
        let pool = self.make_directory(&layout::pool())?;
        for package in &self.plan.added {
            let reading = || format!("Reading {}", package.path.display());
            let mut file = File::open(&package.path).with_context(reading)?;
            files::replace_from(&pool.join(&package.name), &mut file, FILE_MODE)?;
        }
        Ok(())
    }

    /// Replaces a file of the repository, unless it has these contents already.
    fn replace(&self, path: &Path, contents: &[u8]) -> anyhow::Result<()> {
        let target = self.out.join(path);
        if fs::read(&target).is_ok_and(|found| found == contents) {
            return Ok(());
        }
        self.make_directory(path.parent().unwrap_or(Path::new("")))?;
        files::replace(&target, contents, FILE_MODE)
    }

    /// Creates a directory of the repository, and those above it, so that a web server can read them whatever the umask.
    fn make_directory(&self, path: &Path) -> anyhow::Result<PathBuf> {
        let mut directory = self.out.clone();
        files::make_directory(&directory, DIRECTORY_MODE)?;
        for part in path {
            directory.push(part);
            files::make_directory(&directory, DIRECTORY_MODE)?;
        }
        Ok(directory)
    }

    /// Prints what was written, or, without a key, what would be.
    fn show(&self, key: Option<&str>, json: bool) -> anyhow::Result<()> {
        let architectures: Vec<_> = self.plan.architectures.iter().map(|arch| arch.debian()).collect();
        let mut out = io::stdout().lock();
        if json {
            let shown = Shown {
                repository: &self.out,
                suite: layout::SUITE,
                architectures,
                key,
                sources_url: self.url.join(layout::SOURCES),
                added: &self.plan.added,
                kept: &self.plan.kept,
            };
            writeln!(out, "{}", serde_json::to_string_pretty(&shown)?)?;
            return Ok(());
        }
        for (what, packages) in [("added", &self.plan.added), ("kept", &self.plan.kept)] {
            for package in packages {
                writeln!(out, "{what} {} (sha256 {})", package.name, package.sha256)?;
            }
        }
        let by = key.map(|key| format!(", signed by {key}")).unwrap_or_default();
        writeln!(out, "{}: {}{by}", self.out.display(), architectures.join(" "))?;
        writeln!(out, "A host installs from it after these commands, as root:")?;
        let (sources, name) = (self.url.join(layout::SOURCES), layout::SOURCES);
        writeln!(out, "    curl -fsSo /etc/apt/sources.list.d/{name} {sources}")?;
        writeln!(out, "    apt update && apt install {PACKAGE}")?;
        Ok(())
    }
}

#[derive(Serialize)]
struct Shown<'a> {
    repository: &'a Path,
    suite: &'a str,
    architectures: Vec<&'static str>,
    /// The fingerprint; `None` if nothing was signed.
    key: Option<&'a str>,
    sources_url: String,
    added: &'a [Package],
    kept: &'a [Package],
}
