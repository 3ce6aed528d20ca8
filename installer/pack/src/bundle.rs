//! The bundle, a directory with the application, its default configuration, the runtime, and a manifest.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::app::{self, App};
use super::identity::Identity;
use super::interface::{Interface, Versions};
use super::sections;
use links_base::digest;
use links_config::load::Invalid;
use links_config::runtime::RuntimeToml;
use links_release::manifest::{self, Manifest, RuntimeKind};

const APP: &str = "spin.toml";
const RUNTIME_CONFIG: &str = "runtime.toml";

/// What a bundle is made of.
#[derive(Clone, Debug)]
pub struct Ingredients {
    pub identity: Identity,
    /// The file of the application manifest. The paths of the components are relative to its directory.
    pub app_file: PathBuf,
    pub app: App,
    /// The version of the database's tables.
    pub schema: u32,
    pub runtime_config: PathBuf,
    pub runtime: Program,
}

/// A runtime to put into a bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    pub kind: RuntimeKind,
    pub version: String,
    /// Where it came from, in words.
    pub origin: String,
    /// The interface that its components must be built for.
    pub interface: Interface,
    /// Whether it can listen on Unix sockets.
    pub listens_on_sockets: bool,
}

impl Program {
    /// The path in the bundle.
    fn path(&self) -> String {
        format!("runtime/{}", self.kind)
    }
}

/// One file of a bundle that need not exist yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    /// The path relative to the bundle.
    pub path: String,
    pub executable: bool,
    /// What the file is made from, in words.
    pub origin: String,
}

impl Ingredients {
    /// The file of a component that is built for this runtime.
    pub fn build_of(&self, component: &app::Component) -> PathBuf {
        let directory = self.app_file.parent().unwrap_or(Path::new(""));
        directory.join(self.runtime.interface.build_of(&component.source))
    }

    /// The files that [`build`] will write.
    pub fn plan(&self) -> Vec<Planned> {
        let planned = |path: &str, executable, origin: String| Planned {
            path: path.to_owned(),
            executable,
            origin,
        };
        let mut files = vec![
            planned(APP, false, format!("{}, rewritten", self.app_file.display())),
            planned(RUNTIME_CONFIG, false, self.runtime_config.display().to_string()),
            planned(
                &self.runtime.path(),
                true,
                format!(
                    "{} {}: {}",
                    self.runtime.kind, self.runtime.version, self.runtime.origin
                ),
            ),
            planned(manifest::FILE_NAME, false, "digests of the other files".to_owned()),
            planned(
                manifest::COMPONENT_VERSIONS,
                false,
                "the versions found in the components".to_owned(),
            ),
        ];
        files.extend(self.app.components.iter().map(|component| {
            let source = self.build_of(component);
            planned(&component.path(), false, source.display().to_string())
        }));
        if self.runtime.listens_on_sockets {
            let origin = "the runtime's help".to_owned();
            files.push(planned(manifest::LISTENS_ON_SOCKETS, false, origin));
        }
        files.sort_by(|a, b| a.path.cmp(&b.path));
        files
    }
}

