//! `manifest.json`: the contents of a bundle, with the digest of every file.

use std::collections::BTreeMap;

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The name of the manifest inside a bundle. It lists every file except itself.
pub const FILE_NAME: &str = "manifest.json";
/// A file that is in a bundle if its runtime can listen on Unix sockets (`--listen unix:/PATH`). It is not a field, because
/// linksctl 0.1.0 refuses manifests with unknown fields, and a downgrade to that version must work.
pub const LISTENS_ON_SOCKETS: &str = "runtime/listens-on-sockets";
/// A JSON file in a bundle that lists what each component was built with: the versions of `wasi:http` and of the SDK. It is
/// not a field for the same reason.
pub const COMPONENT_VERSIONS: &str = "components/versions.json";
/// The format that this version writes and understands. Other formats are refused.
pub const FORMAT: u32 = 1;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    pub format: u32,
    /// The version of the release, as in the package.
    pub version: String,
    /// The architecture, by Debian's name for it: `amd64` or `arm64`.
    pub arch: String,
    pub runtime: Runtime,
    /// The path of the application manifest (Spin manifest version 2) in the bundle.
    pub app: String,
    /// The path of the default runtime configuration in the bundle.
    pub runtime_config: String,
    /// The version of the database schema that the components create or migrate to when they start. 0 for none.
    pub schema: u32,
    /// Every file of the bundle except the manifest, by its path relative to the bundle.
    pub files: BTreeMap<String, File>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Runtime {
    pub kind: RuntimeKind,
    /// The version as `--version` prints it, without the name: `4.0.2`.
    pub version: String,
    /// The path of the executable in the bundle.
    pub path: String,
    /// A description of its origin, e.g. `the Spin 4.0.2 release, checked by SHA-256`.
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
    /// The digest in lower-case hexadecimal.
    pub sha256: String,
    /// The size in bytes.
    pub size: u64,
    pub executable: bool,
}

impl Manifest {
    /// Whether the runtime can listen on Unix sockets as well as ports, and on several endpoints at once.
    pub fn listens_on_sockets(&self) -> bool {
        self.files.contains_key(LISTENS_ON_SOCKETS)
    }

    /// The bytes of `manifest.json`, which are the same for equal contents.
    ///
    /// # Errors
    /// Never in practice, because every field can be serialized to JSON.
    pub fn to_json(&self) -> serde_json::Result<Vec<u8>> {
        let mut bytes = serde_json::to_vec_pretty(self)?;
        bytes.push(b'\n');
        Ok(bytes)
    }

    /// Parses `manifest.json`.
    ///
    /// # Errors
    /// The text is not JSON, a field is unknown or missing, or the format is not supported.
    pub fn parse(bytes: &[u8]) -> anyhow::Result<Self> {
        let manifest: Self = serde_json::from_slice(bytes)?;
        anyhow::ensure!(
            manifest.format == FORMAT,
            "manifest format {} is not understood; this linksctl understands {FORMAT}",
            manifest.format
        );
        Ok(manifest)
    }

    /// The name of the release in the store, `VERSION-HASH`. It identifies the contents, because the manifest contains the
    /// digest of every file.
    ///
    /// # Errors
    /// The same as for [`Self::to_json`].
    pub fn release_id(&self) -> serde_json::Result<String> {
        let digest = HEXLOWER.encode(&Sha256::digest(self.to_json()?));
        Ok(format!("{}-{}", self.version, &digest[..12]))
    }
}
