//! The conversion of CHANGELOG.md to Debian's format, and the timestamp of the files in a package.

use anyhow::Context as _;
use time::format_description::well_known::{Iso8601, Rfc2822};
use time::{Date, Duration, Time};

/// One release of CHANGELOG.md.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Release {
    pub version: String,
    pub date: Date,
    /// The list items, each as one line of text.
    pub points: Vec<String>,
}

/// The project's own changelog, newest release first, as it was at compile time.
///
/// # Errors
/// Fails if [`parse`] cannot read CHANGELOG.md. A test prevents that.
pub fn own() -> anyhow::Result<Vec<Release>> {
    parse(include_str!("../../../CHANGELOG.md")).context("Reading CHANGELOG.md")
}

/// Reads the format of keepachangelog.com: `## [VERSION] - YYYY-MM-DD` or `## VERSION - YYYY-MM-DD`, followed by list items
/// (`- ...`, continuation lines indented). The section `## Unreleased` and any text outside of list items is skipped.
///
/// # Errors
/// Fails for another kind of heading, for a release without list items, and if there is no release.
pub fn parse(markdown: &str) -> anyhow::Result<Vec<Release>> {
    let mut releases: Vec<Release> = Vec::new();
    let mut listening = false;
    for line in markdown.lines() {
        if let Some(heading) = line.strip_prefix("## ") {
            let heading = heading.trim();
            listening = !heading.trim_matches(['[', ']']).eq_ignore_ascii_case("unreleased");
            if listening {
                releases.push(release(heading)?);
            }
            continue;
        }
        let Some(current) = releases.last_mut().filter(|_| listening) else {
            continue;
        };
        if let Some(point) = line.strip_prefix("- ").or_else(|| line.strip_prefix("* ")) {
            current.points.push(point.trim().to_owned());
        } else if line.starts_with(' ')
            && let Some(point) = current.points.last_mut()
        {
            point.push(' ');
            point.push_str(line.trim());
        }
    }
    anyhow::ensure!(!releases.is_empty(), "no `## VERSION - YYYY-MM-DD` heading");
    if let Some(empty) = releases.iter().find(|release| release.points.is_empty()) {
        anyhow::bail!("the release {} has no list item (`- ...`)", empty.version);
    }
    Ok(releases)
}

fn release(heading: &str) -> anyhow::Result<Release> {
    let form = || format!("the heading `## {heading}` is not `## VERSION - YYYY-MM-DD`");
    let (version, date) = heading.split_once(" - ").with_context(form)?;
    Ok(Release {
        version: version.trim().trim_matches(['[', ']']).to_owned(),
        date: Date::parse(date.trim(), &Iso8601::PARSING).with_context(form)?,
        points: Vec::new(),
    })
}

/// The text of `/usr/share/doc/PACKAGE/changelog` (deb-changelog(5)). Its first entry must be for the packed version. If
/// CHANGELOG.md has no such entry, one is added that names the release of the sources.
///
/// # Errors
/// Fails if a date cannot be formatted, which does not happen in practice.
pub fn debian(releases: &[Release], package: &str, version: &str, maintainer: &str) -> anyhow::Result<String> {
    use std::fmt::Write as _;
    let mut entries = releases.to_vec();
    if let Some(newest) = releases.first().filter(|newest| newest.version != version) {
        let packed = Release {
            version: version.to_owned(),
            date: newest.date,
            points: vec![format!("Packed as {version} from the sources of {}.", newest.version)],
        };
        entries.insert(0, packed);
    }
    let mut text = String::new();
    for (index, entry) in entries.iter().enumerate() {
        writeln!(text, "{package} ({}) stable; urgency=medium\n", entry.version)?;
        for point in &entry.points {
            write_point(&mut text, point);
        }
        // Each entry must be newer than the one below it. Entries of one day are a second apart.
        let older = entries[index + 1..]
            .iter()
            .filter(|older| older.date == entry.date)
            .count();
        let time = midnight(entry.date) + Duration::seconds(i64::try_from(older)?);
        writeln!(text, "\n -- {maintainer}  {}\n", time.format(&Rfc2822)?)?;
    }
    Ok(text)
}

/// Writes `  * ` and the text in lines of at most 78 columns, as is usual in Debian's changelogs.
fn write_point(text: &mut String, point: &str) {
    let mut column = 0;
    for word in point.split_whitespace() {
        let width = word.chars().count();
        if column == 0 {
            text.push_str("  * ");
            column = 4;
        } else if column + 1 + width > 78 {
            text.push_str("\n    ");
            column = 4;
        } else {
            text.push(' ');
            column += 1;
        }
        text.push_str(word);
        column += width;
    }
    text.push('\n');
}

