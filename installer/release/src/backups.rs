//! The record of the backups that this host has written, for `linksctl status`, the metrics, and the decision which of them to
//! remove. It contains no secret.

use std::fs;
use std::io;
use std::path::Path;

use anyhow::{Context as _, ensure};
use serde::{Deserialize, Serialize};

use links_base::files;

/// The format that this version writes and understands.
const FORMAT: u32 = 1;

/// The contents of `Layout::backups_record`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Backups {
    format: u32,
    /// The last attempt at the location of links.toml.
    pub last: Option<Attempt>,
    /// How many attempts in a row have failed, if the last one did.
    pub failures: u32,
    /// The backups that were written and not removed by links, in the order in which they were written.
    pub written: Vec<Written>,
    /// Uploads that were begun and perhaps not ended.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub uploads: Vec<Upload>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Attempt {
    /// The directory, or the prefix in S3.
    pub location: String,
    /// In seconds since 1970.
    pub begun: u64,
    pub ended: u64,
    /// Why it failed. `None` if it succeeded.
    pub error: Option<String>,
}

/// A backup that was written and read again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Written {
    /// The directory, or the prefix in S3.
    pub location: String,
    pub name: String,
    /// When the backup was begun, in seconds since 1970.
    pub begun: u64,
    pub seconds: u64,
    pub bytes: u64,
    pub sha256: String,
    pub encrypted: bool,
    pub secrets: bool,
    /// The number of links in it.
    pub links: u64,
    /// The number of clicks in it. `None` if it holds none, because the database is on a server.
    pub clicks: Option<u64>,
}

/// An upload in parts, which takes space on the server until it is ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upload {
    /// The object, as `s3://BUCKET/KEY`.
    pub object: String,
    pub id: String,
}

impl Default for Backups {
    fn default() -> Self {
        Self {
            format: FORMAT,
            last: None,
            failures: 0,
            written: vec![],
            uploads: vec![],
        }
    }
}

impl Backups {
    /// Reads the record. An empty one if there is none.
    ///
    /// # Errors
    /// It cannot be read, or a later version has written it.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let bytes = match fs::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            bytes => bytes.with_context(|| format!("Reading {}", path.display()))?,
        };
        let record: Self = serde_json::from_slice(&bytes).with_context(|| format!("Reading {}", path.display()))?;
        ensure!(
            record.format == FORMAT,
            "{} has the format {}, which this version does not know",
            path.display(),
            record.format
        );
        Ok(record)
    }

    /// Writes the record and syncs it.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, path: &Path) -> anyhow::Result<()> {
        files::replace(path, &serde_json::to_vec_pretty(self)?, 0o644)
    }

    /// The backup that was written last in a location, or in any location. Its time is not always the latest one, because a clock
    /// can be set back.
    pub fn latest_in(&self, location: Option<&str>) -> Option<&Written> {
        let is_here = |written: &&Written| location.is_none_or(|location| written.location == location);
        self.written.iter().rfind(is_here)
    }

    /// The last attempt at a location, and how many attempts there have failed in a row.
    pub fn last_at(&self, location: &str) -> Option<(&Attempt, u32)> {
        let last = self.last.as_ref().filter(|last| last.location == location)?;
        Some((last, self.failures))
    }

    /// Notes an attempt that failed.
    pub fn failed(&mut self, location: &str, begun: u64, ended: u64, error: String) {
        let before = self.last_at(location).map_or(0, |(_, failures)| failures);
        self.failures = before.saturating_add(1);
        self.last = Some(Attempt {
            location: location.to_owned(),
            begun,
            ended,
            error: Some(error),
        });
    }

    /// Notes a backup that was written to the location of links.toml.
    pub fn succeeded(&mut self, written: Written, ended: u64) {
        self.failures = 0;
        self.last = Some(Attempt {
            location: written.location.clone(),
            begun: written.begun,
            ended,
            error: None,
        });
        self.add(written);
    }

    /// Notes a backup that was written to any location.
    pub fn add(&mut self, written: Written) {
        self.written
            .retain(|other| (&other.location, &other.name) != (&written.location, &written.name));
        self.written.push(written);
    }
}

#[cfg(any(test, feature = "testing"))]
impl Written {
    /// A backup that was begun at this time.
    pub fn at(location: &str, name: &str, begun: u64) -> Self {
        Self {
            location: location.to_owned(),
            name: name.to_owned(),
            begun,
            seconds: 3,
            bytes: 1000,
            sha256: "00".to_owned(),
            encrypted: false,
            secrets: false,
            links: 10,
            clicks: Some(20),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic fails the test")]
mod tests {
    use super::*;
    use links_base::layout::{Layout, temporary};

    #[test]
    fn a_record_is_written_and_read_back() {
        let (_root, layout) = temporary(&[Layout::state_dir]);
        let path = layout.backups_record();
        let mut record = Backups::read(&path).unwrap();
        assert_eq!(record, Backups::default());
        record.failed("/a", 5, 6, "the disk is full".to_owned());
        record.failed("/b", 10, 11, "the disk is full".to_owned());
        record.failed("/b", 20, 21, "the disk is full".to_owned());
        assert_eq!((record.failures, record.latest_in(None)), (2, None));
        assert_eq!(
            record.last_at("/b").map(|(last, failures)| (last.begun, failures)),
            Some((20, 2))
        );
        assert_eq!(record.last_at("/a"), None);
        record.succeeded(Written::at("/b", "two", 30), 33);
        // The clock was set back.
        record.succeeded(Written::at("/b", "one", 25), 28);
        assert_eq!(
            record.latest_in(Some("/b")).map(|written| written.name.as_str()),
            Some("one")
        );
        // The same file again.
        record.succeeded(Written::at("/b", "two", 30), 33);
        record.write(&path).unwrap();
        let read = Backups::read(&path).unwrap();
        assert_eq!(read, record);
        assert_eq!((read.failures, read.written.len()), (0, 2));
        let latest = |location| read.latest_in(location).map(|written| written.name.as_str());
        assert_eq!(
            (latest(None), latest(Some("/b")), latest(Some("/c"))),
            (Some("two"), Some("two"), None)
        );
        assert_eq!(read.last.as_ref().and_then(|last| last.error.clone()), None);
    }

    #[test]
    fn a_record_of_a_later_version_is_not_overwritten() {
        let (_root, layout) = temporary(&[Layout::state_dir]);
        let path = layout.backups_record();
        fs::write(&path, r#"{"format": 2, "last": null, "failures": 0, "written": []}"#).unwrap();
        assert!(Backups::read(&path).is_err());
    }
}
