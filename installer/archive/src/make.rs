//! `linksctl backup`: makes a backup while links serves.

use std::ffi::OsString;
use std::fs::{File, Permissions};
use std::io::{self, Read as _, Seek as _, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail, ensure};
use serde::Serialize;

use crate::archive;
use crate::certificates;
use crate::child::{self, Child, pump};
use crate::collect::{self, Collected};
use crate::location::{self, Bucket, Store};
use crate::manifest::{Database, Kind, Manifest};
use crate::names;
use crate::prune;
use crate::report::{Reporter, Style, count, size};
use crate::schedule::{self, Past};
use crate::space::require_space;
use links_base::digest::{self, Counting};
use links_base::layout::Layout;
use links_base::privileges::require_root;
use links_base::{clock, files, log};
use links_config::backup::{Location, Problem, Recipient, Settings, Uploading};
use links_config::files::ConfigFiles;
use links_config::load;
use links_config::runtime;
use links_release::Backups;
use links_release::backups::{Upload, Written};
use links_rollout::{Appliance, held_by};
use links_store::schema::SCHEMA;

/// The beginning of the names of the directories in which backups are put together.
const STAGING: &str = ".archive-";
/// How long links-acme may hold up a backup that contains certificates.
const CERTIFICATES_TIMEOUT: Duration = Duration::from_secs(5 * 60);

/// What `linksctl backup` was asked for.
#[derive(Clone, Debug)]
pub struct Request {
    /// The directory, the file or the prefix; by default that of links.toml.
    pub to: Option<Location>,
    /// The keys for which the backup is encrypted; by default those of links.toml.
    pub encrypt_to: Vec<Recipient>,
    /// Whether the secrets are in a backup that is not encrypted.
    pub plain_secrets: bool,
    /// Whether the timer asks, so that a backup is made only if it is due.
    pub is_scheduled: bool,
    pub style: Style,
}

/// What is decided before anything is done.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Decided {
    location: Location,
    /// The name of the file. `None` for one made from the time.
    name: Option<String>,
    encrypt_to: Vec<Recipient>,
    secrets: bool,
    /// Whether the location is that of links.toml, where old backups are removed and failures are remembered.
    is_configured: bool,
}

/// Combines the command line with links.toml. A key on the command line replaces those of links.toml.
fn decide(request: &Request, settings: &Settings) -> anyhow::Result<Decided> {
    let (location, name, is_configured) = match (&request.to, &settings.to) {
        (Some(to), configured) => {
            let (location, name) = location::of_new(to)?;
            let is_configured = name.is_none() && configured.as_ref() == Some(&location);
            (location, name, is_configured)
        }
        // If this is a directory that is not mounted, no file may take its name.
        (None, Some(to)) => (to.clone(), None, true),
        (None, None) => {
            bail!("there is no destination for the backup: give --to, or set `to` in [backup] of links.toml")
        }
    };
    let encrypt_to = match request.encrypt_to.is_empty() && !request.plain_secrets {
        true => settings.encrypt_to.clone(),
        false => request.encrypt_to.clone(),
    };
    Ok(Decided {
        secrets: !encrypt_to.is_empty() || request.plain_secrets || settings.plain_secrets,
        location,
        name,
        is_configured,
        encrypt_to,
    })
}

/// The result, for a script.
#[derive(Serialize)]
struct Report<'a> {
    event: &'static str,
    #[serde(flatten)]
    written: &'a Written,
    removed: &'a [String],
}

/// Makes a backup, and removes old ones.
///
/// # Errors
/// The configuration is wrong, another backup is being made, the database cannot be read, or the location cannot be reached or is
/// full.
pub fn run(layout: &Layout, appliance: &Appliance, request: &Request) -> anyhow::Result<()> {
    if layout.is_host() {
        require_root()?;
    }
    let reporter = Reporter::new(request.style);
    let settings = load::load_links(&ConfigFiles::new(layout))?.backup;
    let record = Backups::read(&layout.backups_record())?;
    if request.is_scheduled && !is_due(&settings, &record, clock::now()) {
        return Ok(());
    }
    let made = locked(layout, appliance, request, &settings, &reporter);
    made.inspect_err(|error| reporter.failure(error))
}