/// The timestamp of every file in the packages, in seconds since 1970. It is `SOURCE_DATE_EPOCH`
/// (reproducible-builds.org/specs/source-date-epoch), or else the date of the newest release, so that the same sources always
/// give the same packages.
///
/// # Errors
/// Fails if `SOURCE_DATE_EPOCH` is not a number of seconds that fits into an archive, or if there is no release.
pub fn timestamp(source_date_epoch: Option<&str>, releases: &[Release]) -> anyhow::Result<u64> {
    if let Some(text) = source_date_epoch.filter(|text| !text.is_empty()) {
        return text
            .parse()
            .ok()
            .filter(|&seconds: &u64| seconds <= MAX_TIME)
            .with_context(|| {
                format!("SOURCE_DATE_EPOCH is {text:?}, not a number of seconds since 1970; unset or correct it")
            });
    }
    let newest = releases.first().context("CHANGELOG.md names no release")?;
    u64::try_from(midnight(newest.date).unix_timestamp())
        .context("the newest release of CHANGELOG.md is from before 1970")
}

fn midnight(date: Date) -> time::UtcDateTime {
    time::UtcDateTime::new(date, Time::MIDNIGHT)
}

/// The largest time that fits into the eleven octal digits of a tar header.
const MAX_TIME: u64 = 0o777_7777_7777;

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use super::*;

    const MARKDOWN: &str = "# Changelog\n\n- not this\n\n## Unreleased\n\n- nor this\n\n## [1.1.0] - 2026-12-01\n\n\
        ### Added\n\n- One point that is long enough to need a second line in the changelog\n  of Debian, which is \
        narrow.\n- Two.\n\n## 1.0.0 - 2026-11-22\n\nFirst.\n\n* Three.\n";

    #[test]
    fn releases_are_read_newest_first() {
        let releases = parse(MARKDOWN).unwrap();
        assert_eq!(releases.len(), 2);
        assert_eq!(releases[0].version, "1.1.0");
        assert_eq!(
            releases[0].points,
            [
                "One point that is long enough to need a second line in the changelog of Debian, which is narrow.",
                "Two."
            ]
        );
        assert_eq!(releases[1].points, ["Three."]);
    }

    #[test]
    fn another_format_is_an_error_and_not_an_empty_changelog() {
        assert!(parse("# Changelog\n").is_err());
        assert!(parse("## 1.0.0\n- x").unwrap_err().to_string().contains("## 1.0.0"));
        assert!(parse("## 1.0.0 - 2026-13-01\n- x").is_err());
        assert!(
            parse("## 1.0.0 - 2026-12-01\ntext")
                .unwrap_err()
                .to_string()
                .contains("1.0.0")
        );
    }

    #[test]
    fn the_debian_changelog_starts_with_the_packed_version() {
        let releases = parse(MARKDOWN).unwrap();
        let text = debian(&releases, "links-shortener", "1.1.0", "A <a@b.c>").unwrap();
        assert_eq!(
            text,
            "links-shortener (1.1.0) stable; urgency=medium\n\n  * One point that is long enough to need a second \
             line in the changelog of\n    Debian, which is narrow.\n  * Two.\n\n -- A <a@b.c>  Tue, 01 Dec 2026 \
             00:00:00 +0000\n\nlinks-shortener (1.0.0) stable; urgency=medium\n\n  * Three.\n\n -- A <a@b.c>  Sun, \
             22 Nov 2026 00:00:00 +0000\n\n"
        );
        let other = debian(&releases, "links-shortener", "1.2.0", "A <a@b.c>").unwrap();
        assert!(other.starts_with("links-shortener (1.2.0) stable"), "{other}");
        assert!(other.contains("  Tue, 01 Dec 2026 00:00:01 +0000\n"), "{other}");
        assert!(
            other.contains("  * Packed as 1.2.0 from the sources of 1.1.0.\n"),
            "{other}"
        );
    }

    #[test]
    fn the_timestamp_comes_from_the_environment_or_from_the_newest_release() {
        let releases = parse(MARKDOWN).unwrap();
        assert_eq!(timestamp(Some("1700000000"), &releases).unwrap(), 1_700_000_000);
        assert_eq!(timestamp(None, &releases).unwrap(), 1_796_083_200); // date -d 2026-12-01T00:00:00Z +%s
        assert_eq!(timestamp(Some(""), &releases).unwrap(), 1_796_083_200);
        assert!(timestamp(Some("yesterday"), &releases).is_err());
        assert!(timestamp(Some("99999999999999"), &releases).is_err());
    }

    #[test]
    fn the_projects_own_changelog_can_be_read() {
        let releases = own().unwrap();
        assert_eq!(releases[0].version, env!("CARGO_PKG_VERSION"));
    }
}
