//! The certificates of the names in `[tls]`: those that links-acme has got, or checked copies of the administrator's files.
//! nginx reads only these copies, so a file that somebody replaces by a wrong one never keeps nginx from starting.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, anyhow, bail, ensure};
use serde::Serialize;

use links_base::files::{self, make_directory};
use links_base::layout::Layout;
use links_base::{exec, programs};
use links_config::acme::{self, CheckedFiles, DEFAULT_DIRECTORY, Event, FileProblem, NameStatus, State};
use links_config::links::{Tls, TlsMode};

/// How long links-acme may take for work that needs no network.
const LOCAL_TIMEOUT: Duration = Duration::from_secs(30);
/// How long another process may take to copy the administrator's certificates.
const LOCK_TIMEOUT: Duration = Duration::from_secs(60);
/// The maximum size of a certificate with its chain, or of a key.
const MAX_BYTES: u64 = 1 << 20;
/// The name of a copy while it is checked.
const STAGED: &str = ".checking.pem";

/// A certificate that nginx can serve.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Certificate {
    pub name: String,
    /// The file with the certificate, followed by its chain.
    pub chain: PathBuf,
    pub key: PathBuf,
    pub described: acme::Certificate,
    /// Whether it is valid now.
    pub state: State,
    /// The argument with which links-acme records that nginx has loaded the certificate. `None` if that is recorded already, or
    /// for a copy of a file.
    pub loaded_argument: Option<String>,
}

/// What there is for the names in `[tls]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// At most one for each name, in the order of the names.
    pub certificates: Vec<Certificate>,
    /// Why a name has no certificate, or an outdated one.
    pub problems: Vec<String>,
}

/// A certificate and its key in files of the administrator, and what links-acme says about them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    pub certificate: PathBuf,
    pub key: PathBuf,
    pub checked: CheckedFiles,
}

impl Pair {
    /// The names in the certificate. None if it cannot be used.
    fn names(&self) -> &[String] {
        let usable = self.checked.certificate.as_ref().filter(|_| self.checked.usable);
        usable.map_or(&[], |certificate| &certificate.names)
    }
}

/// The files of the administrator.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pairs {
    pub pairs: Vec<Pair>,
    /// The index of the pair for each name.
    chosen: BTreeMap<String, usize>,
    /// The names that no usable certificate is for.
    pub uncovered: Vec<String>,
}

/// The certificates of this host.
#[derive(Clone, Debug)]
pub struct Certificates {
    layout: Layout,
}

impl Certificates {
    pub fn new(layout: &Layout) -> Self {
        Self { layout: layout.clone() }
    }

    /// The certificates that nginx can serve. This needs no root privileges.
    ///
    /// # Errors
    /// A file cannot be read, or links-acme does not run.
    pub fn find(&self, tls: &Tls) -> anyhow::Result<Found> {
        match tls.mode {
            TlsMode::Off => Ok(Found::default()),
            TlsMode::Acme => {
                let statuses = self.statuses(tls)?;
                Ok(Found {
                    certificates: statuses.iter().filter_map(|status| self.of_acme(status)).collect(),
                    problems: statuses.iter().filter_map(without_certificate).collect(),
                })
            }
            TlsMode::Files => {
                let mut found = Found::default();
                for name in &tls.names {
                    match self.copied(name)? {
                        Some(described) => found.certificates.push(self.of_copy(name, described)),
                        None => found.problems.push(format!("{name} has no usable certificate")),
                    }
                }
                Ok(found)
            }
        }
    }

    /// Like [`Self::find`], after bringing the copies of the administrator's files up to date. A copy whose original is not
    /// usable any more stays.
    ///
    /// # Errors
    /// Those of [`Self::find`], a copy cannot be written, or a name has neither a usable file nor a copy.
    pub fn take(&self, tls: &Tls) -> anyhow::Result<Found> {
        if tls.mode != TlsMode::Files {
            return self.find(tls);
        }
        let problems = self.copy(tls)?;
        let mut found = self.find(tls)?;
        if let Some(missing) = found.problems.first() {
            bail!("{missing}: {}", problems.join("; "));
        }
        found.problems = problems;
        Ok(found)
    }

