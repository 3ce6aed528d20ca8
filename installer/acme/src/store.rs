//! The files below [`Layout::tls_dir`]. Each is complete or absent, also after a kill or a power failure.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use data_encoding::HEXLOWER;
use links_base::files;
use links_base::layout::{Layout, TLS_CHAIN, TLS_DESCRIPTION, TLS_KEY};
use links_base::log;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::ca::protocol::{Challenge, Credentials};
use crate::certificate::{self, Parsed};
use crate::record::Record;

/// The name of a certificate's directory until it is complete.
const UNFINISHED: &str = ".new";
const ISSUED: &str = "issued.json";
const ORDER: &str = "order.json";
const ACCOUNT: &str = "account.json";
/// How many characters of the certificate's digest are its ID.
const ID_LENGTH: usize = 16;

#[derive(Clone, Debug)]
pub struct Store {
    layout: Layout,
}

/// Where a certificate comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Issued {
    pub directory: String,
    pub profile: Option<String>,
}

/// The certificate in place for a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Live {
    pub id: String,
    pub certificate: Parsed,
    pub issued: Issued,
}

/// An order that was started and not finished, and the key of its certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pending {
    pub order: PendingOrder,
    /// In PEM.
    pub key: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingOrder {
    pub url: String,
    /// The account that has started it.
    pub account: String,
    pub issued: Issued,
}

/// An account at an authority.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Account {
    pub directory: String,
    pub emails: Vec<String>,
    pub credentials: Credentials,
}

impl Store {
    pub fn new(layout: &Layout) -> Self {
        Self { layout: layout.clone() }
    }

    /// Creates the directories, and removes what killed runs have left behind. The caller holds the lock.
    ///
    /// # Errors
    /// The disk is full or read-only.
    pub fn prepare(&self) -> anyhow::Result<()> {
        let layout = &self.layout;
        for (directory, mode) in [
            (layout.tls_dir(), 0o755),
            (layout.tls_challenges_dir(), 0o755),
            (layout.tls_live_dir(), 0o755),
            (layout.tls_certificates_dir(), 0o755),
            (layout.tls_names_dir(), 0o755),
            (layout.tls_pending_dir(), 0o700),
            (layout.tls_accounts_dir(), 0o700),
        ] {
            files::make_directory(&directory, mode)?;
        }
        for token in files::list(&layout.tls_challenges_dir())? {
            let path = layout.tls_challenges_dir().join(token);
            files::remove_if_present(&path).with_context(|| format!("Removing {}", path.display()))?;
        }
        for name in files::list(&layout.tls_certificates_dir())? {
            remove(&self.certificates(&name).join(UNFINISHED))?;
        }
        Ok(())
    }

    fn certificates(&self, name: &str) -> PathBuf {
        self.layout.tls_certificates_dir().join(name)
    }

    /// Every name that something is known about, sorted.
    ///
    /// # Errors
    /// A directory cannot be read.
    pub fn names(&self) -> anyhow::Result<Vec<String>> {
        let mut names = files::list(&self.layout.tls_live_dir())?;
        let records = files::list(&self.layout.tls_names_dir())?;
        names.extend(
            records
                .iter()
                .filter_map(|file| file.strip_suffix(".json"))
                .map(str::to_owned),
        );
        // Both directories may contain what an interrupted replacement has left.
        names.retain(|name| !name.starts_with('.'));
        names.sort();
        names.dedup();
        Ok(names)
    }

    /// The certificate in place. `None` if there is none, or if its files are damaged: nginx could not use them either.
    ///
    /// # Errors
    /// The files may not be read.
    pub fn live(&self, name: &str) -> anyhow::Result<Option<Live>> {
        let link = self.layout.tls_live(name);
        let Some(target) = absent_as_none(fs::read_link(&link)).with_context(|| reading(&link))? else {
            return Ok(None);
        };
        let id = target.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let path = self.layout.tls_chain(name);
        let Some(pem) = absent_as_none(fs::read(&path)).with_context(|| reading(&path))? else {
            log::error!(
                "{} leads nowhere, so {name} counts as a name without a certificate",
                link.display()
            );
            return Ok(None);
        };
        let issued: Option<Issued> = self.read(&link.join(ISSUED))?;
        match (certificate::chain(&pem), issued) {
            (Ok(mut chain), Some(issued)) => Ok(Some(Live {
                id,
                certificate: chain.swap_remove(0),
                issued,
            })),
            (Err(error), _) => {
                log::error!("{}: {error}", path.display());
                Ok(None)
            }
            (_, None) => Ok(None),
        }
    }

