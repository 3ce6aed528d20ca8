//! `manifest.json`: what a bundle holds, with the digest of every file.

use std::collections::BTreeMap;

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Name of the manifest inside a bundle. It lists every other file, never itself.
pub const FILE_NAME: &str = "manifest.json";
/// A file that a bundle holds if its runtime can listen on Unix sockets (`--listen unix:/PATH`). A field of its own would
/// make the manifest unreadable to linksctl 0.1.0, which refuses unknown fields, and with it the way back to that version.
pub const LISTENS_ON_SOCKETS: &str = "runtime/listens-on-sockets";
/// A file of a bundle that says what each component was built with, in JSON: the version of `wasi:http` and of the SDK. Not a
/// field, for the same reason.
pub const COMPONENT_VERSIONS: &str = "components/versions.json";
/// The format written and understood here; a higher one is refused.
pub const FORMAT: u32 = 1;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    pub format: u32,
    /// Version of the release, as in the package.
    pub version: String,
    /// Debian's name of the architecture, `amd64` or `arm64`.
    pub arch: String,
    pub runtime: Runtime,
    /// Path of the application manifest (Spin manifest version 2) in the bundle.
    pub app: String,
    /// Path of the default runtime configuration in the bundle.
    pub runtime_config: String,
    /// Version of the database's tables that the components bring about when they start; 0 for none.
    pub schema: u32,
    /// Every file of the bundle but this one, by its path relative to the bundle.
    pub files: BTreeMap<String, File>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Runtime {
    pub kind: RuntimeKind,
    /// As its `--version` says, without the name: `4.0.2`.
    pub version: String,
    /// Path of the executable in the bundle.
    pub path: String,
    /// Where it came from, in words, e.g. `the Spin 4.0.2 release, checked by SHA-256`.
    pub origin: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RuntimeKind {
    Spin,
    LinksHost,
}

impl std::fmt::Display for RuntimeKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Spin => "spin",
            Self::LinksHost => "links-host",
        })
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// Lower-case hexadecimal.
    pub sha256: String,
    /// Bytes.
    pub size: u64,
    pub executable: bool,
}

impl Manifest {
    /// Whether the runtime can listen on Unix sockets besides ports, on several endpoints at a time.
    pub fn listens_on_sockets(&self) -> bool {
        self.files.contains_key(LISTENS_ON_SOCKETS)
    }

    /// The bytes of `manifest.json`: stable for equal contents.
    ///
    /// # Errors
    /// None in practice: every field has a JSON form.
    pub fn to_json(&self) -> serde_json::Result<Vec<u8>> {
        let mut bytes = serde_json::to_vec_pretty(self)?;
        bytes.push(b'\n');
        Ok(bytes)
    }

    /// # Errors
    /// Not JSON, an unknown or missing field, or a format from the future.
    pub fn parse(bytes: &[u8]) -> anyhow::Result<Self> {
        let manifest: Self = serde_json::from_slice(bytes)?;
        anyhow::ensure!(
            manifest.format == FORMAT,
            "manifest format {} is not understood; this linksctl understands {FORMAT}",
            manifest.format
        );
        Ok(manifest)
    }

    /// `VERSION-HASH`, the name of the release in the store: equal for equal contents only, because the manifest
    /// holds the digest of every file.
    ///
    /// # Errors
    /// As [`Self::to_json`].
    pub fn release_id(&self) -> serde_json::Result<String> {
        let digest = HEXLOWER.encode(&Sha256::digest(self.to_json()?));
        Ok(format!("{}-{}", self.version, &digest[..12]))
    }
}