    /// Records which certificates nginx has loaded, so that links-acme does not ask for another reload.
    ///
    /// # Errors
    /// links-acme fails.
    pub fn set_loaded(&self, certificates: &[Certificate]) -> anyhow::Result<()> {
        let loaded: Vec<_> = certificates
            .iter()
            .filter_map(|certificate| certificate.loaded_argument.as_deref())
            .collect();
        if loaded.is_empty() {
            return Ok(());
        }
        self.acme(["loaded"].into_iter().chain(loaded)).map(drop)
    }

    /// What links-acme knows about the names, and when they are due with these settings. This needs no root privileges.
    ///
    /// # Errors
    /// links-acme fails.
    pub fn statuses(&self, tls: &Tls) -> anyhow::Result<Vec<NameStatus>> {
        let directory = tls.directory.as_deref().unwrap_or(DEFAULT_DIRECTORY);
        let mut arguments = vec!["status", "--directory", directory];
        arguments.extend(tls.profile.iter().flat_map(|profile| ["--profile", profile]));
        arguments.extend(tls.names.iter().map(String::as_str));
        let statuses = self.acme(arguments)?.into_iter().filter_map(|event| match event {
            Event::Status(status) => Some(status),
            _ => None,
        });
        Ok(statuses.collect())
    }

    fn of_acme(&self, status: &NameStatus) -> Option<Certificate> {
        Some(Certificate {
            name: status.name.clone(),
            chain: self.layout.tls_chain(&status.name),
            key: self.layout.tls_key(&status.name),
            described: status.certificate.clone()?,
            state: status.state,
            loaded_argument: status.loaded_argument().filter(|_| !status.loaded),
        })
    }

    fn of_copy(&self, name: &str, described: acme::Certificate) -> Certificate {
        let file = self.copy_of(name);
        Certificate {
            name: name.to_owned(),
            chain: file.clone(),
            key: file,
            state: State::at(now(), described.not_before, described.not_after),
            described,
            loaded_argument: None,
        }
    }

    /// The file with the certificate, the chain and the key of a name. It is one file, because two could not be replaced
    /// at once.
    fn copy_of(&self, name: &str) -> PathBuf {
        self.layout.tls_files_dir().join(format!("{name}.pem"))
    }

