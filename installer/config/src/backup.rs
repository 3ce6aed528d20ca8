//! Where backups go and for whom they are encrypted, as links.toml and the command line write it.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize, Serializer};

/// Name of the credential with the access key ID for S3.
pub const S3_ACCESS_KEY_ID: &str = "s3_access_key_id";
/// Name of the credential with the secret access key for S3.
pub const S3_SECRET_ACCESS_KEY: &str = "s3_secret_access_key";
/// Credentials that the instances do not get.
pub const NOT_FOR_INSTANCES: [&str; 2] = [S3_ACCESS_KEY_ID, S3_SECRET_ACCESS_KEY];

/// The beginning of a location in S3.
const S3_SCHEME: &str = "s3://";

/// A location for backups, or one backup: a path, or `s3://BUCKET/PREFIX`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Location {
    Path(PathBuf),
    S3(S3Location),
}

/// A prefix or a key in a bucket.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct S3Location {
    pub bucket: String,
    /// Without a slash at its beginning or end. Empty for the whole bucket.
    pub key: String,
}

impl S3Location {
    /// The location of `name` below this one.
    #[must_use]
    pub fn join(&self, name: &str) -> Self {
        Self {
            bucket: self.bucket.clone(),
            key: match self.key.as_str() {
                "" => name.to_owned(),
                prefix => format!("{prefix}/{name}"),
            },
        }
    }

    /// The part of a key after this prefix and a slash. `None` for a key elsewhere.
    pub fn name_of<'k>(&self, key: &'k str) -> Option<&'k str> {
        match self.key.as_str() {
            "" => Some(key),
            prefix => key.strip_prefix(prefix)?.strip_prefix('/'),
        }
    }
}

impl Location {
    /// The location of the file `name` below this one.
    #[must_use]
    pub fn join(&self, name: &str) -> Self {
        match self {
            Self::Path(directory) => Self::Path(directory.join(name)),
            Self::S3(prefix) => Self::S3(prefix.join(name)),
        }
    }
}

impl FromStr for S3Location {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let rest = text
            .strip_prefix(S3_SCHEME)
            .ok_or_else(|| format!("must start with {S3_SCHEME}"))?;
        let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
        // Amazon S3 User Guide, "General purpose bucket naming rules".
        let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'.' | b'-');
        if !(3..=63).contains(&bucket.len()) || !bucket.bytes().all(is_plain) {
            return Err(format!(
                "the bucket \"{}\" must have 3 to 63 lower-case letters, digits, dots and hyphens",
                bucket.escape_debug()
            ));
        }
        let key = key.trim_end_matches('/');
        if key.starts_with('/') || key.contains("//") || key.contains(char::is_control) {
            return Err("the prefix after the bucket must not have an empty part".to_owned());
        }
        Ok(Self {
            bucket: bucket.to_owned(),
            key: key.to_owned(),
        })
    }
}

impl FromStr for Location {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.starts_with(S3_SCHEME) {
            return text.parse().map(Self::S3);
        }
        if text.is_empty() {
            return Err("must not be empty".to_owned());
        }
        if let Some((scheme, _)) = text.split_once("://") {
            return Err(format!(
                "`{scheme}` is unknown: write a path or {S3_SCHEME}BUCKET/PREFIX"
            ));
        }
        // Each directory has one spelling, because locations are compared as texts.
        std::path::absolute(Path::new(text))
            .map(|path| Self::Path(path.components().collect()))
            .map_err(|error| error.to_string())
    }
}

impl fmt::Display for S3Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.key.as_str() {
            "" => write!(f, "{S3_SCHEME}{}", self.bucket),
            key => write!(f, "{S3_SCHEME}{}/{key}", self.bucket),
        }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => path.display().fmt(f),
            Self::S3(location) => location.fmt(f),
        }
    }
}

impl Serialize for Location {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A public key of age for X25519, `age1...` (age's specification, "The X25519 recipient type"). Only the form is checked
/// here: links-backup checks the checksum.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Recipient(String);

impl Recipient {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Recipient {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const LENGTH: usize = 62;
        // BIP 173, "Bech32".
        const DIGITS: &str = "qpzry9x8gf2tvdw0s3jn54khce6mua7l";
        if text.to_ascii_uppercase().starts_with("AGE-SECRET-KEY-") {
            // Not repeated, because it is a secret.
            return Err(
                "is a secret key of age, which must not be on this host: use its public key, age1...".to_owned(),
            );
        }
        match text.strip_prefix("age1") {
            Some(digits) if text.len() == LENGTH && digits.chars().all(|digit| DIGITS.contains(digit)) => {
                Ok(Self(text.to_owned()))
            }
            _ => Err(format!(
                "must be a public key of age: age1 and {} more letters and digits (`age-keygen` prints it)",
                LENGTH - "age1".len()
            )),
        }
    }
}

impl fmt::Display for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Why a backup cannot be made or used, for programs. links-backup ends with [`Problem::exit_code`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Problem {
    /// The file was changed or cut off, or it is no backup.
    Damaged,
    /// There is no such file, directory, bucket or object.
    Missing,
    /// A server does not answer.
    Unreachable,
    /// A server refuses.
    Refused,
    /// The file is encrypted, and no key was given.
    Locked,
    /// None of the keys opens the file.
    WrongKey,
    /// A later version has made the backup.
    Newer,
    /// There is no space left.
    Full,
    ReadOnly,
    /// The host would lose something, so it takes `--force`.
    Refusal,
    Other,
}

impl Problem {
    /// The problems that links-backup reports by its exit status. The first ones are those of sysexits.h.
    const EXIT_CODES: [(Self, u8); 6] = [
        (Self::Damaged, 65),
        (Self::Missing, 66),
        (Self::Unreachable, 69),
        (Self::Refused, 80),
        (Self::Locked, 81),
        (Self::WrongKey, 82),
    ];

    pub fn exit_code(self) -> u8 {
        let mut codes = Self::EXIT_CODES.iter();
        codes.find(|(problem, _)| *problem == self).map_or(1, |(_, code)| *code)
    }

    pub fn of_exit_code(code: i32) -> Self {
        let mut codes = Self::EXIT_CODES.iter();
        codes
            .find(|(_, known)| i32::from(*known) == code)
            .map_or(Self::Other, |(problem, _)| *problem)
    }

    /// The problem that an error is about.
    pub fn of(error: &anyhow::Error) -> Self {
        let known = error.chain().find_map(|cause| {
            if let Some(known) = cause.downcast_ref::<WithProblem>() {
                return Some(known.problem);
            }
            match cause.downcast_ref::<io::Error>()?.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Some(Self::Full),
                io::ErrorKind::ReadOnlyFilesystem => Some(Self::ReadOnly),
                io::ErrorKind::NotFound => Some(Self::Missing),
                _ => None,
            }
        });
        known.unwrap_or(Self::Other)
    }

    /// An error about this problem.
    pub fn error(self, text: impl Into<String>) -> anyhow::Error {
        anyhow::Error::new(WithProblem {
            problem: self,
            text: text.into(),
        })
    }
}

/// An error whose problem is known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct WithProblem {
    pub problem: Problem,
    text: String,
}

/// What links-backup prints while it uploads, one event per line as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Uploading {
    /// An upload in parts was begun. Until it is ended, its parts take space on the server.
    Begun { id: String },
    /// The object is complete.
    Done,
}