    /// Puts a certificate and its key in place, both at once. Returns its ID. Keeps the certificate before it, which a reload
    /// of nginx may just be reading, and removes all others.
    ///
    /// # Errors
    /// The disk is full or read-only. The old certificate is then still in place.
    pub fn install(
        &self,
        name: &str,
        leaf: &Parsed,
        chain: &str,
        key: &str,
        issued: &Issued,
    ) -> anyhow::Result<String> {
        let id = leaf.facts().sha256[..ID_LENGTH].to_owned();
        let before = absent_as_none(fs::read_link(self.layout.tls_live(name)))?;
        let before = before.and_then(|target| Some(target.file_name()?.to_string_lossy().into_owned()));
        let directory = self.certificates(name);
        files::make_directory(&directory, 0o755)?;
        if before.as_ref() != Some(&id) {
            let unfinished = directory.join(UNFINISHED);
            remove(&unfinished)?;
            files::make_directory(&unfinished, 0o755)?;
            files::replace(&unfinished.join(TLS_KEY), key.as_bytes(), 0o600)?;
            files::replace(&unfinished.join(TLS_CHAIN), chain.as_bytes(), 0o644)?;
            files::replace(&unfinished.join(ISSUED), &serde_json::to_vec(issued)?, 0o644)?;
            let described = serde_json::to_vec(leaf.facts())?;
            files::replace(&unfinished.join(TLS_DESCRIPTION), &described, 0o644)?;
            // Exists if an earlier run was killed before the next step.
            remove(&directory.join(&id))?;
            fs::rename(&unfinished, directory.join(&id))
                .with_context(|| format!("Storing the certificate of {name}"))?;
            files::sync_directory(&directory)?;
            let target = Path::new("../certificates").join(name).join(&id);
            files::replace_link(&self.layout.tls_live(name), &target)?;
        }
        for other in files::list(&directory)? {
            if other != id && Some(&other) != before.as_ref() {
                remove(&directory.join(other))?;
            }
        }
        Ok(id)
    }

    /// Removes the certificates of a name and all that is known about it.
    ///
    /// # Errors
    /// A file cannot be removed.
    pub fn forget(&self, name: &str) -> anyhow::Result<()> {
        let link = self.layout.tls_live(name);
        files::remove_if_present(&link).with_context(|| format!("Removing {}", link.display()))?;
        remove(&self.certificates(name))?;
        self.remove_pending(name)?;
        let record = self.record_file(name);
        files::remove_if_present(&record).with_context(|| format!("Removing {}", record.display()))
    }

    fn record_file(&self, name: &str) -> PathBuf {
        self.layout.tls_names_dir().join(format!("{name}.json"))
    }

    /// What is remembered about a name.
    ///
    /// # Errors
    /// The file may not be read.
    pub fn record(&self, name: &str) -> anyhow::Result<Record> {
        Ok(self.read(&self.record_file(name))?.unwrap_or_default())
    }

    /// # Errors
    /// The disk is full or read-only.
    pub fn save_record(&self, name: &str, record: &Record) -> anyhow::Result<()> {
        files::replace(&self.record_file(name), &serde_json::to_vec(record)?, 0o644)
    }

    /// The order of an earlier run that is not finished.
    ///
    /// # Errors
    /// The files may not be read.
    pub fn pending(&self, name: &str) -> anyhow::Result<Option<Pending>> {
        let directory = self.layout.tls_pending_dir().join(name);
        let Some(order) = self.read(&directory.join(ORDER))? else {
            return Ok(None);
        };
        let path = directory.join(TLS_KEY);
        let key = absent_as_none(fs::read_to_string(&path)).with_context(|| reading(&path))?;
        Ok(key.map(|key| Pending { order, key }))
    }

    /// # Errors
    /// The disk is full or read-only.
    pub fn save_pending(&self, name: &str, pending: &Pending) -> anyhow::Result<()> {
        let directory = self.layout.tls_pending_dir().join(name);
        files::make_directory(&directory, 0o700)?;
        // The order is last: without it, the key does not count.
        files::replace(&directory.join(TLS_KEY), pending.key.as_bytes(), 0o600)?;
        files::replace(&directory.join(ORDER), &serde_json::to_vec(&pending.order)?, 0o600)
    }