    /// The description of the copy for a name. `None` if there is no copy.
    fn copied(&self, name: &str) -> anyhow::Result<Option<acme::Certificate>> {
        let path = self.layout.tls_file_description(name);
        let bytes = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            bytes => bytes.with_context(|| format!("Reading {}", path.display()))?,
        };
        let described = serde_json::from_slice(&bytes).with_context(|| format!("Reading {}", path.display()))?;
        Ok(self.copy_of(name).exists().then_some(described))
    }

    /// Copies the administrator's files. Returns what is wrong with them.
    fn copy(&self, tls: &Tls) -> anyhow::Result<Vec<String>> {
        make_directory(&self.layout.tls_dir(), 0o755)?;
        let directory = self.layout.tls_files_dir();
        make_directory(&directory, 0o755)?;
        // A hook of certbot, links-tls.timer and a rollout may come at the same time.
        let _lock = lock(&self.layout.tls_files_lock(), LOCK_TIMEOUT)?;
        let staged = directory.join(STAGED);
        let found = self.check_files(tls)?;
        let mut problems: Vec<_> = found
            .pairs
            .iter()
            .flat_map(|pair| pair.checked.problems.iter().map(show))
            .collect();
        problems.extend(
            found
                .uncovered
                .iter()
                .map(|name| format!("no usable certificate is for {name}")),
        );
        for (name, index) in &found.chosen {
            let Pair {
                certificate,
                key,
                checked,
            } = &found.pairs[*index];
            let Some(described) = &checked.certificate else {
                continue;
            };
            if self.is_copied(name, certificate, key, described)? {
                continue;
            }
            files::replace(&staged, &joined(certificate, key)?, 0o600)?;
            // The copy is checked too, because the files may have changed since they were.
            let copy = self.check(&staged, &staged)?;
            let is_same = copy
                .certificate
                .as_ref()
                .is_some_and(|copy| copy.sha256 == described.sha256);
            if !(copy.usable && is_same) {
                files::remove_if_present(&staged)?;
                problems.push(format!(
                    "{} changed while it was read; run this again",
                    certificate.display()
                ));
                continue;
            }
            files::replace(
                &self.layout.tls_file_description(name),
                &serde_json::to_vec(described)?,
                0o644,
            )?;
            fs::rename(&staged, self.copy_of(name))
                .and_then(|()| files::sync_directory(&directory))
                .with_context(|| format!("Writing {}", self.copy_of(name).display()))?;
        }
        Ok(problems)
    }

    /// Whether the copy for a name has the contents of these files.
    fn is_copied(
        &self,
        name: &str,
        certificate: &Path,
        key: &Path,
        described: &acme::Certificate,
    ) -> anyhow::Result<bool> {
        let copy = self.copy_of(name);
        if !copy.exists() || self.copied(name)?.as_ref() != Some(described) {
            return Ok(false);
        }
        Ok(read(&copy, 2 * MAX_BYTES + 1)? == joined(certificate, key)?)
    }

    /// Checks the files of the administrator, and chooses a certificate for each name.
    ///
    /// # Errors
    /// links-acme does not run.
    pub fn check_files(&self, tls: &Tls) -> anyhow::Result<Pairs> {
        let mut pairs = vec![];
        for (certificate, key) in tls.certificate.iter().zip(&tls.key) {
            pairs.push(Pair {
                certificate: certificate.clone(),
                key: key.clone(),
                checked: self.check(certificate, key)?,
            });
        }
        let names: Vec<_> = pairs.iter().map(Pair::names).collect();
        let (chosen, uncovered) = choose(&tls.names, &names);
        Ok(Pairs {
            pairs,
            chosen,
            uncovered,
        })
    }

    /// Has links-acme check a certificate and its key.
    fn check(&self, certificate: &Path, key: &Path) -> anyhow::Result<CheckedFiles> {
        let arguments = [
            "check-files".as_ref(),
            "--certificate".as_ref(),
            certificate.as_os_str(),
            "--key".as_ref(),
            key.as_os_str(),
        ];
        let checked = self.acme(arguments)?.into_iter().find_map(|event| match event {
            Event::Files(checked) => Some(checked),
            _ => None,
        });
        checked.context("links-acme printed no result of its check")
    }

    /// Runs links-acme, and returns the events that it prints. A failure with events is reported by these.
    fn acme<S: AsRef<std::ffi::OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> anyhow::Result<Vec<Event>> {
        let program = programs::path(programs::ACME)?;
        let root = ["--root".as_ref(), self.layout.root().as_os_str()].map(ToOwned::to_owned);
        let arguments = root
            .into_iter()
            .chain(arguments.into_iter().map(|word| word.as_ref().to_owned()));
        let finished = exec::finish_within(&program.to_string_lossy(), arguments, LOCAL_TIMEOUT)?
            .with_context(|| format!("{} took longer than {LOCAL_TIMEOUT:?}", programs::ACME))?;
        let events = events(&finished.stdout)?;
        ensure!(finished.success || !events.is_empty(), "{}", finished.stderr.trim_end());
        Ok(events)
    }
}

/// Parses the output of links-acme.
///
/// # Errors
/// A line is not an event.
pub fn events(output: &str) -> anyhow::Result<Vec<Event>> {
    let parse = |line| serde_json::from_str(line).map_err(|error| anyhow!("links-acme printed {line:?}: {error}"));
    output.lines().map(parse).collect()
}

fn without_certificate(status: &NameStatus) -> Option<String> {
    if status.certificate.is_some() {
        return None;
    }
    Some(match &status.error {
        Some(error) => format!("{} has no certificate yet: {error}", status.name),
        None => format!(
            "{0} has no certificate yet: `linksctl tls renew {0}` gets one",
            status.name
        ),
    })
}

fn show(problem: &FileProblem) -> String {
    format!("{} {}", problem.message, problem.hint)
}

/// Chooses a certificate for each name: the first one that covers it. `certificates` are the names in each certificate. Returns
/// the names with the indices, and the names that none covers.
fn choose(names: &[String], certificates: &[&[String]]) -> (BTreeMap<String, usize>, Vec<String>) {
    let mut chosen = BTreeMap::new();
    let mut uncovered = vec![];
    for name in names {
        let covers_it = |own: &&[String]| own.iter().any(|own| covers(own, name));
        match certificates.iter().position(covers_it) {
            Some(index) => drop(chosen.insert(name.clone(), index)),
            None => uncovered.push(name.clone()),
        }
    }
    (chosen, uncovered)
}

fn lock(path: &Path, timeout: Duration) -> anyhow::Result<files::Lock> {
    let lock = files::lock_within(path, 0o600, &std::process::id().to_string(), timeout)?;
    lock.with_context(|| format!("{} is still locked by another process", path.display()))
}