fn is_due(settings: &Settings, record: &Backups, now: u64) -> bool {
    let (Some(every), Some(to)) = (settings.every, &settings.to) else {
        return false;
    };
    let location = to.to_string();
    let last = record.last_at(&location);
    // A backup to which a person gave a name is not removed later, and so does not stand for one of the timer.
    let is_regular = |written: &&Written| written.location == location && names::time_of(&written.name).is_some();
    let past = Past {
        latest: record.written.iter().rfind(is_regular).map(|written| written.begun),
        last: last.map(|(last, _)| last),
        failures: last.map_or(0, |(_, failures)| failures),
    };
    schedule::is_due(every, settings.at, past, now)
}

fn locked(
    layout: &Layout,
    appliance: &Appliance,
    request: &Request,
    settings: &Settings,
    reporter: &Reporter,
) -> anyhow::Result<()> {
    let path = layout.backup_lock();
    let holder = format!("{} (`linksctl backup`)", std::process::id());
    let Some(_lock) = files::lock(&path, 0o644, &holder)? else {
        let holder = held_by(&path).unwrap_or_default();
        if request.is_scheduled {
            log::notice!("a backup is under way already, by process {holder}");
            return Ok(());
        }
        bail!("a backup is under way already, by process {holder}");
    };
    let decided = decide(request, settings)?;
    let begun = clock::now();
    let mut making = Making {
        layout,
        appliance,
        reporter,
        record: Backups::read(&layout.backups_record())?,
        decided: &decided,
        begun,
    };
    let made = making.make();
    match made {
        Ok(written) => {
            let removed = making
                .keep_record(&written)
                .and_then(|()| making.prune(settings.keep.into()));
            report(&written, &removed?, reporter)
        }
        Err(error) => {
            if decided.is_configured {
                let mut record = making.record;
                record.failed(&decided.location.to_string(), begun, clock::now(), format!("{error:#}"));
                // The first error is the one to report.
                if let Err(second) = record.write(&layout.backups_record()) {
                    log::error!("{second:#}");
                }
            }
            Err(error)
        }
    }
}

fn report(written: &Written, removed: &[String], reporter: &Reporter) -> anyhow::Result<()> {
    if !written.secrets {
        reporter.notice(
            "the credentials, the certificates' keys and the ACME account are not in it: encrypt it with --encrypt-to, or \
             pass --plain-secrets",
        );
    }
    let contents = match written.clicks {
        Some(clicks) => format!("{} and {}", count(written.links, "link"), count(clicks, "click")),
        None => count(written.links, "link"),
    };
    let mut text = format!(
        "wrote {}/{}: {contents}, the configuration{}; {} in {} s{}",
        written.location,
        written.name,
        if written.secrets { " and the secrets" } else { "" },
        size(written.bytes),
        written.seconds,
        if written.encrypted { ", encrypted" } else { "" },
    );
    if !removed.is_empty() {
        text.push_str(&format!("; removed {}", removed.join(", ")));
    }
    let report = Report {
        event: "done",
        written,
        removed,
    };
    reporter.result(&text, &report)
}

/// One backup that is being made.
struct Making<'a> {
    layout: &'a Layout,
    appliance: &'a Appliance,
    reporter: &'a Reporter,
    record: Backups,
    decided: &'a Decided,
    begun: u64,
}