    /// # Errors
    /// The files cannot be removed.
    pub fn remove_pending(&self, name: &str) -> anyhow::Result<()> {
        remove(&self.layout.tls_pending_dir().join(name))
    }

    fn account_dir(&self, directory: &str) -> PathBuf {
        let digest = HEXLOWER.encode(&Sha256::digest(directory));
        self.layout.tls_accounts_dir().join(&digest[..ID_LENGTH])
    }

    /// The account at the authority with this directory.
    ///
    /// # Errors
    /// The file may not be read.
    pub fn account(&self, directory: &str) -> anyhow::Result<Option<Account>> {
        self.read(&self.account_dir(directory).join(ACCOUNT))
    }

    /// # Errors
    /// The disk is full or read-only.
    pub fn save_account(&self, account: &Account) -> anyhow::Result<()> {
        let directory = self.account_dir(&account.directory);
        let parent = self.layout.tls_accounts_dir();
        match fs::DirBuilder::new().mode(0o700).create(&directory) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                return Err(error).with_context(|| format!("Creating {}", directory.display()));
            }
            _ => files::sync_directory(&parent)?,
        }
        files::replace(&directory.join(ACCOUNT), &serde_json::to_vec(account)?, 0o600)
    }

    /// # Errors
    /// The files cannot be removed.
    pub fn remove_account(&self, directory: &str) -> anyhow::Result<()> {
        remove(&self.account_dir(directory))
    }

    /// Puts the answer to a challenge where nginx serves it.
    ///
    /// # Errors
    /// The disk is full or read-only.
    pub fn present(&self, challenge: &Challenge) -> anyhow::Result<()> {
        let path = self.layout.tls_challenges_dir().join(&challenge.token);
        files::replace(&path, challenge.key_authorization.as_bytes(), 0o644)
    }

    /// # Errors
    /// The file cannot be removed.
    pub fn withdraw(&self, challenge: &Challenge) -> io::Result<()> {
        files::remove_if_present(&self.layout.tls_challenges_dir().join(&challenge.token))
    }

    /// The contents of a file in JSON. `None` if it is missing, or damaged: a power failure cannot do that, but nothing in
    /// these files is worth staying without a certificate.
    fn read<T: DeserializeOwned>(&self, path: &Path) -> anyhow::Result<Option<T>> {
        let Some(bytes) = absent_as_none(fs::read(path)).with_context(|| reading(path))? else {
            return Ok(None);
        };
        Ok(serde_json::from_slice(&bytes)
            .inspect_err(|error| log::error!("{} is ignored, because it is damaged: {error}", path.display()))
            .ok())
    }
}

fn absent_as_none<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        result => result.map(Some),
    }
}

fn reading(path: &Path) -> String {
    format!("Reading {}", path.display())
}

