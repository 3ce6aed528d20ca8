//! Reads `[backup]` of `links.toml`.

use std::time::Duration;

use super::keys;
use super::settings::Config;
use crate::backup::{Location, Recipient, Settings};
use crate::document::{Problem, Value};
use crate::section::Section;
use crate::value::{duration, one_or_more, origin, string, text};

impl Default for Settings {
    /// The settings of an empty `links.toml`.
    fn default() -> Self {
        Config::default().backup
    }
}

pub fn backup(section: &mut Section<'_, '_>) -> Settings {
    let settings = Settings {
        every: section.given(&keys::BACKUP_EVERY, duration(keys::BACKUP_EVERY.durations())),
        at: section.get(&keys::BACKUP_AT, time_of_day),
        to: section.given(&keys::BACKUP_TO, location),
        keep: section.small(&keys::BACKUP_KEEP),
        encrypt_to: section.given(&keys::BACKUP_ENCRYPT_TO, recipients).unwrap_or_default(),
        plain_secrets: section.boolean(&keys::BACKUP_PLAIN_SECRETS),
        s3_endpoint: section.given(&keys::BACKUP_S3_ENDPOINT, origin),
        s3_region: section.get(&keys::BACKUP_S3_REGION, region),
    };
    if section.has("every") && !section.has("to") {
        section.document().error(
            section.place_of(&["every"]),
            "`backup.every` is set, but not where the backups go",
            Some("write `to = \"/var/backups/links\"` or `to = \"s3://BUCKET/PREFIX\"`".to_owned()),
        );
    }
    if settings.plain_secrets && !settings.encrypt_to.is_empty() {
        section.document().error(
            section.place_of(&["plain_secrets"]),
            "`backup.plain_secrets` is for backups that are not encrypted, but `backup.encrypt_to` is set",
            Some("remove `plain_secrets`: an encrypted backup contains the secrets".to_owned()),
        );
    }
    settings
}

/// A time such as `"03:30"`, as the time since midnight.
fn time_of_day(value: &Value<'_>) -> Result<Duration, Problem> {
    let text = string(value)?;
    let parse = || -> Option<u64> {
        let (hours, minutes) = text.split_once(':')?;
        let number = |digits: &str, below: u64| {
            let is_plain = digits.len() == 2 && digits.bytes().all(|byte| byte.is_ascii_digit());
            let number = digits.parse::<u64>().ok();
            number.filter(|number| is_plain && *number < below)
        };
        Some((number(hours, 24)? * 60 + number(minutes, 60)?) * 60)
    };
    parse().map(Duration::from_secs).ok_or_else(|| {
        Problem::new(format!(
            "must be a time of the day in UTC, found \"{}\"",
            text.escape_debug()
        ))
        .help("write it as \"03:30\"")
    })
}

fn location(value: &Value<'_>) -> Result<Location, Problem> {
    let text = string(value)?;
    let location: Location = text.parse().map_err(Problem::new)?;
    match &location {
        Location::Path(_) if !text.starts_with('/') => {
            Err(Problem::new("must be an absolute path or s3://BUCKET/PREFIX").help("write \"/var/backups/links\""))
        }
        _ => Ok(location),
    }
}

fn recipients(value: &Value<'_>) -> Result<Vec<Recipient>, Problem> {
    one_or_more(recipient)(value)
}

fn recipient(value: &Value<'_>) -> Result<Recipient, Problem> {
    string(value)?.parse().map_err(Problem::new)
}

/// The name of a region is a part of each signature, so a server may accept only its own.
fn region(value: &Value<'_>) -> Result<String, Problem> {
    let region = text(value)?;
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    match region.bytes().all(is_plain) {
        true => Ok(region),
        false => Err(Problem::new("must have only letters, digits, - and _").help("write \"eu-central-1\"")),
    }
}