impl Making<'_> {
    /// Makes the backup. Cheap checks come first, so that a location that cannot be reached costs no copy of the database.
    fn make(&mut self) -> anyhow::Result<Written> {
        let (root, decided) = (self.layout.root(), self.decided);
        let keys = || decided.encrypt_to.iter().map(|key| OsString::from(key.as_str()));
        if !decided.encrypt_to.is_empty() {
            child::run(root, [OsString::from("recipients")].into_iter().chain(keys()))?;
        }
        let store = Store::open(self.layout, &self.decided.location)?;
        self.prepare(&store)?;

        let state = self.layout.state_dir();
        files::remove_leftovers(&state, STAGING)?;
        let staging = tempfile::Builder::new()
            .prefix(STAGING)
            .permissions(Permissions::from_mode(0o700))
            .tempdir_in(&state)
            .with_context(|| format!("Making a directory in {}", state.display()))?;
        self.reporter.doing("copying the database");
        let (manifest, mut collected) = self.collect(staging.path())?;
        let name = match &self.decided.name {
            Some(name) => name.clone(),
            None => names::backup(self.begun, !self.decided.encrypt_to.is_empty()),
        };
        let (bytes, sha256) = match &store {
            Store::Directory(directory) => {
                let mut partial = directory.begin(&name)?;
                let sealed = self.seal(&manifest, &mut collected, keys(), &mut partial.file)?;
                self.read_again(&mut partial.file, &sealed)?;
                partial.publish()?;
                sealed
            }
            Store::S3(bucket) => {
                let mut file = tempfile::tempfile_in(staging.path())?;
                let sealed = self.seal(&manifest, &mut collected, keys(), &mut file)?;
                self.read_again(&mut file, &sealed)?;
                self.upload(bucket, &name, file, sealed.0)?;
                sealed
            }
        };
        let database = manifest.database.as_ref();
        Ok(Written {
            location: self.decided.location.to_string(),
            name,
            begun: self.begun,
            seconds: clock::now().saturating_sub(self.begun),
            bytes,
            sha256,
            encrypted: !self.decided.encrypt_to.is_empty(),
            secrets: manifest.secrets,
            links: database.map_or(0, |database| database.links),
            clicks: database.and_then(|database| database.clicks),
        })
    }

    /// Checks that the location can be written to, and removes what interrupted backups have left there.
    fn prepare(&mut self, store: &Store) -> anyhow::Result<()> {
        match store {
            Store::Directory(directory) => {
                directory.remove_leftovers()?;
                // Dropping it removes it.
                drop(directory.begin(&format!("{}.probe", names::stamp(self.begun)))?);
                Ok(())
            }
            Store::S3(bucket) => {
                self.reporter.doing("asking the server");
                store.files()?;
                for upload in std::mem::take(&mut self.record.uploads) {
                    if let Err(error) = bucket.abort(&upload.object, &upload.id) {
                        self.reporter
                            .notice(&format!("an upload that was interrupted could not be ended: {error:#}"));
                        self.record.uploads.push(upload);
                    }
                }
                Ok(())
            }
        }
    }

    /// Copies the database to `staging`, reads the files, and describes them.
    fn collect(&self, staging: &Path) -> anyhow::Result<(Manifest, Vec<Collected>)> {
        let mut collected = {
            let _certificates = match self.decided.secrets {
                // So that the certificates and their keys fit together.
                true => certificates::lock(self.layout, CERTIFICATES_TIMEOUT)?,
                false => None,
            };
            collect::collect(self.layout.root(), self.decided.secrets)?
        };
        let copy = staging.join("links.db");
        let database = self.copy_database(&copy)?;
        if database.is_some() {
            collected.push(collect::database(&copy)?);
        }
        let entries = collected.iter().map(|found| found.entry.clone()).collect();
        let schema = u32::try_from(SCHEMA.len())?;
        let manifest = Manifest::new(self.begun, schema, database, self.decided.secrets, entries);
        Ok((manifest, collected))
    }

    fn copy_database(&self, copy: &Path) -> anyhow::Result<Option<Database>> {
        let edited = ConfigFiles::new(self.layout);
        let database = load::database(&edited).with_context(|| {
            format!(
                "{} has errors: `linksctl check` lists them",
                edited.runtime_toml().display()
            )
        })?;
        let work = &self.appliance.database_work;
        if let runtime::Database::LibSql(_) = database {
            self.reporter.notice(
                "the database is on a server: the backup gets the links, and the server's own backups keep the clicks",
            );
            let links = work.copy_from_server(copy)?;
            return Ok(Some(Database {
                kind: Kind::Links,
                schema: u32::try_from(SCHEMA.len())?,
                links,
                clicks: None,
                journals: vec![],
            }));
        }
        let Some(path) = database.file(edited.places()).filter(|path| path.exists()) else {
            return Ok(None);
        };
        let bytes = links_release::sqlite::size(&path).unwrap_or(0);
        require_space(copy.parent().unwrap_or(Path::new("/")), bytes, "a backup")?;
        let facts = work.snapshot(&path, copy)?;
        Ok(Some(Database {
            kind: Kind::Whole,
            schema: facts.schema,
            links: facts.links,
            clicks: Some(facts.clicks),
            journals: facts.journals,
        }))
    }

    /// Writes the archive through links-backup to `file`. Returns the size and the digest of what was written.
    fn seal(
        &self,
        manifest: &Manifest,
        collected: &mut [Collected],
        keys: impl Iterator<Item = OsString>,
        file: &mut File,
    ) -> anyhow::Result<(u64, String)> {
        self.reporter.doing("compressing");
        let arguments = [OsString::from("seal")].into_iter().chain(keys);
        let mut sealing = Child::start(self.layout.root(), arguments, Stdio::piped(), Stdio::piped())?;
        let (input, output) = (sealing.input()?, sealing.output()?);
        let mut counting = Counting::new(&mut *file);
        let (archived, pumped) = thread::scope(|scope| {
            // The end of this thread closes the pipe.
            let writer = scope.spawn(|| archive::write(manifest, collected, io::BufWriter::new(input)));
            let pumped = pump(output, &mut counting, "the backup");
            let archived = writer
                .join()
                .unwrap_or_else(|_| Err(anyhow!("the thread that reads the files has panicked")));
            (archived, pumped)
        });
        // A full disk breaks the pipes behind it.
        pumped?;
        let is_broken = |error: &anyhow::Error| {
            let mut causes = error.chain().filter_map(|cause| cause.downcast_ref::<io::Error>());
            causes.any(|cause| cause.kind() == io::ErrorKind::BrokenPipe)
        };
        match archived {
            // links-backup has the reason.
            Err(error) if is_broken(&error) => {
                sealing.finish()?;
                return Err(error);
            }
            archived => archived?,
        }
        sealing.finish()?;
        let sealed = counting.sum();
        file.flush()?;
        Ok(sealed)
    }

    /// Checks that the disk has what was written.
    fn read_again(&self, file: &mut File, sealed: &(u64, String)) -> anyhow::Result<()> {
        self.reporter.doing("reading it again");
        file.sync_all().context("Writing the backup")?;
        // Otherwise the memory would answer instead of the disk (posix_fadvise(2)). Not every file system can do that.
        let _ = rustix::fs::fadvise(&*file, 0, None, rustix::fs::Advice::DontNeed);
        file.rewind()?;
        let found = digest::of(file).context("Reading the backup again")?;
        ensure!(
            found == *sealed,
            Problem::Damaged.error("the disk does not have what was written to it: it may be failing")
        );
        Ok(())
    }

    fn upload(&mut self, bucket: &Bucket, name: &str, mut file: File, bytes: u64) -> anyhow::Result<()> {
        self.reporter.doing("uploading");
        file.rewind()?;
        let object = bucket.location.join(name).to_string();
        let arguments = ["put", &object, &bytes.to_string()].map(OsString::from);
        let mut uploading = Child::start(&bucket.root, arguments, Stdio::from(file), Stdio::piped())?;
        let mut events = io::BufReader::new(uploading.output()?);
        let mut line = String::new();
        while io::BufRead::read_line(&mut events.by_ref().take(64 * 1024), &mut line)? > 0 {
            if let Uploading::Begun { id } = serde_json::from_str(&line).context("Parsing an event of the upload")? {
                // If this process is killed, the next backup ends the upload.
                let upload = Upload {
                    object: object.clone(),
                    id,
                };
                self.record.uploads.push(upload);
                self.record.write(&self.layout.backups_record())?;
            }
            line.clear();
        }
        uploading.finish()?;
        self.record.uploads.retain(|upload| upload.object != object);
        Ok(())
    }

    fn keep_record(&mut self, written: &Written) -> anyhow::Result<()> {
        match self.decided.is_configured {
            true => self.record.succeeded(written.clone(), clock::now()),
            // A backup elsewhere does not end the failures of the timer.
            false => self.record.add(written.clone()),
        }
        self.record.write(&self.layout.backups_record())
    }

    /// Removes old backups from the location of links.toml, and returns their names.
    fn prune(&mut self, keep: usize) -> anyhow::Result<Vec<String>> {
        if !self.decided.is_configured {
            return Ok(vec![]);
        }
        let location = self.decided.location.to_string();
        let remove = || -> anyhow::Result<prune::Decision> {
            let store = Store::open(self.layout, &self.decided.location)?;
            let decision = prune::decide(&self.record.written, &location, &store.files()?, keep);
            store.remove(&decision.remove)?;
            Ok(decision)
        };
        let decision = remove().context("The backup is complete, but old ones could not be removed")?;
        let is_gone = |name: &String| decision.remove.contains(name) || decision.forget.contains(name);
        self.record
            .written
            .retain(|written| written.location != location || !is_gone(&written.name));
        self.record.write(&self.layout.backups_record())?;
        Ok(decision.remove)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use super::*;

    const KEYS: [&str; 2] = [
        "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p",
        "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8q",
    ];

    fn request() -> Request {
        Request {
            to: None,
            encrypt_to: vec![],
            plain_secrets: false,
            is_scheduled: false,
            style: Style::Text,
        }
    }

    fn key(index: usize) -> Vec<Recipient> {
        vec![KEYS[index].parse().unwrap()]
    }

    #[test]
    fn the_command_line_takes_precedence_over_links_toml() {
        let root = tempfile::tempdir().unwrap();
        let here = Location::Path(root.path().to_owned());
        let settings = Settings {
            to: Some(here.clone()),
            encrypt_to: key(0),
            ..Settings::default()
        };
        let by_default = decide(&request(), &settings).unwrap();
        assert_eq!(
            (&by_default.location, by_default.is_configured, by_default.secrets),
            (&here, true, true)
        );
        assert_eq!(by_default.encrypt_to, key(0));

        let mut asked = request();
        asked.encrypt_to = key(1);
        asked.to = Some(here.join("mine.tar.zst"));
        let decided = decide(&asked, &settings).unwrap();
        assert_eq!(
            (decided.encrypt_to, decided.name.as_deref(), decided.is_configured),
            (key(1), Some("mine.tar.zst"), false)
        );
    }

    #[test]
    fn secrets_are_only_in_a_backup_that_is_encrypted_or_asked_to_have_them() {
        let root = tempfile::tempdir().unwrap();
        let mut settings = Settings {
            to: Some(Location::Path(root.path().to_owned())),
            ..Settings::default()
        };
        let secrets = |request: &Request, settings: &Settings| {
            let decided = decide(request, settings).unwrap();
            (decided.secrets, !decided.encrypt_to.is_empty())
        };
        assert_eq!(secrets(&request(), &settings), (false, false));
        let plain = Request {
            plain_secrets: true,
            ..request()
        };
        assert_eq!(secrets(&plain, &settings), (true, false));
        settings.plain_secrets = true;
        assert_eq!(secrets(&request(), &settings), (true, false));
        settings.plain_secrets = false;
        settings.encrypt_to = key(0);
        assert_eq!(secrets(&request(), &settings), (true, true));
        // A person who wants plain secrets does not want them encrypted.
        assert_eq!(secrets(&plain, &settings), (true, false));
    }

    #[test]
    fn the_directory_of_links_toml_does_not_become_a_file() {
        let root = tempfile::tempdir().unwrap();
        let missing = Location::Path(root.path().join("unmounted"));
        let settings = Settings {
            to: Some(missing.clone()),
            ..Settings::default()
        };
        let decided = decide(&request(), &settings).unwrap();
        assert_eq!(
            (decided.location, decided.name, decided.is_configured),
            (missing, None, true)
        );
    }

    #[test]
    fn without_a_location_there_is_no_backup() {
        assert!(decide(&request(), &Settings::default()).is_err());
    }

    #[test]
    fn the_timer_makes_backups_only_if_links_toml_says_so() {
        let now = 1_900_000_000;
        let mut settings = Settings::default();
        let mut record = Backups::default();
        assert!(!is_due(&settings, &record, now));
        settings.every = Some(Duration::from_secs(86_400));
        settings.to = Some("/b".parse().unwrap());
        assert!(is_due(&settings, &record, now));
        // A backup elsewhere is not the one that is wanted.
        let name = names::backup(now - 10, false);
        record.succeeded(Written::at("/other", &name, now - 10), now - 9);
        assert!(is_due(&settings, &record, now));
        // Neither is one that a person named.
        record.add(Written::at("/b", "mine.tar.zst", now - 10));
        assert!(is_due(&settings, &record, now));
        record.succeeded(Written::at("/b", &name, now - 10), now - 9);
        assert!(!is_due(&settings, &record, now));
    }

    #[test]
    fn a_clock_that_is_set_back_costs_one_backup_and_not_one_at_each_call() {
        let now = 1_900_000_000;
        let settings = Settings {
            every: Some(Duration::from_secs(86_400)),
            to: Some("/b".parse().unwrap()),
            ..Settings::default()
        };
        let mut record = Backups::default();
        record.succeeded(Written::at("/b", &names::backup(now, false), now), now + 1);
        let made = (0..8).filter(|quarter| {
            let set_back = now - 30 * 86_400 + quarter * 900;
            let is_due = is_due(&settings, &record, set_back);
            if is_due {
                let name = names::backup(set_back, false);
                record.succeeded(Written::at("/b", &name, set_back), set_back + 1);
            }
            is_due
        });
        assert_eq!(made.count(), 1);
    }
}
