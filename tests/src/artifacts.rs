//! The packages under test.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;

/// The latest released version, from which users upgrade.
pub const RELEASED: &str = "0.1.0";

/// The packages that `make deb` wrote, in the directory named by `LINKS_DIST` or else in `target/packages`.
#[derive(Clone, Debug)]
pub struct Artifacts {
    pub deb: PathBuf,
    pub tarball: PathBuf,
}

/// What the manifest of the packages' bundle says.
#[derive(Deserialize)]
struct Manifest {
    runtime: Runtime,
    files: HashMap<String, File>,
}

#[derive(Deserialize)]
struct File {
    size: u64,
}

/// The runtime in the packages.
#[derive(Clone, Debug, Deserialize)]
pub struct Runtime {
    /// `spin` or `links-host`.
    pub kind: String,
    pub version: String,
}

impl Runtime {
    pub fn is_spin(&self) -> bool {
        self.kind == "spin"
    }
}

/// The path of OpenBao: what `LINKS_BAO` names, or else the program that .ci/servers installs.
pub(crate) fn bao() -> PathBuf {
    std::env::var_os("LINKS_BAO").map_or_else(|| target_directory().join("servers/bao"), PathBuf::from)
}

/// The path of a program that .ci/servers installs: the directory that `LINKS_SERVERS` names, or else target/servers.
pub(crate) fn server(name: &str) -> PathBuf {
    let directory = std::env::var_os("LINKS_SERVERS").map_or_else(|| target_directory().join("servers"), PathBuf::from);
    directory.join(name)
}

/// The path of a program in tests/src/bin, which cargo builds with the tests, or of one of links in the same directory.
///
/// # Errors
/// Fails if the program is not built.
pub(crate) fn test_program(name: &str) -> Result<PathBuf> {
    let test = std::env::current_exe().context("Looking for the test program")?;
    // Tests are in target/PROFILE/deps, and the programs in target/PROFILE.
    let directories = test.ancestors().skip(1).take(2);
    let found = directories
        .map(|directory| directory.join(name))
        .find(|path| path.is_file());
    found.with_context(|| {
        format!(
            "there is no {name} near {}: `cargo build --workspace` builds it",
            test.display()
        )
    })
}

/// The path of the library that is built from tests/examples/power_cut.rs.
///
/// # Errors
/// Fails if the library is not built.
pub fn power_cut() -> Result<PathBuf> {
    let path = target_directory().join("release/examples/libpower_cut.so");
    ensure!(
        path.is_file(),
        "there is no {}: `cargo build --release --package links-tests --examples` builds it",
        path.display()
    );
    Ok(path)
}

impl Artifacts {
    /// Finds the packages.
    ///
    /// # Errors
    /// Fails unless there is exactly one of each kind.
    pub fn find() -> Result<Self> {
        let directory = match std::env::var_os("LINKS_DIST") {
            Some(directory) => PathBuf::from(directory),
            None => target_directory().join("packages"),
        };
        Ok(Self {
            deb: the_one(&directory, "links-shortener_", ".deb")?,
            tarball: the_one(&directory, "links-", ".tar.gz")?,
        })
    }

    /// The package for another architecture, by Debian's name of it. `make deb ARCH=` writes it.
    ///
    /// # Errors
    /// Fails unless there is exactly one.
    pub fn foreign(arch: &str) -> Result<PathBuf> {
        let directory = target_directory().join(format!("packages-{arch}"));
        the_one(&directory, "links-shortener_", ".deb")
    }

    /// The path of a released version's package. `.ci/released` puts that of [`RELEASED`] into target/released.
    ///
    /// # Errors
    /// Fails if the package is missing.
    pub fn released(version: &str) -> Result<PathBuf> {
        let path = target_directory()
            .join("released")
            .join(format!("links-shortener_{version}_amd64.deb"));
        ensure!(
            path.is_file(),
            "there is no {}: .ci/released puts it there",
            path.display()
        );
        Ok(path)
    }

    /// The runtime in the .deb.
    ///
    /// # Errors
    /// Fails if the .deb cannot be read, or if its bundle has no manifest.
    pub fn runtime(&self) -> Result<Runtime> {
        Ok(self.manifest()?.runtime)
    }

    /// The size of a file in the .deb's bundle, in bytes. `path` is relative to the bundle.
    ///
    /// # Errors
    /// Fails as [`Artifacts::runtime`] does, or if there is no such file.
    pub fn size_of(&self, path: &str) -> Result<u64> {
        let manifest = self.manifest()?;
        let file = manifest.files.get(path);
        file.map(|file| file.size)
            .with_context(|| format!("the bundle has no {path}"))
    }

    fn manifest(&self) -> Result<Manifest> {
        let mut contents = Command::new("dpkg-deb")
            .arg("--fsys-tarfile")
            .arg(&self.deb)
            .stdout(Stdio::piped())
            .spawn()
            .context("Starting dpkg-deb")?;
        let contents_out = contents.stdout.take().context("dpkg-deb has no output")?;
        let manifest = Command::new("tar")
            .args(["--extract", "--to-stdout", "./usr/lib/links/bundle/manifest.json"])
            .stdin(contents_out)
            .output()
            .context("Starting tar")?;
        contents.wait().context("Waiting for dpkg-deb")?;
        serde_json::from_slice(&manifest.stdout)
            .with_context(|| format!("Reading the manifest in {}", self.deb.display()))
    }
}

/// The path of a program that runs programs for arm64 on this computer.
///
/// # Errors
/// Fails if `.ci/cross` cannot get it.
pub fn arm64_emulator() -> Result<PathBuf> {
    let cross = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.ci/cross");
    let output = Command::new(&cross).arg("emulator").output();
    let output = output.with_context(|| format!("Starting {}", cross.display()))?;
    ensure!(
        output.status.success(),
        "{} emulator: {}",
        cross.display(),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(PathBuf::from(String::from_utf8(output.stdout)?.trim_end()))
}

pub fn target_directory() -> PathBuf {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace.join("target"), |target| workspace.join(target))
}

fn the_one(directory: &Path, prefix: &str, suffix: &str) -> Result<PathBuf> {
    let entries = fs::read_dir(directory).with_context(|| {
        format!(
            "Looking for packages in {} (`make deb` writes them)",
            directory.display()
        )
    })?;
    let mut found = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with(prefix) && name.ends_with(suffix) {
            found.push(path);
        }
    }
    ensure!(
        found.len() < 2,
        "several {prefix}*{suffix} in {}: {found:?}",
        directory.display()
    );
    match found.pop() {
        Some(path) => Ok(path),
        None => bail!("no {prefix}*{suffix} in {} (`make deb` writes it)", directory.display()),
    }
}