fn remove(directory: &Path) -> anyhow::Result<()> {
    files::remove_directory_if_present(directory).with_context(|| format!("Removing {}", directory.display()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use links_base::layout::temporary;

    use super::*;
    use crate::certificate::tests::issued;

    const NAME: &str = "s.example.org";

    fn origin() -> Issued {
        Issued {
            directory: "https://ca.example/dir".to_owned(),
            profile: None,
        }
    }

    fn install(store: &Store) -> (String, String) {
        let (chain, key) = issued(&[NAME], 1_800_000_000, 86_400);
        let leaf = certificate::chain(chain.as_bytes()).unwrap().swap_remove(0);
        (store.install(NAME, &leaf, &chain, &key, &origin()).unwrap(), key)
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn a_certificate_and_its_key_are_replaced_together() {
        let (_root, layout) = temporary(&[]);
        let store = Store::new(&layout);
        store.prepare().unwrap();
        assert_eq!(store.live(NAME).unwrap(), None);
        for _ in 0..3 {
            let (id, key) = install(&store);
            let live = store.live(NAME).unwrap().unwrap();
            assert_eq!((live.id, live.issued), (id, origin()));
            assert_eq!(fs::read_to_string(layout.tls_key(NAME)).unwrap(), key);
        }
        assert_eq!(mode(&layout.tls_key(NAME)), 0o600);
        assert_eq!(mode(&layout.tls_chain(NAME)), 0o644);
        let kept = files::list(&layout.tls_certificates_dir().join(NAME)).unwrap();
        assert_eq!(kept.len(), 2, "this one and the one before it");
        assert_eq!(store.names().unwrap(), [NAME]);
        store.forget(NAME).unwrap();
        assert!(store.names().unwrap().is_empty());
    }

    #[test]
    fn a_certificate_that_a_killed_run_has_stored_is_stored_again() {
        let (_root, layout) = temporary(&[]);
        let store = Store::new(&layout);
        store.prepare().unwrap();
        let (chain, key) = issued(&[NAME], 1_800_000_000, 86_400);
        let leaf = certificate::chain(chain.as_bytes()).unwrap().swap_remove(0);
        let first = store.install(NAME, &leaf, &chain, &key, &origin()).unwrap();
        // Killed before the symbolic link was replaced.
        fs::remove_file(layout.tls_live(NAME)).unwrap();
        fs::create_dir(layout.tls_certificates_dir().join(NAME).join(UNFINISHED)).unwrap();
        store.prepare().unwrap();
        assert_eq!(store.install(NAME, &leaf, &chain, &key, &origin()).unwrap(), first);
        // Killed afterwards.
        assert_eq!(store.install(NAME, &leaf, &chain, &key, &origin()).unwrap(), first);
        assert_eq!(store.live(NAME).unwrap().unwrap().id, first);
        assert_eq!(files::list(&layout.tls_certificates_dir().join(NAME)).unwrap(), [first]);
    }

    #[test]
    fn leftover_answers_are_removed_and_damaged_files_are_ignored() {
        let (_root, layout) = temporary(&[]);
        let store = Store::new(&layout);
        store.prepare().unwrap();
        let challenge = Challenge {
            token: "token".to_owned(),
            key_authorization: "token.thumbprint".to_owned(),
        };
        store.present(&challenge).unwrap();
        assert_eq!(mode(&layout.tls_challenges_dir().join("token")), 0o644);
        store.prepare().unwrap();
        assert!(files::list(&layout.tls_challenges_dir()).unwrap().is_empty());
        fs::write(layout.tls_names_dir().join("s.example.org.json"), "{").unwrap();
        assert_eq!(store.record(NAME).unwrap(), Record::default());
    }

    #[test]
    fn accounts_are_kept_apart_and_secret() {
        let (_root, layout) = temporary(&[]);
        let store = Store::new(&layout);
        store.prepare().unwrap();
        for directory in ["https://a.example/dir", "https://b.example/dir"] {
            store
                .save_account(&Account {
                    directory: directory.to_owned(),
                    emails: vec![],
                    credentials: Credentials(serde_json::json!({ "id": directory })),
                })
                .unwrap();
        }
        let found = store.account("https://a.example/dir").unwrap().unwrap();
        assert_eq!(found.directory, "https://a.example/dir");
        store.remove_account("https://a.example/dir").unwrap();
        assert!(store.account("https://a.example/dir").unwrap().is_none());
        assert!(store.account("https://b.example/dir").unwrap().is_some());
        let directory = store.account_dir("https://b.example/dir");
        assert_eq!((mode(&directory), mode(&directory.join(ACCOUNT))), (0o700, 0o600));
        assert_eq!(mode(&layout.tls_accounts_dir()), 0o700);
    }

    #[test]
    fn an_unfinished_order_is_remembered_with_its_key() {
        let (_root, layout) = temporary(&[]);
        let store = Store::new(&layout);
        store.prepare().unwrap();
        assert_eq!(store.pending(NAME).unwrap(), None);
        let pending = Pending {
            order: PendingOrder {
                url: "https://ca.example/order/1".to_owned(),
                account: "https://ca.example/account/1".to_owned(),
                issued: origin(),
            },
            key: "key".to_owned(),
        };
        store.save_pending(NAME, &pending).unwrap();
        assert_eq!(store.pending(NAME).unwrap(), Some(pending));
        assert_eq!(mode(&layout.tls_pending_dir().join(NAME).join(TLS_KEY)), 0o600);
        store.remove_pending(NAME).unwrap();
        assert_eq!(store.pending(NAME).unwrap(), None);
    }
}