/// An object in S3, as links-backup lists it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Object {
    pub name: String,
    pub bytes: u64,
}

/// What a database of links holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatabaseFacts {
    /// The version of the tables. 0 if there are none.
    pub schema: u32,
    pub links: u64,
    /// Clicks on all links, those of bots included. They are only as recent as `journals` says.
    pub clicks: u64,
    /// How far each click journal has been counted, the latest first.
    pub journals: Vec<JournalPosition>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JournalPosition {
    /// The random name of the journal.
    pub journal: String,
    /// In bytes.
    pub position: u64,
}

/// `[backup]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Settings {
    /// The time between two backups. `None` if the timer is off.
    pub every: Option<Duration>,
    /// The time of the day in UTC from which `every` is counted.
    pub at: Duration,
    /// A directory, or a prefix in S3.
    pub to: Option<Location>,
    /// How many of the backups in `to` are kept. 0 keeps all.
    pub keep: u16,
    /// The keys for which a backup is encrypted. Without one it is not encrypted.
    pub encrypt_to: Vec<Recipient>,
    /// Whether a backup that is not encrypted contains secrets.
    pub plain_secrets: bool,
    /// The origin of an S3 server, such as `https://s3.example.org`. `None` for Amazon's in `s3_region`.
    pub s3_endpoint: Option<String>,
    pub s3_region: String,
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use super::*;

    const KEY: &str = "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p";

    #[test]
    fn a_location_is_a_path_or_a_prefix_in_a_bucket() {
        for (text, shown) in [
            ("/var/backups/links", "/var/backups/links"),
            ("/var//backups/./links/", "/var/backups/links"),
            ("s3://backups", "s3://backups"),
            ("s3://backups/", "s3://backups"),
            ("s3://backups/vm-1/links/", "s3://backups/vm-1/links"),
        ] {
            assert_eq!(text.parse::<Location>().unwrap().to_string(), shown);
        }
        assert!("relative".parse::<Location>().unwrap().to_string().starts_with('/'));
        for text in [
            "",
            "s3://",
            "s3://ab",
            "s3://Upper/x",
            "s3://backups//x",
            "https://x.example/",
        ] {
            assert!(text.parse::<Location>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_name_of_a_key_is_relative_to_the_prefix() {
        let whole: S3Location = "s3://backups".parse().unwrap();
        let prefix: S3Location = "s3://backups/vm".parse().unwrap();
        for location in [&whole, &prefix] {
            let below = location.join("a.tar.zst");
            assert_eq!(location.name_of(&below.key), Some("a.tar.zst"));
        }
        assert_eq!(prefix.name_of("vm2/a.tar.zst"), None);
    }

    #[test]
    fn the_problem_of_an_error_is_found_through_its_context() {
        let error = Problem::WrongKey.error("no").context("Opening a file");
        assert_eq!(Problem::of(&error), Problem::WrongKey);
        assert_eq!(format!("{error:#}"), "Opening a file: no");
        let full = anyhow::Error::new(io::Error::from(io::ErrorKind::StorageFull)).context("Writing");
        assert_eq!(Problem::of(&full), Problem::Full);
        assert_eq!(Problem::of(&anyhow::anyhow!("x")), Problem::Other);
        for (problem, code) in Problem::EXIT_CODES {
            assert_eq!(Problem::of_exit_code(problem.exit_code().into()), problem, "{code}");
        }
        assert_eq!(
            (Problem::Other.exit_code(), Problem::of_exit_code(1)),
            (1, Problem::Other)
        );
    }

    #[test]
    fn a_recipient_is_a_public_key_and_a_secret_key_is_not_repeated() {
        assert_eq!(KEY.parse::<Recipient>().unwrap().as_str(), KEY);
        for text in ["", "age1", &KEY[..61], &KEY.to_uppercase(), "ssh-ed25519 AAAA"] {
            assert!(text.parse::<Recipient>().is_err(), "{text}");
        }
        let secret = "AGE-SECRET-KEY-1HUSH";
        assert!(!secret.parse::<Recipient>().unwrap_err().contains("HUSH"));
    }
}