/// Builds the bundle in `dir`, which must not exist. `executable` is the program of its runtime.
///
/// # Errors
/// Fails if a file cannot be read or written, if a component is not one for this runtime, or if the runtime configuration is
/// invalid.
pub fn build(dir: &Path, ingredients: &Ingredients, executable: &Path) -> anyhow::Result<Manifest> {
    let runtime = &ingredients.runtime;
    let mut files = BTreeMap::new();
    let mut add = |path: &str, executable: bool, write: &dyn Fn(&Path) -> anyhow::Result<()>| -> anyhow::Result<()> {
        let target = dir.join(path);
        fs::create_dir_all(target.parent().unwrap_or(dir)).with_context(|| format!("Creating {}", dir.display()))?;
        write(&target)?;
        let mode = if executable { 0o755 } else { 0o644 };
        let (size, sha256) = finish(&target, mode).with_context(|| format!("Writing {}", target.display()))?;
        files.insert(
            path.to_owned(),
            manifest::File {
                sha256,
                size,
                executable,
            },
        );
        Ok(())
    };
    add(APP, false, &|target| {
        fs::write(target, &ingredients.app.manifest).with_context(|| format!("Writing {}", target.display()))
    })?;
    add(RUNTIME_CONFIG, false, &|target| {
        let text = read_runtime_config(&ingredients.runtime_config)?;
        fs::write(target, text).with_context(|| format!("Writing {}", target.display()))
    })?;
    let mut versions = BTreeMap::new();
    for component in &ingredients.app.components {
        let source = ingredients.build_of(component);
        let wasm = read_component(&source, runtime.interface)
            .with_context(|| format!("component.{} of {}", component.id, APP))?;
        versions.insert(&component.id, Versions::read(&wasm));
        let wasm = sections::without_custom(&wasm).with_context(|| format!("Reading {}", source.display()))?;
        add(&component.path(), false, &|target| {
            fs::write(target, &wasm).with_context(|| format!("Writing {}", target.display()))
        })?;
    }
    add(manifest::COMPONENT_VERSIONS, false, &|target| {
        let mut text = serde_json::to_string_pretty(&versions)?;
        text.push('\n');
        fs::write(target, text).with_context(|| format!("Writing {}", target.display()))
    })?;
    add(&runtime.path(), true, &|target| copy(executable, target))?;
    if runtime.listens_on_sockets {
        add(manifest::LISTENS_ON_SOCKETS, false, &|target| {
            fs::write(target, format!("{} listens on Unix sockets\n", runtime.kind))
                .with_context(|| format!("Writing {}", target.display()))
        })?;
    }

    let manifest = Manifest {
        format: manifest::FORMAT,
        version: ingredients.identity.version.clone(),
        arch: ingredients.identity.arch.debian().to_owned(),
        runtime: manifest::Runtime {
            kind: runtime.kind,
            version: runtime.version.clone(),
            path: runtime.path(),
            origin: runtime.origin.clone(),
        },
        app: APP.to_owned(),
        runtime_config: RUNTIME_CONFIG.to_owned(),
        schema: ingredients.schema,
        files,
    };
    let target = dir.join(manifest::FILE_NAME);
    fs::write(&target, manifest.to_json()?).with_context(|| format!("Writing {}", target.display()))?;
    fs::set_permissions(&target, fs::Permissions::from_mode(0o644))?;
    Ok(manifest)
}

fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::copy(from, to).with_context(|| format!("Copying {} to {}", from.display(), to.display()))?;
    Ok(())
}

/// Sets the mode regardless of the umask and of the original's mode, and returns the size and the digest.
fn finish(path: &Path, mode: u32) -> io::Result<(u64, String)> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    digest::of(&mut File::open(path)?)
}

/// Reads the runtime configuration. A configuration that every host would refuse is not packed.
///
/// # Errors
/// Fails if the file cannot be read, or with [`Invalid`].
pub fn read_runtime_config(path: &Path) -> anyhow::Result<String> {
    let text = fs::read_to_string(path).with_context(|| format!("Reading {} (--runtime-config)", path.display()))?;
    RuntimeToml::parse(&text, &path.display().to_string()).map_err(Invalid)?;
    Ok(text)
}

