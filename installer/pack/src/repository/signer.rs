//! The key that signs the repository, and gpg, which has it.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use links_base::exec;
use tempfile::TempDir;

/// Where the secret key is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeySource {
    /// A file, as `gpg --export-secret-keys` writes it.
    File(PathBuf),
    /// A key in the user's keyring: its fingerprint, its ID, or a part of its name.
    Keyring(String),
}

impl KeySource {
    /// From the value of `--key`: a file if there is one of that name.
    ///
    /// # Errors
    /// Fails without a value. The message says how to make a key.
    pub fn new(value: Option<&str>) -> anyhow::Result<Self> {
        let value = value.filter(|value| !value.is_empty()).context(
            "the key that signs the repository is missing: set REPO_KEY (--key) to the fingerprint of a key in gpg's keyring, \
             or to a file that contains a secret key. To make a key and a file for it:\n\
             \x20   gpg --quick-generate-key 'links apt repository' ed25519 sign never\n\
             \x20   gpg --armor --export-secret-keys 'links apt repository' >repository.key\n\
             Keep a copy of the file offline: hosts trust only this key",
        )?;
        Ok(match Path::new(value) {
            path if path.is_file() => Self::File(path.to_owned()),
            path if path.is_absolute() => anyhow::bail!("there is no file {value} (REPO_KEY or --key)"),
            _ => Self::Keyring(value.to_owned()),
        })
    }
}

/// A secret key that gpg can use.
#[derive(Debug)]
pub struct Signer {
    gpg: Gpg,
    fingerprint: String,
    /// The public key in ASCII armor (RFC 9580, section 6).
    public_key: String,
}

/// The two forms in which apt looks for the signature of a Release file.
#[derive(Debug)]
pub struct Signatures {
    /// InRelease, the text with its signature.
    pub inline: String,
    /// Release.gpg, the signature alone.
    pub detached: String,
}

impl Signer {
    /// Finds the key.
    ///
    /// # Errors
    /// Fails if gpg is missing, if there is no such key or more than one, or if apt would not accept it.
    pub fn open(source: &KeySource) -> anyhow::Result<Self> {
        for (program, package) in [("gpg", "gpg"), ("gpg-agent", "gpg-agent"), ("gpgv", "gpgv")] {
            exec::find(program).with_context(|| format!("{program} is missing; install Debian's package {package}"))?;
        }
        let (gpg, listed, named) = match source {
            KeySource::File(path) => {
                let gpg = Gpg::with_own_keyring()?;
                gpg.run(["--import".as_ref(), path.as_os_str()])?;
                let listed = gpg.run(["--with-colons", "--list-secret-keys"])?;
                (gpg, listed, path.display().to_string())
            }
            KeySource::Keyring(id) => {
                let gpg = Gpg { home: None };
                let listed = gpg
                    .run(["--with-colons", "--list-secret-keys", "--", id])
                    .with_context(|| {
                        format!("gpg has no secret key {id:?}, and there is no file of that name (REPO_KEY or --key)")
                    })?;
                (gpg, listed, format!("{id:?}"))
            }
        };
        let fingerprint =
            fingerprint(&listed).with_context(|| format!("Choosing the key {named} (REPO_KEY or --key)"))?;
        let public_key = gpg.run(["--armor", "--export-options=export-minimal", "--export", &fingerprint])?;
        Ok(Self {
            gpg,
            fingerprint,
            public_key,
        })
    }

    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    pub fn public_key(&self) -> &str {
        &self.public_key
    }

    /// Signs a Release file.
    ///
    /// # Errors
    /// Fails if gpg cannot sign, for example because nobody enters the passphrase.
    pub fn sign(&self, release: &str) -> anyhow::Result<Signatures> {
        let directory = tempfile::tempdir().context("Creating a temporary directory")?;
        let file = directory.path().join("Release");
        fs::write(&file, release).with_context(|| format!("Writing {}", file.display()))?;
        let sign = |options: &[&str]| {
            let mut arguments = vec!["--local-user", &self.fingerprint, "--digest-algo=SHA512", "--output=-"];
            arguments.extend(options);
            let arguments = arguments.into_iter().map(OsStr::new).chain([file.as_os_str()]);
            self.gpg.run(arguments).context("Signing the repository")
        };
        Ok(Signatures {
            inline: sign(&["--clearsign"])?,
            detached: sign(&["--armor", "--detach-sign"])?,
        })
    }

