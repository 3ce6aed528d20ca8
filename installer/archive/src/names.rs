//! The names of backups, and the times in them.

use time::format_description::BorrowedFormatItem;
use time::macros::format_description;
use time::{OffsetDateTime, PrimitiveDateTime};

/// The basic format of ISO 8601, which is a plain file name and sorts by time.
const STAMP: &[BorrowedFormatItem<'_>] = format_description!("[year][month][day]T[hour][minute][second]Z");
const PREFIX: &str = "links-";
/// The end of the name of a backup that is not encrypted.
pub const PLAIN: &str = ".tar.zst";
const ENCRYPTED: &str = ".tar.zst.age";

/// A time in seconds since 1970 as a part of a file name, such as `20301231T235959Z`.
pub fn stamp(seconds: u64) -> String {
    let time = i64::try_from(seconds)
        .ok()
        .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok());
    let text = time.and_then(|time| time.format(STAMP).ok());
    // A clock past the year 9999 is wrong anyway.
    text.unwrap_or_else(|| seconds.to_string())
}

/// The name of a backup that was begun at this time.
pub fn backup(seconds: u64, is_encrypted: bool) -> String {
    let extension = if is_encrypted { ENCRYPTED } else { PLAIN };
    format!("{PREFIX}{}{extension}", stamp(seconds))
}

/// The time in the name of a backup. `None` if the name is not one of [`backup`].
pub fn time_of(name: &str) -> Option<u64> {
    let rest = name.strip_prefix(PREFIX)?;
    let stamp = rest.strip_suffix(ENCRYPTED).or_else(|| rest.strip_suffix(PLAIN))?;
    let time = PrimitiveDateTime::parse(stamp, STAMP).ok()?.assume_utc();
    u64::try_from(time.unix_timestamp()).ok()
}

/// Whether a name is that of an encrypted backup.
pub fn is_encrypted(name: &str) -> bool {
    name.ends_with(ENCRYPTED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_its_time_and_sorts_by_it() {
        let names = [(1_900_000_000, true), (1_900_000_001, false)].map(|(at, encrypted)| backup(at, encrypted));
        assert_eq!(names[0], "links-20300317T174640Z.tar.zst.age");
        assert!(names[0] < names[1]);
        assert_eq!(
            names.clone().map(|name| time_of(&name)),
            [Some(1_900_000_000), Some(1_900_000_001)]
        );
        assert!(is_encrypted(&names[0]) && !is_encrypted(&names[1]));
    }

    #[test]
    fn other_names_have_no_time() {
        for name in [
            "links-20300317T174640Z.tar",
            "links-20300317.tar.zst",
            "links-20301317T174640Z.tar.zst",
            ".links-20300317T174640Z.tar.zst.partial",
            "other.tar.zst",
        ] {
            assert_eq!(time_of(name), None, "{name}");
        }
    }
}
