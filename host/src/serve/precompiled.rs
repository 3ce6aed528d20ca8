//! Components that `links-host compile` compiled in advance.
//!
//! Compiling takes more memory than serving, and a process keeps much of that memory. An application is therefore compiled
//! once, when it is installed. Compiled code is trusted like this program: if it was tampered with, it escapes the sandbox.
//! It is therefore used only if everybody who could have written it could also have replaced this program.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, bail};
use wasmtime::Engine;
use wasmtime::component::Component;

use super::engine::{self, CodeCache};
use crate::config::manifest;

const EXTENSION: &str = "cwasm";
const OTHERS_MAY_WRITE: u32 = 0o022;
const STICKY: u32 = 0o1000;

/// The path of a component's compiled form. Its name depends on everything that the form depends on: the component, wasmtime
/// and wasmtime's settings.
fn path(directory: &Path, engine: &Engine, id: &str, wasm: &[u8]) -> PathBuf {
    let mut key = DefaultHasher::new();
    engine.precompile_compatibility_hash().hash(&mut key);
    wasm.hash(&mut key);
    directory.join(format!("{id}-{:016x}.{EXTENSION}", key.finish()))
}

/// Loads the compiled form of a component, if there is one that matches.
///
/// # Errors
/// A matching file exists, but cannot be used.
pub fn load(directory: &Path, engine: &Engine, id: &str, wasm: &[u8]) -> Result<Option<Component>> {
    let path = path(directory, engine, id, wasm);
    let path = match path.canonicalize() {
        Ok(path) => path,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("Resolving {}", path.display())),
    };
    let program = std::env::current_exe().context("Finding the path of this program")?;
    let owner = program
        .metadata()
        .context("Reading the metadata of this program")?
        .uid();
    check_origin(&path, owner)?;
    // Read, not mapped, so that the file may be where execution is forbidden (NoExecPaths= of systemd).
    let code = std::fs::read(&path).with_context(|| format!("Reading {}", path.display()))?;
    // SAFETY: `precompile_component` made this code. Anybody who could have changed the file since could also have replaced
    // this program.
    let component = unsafe { Component::deserialize(engine, &code) };
    let component = component.map_err(|error| anyhow!("{error:#}"));
    component
        .with_context(|| format!("{} cannot be loaded", path.display()))
        .map(Some)
}

/// Checks that only root and `owner` could have written this file or put it in its place.
fn check_origin(file: &Path, owner: u32) -> Result<()> {
    for path in file.ancestors() {
        let metadata = path
            .symlink_metadata()
            .with_context(|| format!("Reading the metadata of {}", path.display()))?;
        if ![0, owner].contains(&metadata.uid()) {
            bail!("{} belongs to user {}", path.display(), metadata.uid());
        }
        // In a sticky directory nobody can replace the files of others.
        let is_shared = metadata.is_dir() && metadata.mode() & STICKY != 0;
        if metadata.mode() & OTHERS_MAY_WRITE != 0 && !is_shared {
            bail!("{} is writable by users other than its owner", path.display());
        }
    }
    Ok(())
}

/// `links-host compile`: compiles the components of the application `from` into `directory`, and removes other compiled
/// components from there.
///
/// # Errors
/// A component does not compile, or a file cannot be written. The error names it.
pub fn compile(from: &Path, directory: &Path, pooling: bool) -> Result<()> {
    let (application, app_dir) = manifest::load(from)?;
    let engine = engine::prepare(&CodeCache::Off, pooling)?.engine;
    std::fs::create_dir_all(directory).with_context(|| format!("Making the directory {}", directory.display()))?;
    let mut wanted = Vec::new();
    for (id, component) in &application.components {
        let source = app_dir.join(&component.source);
        let wasm = std::fs::read(&source).with_context(|| format!("Reading the component {}", source.display()))?;
        let target = path(directory, &engine, id, &wasm);
        if !matches!(load(directory, &engine, id, &wasm), Ok(Some(_))) {
            let compiled = engine.precompile_component(&wasm).map_err(|error| anyhow!("{error:#}"));
            let compiled = compiled.with_context(|| {
                format!(
                    "{} is not a WebAssembly component; build it again, or install it again",
                    source.display()
                )
            })?;
            write(&target, &compiled).with_context(|| format!("Writing {}", target.display()))?;
        }
        wanted.push(target);
    }
    for entry in std::fs::read_dir(directory).with_context(|| format!("Reading {}", directory.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == EXTENSION) && !wanted.contains(&path) {
            std::fs::remove_file(&path).with_context(|| format!("Removing {}", path.display()))?;
        }
    }
    Ok(())
}

/// Writes a file atomically.
fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::PermissionsExt as _;
    let staging = path.with_extension("new");
    // A file left by an earlier attempt may belong to another user.
    match std::fs::remove_file(&staging) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = std::fs::File::create_new(&staging)?;
    file.set_permissions(std::fs::Permissions::from_mode(0o644))?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&staging, path)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic fails the test")]
mod tests {
    use std::fs::{Permissions, set_permissions};
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_file_that_others_could_have_written_is_not_trusted() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("inner");
        std::fs::create_dir(&inner).unwrap();
        set_permissions(&inner, Permissions::from_mode(0o755)).unwrap();
        let file = inner.join("app.cwasm");
        std::fs::write(&file, "code").unwrap();
        let owner = nix::unistd::geteuid().as_raw();
        let check = |owner| check_origin(&file, owner).map_err(|error| error.to_string());
        set_permissions(&file, Permissions::from_mode(0o644)).unwrap();
        assert_eq!(check(owner), Ok(()));
        for path in [&file, &inner] {
            let before = path.metadata().unwrap().permissions();
            for mode in [0o775, 0o757] {
                set_permissions(path, Permissions::from_mode(mode)).unwrap();
                assert!(check(owner).unwrap_err().contains("is writable by"), "{mode:o}");
            }
            set_permissions(path, before).unwrap();
        }
        // Only root may change the owner of a file.
        if owner == 0 {
            std::os::unix::fs::chown(&file, Some(12345), None).unwrap();
            assert!(check(0).unwrap_err().contains("belongs to user 12345"));
            assert_eq!(check(12345), Ok(()));
        }
    }
}