    /// Checks both signatures with the public key alone, as a host does. `scratch` is a directory for temporary files.
    ///
    /// # Errors
    /// Fails if gpgv does not accept a signature.
    pub fn verify(&self, release: &str, signatures: &Signatures, scratch: &Path) -> anyhow::Result<()> {
        let keyring = scratch.join("keyring.gpg");
        let write = |name: &str, text: &str| -> anyhow::Result<OsString> {
            let path = scratch.join(name);
            fs::write(&path, text).with_context(|| format!("Writing {}", path.display()))?;
            Ok(path.into())
        };
        let files = [
            write("signed-release", &signatures.inline)?,
            write("signature", &signatures.detached)?,
            write("release", release)?,
        ];
        let export = ["--yes", "--export-options=export-minimal", "--export"].map(OsStr::new);
        let output = ["--output".as_ref(), keyring.as_os_str()];
        self.gpg
            .run(output.into_iter().chain(export).chain([self.fingerprint.as_ref()]))?;
        for signed in [&files[..1], &files[1..]] {
            let arguments = ["--keyring".into(), keyring.clone().into_os_string()];
            exec::run("gpgv", arguments.iter().chain(signed)).context("Checking the signature of the repository")?;
        }
        Ok(())
    }
}

/// gpg with the user's keyring, or with one of its own.
#[derive(Debug)]
struct Gpg {
    home: Option<TempDir>,
}

impl Gpg {
    fn with_own_keyring() -> anyhow::Result<Self> {
        // The directory has mode 0700.
        let home = tempfile::tempdir().context("Creating a directory for a keyring")?;
        Ok(Self { home: Some(home) })
    }

    fn run<I, S>(&self, arguments: I) -> anyhow::Result<String>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        let mut all: Vec<OsString> = vec!["--batch".into()];
        all.extend(self.home_arguments());
        all.extend(arguments.into_iter().map(|argument| argument.as_ref().to_owned()));
        exec::run("gpg", all)
    }

    fn home_arguments(&self) -> impl Iterator<Item = OsString> {
        let home = self.home.as_ref().map(|home| home.path().as_os_str().to_owned());
        home.into_iter().flat_map(|home| ["--homedir".into(), home])
    }
}

impl Drop for Gpg {
    fn drop(&mut self) {
        if self.home.is_some() {
            // gpg has started an agent for its keyring. If it cannot be stopped, it ends when its directory is removed.
            let arguments = self.home_arguments().chain(["--kill", "all"].map(OsString::from));
            let _ = exec::run("gpgconf", arguments);
        }
    }
}