/// Whether a name in a certificate stands for the host name. A `*` stands for one label (RFC 9525, section 6.3).
fn covers(own: &str, name: &str) -> bool {
    let wildcard = || {
        own.strip_prefix("*.")?
            .eq_ignore_ascii_case(name.split_once('.')?.1)
            .then_some(())
    };
    own.eq_ignore_ascii_case(name) || wildcard().is_some()
}

/// The certificate, its chain and the key as one file. OpenSSL looks for each kind by its label.
fn joined(certificate: &Path, key: &Path) -> anyhow::Result<Vec<u8>> {
    let mut bytes = read(certificate, MAX_BYTES)?;
    if certificate != key {
        bytes.push(b'\n');
        bytes.extend(read(key, MAX_BYTES)?);
    }
    Ok(bytes)
}

fn read(path: &Path, limit: u64) -> anyhow::Result<Vec<u8>> {
    use io::Read as _;
    let mut bytes = vec![];
    fs::File::open(path)
        .and_then(|file| file.take(limit + 1).read_to_end(&mut bytes))
        .with_context(|| format!("Reading {}", path.display()))?;
    ensure!(
        bytes.len() as u64 <= limit,
        "{} is longer than {limit} bytes",
        path.display()
    );
    Ok(bytes)
}

fn now() -> u64 {
    // A clock before 1970 makes no certificate expire.
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |now| now.as_secs())
}

/// A certificate for tests.
#[cfg(test)]
pub fn example(name: &str) -> Certificate {
    let layout = Layout::new("/");
    Certificate {
        name: name.to_owned(),
        chain: layout.tls_chain(name),
        key: layout.tls_key(name),
        described: acme::Certificate {
            issuer: "CA".to_owned(),
            names: vec![name.to_owned()],
            serial: "1".to_owned(),
            sha256: "new".to_owned(),
            self_signed: false,
            not_before: 0,
            not_after: 1,
            must_staple: false,
            ocsp: None,
            directory: None,
            profile: None,
        },
        state: State::Valid,
        loaded_argument: None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn a_wildcard_stands_for_one_label() {
        for (own, name, expected) in [
            ("a.example", "a.example", true),
            ("A.Example", "a.example", true),
            ("*.example", "a.example", true),
            ("*.example", "example", false),
            ("*.example", "b.a.example", false),
            ("*.b.example", "a.example", false),
            ("a.example", "b.example", false),
        ] {
            assert_eq!(covers(own, name), expected, "{own} {name}");
        }
    }

    #[test]
    fn each_name_gets_the_first_certificate_that_covers_it() {
        let (wild, one) = (names(&["*.example"]), names(&["a.example", "c.test"]));
        let wanted = names(&["a.example", "c.test", "d.test"]);
        let (chosen, uncovered) = choose(&wanted, &[&one, &wild]);
        assert_eq!(chosen, [("a.example".to_owned(), 0), ("c.test".to_owned(), 0)].into());
        assert_eq!(uncovered, ["d.test"]);
        let (chosen, _) = choose(&wanted, &[&wild, &one]);
        assert_eq!(chosen["a.example"], 0);
    }

    #[test]
    fn only_one_process_changes_the_copies() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let held = lock(&path, Duration::ZERO).unwrap();
        assert!(lock(&path, Duration::ZERO).is_err());
        drop(held);
        lock(&path, Duration::ZERO).unwrap();
    }

    #[test]
    fn the_copy_holds_the_certificate_before_the_key() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::write(at("chain"), "chain").unwrap();
        fs::write(at("key"), "key\n").unwrap();
        assert_eq!(joined(&at("chain"), &at("key")).unwrap(), b"chain\nkey\n");
        assert_eq!(joined(&at("key"), &at("key")).unwrap(), b"key\n");
        let error = joined(&at("chain"), &at("none")).unwrap_err().to_string();
        assert!(error.contains("none"), "{error}");
        assert!(read(&at("chain"), 4).is_err());
    }

    #[test]
    fn an_unknown_line_of_links_acme_is_an_error() {
        let line = r#"{"event":"end","reload":["a.example=1"],"failed":[]}"#;
        assert_eq!(events(&format!("{line}\n")).unwrap().len(), 1);
        assert!(events("panicked\n").unwrap_err().to_string().contains("panicked"));
    }
}
