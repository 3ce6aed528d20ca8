//! An apt repository that `links-pack repo` writes, and the key that signs it.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use tempfile::TempDir;

use crate::artifacts::test_program;
use crate::host::Host;
use crate::process::require;

/// An apt repository on this computer. Hosts get a copy of it.
#[derive(Debug)]
pub struct Repository {
    directory: TempDir,
    key: Key,
    /// Where hosts find the copy.
    url: String,
}

/// How links-pack gets the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyFrom {
    File,
    Keyring,
}

/// The files that vouch for all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Files {
    Signed,
    Others,
}

impl Repository {
    /// An empty repository with a new key, which hosts find at `url`.
    ///
    /// # Errors
    /// Fails if gpg or apt-ftparchive is missing, or if gpg cannot make a key.
    pub fn new(url: &str, key: KeyFrom) -> Result<Self> {
        require(&[
            ("gpg", "gpg"),
            ("gpg-agent", "gpg-agent"),
            ("apt-ftparchive", "apt-utils"),
        ])?;
        Ok(Self {
            directory: temporary()?,
            key: Key::generate(key)?,
            url: url.to_owned(),
        })
    }

    /// Adds a package to the repository. Its file has the name that `make deb` gives it.
    ///
    /// # Errors
    /// Fails if links-pack fails.
    pub fn add(&self, deb: &Path) -> Result<()> {
        let packages = temporary()?;
        let copy = packages.path().join(deb.file_name().unwrap_or_default());
        fs::copy(deb, &copy).with_context(|| format!("Copying {}", deb.display()))?;
        let mut command = Command::new(test_program("links-pack")?);
        command.arg("repo").arg("--packages").arg(packages.path());
        command
            .arg("--out")
            .arg(self.directory.path())
            .args(["--url", &self.url]);
        command.args(["--key", &self.key.argument]);
        run(command.env("GNUPGHOME", self.key.home.path())).map(drop)
    }

    /// Copies the repository to a directory of the host, over what is there, in the order of docs/releasing.md. Calls
    /// `meanwhile` when only the signed files are those of before.
    ///
    /// # Errors
    /// Fails if a file cannot be copied, or if `meanwhile` fails.
    pub fn publish(&self, host: &Host, directory: &str, meanwhile: impl FnOnce() -> Result<()>) -> Result<()> {
        host.ok(["mkdir", "--parents", directory])?;
        self.copy(Files::Others, &host.path_outside(directory))?;
        meanwhile()?;
        self.copy(Files::Signed, &host.path_outside(directory))
    }

    fn copy(&self, files: Files, to: &Path) -> Result<()> {
        let mut find = Command::new("find");
        find.current_dir(self.directory.path()).args([".", "-type", "f"]);
        if files == Files::Others {
            find.arg("!");
        }
        find.args(["(", "-name", "InRelease", "-o", "-name", "Release*", ")"]);
        find.args(["-exec", "cp", "--parents", "--target-directory"]).arg(to);
        run(find.args(["{}", "+"])).map(drop)
    }
}

/// A secret key without a passphrase, in a keyring of its own.
#[derive(Debug)]
struct Key {
    home: TempDir,
    /// The value of `--key`.
    argument: String,
}

impl Key {
    fn generate(from: KeyFrom) -> Result<Self> {
        let mut key = Self {
            home: temporary()?,
            argument: String::new(),
        };
        let generate = [
            "--passphrase",
            "",
            "--quick-generate-key",
            "links tests",
            "ed25519",
            "sign",
            "never",
        ];
        key.gpg(&generate)?;
        key.argument = match from {
            KeyFrom::Keyring => "links tests".to_owned(),
            KeyFrom::File => {
                let file = key.home.path().join("repository.key");
                fs::write(&file, key.gpg(&["--armor", "--export-secret-keys"])?)?;
                file.to_string_lossy().into_owned()
            }
        };
        Ok(key)
    }

    fn gpg(&self, arguments: &[&str]) -> Result<Vec<u8>> {
        let mut gpg = Command::new("gpg");
        run(gpg
            .arg("--homedir")
            .arg(self.home.path())
            .arg("--batch")
            .args(arguments))
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        let mut stop = Command::new("gpgconf");
        // If the agent cannot be stopped, it ends when its directory is removed.
        let _ = run(stop.arg("--homedir").arg(self.home.path()).args(["--kill", "all"]));
    }
}

fn temporary() -> Result<TempDir> {
    tempfile::tempdir().context("Making a temporary directory")
}

fn run(command: &mut Command) -> Result<Vec<u8>> {
    let output = command.output().with_context(|| format!("Starting {command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?}: {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(output.stdout)
}