/// Reads a component that is built for this interface.
///
/// # Errors
/// Fails if the file cannot be read, is not a component, or is built for another interface.
pub fn read_component(path: &Path, interface: Interface) -> anyhow::Result<Vec<u8>> {
    const HINT: &str = "build the component first (component/build.sh)";
    let wasm = fs::read(path).with_context(|| format!("Reading {}; {HINT}", path.display()))?;
    // The binary format starts with a magic number, a version and a layer. Layer 1 is a component, layer 0 a core module.
    match wasm.get(..8) {
        Some([0, b'a', b's', b'm', 0x0d, 0, 1, 0]) => {}
        Some([0, b'a', b's', b'm', 1, 0, 0, 0]) => anyhow::bail!(
            "{} is a core module, not a component; build it for the target wasm32-wasip2",
            path.display()
        ),
        _ => anyhow::bail!("{} is not a WebAssembly component; {HINT}", path.display()),
    }
    let versions = Versions::read(&wasm);
    versions
        .check(interface)
        .with_context(|| format!("Cannot pack {}", path.display()))?;
    Ok(wasm)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use super::super::{app, identity::Arch};
    use super::*;
    use data_encoding::HEXLOWER;
    use sha2::{Digest as _, Sha256};

    const COMPONENT: &[u8] = b"\0asm\x0d\0\x01\0\x07\x34spin-sdk-version-7-0\0wasi:http/handler@0.3.0#handle\0";

    fn ingredients(dir: &Path) -> Ingredients {
        fs::create_dir(dir.join("component")).unwrap();
        let app_file = dir.join("component/spin.toml");
        fs::write(&app_file, "[component.links]\nsource = '../links.wasm'\n").unwrap();
        let custom_section = b"\0\x05\x04name";
        fs::write(dir.join("links.wasm"), [COMPONENT, custom_section].concat()).unwrap();
        fs::write(dir.join("runtime.toml"), "").unwrap();
        fs::write(dir.join("host"), "#!/bin/sh\n").unwrap();
        Ingredients {
            identity: Identity::new("1.2.3", Arch::Amd64).unwrap(),
            app: app::rewrite(&fs::read_to_string(&app_file).unwrap()).unwrap(),
            schema: 2,
            app_file,
            runtime_config: dir.join("runtime.toml"),
            runtime: Program {
                kind: RuntimeKind::LinksHost,
                version: "0.1.0".to_owned(),
                origin: "a test".to_owned(),
                interface: Interface::Wasi030,
                listens_on_sockets: false,
            },
        }
    }

    #[test]
    fn a_bundle_has_the_planned_files_and_its_manifest_lists_them() {
        let dir = tempfile::tempdir().unwrap();
        let ingredients = ingredients(dir.path());
        let bundle = dir.path().join("bundle");
        let manifest = build(&bundle, &ingredients, &dir.path().join("host")).unwrap();

        let planned: Vec<_> = ingredients.plan().into_iter().map(|file| file.path).collect();
        assert_eq!(
            planned,
            [
                "components/links.wasm",
                "components/versions.json",
                "manifest.json",
                "runtime.toml",
                "runtime/links-host",
                "spin.toml"
            ]
        );
        for file in ingredients.plan() {
            let mode = fs::metadata(bundle.join(&file.path)).unwrap().permissions().mode() & 0o777;
            assert_eq!(mode, if file.executable { 0o755 } else { 0o644 }, "{}", file.path);
        }
        let listed: Vec<_> = manifest.files.keys().map(String::as_str).collect();
        assert_eq!(
            listed,
            [
                "components/links.wasm",
                "components/versions.json",
                "runtime.toml",
                "runtime/links-host",
                "spin.toml"
            ]
        );
        let versions = fs::read_to_string(bundle.join(manifest::COMPONENT_VERSIONS)).unwrap();
        let versions: serde_json::Value = serde_json::from_str(&versions).unwrap();
        assert_eq!(
            versions,
            serde_json::json!({ "links": { "wasi:http": "0.3.0", "spin-sdk": "7.0" } })
        );
        let component = &manifest.files["components/links.wasm"];
        assert_eq!(component.size, COMPONENT.len() as u64);
        assert_eq!(component.sha256, HEXLOWER.encode(&Sha256::digest(COMPONENT)));
        let written = fs::read(bundle.join("manifest.json")).unwrap();
        assert_eq!(Manifest::parse(&written).unwrap(), manifest);
        assert_eq!(manifest.runtime.path, "runtime/links-host");
    }

    #[test]
    fn errors_name_the_missing_or_damaged_file_and_the_next_step() {
        let dir = tempfile::tempdir().unwrap();
        let ingredients = ingredients(dir.path());
        let attempt = |n: &str| {
            let error = build(&dir.path().join(n), &ingredients, &dir.path().join("host")).unwrap_err();
            format!("{error:#}")
        };
        let wasm = dir.path().join("links.wasm");
        fs::write(&wasm, "\0asm\x01\0\0\0").unwrap();
        assert!(attempt("1").contains("wasm32-wasip2"), "{}", attempt("2"));
        fs::write(&wasm, "\0as").unwrap();
        assert!(attempt("3").contains("not a WebAssembly component"), "{}", attempt("4"));
        fs::remove_file(&wasm).unwrap();
        let message = attempt("5");
        assert!(
            message.contains("links.wasm") && message.contains("component/build.sh"),
            "{message}"
        );
        fs::write(
            &wasm,
            b"\0asm\x0d\0\x01\0wasi:http/handler@0.3.0-rc-2026-03-15#handle\0",
        )
        .unwrap();
        let message = attempt("6");
        assert!(
            message.contains("links.wasm") && message.contains("for wasi:http 0.3.0;"),
            "{message}"
        );
        fs::write(&wasm, COMPONENT).unwrap();
        fs::write(dir.path().join("runtime.toml"), "\nunknown = 1\n").unwrap();
        let message = attempt("7");
        assert!(
            message.contains("runtime.toml:2:1") && message.contains("unknown"),
            "{message}"
        );
    }
}
