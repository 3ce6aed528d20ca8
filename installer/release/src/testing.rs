//! Releases for tests.
#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use data_encoding::HEXLOWER;
use sha2::{Digest as _, Sha256};

use crate::manifest::{self, Manifest, Runtime, RuntimeKind};
use crate::store::Release;
use crate::version::Version;

/// Makes a bundle with the given runtime, like `linksctl pack`.
pub fn bundle(directory: &Path, runtime: &[u8]) -> Release {
    let contents: [(&str, &[u8], bool); 4] = [
        ("spin.toml", b"spin_manifest_version = 2\n", false),
        ("runtime.toml", b"", false),
        ("components/links.wasm", b"\0asm", false),
        ("runtime/links-host", runtime, true),
    ];
    let mut listed = BTreeMap::new();
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

/// Parses `RELEASE/CONFIG`, or `RELEASE` with a default configuration.
pub fn version(name: &str) -> Version {
    let (release, config) = name.split_once('/').unwrap_or((name, "a"));
    Version {
        release: release.to_owned(),
        config: config.to_owned(),
    }
}