/// The fingerprint of the only key in the output of `gpg --with-colons --list-secret-keys` (doc/DETAILS of GnuPG describes the
/// fields).
///
/// # Errors
/// Fails if there is none or more than one, if the key is expired, revoked or not for signing, or if apt would refuse its
/// algorithm.
fn fingerprint(listed: &str) -> anyhow::Result<String> {
    let records: Vec<Vec<&str>> = listed.lines().map(|line| line.split(':').collect()).collect();
    let is = |kind: &'static str| move |record: &&Vec<&str>| record.first() == Some(&kind);
    let keys: Vec<_> = records.iter().filter(is("sec")).collect();
    let [key] = keys[..] else {
        anyhow::bail!(
            "{} secret keys match, but it must be one; name it by its fingerprint",
            keys.len()
        );
    };
    // The first fingerprint is that of the primary key; those of subkeys follow.
    let fingerprint = records.iter().find(is("fpr")).and_then(|record| record.get(9));
    let fingerprint = *fingerprint.context("gpg lists no fingerprint")?;
    let field = |index: usize| key.get(index).copied().unwrap_or_default();
    let (validity, bits, algorithm, capabilities) = (field(1), field(2), field(3), field(11));
    match validity {
        "e" => anyhow::bail!("{fingerprint} has expired; extend it with `gpg --quick-set-expire {fingerprint} 0`"),
        "r" | "i" | "d" | "n" => anyhow::bail!("{fingerprint} is revoked, disabled or invalid; make a new key"),
        _ => {}
    }
    anyhow::ensure!(
        capabilities.contains('S'),
        "{fingerprint} cannot sign; make a key with the usage \"sign\""
    );
    // What apt accepts: RSA (1), of 2048 bits only until 2030 in Debian 13; ECDSA (19); EdDSA (22). DSA is not accepted.
    let is_accepted = match algorithm {
        "1" => bits.parse::<u32>().is_ok_and(|bits| bits >= 3072),
        "19" | "22" => true,
        _ => false,
    };
    anyhow::ensure!(
        is_accepted,
        "apt does not accept signatures of {fingerprint} (OpenPGP algorithm {algorithm}, {bits} bits); make an ed25519 key"
    );
    Ok(fingerprint.to_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use super::*;

    const PRIMARY: &str = "A8F34EDA6984917F4E843780A8C4579A1B6550A0";

    fn listed(sec: &str) -> String {
        format!(
            "{sec}\nfpr:::::::::{PRIMARY}:\ngrp:::::::::C4D2:\nuid:u::::1795958601::B771::links apt repository::::::::::0:\n\
             ssb:u:255:22:0F00:1795958601::::::s:::+::ed25519::\nfpr:::::::::0F00:\n"
        )
    }

    #[test]
    fn the_fingerprint_is_that_of_the_primary_key() {
        let listed = listed("sec:u:255:22:A8C4579A1B6550A0:1795958601:::u:::scSC:::+::ed25519:::0:");
        assert_eq!(fingerprint(&listed).unwrap(), PRIMARY);
        // One that was imported has no trust.
        assert!(fingerprint(&listed.replace("sec:u", "sec:-")).is_ok());
    }

    #[test]
    fn a_key_that_hosts_would_refuse_is_an_error() {
        for sec in [
            "sec:e:255:22:A8C4579A1B6550A0:1795958601:1795958602::u:::sc:::+::ed25519:::0:",
            "sec:r:255:22:A8C4579A1B6550A0:1795958601:::u:::sc:::+::ed25519:::0:",
            "sec:u:255:22:A8C4579A1B6550A0:1795958601:::u:::cC:::+::ed25519:::0:",
            "sec:u:2048:1:A8C4579A1B6550A0:1795958601:::u:::scSC:::+:::::0:",
            "sec:u:2048:17:A8C4579A1B6550A0:1795958601:::u:::scSC:::+:::::0:",
        ] {
            let error = fingerprint(&listed(sec)).unwrap_err().to_string();
            assert!(error.contains(PRIMARY), "{error}");
        }
        let rsa = "sec:u:4096:1:A8C4579A1B6550A0:1795958601:::u:::scESC:::+:::::0:";
        assert!(fingerprint(&listed(rsa)).is_ok());
    }

    #[test]
    fn one_key_has_to_match() {
        let one = listed("sec:u:255:22:A8C4579A1B6550A0:1795958601:::u:::scSC:::+::ed25519:::0:");
        for many in [String::new(), one.repeat(2)] {
            assert!(
                fingerprint(&many).unwrap_err().to_string().contains("fingerprint"),
                "{many}"
            );
        }
    }

    #[test]
    fn a_key_is_a_file_if_there_is_one_of_that_name() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_str().unwrap();
        assert_eq!(KeySource::new(Some(path)).unwrap(), KeySource::File(path.into()));
        assert_eq!(
            KeySource::new(Some(PRIMARY)).unwrap(),
            KeySource::Keyring(PRIMARY.to_owned())
        );
        assert!(KeySource::new(Some("/nowhere/repository.key")).is_err());
        for missing in [None, Some("")] {
            let error = KeySource::new(missing).unwrap_err().to_string();
            assert!(error.contains("gpg --quick-generate-key"), "{error}");
        }
    }
}
