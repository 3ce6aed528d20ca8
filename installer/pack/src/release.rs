//! The pinned Spin release: where it is, what its digest is, and the program in it.

use std::fs::{self, File};
use std::io::{self, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::identity::Arch;
use links_base::digest;

/// An archive to download whose digest is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Release {
    pub version: &'static str,
    pub url: String,
    pub file_name: String,
    /// The digest in lower-case hexadecimal.
    pub sha256: String,
}

impl Release {
    /// The Spin release that the components are built for and tested on. The digests are from
    /// <https://github.com/spinframework/spin/releases/tag/v4.0.2>.
    pub fn pinned(arch: Arch) -> Self {
        let (name, sha256) = match arch {
            Arch::Amd64 => (
                "spin-v4.0.2-linux-amd64.tar.gz",
                "79523cfc93424d555b3493c7ea07e0fb482e1fd9972f29a83bea0ba7d764bf00",
            ),
            Arch::Arm64 => (
                "spin-v4.0.2-linux-aarch64.tar.gz",
                "f3811212aaf4ec9c6a731c515ab5052a64be52fc2cdd1b15b42f44817a82a9dc",
            ),
        };
        Self {
            version: "4.0.2",
            url: format!("https://github.com/spinframework/spin/releases/download/v4.0.2/{name}"),
            file_name: name.to_owned(),
            sha256: sha256.to_owned(),
        }
    }

    #[cfg(test)]
    pub fn at(url: String, sha256: String) -> Self {
        Self {
            version: "4.0.2",
            url,
            file_name: "spin.tar.gz".to_owned(),
            sha256,
        }
    }

    pub fn description(&self) -> String {
        format!("the Spin {} release", self.version)
    }

    /// The origin that the manifest names.
    pub fn origin(&self) -> String {
        format!("{}, checked by SHA-256", self.description())
    }

    /// Whether the download has already been saved. This does not check its digest.
    pub fn is_cached(&self, cache: &Path) -> bool {
        self.target(cache).is_file()
    }

    /// The path of the download.
    pub fn target(&self, cache: &Path) -> PathBuf {
        cache.join(&self.file_name)
    }

    /// Whether this is the archive. If not, the inner error is the digest of the file.
    ///
    /// # Errors
    /// Fails if the file cannot be read.
    pub fn matches(&self, file: &mut File) -> io::Result<Result<(), String>> {
        file.seek(SeekFrom::Start(0))?;
        let (_, found) = digest::of(file)?;
        Ok(if found == self.sha256 { Ok(()) } else { Err(found) })
    }
}

/// Unpacks one top-level file of a .tar.gz and makes it executable.
///
/// # Errors
/// Fails if the archive is damaged or has no such file, or if `to` cannot be written.
pub fn unpack(archive: &Path, name: &str, to: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let reading = || format!("Reading {}", archive.display());
    let file = File::open(archive).with_context(reading)?;
    let mut tar = tar::Archive::new(flate2::read::GzDecoder::new(io::BufReader::new(file)));
    for entry in tar.entries().with_context(reading)? {
        let mut entry = entry.with_context(reading)?;
        let path = entry.path().with_context(reading)?;
        if path.strip_prefix(".").unwrap_or(&path) != Path::new(name) {
            continue;
        }
        let writing = || format!("Writing {}", to.display());
        let mut out = File::create(to).with_context(writing)?;
        io::copy(&mut entry, &mut out).with_context(|| format!("Unpacking {name} from {}", archive.display()))?;
        fs::set_permissions(to, fs::Permissions::from_mode(0o755)).with_context(writing)?;
        return Ok(());
    }
    anyhow::bail!("{} does not contain {name}", archive.display())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use super::*;

    #[test]
    fn only_a_top_level_file_is_unpacked() {
        let dir = tempfile::tempdir().unwrap();
        let archive = dir.path().join("a.tar.gz");
        let mut tar = tar::Builder::new(flate2::write::GzEncoder::new(
            File::create(&archive).unwrap(),
            flate2::Compression::fast(),
        ));
        for (path, text) in [("README.md", "read"), ("share/spin", "not this"), ("spin", "this")] {
            let mut header = tar::Header::new_gnu();
            header.set_size(text.len() as u64);
            header.set_mode(0o600);
            tar.append_data(&mut header, path, text.as_bytes()).unwrap();
        }
        tar.into_inner().unwrap().finish().unwrap();
        let to = dir.path().join("out");
        unpack(&archive, "spin", &to).unwrap();
        assert_eq!(fs::read(&to).unwrap(), b"this");
        assert!(
            unpack(&archive, "absent", &to)
                .unwrap_err()
                .to_string()
                .contains("does not contain absent")
        );
    }
}
